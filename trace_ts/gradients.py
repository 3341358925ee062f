"""Learning by gradients on the simulator's tasks: LAD-TS, SAC-TS and DQN-TS over the same inputs.

Soft actor-critic for discrete actions (Haarnoja et al. 2018; Christodoulou 2019) with the score network as actor, plain
or as LAD-TS's chain (arXiv 2412.18212), and as twin critics; DQN (Mnih et al. 2015) with double Q-learning. Start
reading at `learn`.
"""

import copy
import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
import torch

from common.random_streams import Stream, random_generator
from trace_ts.event_loop import Seen, new_seen
from trace_ts.marginal import marginal_cost
from trace_ts.model_trace import Design, ScorePolicy, chain_schedule
from trace_ts.rules import CONSTANTS, mean_service
from trace_ts.scenario import Scenario
from trace_ts.simulation import simulate
from trace_ts.workload import Requests


class ScoreNet(torch.nn.Module):
    """The score of score.py with gradients. Its parameter is the vector [P] of `Design.begin`."""

    def __init__(self, design: Design, parameters: np.ndarray) -> None:
        super().__init__()
        self.design = design
        self.vector = torch.nn.Parameter(torch.tensor(parameters, dtype=torch.float32))
        self.schedule = chain_schedule(design.steps).tolist()

    def parts(self) -> tuple[torch.Tensor, ...]:
        """Constants [7] and the four arrays of weights."""
        sizes = [len(CONSTANTS), *(int(np.prod(shape)) for shape in self.design.shapes)]
        constants, *flat = self.vector.split(sizes)
        return constants.exp(), *(part.view(shape) for part, shape in zip(flat, self.design.shapes, strict=True))

    def score(self, on_server: torch.Tensor, on_task: torch.Tensor) -> torch.Tensor:
        """Scores [N, B] in mean services, from on_server [N, ON_SERVER, B] and on_task [N, ON_TASK]."""
        constants, server_in, task_in, bias, out = self.parts()
        alpha, beta, theta, phi, psi, chi, _ = constants
        hidden = server_in @ on_server + (on_task @ task_in.T + bias)[:, :, None]
        heads = out @ torch.nn.functional.leaky_relu(hidden, 0.01)
        q, service, miss = on_server[:, 0].expm1(), on_server[:, 2].exp(), on_server[:, 3]
        own = on_server.shape[2] * ((3 * (on_task[:, 4] - 1)).exp() - 1e-3) / on_task[:, 3].expm1().clamp(min=1)
        price = self.design.price * (theta + phi * q + psi * on_server[:, 4].expm1()) / (1 + chi * own)[:, None]
        load = miss * on_task[:, 9, None] * price * heads[:, 0].clamp(-5, 5).exp()
        return alpha * q + beta * service + on_task[:, 0, None].exp() * heads[:, 1] + load

    def forward(self, on_server: torch.Tensor, on_task: torch.Tensor, begin: torch.Tensor) -> torch.Tensor:
        """The scores [N, B] by which tasks choose; a chain begins with begin [N, B]."""
        if not self.schedule:
            return self.score(on_server, on_task)
        x = begin
        for i, (end, present) in enumerate(self.schedule):
            step = torch.full_like(on_task[:, -1:], 1 - i / len(self.schedule))
            servers = torch.cat([on_server[:, :-1], x[:, None]], 1)
            found = self.score(servers, torch.cat([on_task[:, :-1], step], 1))
            x = end * (found.min(1, keepdim=True).values - found).clamp(min=-20) + present * x
        return -x


@dataclasses.dataclass(frozen=True)
class Learning:
    """How a policy is learned by gradients.

    `credit`: what a decision costs. `delay`: the task's own, and with `discount` those of the next tasks. `marginal`:
    in hindsight, what all waited for it. `actor`: False for DQN-TS.
    """

    actor: bool = True
    credit: str = "marginal"
    discount: float = 0.0
    rounds: int = 60
    segment: int = 7000
    updates: int = 150  # a round
    batch: int = 256
    kept: int = 8  # rounds whose tasks are learned from
    actor_rate: float = 3e-3
    critic_rate: float = 3e-3
    entropy: float = 0.3  # that the temperature steers to, in nat
    target_rate: float = 0.01


def tensors(seen: Seen, outcome_cost: np.ndarray, server: np.ndarray) -> dict[str, torch.Tensor]:
    """A segment's tasks [K], each but the last with the next one's inputs."""
    return {
        "on_server": torch.from_numpy(seen.on_server),
        "on_task": torch.from_numpy(seen.on_task),
        "begin": torch.from_numpy(seen.begin).float(),
        "cost": torch.from_numpy(outcome_cost).float(),
        "server": torch.from_numpy(server),
    }


