"""Many environments at once, for agents of any library: what a reinforcement learner expects around `CollaborativeMEC`.

`MECVector` has the usual reset and step, with observations, rewards, ends and masks of S environments in one array
each. Gymnasium, PettingZoo and Stable-Baselines3 are served by thin adapters beside this file. Start reading at
`MECVector.step`.
"""

import functools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from common.parameters import ParameterError
from common.random_streams import Stream
from lad_ts.arrivals import Arrivals, draw_arrivals
from lad_ts.environment_lad import CollaborativeMEC, Scenario, Slot, draw_scenario
from lad_ts.environment_parameters import EnvironmentParameters
from lad_ts.observation import KINDS, Scales, put_together, queue_part, width
from mec_env.ahead import Ahead
from mec_env.arguments import OPTIONS, environment_parameters, whole_number
from mec_env.one_by_one import OneByOne

if TYPE_CHECKING:
    import gymnasium

Array = np.ndarray | torch.Tensor
PER = ("bs", "task")
REWARDS = ("mean", "sum", "team")
MOST_EMPTY = 1000  # episodes without a task, after which per="task" gives up


class MECVector:
    """S independent environments, advanced together.

    per="bs": a step is a slot. The agent of each of B base stations (BSs) chooses the edge server (ES) of each of its
    tasks, in N cells. Shapes: observation [S, B, N, F], action [S, B, N], reward [S, B]; info has `mask` [S, B, N],
    True where there is a task to decide, and after a step `delay` [S, B, N] in s.

    per="task": a step is a task, in the order in which tasks are scheduled: BS 0, 1, .. and task 1, 2, .. of a slot.
    Shapes: observation [S, F], action [S], reward [S]; info has `slot`, `station` and `task` [S], where that task
    stands, and after a step `delay` [S] in s. With `in_slot` an observation's backlogs also have the work that was sent
    earlier in the slot, as only a central agent can know.

    An observation has the features of `lad_ts.observation.observe`, float32: the task's size and workload, and the
    backlogs. Cells without a task have size and workload 0, and any action may stand there.

    A reward is minus the delay in s, of the task with per="task". With per="bs" it is of the BS's tasks in the slot:
    their mean ("mean", 0 without tasks), their sum over N ("sum"), or for all BSs the mean over all tasks ("team").

    An episode ends after T - 1 slots. The queues live on, so that is a truncation, and nothing terminates. With
    `autoreset` the last step of an episode returns the next one's first observation, and info has `final_observation`.

    Everything returned is the caller's own: nothing of it is seen again here.
    """

    def __init__(
        self,
        num_envs: int = 1,
        scenario: str | EnvironmentParameters = "paper",
        *,
        per: str = "bs",
        observation: str = "relative",
        in_slot: bool = False,
        reward: str = "mean",
        autoreset: bool = True,
        seed: int = 0,
        output: str = "numpy",
        device: str | torch.device = "cpu",
        **changes: Any,
    ) -> None:
        """`changes` are parameters of the environment, as in num_bs=5; `output` is numpy or torch.

        Raises ParameterError for values that are not allowed.
        """
        for name, value, allowed in (
            ("per", per, PER),
            ("observation", observation, KINDS),
            ("reward", reward, REWARDS),
            ("output", output, ("numpy", "torch")),
        ):
            if value not in allowed:
                raise ParameterError(name, value, f"must be one of {', '.join(allowed)}")
        if in_slot and per != "task":
            raise ParameterError("in_slot", in_slot, "must be False with per=bs: agents decide at the slot's start")
        if reward != "mean" and per == "task":
            raise ParameterError("reward", reward, "must be mean with per=task, where it is of the task alone")
        if isinstance(num_envs, bool) or not isinstance(num_envs, int) or num_envs < 1:
            raise ParameterError("num_envs", num_envs, "must be an integer, at least 1")
        self.params = environment_parameters(scenario, **changes)
        self.num_envs, self.per, self.kind, self.in_slot = num_envs, per, observation, in_slot
        self.reward, self.autoreset, self.output = reward, autoreset, output
        self.device = torch.device(device)
        self.num_bs, self.num_tasks, self.num_slots = (
            self.params.num_bs,
            self.params.num_tasks,
            self.params.num_slots,
        )
        self.scales, self.width = Scales.of(self.params), width(observation, self.num_bs)
        self.stream = Stream.TRAINING_ARRIVALS
        self.seeds = self._seeds(seed)
        self.episodes = np.zeros(num_envs, dtype=np.int64)  # the next episode of each environment
        self.over = True  # until the first reset
        self._set_scenario(self.params.scenario_seed)

    # What stays fixed

    @property
    def scenario(self) -> Scenario:
        """Capacities, link rates and task classes, a row for each environment; the arrays refuse writing."""
        return self.mec.scenario

    @functools.cached_property
    def single_observation_space(self) -> "gymnasium.spaces.Box":
        """The observations of one environment, as a Gymnasium space."""
        shape = (self.num_bs, self.num_tasks, self.width) if self.per == "bs" else (self.width,)
        return _gymnasium().spaces.Box(-np.inf, np.inf, shape, np.float32)

    @functools.cached_property
    def single_action_space(self) -> "gymnasium.spaces.Space":
        """The actions of one environment, as a Gymnasium space."""
        spaces = _gymnasium().spaces
        if self.per == "task":
            return spaces.Discrete(self.num_bs)
        return spaces.MultiDiscrete(np.full((self.num_bs, self.num_tasks), self.num_bs))

    @functools.cached_property
    def observation_space(self) -> "gymnasium.spaces.Space":
        """The observations of all environments."""
        return _gymnasium().vector.utils.batch_space(self.single_observation_space, self.num_envs)

    @functools.cached_property
    def action_space(self) -> "gymnasium.spaces.Space":
        """The actions of all environments."""
        return _gymnasium().vector.utils.batch_space(self.single_action_space, self.num_envs)

    # Episodes

    def reset(
        self, seed: int | Sequence[int] | None = None, options: Mapping[str, Any] | None = None
    ) -> tuple[Array, dict[str, Any]]:
        """Start an episode in every environment. Returns the first observation and info.

        With seed s, environment i has seed s + i (or the i-th of a sequence) and starts at its episode 0; without, each
        goes on with its next episode. Arrivals are those of the project's trainings: the same seed, episode and
        parameters give the same tasks there. Options: `episode`, the number to start at; `held_out`, True for the
        arrivals of evaluations from now on; `scenario_seed`, another scenario from now on.

        Raises ParameterError for values that are not allowed.
        """
        options = dict(options or {})
        if unknown := sorted(options.keys() - set(OPTIONS)):
            raise ParameterError("options", unknown[0], f"must be one of {', '.join(OPTIONS)}")
        held_out = options.get("held_out")
        if not isinstance(held_out, bool | np.bool_ | None):
            raise ParameterError("held_out", held_out, "must be True or False")
        whole = {name: whole_number(name, options[name]) for name in ("episode", "scenario_seed") if name in options}
        before = self.seeds
        if seed is not None:
            self.seeds = self._seeds(seed)  # from here on, nothing is refused
        if seed is not None or "episode" in whole:
            self.episodes = np.full(self.num_envs, whole.get("episode", 0))
        if held_out is not None:
            self.stream = Stream.HELD_OUT_ARRIVALS if held_out else Stream.TRAINING_ARRIVALS
        if "scenario_seed" in whole:
            self._set_scenario(whole["scenario_seed"])
        elif self.params.scenario_per_seed and self.seeds != before:
            self._set_scenario(self.params.scenario_seed)
        self.over = False
        if self.per == "task":
            self.tasks = OneByOne(self.mec.scenario, self.params.slot_length)
            self._begin_tasks(np.arange(self.num_envs))
        else:
            self._begin_slots()
        return self._give(self._observe()), self._info()

    def step(self, action: Array) -> tuple[Array, Array, np.ndarray, np.ndarray, dict[str, Any]]:
        """Decide, and go on: (observation, reward, terminated [S], truncated [S], info).

        action: integers of any width, numpy or torch. Raises RuntimeError before the first reset and after an episode's
        end, and ValueError for actions of a wrong shape, kind or value; then nothing has changed.
        """
        if self.over:
            raise RuntimeError("no episode is going on: call reset() first")
        return self._step_task(action) if self.per == "task" else self._step_slot(action)

    def restart(self, which: np.ndarray) -> tuple[Array, dict[str, Any]]:
        """Start the next episode in the environments marked by which [S], with per="task"; the others go on.

        Returns all observations and info. Raises RuntimeError with per="bs", where all episodes end together.
        """
        if self.per != "task" or not hasattr(self, "tasks"):
            raise RuntimeError("single environments start anew with per=task only, after a first reset()")
        again = np.flatnonzero(np.asarray(which, dtype=bool))
        self._begin_tasks(again)
        self.over = False
        return self._give(self._observe()), self._info()

    def slot(self) -> Slot:
        """The slot that is to be decided, with per="bs": what a `Scheduler` is shown; a copy."""
        if self.over or self.per != "bs":
            raise RuntimeError("there is a slot to decide during an episode with per=bs only")
        return self._now.copy()

    def close(self) -> None:
        """Nothing is open; there for those who expect it."""

    # A slot at a time

    @torch.inference_mode()
    def _step_slot(self, action: Array) -> tuple[Array, Array, np.ndarray, np.ndarray, dict[str, Any]]:
        now = self._now
        delay, self._now = self.mec.step(self._checked(action, tuple(now.mask.shape), now.mask))
        rewards = delay.sum(2) * self.ahead.weights[now.t]
        if self.reward == "team":
            rewards = rewards.sum(1, keepdim=True).expand(-1, self.num_bs).contiguous()
        last = self.mec.t == self.num_slots - 1
        observation, info = self._give(self._observe()), {"delay": self._give(delay)}
        if last and self.autoreset:
            info["final_observation"] = observation
            self._begin_slots()
            observation = self._give(self._observe())
        self.over = last and not self.autoreset
        terminated, truncated = np.zeros((2, self.num_envs), dtype=bool)
        truncated[:] = last
        return observation, self._give(rewards.float()), terminated, truncated, self._info() | info

    def _begin_slots(self) -> None:
        arrivals = self._arrivals(np.arange(self.num_envs))
        self._now = self.mec.reset(arrivals)
        self.ahead = Ahead(self.mec, arrivals, self.kind, self.scales, self.reward)

    # A task at a time

    def _step_task(self, action: Array) -> tuple[Array, Array, np.ndarray, np.ndarray, dict[str, Any]]:
        delay = torch.from_numpy(self.tasks.send(self._checked(action, (self.num_envs,), None).cpu().numpy()))
        ends = self.tasks.over.copy()
        observation, info = self._give(self._observe()), {"delay": self._give(delay)}
        if ends.any() and self.autoreset:
            info["final_observation"] = observation
            self._begin_tasks(ends.nonzero()[0])
            observation = self._give(self._observe())
        self.over = bool(self.tasks.over.all())  # never with autoreset
        return observation, self._give(-delay.float()), np.zeros_like(ends), ends, self._info() | info

    def _begin_tasks(self, which: np.ndarray) -> None:
        """Start the next episode that has a task in some environments. Raises RuntimeError where none has."""
        for _ in range(MOST_EMPTY):
            self.tasks.start(self._arrivals(which), which)
            which = which[self.tasks.over[which]]
            if not which.size:
                return
        raise RuntimeError(f"{MOST_EMPTY} episodes in a row have no task: with per=task there is nothing to decide")

    # What both share

    def _observe(self) -> torch.Tensor:
        if self.per == "task":
            return self.tasks.observe(self.kind, self.scales, self.in_slot)
        queue = queue_part(self.mec.backlog, self.mec.capacity, self.kind)
        return put_together(self.ahead.tasks(self.mec.t), queue)

    def _info(self) -> dict[str, Any]:
        if self.per == "task":
            names = (("slot", "t"), ("station", "station"), ("task", "n"))
            return {name: self._give(torch.tensor(getattr(self.tasks, of))) for name, of in names}
        mask = self._now.mask
        return {"mask": mask.numpy().copy() if self.output == "numpy" and mask.is_cpu else self._give(mask.clone())}

    def _give(self, values: torch.Tensor) -> Array:
        """Values that are nobody else's, in the form that the caller wants."""
        if self.output == "numpy":
            return values.numpy() if values.is_cpu else values.cpu().numpy()
        with torch.inference_mode(False):
            return values.to(self.device).clone()  # an ordinary tensor, which gradients may meet

    def _checked(self, action: Array, shape: tuple[int, ...], mask: torch.Tensor | None) -> torch.Tensor:
        """Actions as int64 on the device, valid servers everywhere. Raises ValueError for what is no action."""
        values = action if isinstance(action, torch.Tensor) else np.asarray(action)
        if tuple(values.shape) != shape:
            raise ValueError(f"action: shape {list(values.shape)}, must be {list(shape)}")
        if isinstance(values, torch.Tensor):
            whole = not (values.is_floating_point() or values.is_complex() or values.dtype == torch.bool)
            chosen = values.to(self.device, torch.int64) if whole else values
        else:
            whole = np.issubdtype(values.dtype, np.integer)
            chosen = torch.from_numpy(values.astype(np.int64)).to(self.device) if whole else values
        if not whole:
            raise ValueError(f"action: {values.dtype}, must be integers")
        least, most = (int(end) for end in chosen.aminmax())
        if mask is not None and not 0 <= least <= most < self.num_bs:  # perhaps where there is no task
            chosen = torch.where(mask, chosen, 0)
            least, most = (int(end) for end in chosen.aminmax())
        if not 0 <= least <= most < self.num_bs:
            raise ValueError(f"action: servers {least}..{most}, must be within 0..{self.num_bs - 1}")
        return chosen

    def _arrivals(self, which: np.ndarray) -> Arrivals:
        """The next episode's arrivals of some environments."""
        rows = [(self.seeds[i], int(self.episodes[i])) for i in which]
        self.episodes[which] += 1
        return draw_arrivals(self.params, rows, self.stream)

    def _seeds(self, seed: int | Sequence[int]) -> list[int]:
        if isinstance(seed, int | np.integer) and not isinstance(seed, bool):
            return [whole_number("seed", seed) + i for i in range(self.num_envs)]
        if isinstance(seed, str | bool) or not np.iterable(seed):
            raise ParameterError("seed", seed, f"must be an integer, or {self.num_envs} integers")
        seeds = [whole_number("seed", one) for one in seed]
        if len(seeds) != self.num_envs:
            raise ParameterError("seed", seed, f"must be a number, or {self.num_envs} numbers")
        return seeds

    def _set_scenario(self, scenario_seed: int) -> None:
        self.params = environment_parameters(self.params, scenario_seed=scenario_seed)
        self.mec = CollaborativeMEC(draw_scenario(self.params, self.seeds), self.device, self.params.slot_length)


def _gymnasium() -> Any:
    """The package, which only spaces need. Raises ImportError that says how to get it."""
    try:
        import gymnasium
    except ImportError as error:
        raise ImportError("spaces need Gymnasium: pip install -r requirements-rl.txt") from error
    return gymnasium
