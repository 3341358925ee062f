"""Learning by gradients from a round of decisions: PPO, SAC-TS and DQN-TS over the same inputs and networks.

Start reading at `Ppo.learn`.
"""

import copy
import dataclasses
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch.nn.functional import smooth_l1_loss

from trace_ts.model_trace import Design
from trace_ts.score_net import ScoreNet, ValueNet

TEMPERATURE = 6  # its place among the constants


@dataclasses.dataclass(frozen=True)
class Learning:
    """How policies are learned by gradients. A round is `segments` segments of `segment` tasks under one policy."""

    rounds: int = 2  # that count as a generation
    segments: int = 6
    segment: int = 4000
    tail: int = 200  # tasks at a segment's end that are not learned from: what came of them is not seen
    temperature: float = 0.3  # of the softmin that explores, in mean services
    batch: int = 2000  # decisions of a step
    rate: float = 3e-3  # of Adam; the actor's falls to 0 along a cosine
    ppo_discount: float = 0.995  # a task's delay counts 1 / e in what was decided 200 tasks before
    ppo_trace: float = 0.95  # lambda of the generalised advantage estimate
    ppo_epochs: int = 2
    clip: float = 0.2  # of the ratio of probabilities
    discount: float = 0.95  # of SAC-TS and DQN-TS, as in arXiv 2412.18212
    target_rate: float = 0.02  # of the critics that goals come from


class Experience(NamedTuple):
    """N decisions of one segment in their order: what the networks saw, the server [N] and the delay [N].

    Delays are in mean services. stale [N]: whether news was old, so that the policy draws by its own temperature.
    """

    on_server: torch.Tensor
    on_task: torch.Tensor
    begin: torch.Tensor
    server: torch.Tensor
    delay: torch.Tensor
    stale: torch.Tensor

    def take(self, index: torch.Tensor | slice) -> "Experience":
        """Some of the decisions."""
        return Experience(*(values[index] for values in self))


def joined(parts: Iterable[Experience]) -> Experience:
    """Decisions of several segments in a row."""
    return Experience(*(torch.cat(values) for values in zip(*parts, strict=True)))


def advantages(reward: np.ndarray, value: np.ndarray, discount: float, trace: float) -> np.ndarray:
    """The generalised advantage estimate [N] (Schulman et al. 2016) from rewards [N] and values [N] of a segment."""
    later = np.append(value[1:], value[-1])
    found, total = np.empty(len(reward)), 0.0
    for k in range(len(reward) - 1, -1, -1):
        total = reward[k] + discount * later[k] - value[k] + discount * trace * total
        found[k] = total
    return found


