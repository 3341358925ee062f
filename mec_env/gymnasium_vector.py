"""Gymnasium's vector interface: S environments of a central agent, in one batch. Start at `MECVectorEnv`."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv

from lad_ts.environment_parameters import EnvironmentParameters
from mec_env.vector import MECVector, without_unknown


class MECVectorEnv(VectorEnv):
    """`MECVector` as a vector environment, which starts ended episodes anew in the same step.

    With per="task" (the default) and per="bs", as `CentralEnv`. At the end of an episode infos have `final_obs` and
    `final_info`, each with its mask.
    """

    metadata = {"autoreset_mode": AutoresetMode.SAME_STEP, "render_modes": []}  # noqa: RUF012

    def __init__(
        self,
        num_envs: int = 1,
        scenario: str | EnvironmentParameters = "paper",
        *,
        per: str = "task",
        observation: str = "relative",
        in_slot: bool = True,
        seed: int = 0,
        render_mode: None = None,
        **changes: Any,
    ) -> None:
        """Arguments are those of `MECVector`. Raises ParameterError."""
        self.mec = MECVector(
            num_envs,
            scenario,
            per=per,
            observation=observation,
            in_slot=in_slot and per == "task",
            reward="team",
            seed=seed,
            **changes,
        )
        self.num_envs, self.render_mode = num_envs, render_mode
        self.single_observation_space = self.mec.single_observation_space
        self.single_action_space = self.mec.single_action_space
        self.observation_space, self.action_space = self.mec.observation_space, self.mec.action_space

    def reset(
        self, *, seed: int | Sequence[int] | None = None, options: Mapping[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Start an episode in all environments, as `MECVector.reset` does."""
        return self.mec.reset(seed, without_unknown(options))

    def step(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Decide in all environments: observations, rewards [S] float64, terminations, truncations [S], infos."""
        observation, reward, terminated, truncated, info = self.mec.step(actions)
        if (final := info.pop("final_observation", None)) is not None:
            finals = np.full(self.num_envs, None, dtype=object)
            for i in truncated.nonzero()[0]:
                finals[i] = final[i]
            info |= {"final_obs": finals, "_final_obs": truncated.copy()}
            info |= {"final_info": {}, "_final_info": truncated.copy()}
        rewards = np.asarray(reward, dtype=np.float64).reshape(self.num_envs, -1)[:, 0]
        return observation, rewards, terminated, truncated, info
