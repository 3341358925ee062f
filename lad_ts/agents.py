"""What all agents that learn from replay share: features of the state, replay, and when to update.

One agent lives at each BS; G = seeds x BSs agents are advanced together. An agent's decisions of a slot depend on the
slot's start and its updates on its own replay only, so one batched forward and one batched update per slot give the
numbers of the per-task loop. Subclasses write `choose` (a policy) and `update` (a step on a minibatch). Start reading
at `StackedAgents.learn`.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch

from common.parameters import ParameterError, parameter
from lad_ts.engines import engine_parameter, fused_engine
from lad_ts.environment_lad import EnvironmentParameters, Slot
from lad_ts.observation import KINDS, Scales, features, queue_part, width
from lad_ts.policy_export import ExportedPolicy
from lad_ts.replay import Replay
from lad_ts.seeded import SeededScheduler, check_stations

# What the presets of all methods that learn from replay have in common.
PAPER_STATE = {"state_features": "raw", "next_state": "zeros", "tied_sizes": True}
TUNED_STATE = {"state_features": "relative", "next_state": "true"}
MOST_WRITTEN = 2**62  # transitions of an agent, beyond which their number could overflow


@dataclasses.dataclass(kw_only=True)
class AgentParameters(EnvironmentParameters):
    """What agents that learn from replay need. Defaults are the paper's, but for those that the preset fills in."""

    GROUP: ClassVar[str] = "agent"

    preset: str = parameter(
        "tuned",
        "paper: the published semantics, oddities included; tuned: what works better",
        choices=("tuned", "paper"),
    )
    hidden: int = parameter(20, "width of the two hidden layers", low=1)
    gamma: float = parameter(0.95, "discount factor per decision", low=0, high=1)
    batch_size: int = parameter(64, "transitions in a minibatch", low=1)
    replay_capacity: int = parameter(1000, "transitions that an agent remembers", low=1)
    learning_start: int = parameter(300, "an agent learns once it holds more transitions than this", low=0)
    updates_per_slot: int = parameter(1, "updates of every agent after each slot", low=1)
    state_features: str | None = parameter(
        None,
        "how a state tells sizes and queues",
        choices=KINDS,
        more="raw: [d, w, q]. scaled: d and w over their maxima, log(1 + q/f). relative: as scaled, but the mean of "
        "q/f as log(1 + mean), and each ES's difference to it in s.",
    )
    next_state: str | None = parameter(
        None,
        "next state of a slot's last task: with the true q[t+1], or with zeros",
        choices=("true", "zeros"),
    )
    engine: str = engine_parameter()
    evaluation_action: str = parameter(
        "sample", "action in evaluation: drawn from the policy or its best", choices=("sample", "argmax")
    )

    PRESETS: ClassVar = {"paper": PAPER_STATE, "tuned": TUNED_STATE}

    def check(self) -> None:
        super().check()
        if self.replay_capacity < self.num_tasks:
            raise ParameterError(
                "replay_capacity", self.replay_capacity, f"must hold a slot, at least --num_tasks={self.num_tasks}"
            )
        if self.learning_start >= self.replay_capacity:
            raise ParameterError(
                "learning_start", self.learning_start, f"must be below --replay_capacity={self.replay_capacity}"
            )


def state_size(params: AgentParameters) -> int:
    """Numbers in the state of a decision: d, w, and what tells the backlogs."""
    return width(params.state_features or "", params.num_bs)


