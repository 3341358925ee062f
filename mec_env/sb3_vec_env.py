"""Stable-Baselines3: one policy for all tasks of all base stations. Start reading at `MECVecEnv`."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.vec_env import VecEnv

from lad_ts.environment_parameters import EnvironmentParameters
from mec_env.arguments import without_unknown
from mec_env.vector import MECVector


class MECVecEnv(VecEnv):
    """Every cell of a slot is an environment to the learner: it decides one task, and sees its own reward.

    With S environments there are S B N of them, in the order [S, B, N]. An observation is [F], the action a server, the
    reward minus the task's delay in s over `scale`, 0 where there is no task. A step is a slot. Gamma 0 fits, as a
    task's delay is known at once.
    """

    def __init__(
        self,
        num_envs: int = 1,
        scenario: str | EnvironmentParameters = "paper",
        *,
        observation: str = "relative",
        scale: float = 1.0,
        seed: int = 0,
        **changes: Any,
    ) -> None:
        """Other arguments are those of `MECVector`. Raises ParameterError."""
        self.mec, self.scale = MECVector(num_envs, scenario, observation=observation, seed=seed, **changes), scale
        self.shape = (num_envs, self.mec.num_bs, self.mec.num_tasks)
        self.render_mode = None
        self._next_seed: int | None = None
        box = spaces.Box(-np.inf, np.inf, (self.mec.width,), np.float32)
        super().__init__(int(np.prod(self.shape)), box, spaces.Discrete(self.mec.num_bs))

    def seed(self, seed: int | None = None) -> Sequence[int | None]:
        """The first of the environments' seeds, from the next reset on."""
        self._next_seed = seed
        return [seed] * self.num_envs

    def reset(self) -> np.ndarray:
        """Start an episode, with what `seed` and `set_options` have said. Returns the observations [S B N, F]."""
        observation, self._info = self.mec.reset(self._next_seed, without_unknown(self._options[0]))
        self._next_seed = None
        self._reset_options()
        return observation.reshape(self.num_envs, -1)

    def step_async(self, actions: np.ndarray) -> None:
        """Take the actions [S B N] of a slot."""
        self._actions = np.asarray(actions).reshape(self.shape)

    def step_wait(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[dict[str, Any]]]:
        """Schedule the slot: observations [S B N, F], rewards and ends [S B N], and infos, with `mask` of the slot."""
        if self.mec.over:
            raise RuntimeError("no episode is going on: call reset() first")
        masks = self._info["mask"].ravel()
        observation, _, _, truncated, self._info = self.mec.step(self._actions)
        rewards = (-self._info["delay"].ravel() / self.scale).astype(np.float32)
        ends = np.repeat(truncated, self.num_envs // len(truncated))
        infos: list[dict[str, Any]] = [{"mask": bool(mask)} for mask in masks]
        if ends.any():
            final = self._info["final_observation"].reshape(self.num_envs, -1)
            for info, last in zip(infos, final, strict=True):
                info |= {"terminal_observation": last, "TimeLimit.truncated": True}
        return observation.reshape(self.num_envs, -1), rewards, ends, infos

    def close(self) -> None:
        """Nothing is open."""

    def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
        """The same attribute for each of the environments, which are one."""
        return [getattr(self, attr_name)] * len(list(self._get_indices(indices)))

    def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None:
        """Set an attribute of all environments, which are one."""
        setattr(self, attr_name, value)

    def env_method(self, method_name: str, *args: Any, indices: Any = None, **kwargs: Any) -> list[Any]:
        """Call a method once, for environments that are one."""
        return [getattr(self, method_name)(*args, **kwargs)] * len(list(self._get_indices(indices)))

    def env_is_wrapped(self, wrapper_class: type, indices: Any = None) -> list[bool]:
        """No environment is wrapped."""
        return [False] * len(list(self._get_indices(indices)))