def learn(
    design: Design,
    start: np.ndarray,
    requests: Requests,
    scenarios: Sequence[Scenario],
    learning: Learning,
    seed: int,
    validate: Callable[[np.ndarray], float],
    check_every: int = 5,
    first_draw: int = 10_000,
) -> tuple[np.ndarray, list[tuple[int, float]]]:
    """Learned parameters [P] with the least validated cost, and every validation."""
    generator = random_generator(Stream.TRACE_SEARCH, seed)
    torch.manual_seed(int(generator.integers(2**31)))
    requests = requests.halves()[0]
    half, mean = len(requests), mean_service(requests)
    actor = ScoreNet(design, start)
    flat = dataclasses.replace(design, steps=0)
    critics = [ScoreNet(flat, flat.begin(np.exp(start[: len(CONSTANTS)]), seed + i)) for i in (1, 2)]
    targets = copy.deepcopy(critics)
    logs = torch.tensor(np.log(0.5), dtype=torch.float32, requires_grad=True)
    critic_step = torch.optim.Adam([p for c in critics for p in c.parameters()], learning.critic_rate)
    actor_step = torch.optim.Adam(actor.parameters(), learning.actor_rate)
    heat_step = torch.optim.Adam([logs], 3e-3)
    schedulers = [torch.optim.lr_scheduler.CosineAnnealingLR(s, learning.rounds) for s in (critic_step, actor_step)]
    memory: list[dict[str, torch.Tensor]] = []
    best, history = (validate(start), start), []
    history.append((0, best[0]))
    for number in range(1, learning.rounds + 1):
        begin = int(generator.integers(half - learning.segment + 1))
        part = slice(begin, begin + learning.segment)
        scenario = scenarios[generator.integers(len(scenarios))]
        seen = new_seen(learning.segment, scenario.num_servers)
        lead = actor if learning.actor else critics[0]
        vector = lead.vector.detach().numpy().astype(np.float64)
        vector[6] = float(logs.detach()) if learning.actor else np.log(0.3)
        policy = ScorePolicy(lead.design, vector, explore=True)
        outcome = simulate(policy, requests, scenario, first_draw + int(generator.integers(8)), part, seen=seen)
        cost = (
            marginal_cost(outcome, requests.model[part], scenario.load_time)
            if learning.credit == "marginal"
            else outcome.delay
        )
        memory = [*memory[1 - learning.kept :], tensors(seen, cost / mean, outcome.server)]
        for _ in range(learning.updates):
            source = memory[generator.integers(len(memory))]
            index = torch.from_numpy(generator.integers(0, learning.segment - 1, learning.batch))
            now = {name: value[index] for name, value in source.items()}
            inputs = now["on_server"], now["on_task"], now["begin"]
            with torch.no_grad():
                goal = now["cost"]
                if learning.discount > 0:
                    after = [source[name][index + 1] for name in ("on_server", "on_task", "begin")]
                    future = torch.max(targets[0](*after), targets[1](*after))
                    if learning.actor:
                        chance = (-actor(*after) / logs.exp()).log_softmax(1)
                        value = (chance.exp() * (future + logs.exp() * chance)).sum(1)
                    else:
                        value = future.gather(1, critics[0](*after).argmin(1, keepdim=True))[:, 0]
                    goal = goal + learning.discount * value
            loss = sum(
                torch.nn.functional.smooth_l1_loss(c(*inputs).gather(1, now["server"][:, None])[:, 0], goal, beta=5.0)
                for c in critics
            )
            critic_step.zero_grad()
            loss.backward()
            critic_step.step()
            if learning.actor:
                with torch.no_grad():
                    q = torch.max(critics[0](*inputs), critics[1](*inputs))
                chance = (-actor(*inputs) / logs.detach().exp()).log_softmax(1)
                entropy = -(chance.exp() * chance).sum(1)
                actor_loss = ((chance.exp() * q).sum(1) - logs.detach().exp() * entropy).mean()
                actor_step.zero_grad()
                actor_loss.backward()
                actor_step.step()
                heat = logs * (entropy.detach().mean() - learning.entropy)
                heat_step.zero_grad()
                heat.backward()
                heat_step.step()
            with torch.no_grad():
                for target, critic in zip(targets, critics, strict=True):
                    target.vector.lerp_(critic.vector, learning.target_rate)
        for scheduler in schedulers:
            scheduler.step()
        if number % check_every == 0 or number == learning.rounds:
            found = (actor if learning.actor else critics[0]).vector.detach().numpy().astype(np.float64)
            value = validate(found)
            history.append((number, value))
            best = min(best, (value, found), key=lambda pair: pair[0])
    return best[1], history
