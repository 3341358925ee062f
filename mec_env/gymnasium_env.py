"""Gymnasium: one base station (BS) among others that follow a rule, or a central agent. Start at `CentralEnv`."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import gymnasium
import numpy as np

from baselines.rules import rule
from lad_ts.environment_parameters import EnvironmentParameters
from lad_ts.scheduler import Scheduler
from mec_env.arguments import without_unknown
from mec_env.vector import MECVector

Step = tuple[np.ndarray, float, bool, bool, dict[str, Any]]


class CentralEnv(gymnasium.Env):
    """One agent decides for all BSs.

    per="task": it decides one task after another, action a server, observation [F]; with `in_slot` it sees the work
    sent earlier in the slot. per="bs": it decides a slot at once, action [B N], BS after BS, observation [B, N, F]; the
    reward then is minus the mean delay of the slot's tasks in s.
    """

    metadata = {"render_modes": []}  # noqa: RUF012

    def __init__(
        self,
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
        self.render_mode = render_mode
        self.mec = MECVector(
            1,
            scenario,
            per=per,
            observation=observation,
            in_slot=in_slot and per == "task",
            reward="team" if per == "bs" else "mean",
            autoreset=False,
            seed=seed,
            **changes,
        )
        self.observation_space, self.action_space = self.mec.single_observation_space, flat_actions(self.mec)

    def reset(
        self, *, seed: int | None = None, options: Mapping[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Start an episode, as `MECVector.reset` does. Unknown options are left out with a warning."""
        super().reset(seed=seed)
        observation, info = self.mec.reset(seed, without_unknown(options))
        return observation[0], {name: values[0] for name, values in info.items()}

    def step(self, action: Any) -> Step:
        """Decide. Raises RuntimeError when no episode goes on, ValueError for actions that are none."""
        shape = (1,) if self.mec.per == "task" else (1, self.mec.num_bs, self.mec.num_tasks)
        observation, reward, _, truncated, info = self.mec.step(shaped(action, shape))
        return (
            observation[0],
            float(np.ravel(reward[0])[0]),
            False,
            bool(truncated[0]),
            {name: values[0] for name, values in info.items()},
        )


def flat_actions(mec: MECVector) -> gymnasium.spaces.Space:
    """The actions of one environment in one row, as learners expect them."""
    if mec.per == "task":
        return mec.single_action_space
    return gymnasium.spaces.MultiDiscrete([mec.num_bs] * (mec.num_bs * mec.num_tasks))


def shaped(action: Any, shape: tuple[int, ...]) -> np.ndarray:
    """Actions in the shape that `MECVector` takes. Raises ValueError for another number of them."""
    values = np.asarray(action)
    if values.size != np.prod(shape):
        raise ValueError(f"action: {values.size} numbers, must be {np.prod(shape)}")
    return values.reshape(shape)


class StationEnv(gymnasium.Env):
    """One BS decides its tasks of a slot, action [N], observation [N, F]; the others follow a rule.

    The reward is minus the mean delay of the BS's tasks in s. `others` is a rule of baselines/rules.py, or
    FILE.py:ClassName. info has `mask` [N], True where there is a task, and after a step `delay` [N] in s.
    """

    metadata = {"render_modes": []}  # noqa: RUF012

    def __init__(
        self,
        scenario: str | EnvironmentParameters = "paper",
        *,
        station: int = 0,
        others: str = "capacity_proportional",
        observation: str = "relative",
        seed: int = 0,
        render_mode: None = None,
        **changes: Any,
    ) -> None:
        """Other arguments are those of `MECVector`. Raises ParameterError, and ValueError for no such station."""
        self.render_mode = render_mode
        self.mec = MECVector(1, scenario, observation=observation, autoreset=False, seed=seed, **changes)
        if not isinstance(station, int | np.integer) or not 0 <= station < self.mec.num_bs:
            raise ValueError(f"station {station}: must be an integer within 0..{self.mec.num_bs - 1}")
        self.station, self.others = station, others_of(others, self.mec)
        tasks = self.mec.num_tasks
        self.observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (tasks, self.mec.width), np.float32)
        self.action_space = gymnasium.spaces.MultiDiscrete([self.mec.num_bs] * tasks)

    def reset(
        self, *, seed: int | None = None, options: Mapping[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Start an episode, as `MECVector.reset` does. Unknown options are left out with a warning."""
        super().reset(seed=seed)
        observation, info = self.mec.reset(seed, without_unknown(options))
        self.others.begin(self.mec.scenario, [(self.mec.seeds[0], int(self.mec.episodes[0]) - 1)])
        return observation[0, self.station], {name: values[0, self.station] for name, values in info.items()}

    def step(self, action: Any) -> Step:
        """Decide a slot. Raises RuntimeError when no episode goes on, ValueError for actions that are none."""
        if self.mec.over:
            raise RuntimeError("no episode is going on: call reset() first")
        mine = np.asarray(action)
        if mine.shape != (self.mec.num_tasks,):
            raise ValueError(f"action: shape {list(mine.shape)}, must be {[self.mec.num_tasks]}")
        if not np.issubdtype(mine.dtype, np.integer):
            raise ValueError(f"action: {mine.dtype}, must be integers")
        together = np.array(self.others.act(self.mec.slot()), dtype=np.int64)
        together[0, self.station] = mine
        observation, reward, _, truncated, info = self.mec.step(together)
        b = self.station
        infos = {name: values[0, b] for name, values in info.items()}
        return observation[0, b], float(reward[0, b]), False, bool(truncated[0]), infos


def others_of(name: str, mec: MECVector) -> Scheduler:
    """The scheduler of a rule's name. Raises ParameterError when there is none, or it is a bound."""
    method = rule(name, "others")
    values = {field.name: getattr(mec.params, field.name) for field in dataclasses.fields(mec.params)}
    scheduler = method.build(method.parameters(**values), mec.seeds, mec.device)
    if not isinstance(scheduler, Scheduler):
        raise ValueError(f"others {name}: must be a scheduler, but is a bound")
    return scheduler