class Learner:
    """What learns: `nets` by name, an Adam for each of `steps`. The leading network decides while it learns.

    `design` is what the leading network's policies are made of.
    """

    lead: str

    def __init__(self, design: Design, learning: Learning, nets: dict[str, torch.nn.Module]) -> None:
        self.design, self.learning, self.nets = design, learning, torch.nn.ModuleDict(nets)
        learned = {name: net for name, net in nets.items() if not name.startswith("target")}
        self.steps = {name: torch.optim.Adam(net.parameters(), learning.rate) for name, net in learned.items()}

    @property
    def parameters(self) -> np.ndarray:
        """Those of the leading network [P]."""
        return self.nets[self.lead].vector.detach().numpy().astype(np.float64)

    def slow_down(self, share: float) -> None:
        """Set the leading network's rate to a share of what it was at first."""
        for group in self.steps[self.lead].param_groups:
            group["lr"] = share * self.learning.rate

    def step(self, name: str, loss: torch.Tensor) -> None:
        """A step of one network down its loss."""
        self.steps[name].zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.nets[name].parameters(), 1.0)
        self.steps[name].step()

    def batches(self, count: int, generator: np.random.Generator) -> Iterator[torch.Tensor]:
        """Indices of all of so many decisions, in batches in random order."""
        yield from torch.from_numpy(generator.permutation(count)).split(self.learning.batch)

    def chances(self, net: torch.nn.Module, seen: Experience) -> torch.Tensor:
        """The log-probabilities [N, B] by which a network chooses while it learns."""
        own = net.vector[TEMPERATURE].exp()
        temperature = torch.where(seen.stale, own, torch.full_like(own, self.learning.temperature))
        return (-net(seen.on_server, seen.on_task, seen.begin) / temperature[:, None]).log_softmax(1)

    def learn(self, segments: list[Experience], generator: np.random.Generator) -> None:
        """Learn from a round."""
        raise NotImplementedError(f"{type(self).__name__} must define learn(segments, generator)")

    def state(self) -> dict[str, np.ndarray]:
        """All that changes, as arrays by name."""
        found = {f"net {name}": value.numpy().copy() for name, value in self.nets.state_dict().items()}
        for name, step in self.steps.items():
            for number, moments in step.state_dict()["state"].items():
                found |= {f"step {name} {number} {key}": value.numpy().copy() for key, value in moments.items()}
        return found

    def restore(self, state: dict[str, np.ndarray]) -> None:
        """Become what `state` was taken of."""
        own = {name: torch.from_numpy(state[f"net {name}"].copy()) for name in self.nets.state_dict()}
        self.nets.load_state_dict(own)
        for name, step in self.steps.items():
            kept = step.state_dict()
            for key, value in state.items():
                if key.startswith(f"step {name} "):
                    number, moment = key.split()[2:]
                    kept["state"].setdefault(int(number), {})[moment] = torch.from_numpy(value.copy())
            step.load_state_dict(kept)


class Ppo(Learner):
    """Proximal policy optimisation (Schulman et al. 2017). The cost is the sum of all delays, discounted by tasks."""

    lead = "actor"

    def __init__(self, design: Design, start: np.ndarray, learning: Learning, generator: np.random.Generator) -> None:
        super().__init__(design, learning, {"actor": ScoreNet(design, start), "critic": ValueNet(generator)})

    def learn(self, segments: list[Experience], generator: np.random.Generator) -> None:
        """Both networks learn; in the first round the value alone.

        Advantages count by how great delays are in their segment, as they do for the log of the mean delay.
        """
        actor, critic, how = self.nets["actor"], self.nets["critic"], self.learning
        first, parts = not critic.spread.any(), []
        for one in segments:
            with torch.no_grad():
                value = critic(one.on_server, one.on_task) * critic.spread + critic.centre
            found = advantages(-one.delay.numpy(), value.numpy().astype(np.float64), how.ppo_discount, how.ppo_trace)
            advantage, inner = torch.from_numpy(found).float(), slice(max(len(found) - how.tail, 1))
            parts.append((one.take(inner), (advantage / one.delay.mean())[inner], (advantage + value)[inner]))
        seen = joined(part[0] for part in parts)
        advantage, goal = (torch.cat([part[i] for part in parts]) for i in (1, 2))
        advantage = ((advantage - advantage.mean()) / (advantage.std() + 1e-8)).clamp(-4, 4)
        kept = 0.0 if first else 0.9
        critic.centre.mul_(kept).add_((1 - kept) * goal.mean())
        critic.spread.mul_(kept).add_((1 - kept) * (goal.std() + 1e-8))
        with torch.no_grad():
            before = torch.cat([self.chances(actor, seen.take(i)) for i in torch.arange(len(goal)).split(how.batch)])
        for _ in range(how.ppo_epochs):
            for index in self.batches(len(goal), generator):
                some = seen.take(index)
                aim = (goal[index] - critic.centre) / critic.spread
                self.step("critic", smooth_l1_loss(critic(some.on_server, some.on_task), aim))
                if first:
                    continue
                ratio = (self.chances(actor, some) - before[index]).gather(1, some.server[:, None])[:, 0].exp()
                bound = ratio.clamp(1 - how.clip, 1 + how.clip)
                self.step("actor", -torch.min(ratio * advantage[index], bound * advantage[index]).mean())