class StackedAgents(SeededScheduler):
    """Agents of all BSs and seeds, stacked, that learn from replayed transitions."""

    needs = "q at the slot's start, the BS's own tasks; f, but for raw state features"
    Parameters = AgentParameters

    def __init__(self, params: AgentParameters, seeds: Sequence[int], device: torch.device | str) -> None:
        super().__init__(params, seeds, device)
        if params.state_features is None:
            raise ParameterError("state_features", None, f"must be one of {', '.join(KINDS)}; no preset fills it in")
        self.state_size = state_size(params)
        self.kind, self.scales = params.state_features, Scales.of(params)
        self.agents = len(self.seeds) * params.num_bs
        columns = {"state": self.state_size, "next_state": self.state_size, "action": 1, "reward": 1}
        self.replay = Replay(self.agents, params.replay_capacity, columns | self.extra_columns(), self.device)
        self._warm = False  # True once every agent learns
        self.decision: dict[str, torch.Tensor] = {}  # what the present slot's decisions saw

    def extra_columns(self) -> dict[str, int]:
        """Further replay columns of a subclass."""
        return {}

    @classmethod
    def fused_work(cls, params: Any) -> int:
        slots = params.episodes * params.seeds * (params.num_slots - 1)
        return int(slots * params.num_bs * params.updates_per_slot)

    @functools.cached_property
    def engine(self) -> Any:
        """What decides and updates instead of `choose` and `update`, where the fused engine is used."""
        return fused_engine(self, self.fused_kind(self.params)) if self.params.engine == "fused" else None

    @property
    def leaves_slots(self) -> bool:  # type: ignore[override]
        return self.engine is not None

    def draw(self, kind: str, *shape: int) -> torch.Tensor:
        """`uniform` or `normal` numbers [G, *shape], each seed's from its own generator; 0 for seeds that wait."""
        return self.draw_rows(kind, self.num_bs, *shape).view(self.agents, *shape)

    def features(self, slot: Slot) -> torch.Tensor:
        """The state of every decision, [S, B, N, F] float32: input size, workload, and what tells the backlogs.

        F is `state_size`; observation.py tells the kinds.
        """
        return features(slot, self._capacity, self.kind, self.scales)

    def queue_features(self, slot: Slot) -> torch.Tensor:
        """What a state tells of the backlogs, [S, F - 2] float32."""
        return queue_part(slot.backlog, self._capacity, self.kind)

    def act(self, slot: Slot) -> torch.Tensor:
        self.decision = self.seen(slot)
        if self.engine:
            return self.engine.choose(slot)
        self.decision["features"] = self.features(slot)
        state = self.decision["features"].view(self.agents, -1, self.state_size).transpose(1, 2)
        return self.choose(state, slot).view(slot.mask.shape)

    def seen(self, slot: Slot) -> dict[str, torch.Tensor]:
        """What a subclass's decisions see besides, which the replay needs as it was before them."""
        return {}

    def choose(self, state: torch.Tensor, slot: Slot) -> torch.Tensor:
        """The action [G, N] for state [G, F, N], features first."""
        raise NotImplementedError(f"{type(self).__name__} must define choose(state, slot)")

    def pick(self, probabilities: torch.Tensor) -> torch.Tensor:
        """Actions [G, N] from probabilities [G, B, N]: drawn, or the likeliest in argmax evaluation."""
        if not self.training and self.params.evaluation_action == "argmax":
            return probabilities.argmax(1)
        level = probabilities.cumsum(1)
        threshold = self.draw("uniform", probabilities.shape[2])[:, None] * level[:, -1:]
        return (level <= threshold).sum(1).clamp(max=self.num_bs - 1)

    def then(self, now: torch.Tensor, after: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """What the next decision of the same agent sees: cell n + 1, and for an agent's last task `after`.

        now [G, N, C] holds the slot's cells, after [G, C] the first cell of the following slot, mask is [G, N].
        """
        shifted = torch.cat([now[:, 1:], after[:, None]], 1)
        last = mask & ~torch.cat([mask[:, 1:], torch.zeros_like(mask[:, :1])], 1)
        return torch.where(last[..., None], after[:, None], shifted)

    def learn(self, slot: Slot, action: torch.Tensor, delay: torch.Tensor, following: Slot) -> None:
        """Store the slot's transitions (reward = -delay) and update every agent that holds enough of them.

        `decision` holds what `act` knew. Who learns from a slot after others were decided puts back what it was then.
        """
        if self.params.next_state == "zeros":
            following = dataclasses.replace(following, backlog=torch.zeros_like(following.backlog))
        if self.engine:
            self.engine.keep(slot, action, delay, following)
        else:
            self.keep(slot, action, delay, following)
        learning = None
        if not self._warm:
            ready = self.replay.size[:, 0] > self.params.learning_start
            if not ready.any():
                return
            self._warm = bool(ready.all())
            learning = None if self._warm else ready.nonzero()[:, 0]
            # A seed none of whose agents learns yet draws nothing, whatever the seeds beside it do.
            self.draws.drawing = ready.view(len(self.seeds), -1).any(1).cpu().numpy()
        for _ in range(self.params.updates_per_slot):
            if self.engine:
                self.engine.update(learning)
            else:
                self.update(self.replay.take(self.draw("uniform", self.params.batch_size)), learning)
        self.draws.drawing[:] = True

    def keep(self, slot: Slot, action: torch.Tensor, delay: torch.Tensor, following: Slot) -> None:
        """Append a slot's transitions to the replay; the next state of the last is the following slot's first."""
        mask = slot.mask.reshape(self.agents, -1)
        now = self.decision["features"].view(self.agents, -1, self.state_size)
        after = self.features(following)[:, :, 0].reshape(self.agents, self.state_size)
        self.replay.add(
            mask,
            state=now,
            next_state=self.then(now, after, mask),
            action=action.view(self.agents, -1, 1),
            reward=-delay.view(self.agents, -1, 1),
            **self.extra_values(slot, mask),
        )

    def exported(
        self,
        compute: Callable[..., tuple[torch.Tensor, ...]],
        theta: torch.Tensor,
        outputs: tuple[str, ...],
        noise: int = 0,
        memory: torch.Tensor | None = None,
        **facts: Any,
    ) -> ExportedPolicy:
        """A policy of `compute`, with the weights of the first seed's agents.

        `noise` is the number of standard normal vectors that a decision takes. With a memory [T, B, N, B] it takes a
        latent one.
        """
        tasks = self.num_bs, "tasks"
        inputs: dict[str, tuple[int | str, ...]] = {"observation": (*tasks, self.state_size)}
        if memory is not None:
            inputs["latent"] = (*tasks, self.num_bs)
        if noise:
            inputs["noise"] = (*tasks, noise, self.num_bs)
        facts |= {"kind": self.kind, "size_scale": self.scales.size, "workload_scale": self.scales.workload}
        return ExportedPolicy(compute, theta[: self.num_bs], inputs, outputs, facts, memory)

    def extra_values(self, slot: Slot, mask: torch.Tensor) -> dict[str, torch.Tensor]:
        """Values [G, N, width] of the subclass's further replay columns."""
        return {}

    def update(self, batch: dict[str, torch.Tensor], learning: torch.Tensor | None) -> None:
        """One step of the agents with the indices `learning` (None: all) on their minibatch [G, M, width]."""
        raise NotImplementedError(f"{type(self).__name__} must define update(batch, learning)")

    def moved(self, params: Any) -> "StackedAgents":
        """Features keep the scales of training. Raises ParameterError for another number of BSs."""
        check_stations(params, self.params.num_bs)
        other = super().moved(params)
        assert isinstance(other, StackedAgents)
        other.scales = self.scales
        return other

    def modules(self) -> dict[str, object]:
        return {"replay": self.replay}

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        super().load_state_dict(state)
        self._warm = False
        self.check_replay()

    def check_replay(self) -> None:
        """Raise ValueError for a replay whose numbers point beyond the agents' networks and memories."""
        limits = {"action": self.num_bs} | dict.fromkeys(
            self.cell_columns(), self.params.num_slots * self.params.num_tasks
        )
        for name, values in self.replay.parts().items():
            if name in limits and not ((values >= 0) & (values < limits[name])).all():
                raise ValueError(f"replay: {name} must be from 0 to {limits[name] - 1}")
        if not ((self.replay.written >= 0) & (self.replay.written < MOST_WRITTEN)).all():
            raise ValueError(f"replay: the number of transitions must not be negative, and below {MOST_WRITTEN}")

    def cell_columns(self) -> tuple[str, ...]:
        """Those of the subclass's replay columns that hold numbers of cells of a memory."""
        return ()


def blend(target: torch.Tensor, online: torch.Tensor, weight: float, agents: torch.Tensor | None) -> None:
    """target += weight * (online - target), for all agents or those with the given indices. [G, P] each."""
    if agents is None:
        target.lerp_(online, weight)
    else:
        target[agents] = target[agents].lerp(online[agents], weight)
