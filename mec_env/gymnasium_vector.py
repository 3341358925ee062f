"""Gymnasium's vector interface: S environments of a central agent, in one batch. Start at `MECVectorEnv`."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from lad_ts.environment_parameters import EnvironmentParameters
from mec_env.arguments import without_unknown
from mec_env.gymnasium_env import flat_actions, shaped
from mec_env.vector import MECVector


class MECVectorEnv(VectorEnv):
    """`MECVector` as a vector environment, with per="task" (the default) or per="bs", as `CentralEnv`.

    `autoreset_mode` is Gymnasium's: NEXT_STEP starts an ended episode anew in the next step, whose action it does not
    use and whose reward is 0; SAME_STEP in the same step, and infos have `final_obs` and its mask.
    """

    def __init__(
        self,
        num_envs: int = 1,
        scenario: str | EnvironmentParameters = "paper",
        *,
        per: str = "task",
        observation: str = "relative",
        in_slot: bool = True,
        seed: int = 0,
        autoreset_mode: AutoresetMode = AutoresetMode.NEXT_STEP,
        render_mode: None = None,
        **changes: Any,
    ) -> None:
        """Other arguments are those of `MECVector`. Raises ParameterError, and ValueError for other modes."""
        if autoreset_mode not in (AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP):
            raise ValueError(f"autoreset_mode {autoreset_mode}: must be NEXT_STEP or SAME_STEP")
        self.metadata = {"autoreset_mode": autoreset_mode, "render_modes": []}
        self.same_step = autoreset_mode is AutoresetMode.SAME_STEP
        self.mec = MECVector(
            num_envs,
            scenario,
            per=per,
            observation=observation,
            in_slot=in_slot and per == "task",
            reward="team" if per == "bs" else "mean",
            autoreset=self.same_step,
            seed=seed,
            **changes,
        )
        self.num_envs, self.render_mode = num_envs, render_mode
        self.single_observation_space = self.mec.single_observation_space
        self.single_action_space = flat_actions(self.mec)
        self.observation_space = self.mec.observation_space
        self.action_space = batch_space(self.single_action_space, num_envs)
        self.ended = np.ones(num_envs, dtype=bool)

    def reset(
        self, *, seed: int | Sequence[int] | None = None, options: Mapping[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Start an episode in all environments, as `MECVector.reset` does."""
        self.ended = np.zeros(self.num_envs, dtype=bool)
        return self.mec.reset(seed, without_unknown(options))

    def step(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Decide in all environments: observations, rewards [S] float64, terminations, truncations [S], infos."""
        if not self.same_step and self.mec.over and self.ended.all():
            observation, info = self.mec.reset()
            self.ended = np.zeros(self.num_envs, dtype=bool)
            return observation, np.zeros(self.num_envs), self.ended.copy(), self.ended.copy(), info
        observation, reward, terminated, truncated, info = self.mec.step(shaped(actions, self.mec.action_space.shape))
        if (final := info.pop("final_observation", None)) is not None:
            finals = np.full(self.num_envs, None, dtype=object)
            for i in truncated.nonzero()[0]:
                finals[i] = final[i]
            info |= {"final_obs": finals, "_final_obs": truncated.copy()}
            info |= {"final_info": {}, "_final_info": truncated.copy()}
        if not self.same_step:
            if self.ended.any():  # these have waited, and begin
                observation, place = self.mec.restart(self.ended)
                info |= place
                truncated = truncated & ~self.ended
            self.ended = truncated.copy()
        rewards = np.asarray(reward, dtype=np.float64).reshape(self.num_envs, -1)[:, 0]
        return observation, rewards, terminated, truncated, info