class SoftActorCritic(Learner):
    """SAC-TS: discrete soft actor-critic (Christodoulou 2019); a task costs its own delay and those soon after it."""

    lead = "actor"

    def __init__(self, design: Design, start: np.ndarray, learning: Learning, generator: np.random.Generator) -> None:
        super().__init__(design, learning, {"actor": ScoreNet(design, start)} | critics(start, generator))

    def learn(self, segments: list[Experience], generator: np.random.Generator) -> None:
        """The critics and the actor learn from every pair of decisions in a row."""
        now, after = pairs(segments)
        actor, temperature = self.nets["actor"], self.learning.temperature
        for index in self.batches(len(now.delay), generator):
            some, later = now.take(index), after.take(index)
            with torch.no_grad():
                chance = self.chances(actor, later)
                value = (chance.exp() * (worst(self.nets, "target", later) + temperature * chance)).sum(1)
            learn_costs(self, some, some.delay + self.learning.discount * value)
            with torch.no_grad():
                cost = worst(self.nets, "critic", some)
            chance = self.chances(actor, some)
            self.step("actor", (chance.exp() * (cost + temperature * chance)).sum(1).mean())


class DeepQ(Learner):
    """DQN-TS: double Q-learning (van Hasselt et al. 2016); the score is the cost that a choice is expected to have."""

    lead = "critic_0"

    def __init__(self, design: Design, start: np.ndarray, learning: Learning, generator: np.random.Generator) -> None:
        super().__init__(design, learning, critics(start, generator, 1))

    def learn(self, segments: list[Experience], generator: np.random.Generator) -> None:
        """The critic learns from every pair of decisions in a row."""
        now, after = pairs(segments)
        for index in self.batches(len(now.delay), generator):
            some, later = now.take(index), after.take(index)
            with torch.no_grad():
                chosen = self.nets["critic_0"](*later[:3]).argmin(1, keepdim=True)
                value = worst(self.nets, "target", later).gather(1, chosen)[:, 0]
            learn_costs(self, some, some.delay + self.learning.discount * value)


def critics(start: np.ndarray, generator: np.random.Generator, count: int = 2) -> dict[str, ScoreNet]:
    """Networks that begin at the constants of `start` and at weights of their own, each with its target."""
    plain = Design()
    begun = [plain.begin(np.exp(start[: TEMPERATURE + 1]), int(generator.integers(2**31))) for _ in range(count)]
    nets = {f"critic_{i}": ScoreNet(plain, vector) for i, vector in enumerate(begun)}
    return nets | {f"target_{i}": copy.deepcopy(nets[f"critic_{i}"]).requires_grad_(False) for i in range(count)}


def worst(nets: torch.nn.ModuleDict, kind: str, seen: Experience) -> torch.Tensor:
    """The greatest of the costs [N, B] that critics or targets expect."""
    found = [net(*seen[:3]) for name, net in nets.items() if name.startswith(kind)]
    return torch.stack(found).amax(0)


def pairs(segments: list[Experience]) -> tuple[Experience, Experience]:
    """Decisions of a round, and those after them."""
    return joined(one.take(slice(-1)) for one in segments), joined(one.take(slice(1, None)) for one in segments)


def learn_costs(learner: Learner, seen: Experience, goal: torch.Tensor) -> None:
    """A step of every critic towards costs [N] of what was chosen, and of the targets after them."""
    for name, net in learner.nets.items():
        if name.startswith("critic"):
            found = net(*seen[:3]).gather(1, seen.server[:, None])[:, 0]
            learner.step(name, smooth_l1_loss(found, goal, beta=5.0))
            target = learner.nets[name.replace("critic", "target")]
            target.vector.data.lerp_(net.vector.data, learner.learning.target_rate)


LEARNERS = {"ppo": Ppo, "sac": SoftActorCritic, "dqn": DeepQ}
