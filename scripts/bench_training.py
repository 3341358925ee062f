"""How fast LAD-TS trains and decides, against a plain per-task loop measured in the same run.

Prints tables: seconds per training episode and seed (one seed and eight, by threads and device, quiet and beside
busy processes; first the plain loop that is the baseline), what kinds of operation an episode's time goes to, the cost
of a decision for growing numbers of servers and tasks, and what the environment for other libraries adds to the
simulator's step. Times are the least of several repeats, since other
programs only ever add. Example:
python scripts/bench_training.py --quick True
"""

import common.quiet_start  # noqa: F401

import dataclasses
import multiprocessing
import time
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from common.command_line import command_line
from common.parameters import Parameters, parameter, resolve
from common.progress import Progress
from common.run_folder import peak_memory
from lad_ts.environment_lad import CollaborativeMEC, Slot, draw_arrivals, draw_scenario
from lad_ts.episodes import run_episode
from lad_ts.model_lad import LadAgents, LadConfig
from mec_env.vector import MECVector


@dataclasses.dataclass(kw_only=True)
class BenchConfig(Parameters):
    """Every parameter of bench_training.py."""

    repeats: int = parameter(5, "timed episodes of each setting; the least time counts", low=1)
    plain_slots: int = parameter(4, "slots that the plain loop runs before it is scaled to an episode", low=2)
    busy: bool = parameter(True, "also measure one seed beside as many busy processes as there are cores")
    shares: bool = parameter(True, "also measure what kinds of operation the time goes to")
    scaling: bool = parameter(True, "also measure the cost of a decision up to 200 servers and 200 tasks")
    vector: bool = parameter(True, "also measure the environment for other libraries")
    quick: bool = parameter(False, "one repeat, and only the smallest of each table")


def prepare(device: str, seeds: int, **given: Any) -> tuple[LadConfig, CollaborativeMEC, LadAgents]:
    """Parameters, environment and untrained agents of seeds 0, 1, .."""
    config = resolve(LadConfig, given | {"seeds": seeds, "device": device})
    numbers = list(range(seeds))
    env = CollaborativeMEC(draw_scenario(config, numbers), device, config.slot_length)
    return config, env, LadAgents(config, numbers, device)


def episode_seconds(device: str, seeds: int, threads: int, repeats: int) -> float:
    """Seconds per training episode and seed, environment included, once all agents learn."""
    torch.set_num_threads(threads)
    config, env, agents = prepare(device, seeds)
    times = []
    for episode in range(repeats + 1):  # the first one fills the replay and is not counted
        rows = [(seed, episode) for seed in range(seeds)]
        arrivals = draw_arrivals(config, rows)
        began = time.perf_counter()
        run_episode(env, agents, arrivals, rows)
        times.append((time.perf_counter() - began) / seeds)
    return min(times[1:])


# Operators by what they do; all others are elementwise work, sums, copies and the calls themselves.
KINDS = {
    "batched matrix products": ("aten::bmm", "aten::baddbmm", "aten::baddbmm_"),
    "random numbers": ("aten::normal_", "aten::uniform_"),
    "softmax": ("aten::_softmax", "aten::_softmax_backward_data"),
}


def operator_shares(seeds: int) -> dict[str, float]:
    """Seconds per seed that one training episode on one CPU thread spends in each kind of operator."""
    torch.set_num_threads(1)
    config, env, agents = prepare("cpu", seeds)
    for episode in range(2):
        rows = [(seed, episode) for seed in range(seeds)]
        arrivals = draw_arrivals(config, rows)
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
            run_episode(env, agents, arrivals, rows)
    times = {event.key: event.self_cpu_time_total / 1e6 / seeds for event in profile.key_averages()}
    shares = {kind: sum(times.pop(name, 0.0) for name in names) for kind, names in KINDS.items()}
    return shares | {"elementwise operations, sums, copies and calls": sum(times.values())}


class PlainAgent:
    """One LAD-TS agent as ordinary modules, called task by task: what the stacked agents are measured against."""

    def __init__(self, config: LadConfig, state_size: int) -> None:
        def mlp(inputs: int) -> nn.Sequential:
            h = config.hidden
            return nn.Sequential(
                nn.Linear(inputs, h), nn.ReLU(), nn.Linear(h, h), nn.ReLU(), nn.Linear(h, config.num_bs)
            )

        self.config, self.steps = config, config.denoising_steps
        self.actor = mlp(config.num_bs + 16 + state_size)
        self.critics, self.targets = ([mlp(state_size) for _ in range(2)] for _ in range(2))
        self.embedding = torch.randn(self.steps, 16)
        self.log_alpha = torch.tensor(-3.0, requires_grad=True)
        self.optimisers = [
            torch.optim.Adam(parameters, 1e-3)
            for parameters in (self.actor.parameters(), *(c.parameters() for c in self.critics), [self.log_alpha])
        ]

    def probabilities(self, state: torch.Tensor, latent: torch.Tensor) -> torch.Tensor:
        """Action probabilities [M, B] for state [M, F] and latent [M, B]."""
        for i in reversed(range(self.steps)):
            step = self.embedding[i].expand(len(state), -1)
            noise = self.actor(torch.cat([latent, step, state], 1)).softmax(1)
            latent = 1.1 * latent - 0.5 * noise + (0.3 * torch.randn_like(latent) if i else 0)
        return latent.softmax(1)

    def update(self, state: torch.Tensor, latent: torch.Tensor, action: torch.Tensor, reward: torch.Tensor) -> None:
        def value(networks: list[nn.Module], p: torch.Tensor) -> torch.Tensor:
            return (p * torch.min(*(network(state) for network in networks))).sum(1, keepdim=True)

        def step(loss: torch.Tensor, optimiser: torch.optim.Adam) -> None:
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()

        with torch.no_grad():
            p = self.probabilities(state, latent)
            target = reward + 0.95 * value(self.targets, p)
        for critic, optimiser in zip(self.critics, self.optimisers[1:3], strict=True):
            step((critic(state).gather(1, action) - target).square().mean(), optimiser)
        p = self.probabilities(state, latent)
        entropy = -(p * (p + 1e-8).log()).sum(1, keepdim=True)
        step((-self.log_alpha.exp().detach() * entropy - value(self.critics, p)).mean(), self.optimisers[0])
        step(((entropy.detach() + 1) * self.log_alpha.exp()).mean(), self.optimisers[3])
        for critic, slow in zip(self.critics, self.targets, strict=True):
            for new, old in zip(critic.parameters(), slow.parameters(), strict=True):
                old.data.lerp_(new.data, 0.005)


def plain_loop_seconds(slots: int) -> float:
    """Seconds per episode of the plain loop: every task by itself, every agent updated by itself; one thread."""
    torch.set_num_threads(1)
    config, env, _ = prepare("cpu", 1)
    size = config.num_bs + 2
    agents = [PlainAgent(config, size) for _ in range(config.num_bs)]
    latent = torch.randn(config.num_bs, config.num_tasks, config.num_bs)
    minibatch = torch.randn(64, size), torch.randn(64, config.num_bs), torch.zeros(64, 1).long(), -torch.rand(64, 1)
    slot = env.reset(draw_arrivals(config, [(0, 0)]))
    times = []
    for _ in Progress(range(slots), unit="slot", desc="plain loop"):
        began = time.perf_counter()
        slot = plain_slot(env, slot, agents, latent, minibatch)
        times.append(time.perf_counter() - began)
    return min(times[1:]) * (config.num_slots - 1)


def plain_slot(
    env: CollaborativeMEC, slot: Slot, agents: list[PlainAgent], latent: torch.Tensor, minibatch: tuple
) -> Slot:
    """Schedule a slot task by task, update every agent by itself, and go on to the next slot."""
    action = torch.zeros(slot.mask.shape, dtype=torch.long)
    for b, agent in enumerate(agents):
        for n in range(int(slot.mask[0, b].sum())):
            with torch.no_grad():
                state = torch.cat([slot.size[0, b, n : n + 1], slot.workload[0, b, n : n + 1], slot.backlog[0]]).float()
                p = agent.probabilities(state[None], latent[b, n][None])
            latent[b, n] = p[0]
            action[0, b, n] = torch.distributions.Categorical(p[0]).sample().item()
        agent.update(*minibatch)
    return env.step(action)[1]


def decision_microseconds(num_bs: int, num_tasks: int, repeats: int) -> float:
    """Microseconds per decision of trained-size agents and the environment's step, without learning."""
    torch.set_num_threads(1)
    config, env, agents = prepare("cpu", 1, num_bs=num_bs, num_tasks=num_tasks, num_slots=2, replay_capacity=1000)
    agents.training = False
    times = []
    for episode in range(repeats + 1):
        arrivals = draw_arrivals(config, [(0, episode)])
        slot = env.reset(arrivals)
        agents.begin(env.scenario, [(0, episode)])
        began = time.perf_counter()
        env.step(agents.act(slot))
        times.append((time.perf_counter() - began) / arrivals.count[:, 0].sum())
    return 1e6 * min(times[1:])


def vector_steps(num_envs: int, repeats: int) -> tuple[float, float]:
    """Slots times environments in a second: the bare simulator's step, and MECVector's; one thread, in turns."""
    torch.set_num_threads(1)
    env = MECVector(num_envs)
    env.reset()
    bare = CollaborativeMEC(env.scenario)
    bare.reset(draw_arrivals(env.params, [(seed, 0) for seed in env.seeds]))
    actions = [torch.randint(0, env.num_bs, (num_envs, env.num_bs, env.num_tasks)) for _ in range(2)]
    slots, times = env.num_slots - 2, ([], [])  # the last step of an episode also draws the next one
    for _ in range(repeats):
        for k, (step, given) in enumerate(((bare.step, actions[0]), (env.step, actions[1].numpy()))):
            began = time.perf_counter()
            for _ in range(slots):
                step(given)
            times[k].append(time.perf_counter() - began)
        bare.t = 0
        env.reset()
    simulator, vector = (num_envs * slots / min(found) for found in times)
    return simulator, vector


def spin(stop: Any) -> None:
    """Compute until asked to stop."""
    while not stop.is_set():
        sum(range(10_000))


@contextmanager
def busy_processes(count: int) -> Any:
    """`count` processes that compute all the time."""
    context = multiprocessing.get_context("spawn")
    stop = context.Event()
    workers = [context.Process(target=spin, args=(stop,), daemon=True) for _ in range(count)]
    for worker in workers:
        worker.start()
    time.sleep(2)  # until they have started
    try:
        yield
    finally:
        stop.set()
        for worker in workers:
            worker.join()


def main(config: BenchConfig, given: dict[str, Any]) -> None:
    repeats = 1 if config.quick else config.repeats
    cores = multiprocessing.cpu_count()
    plain = plain_loop_seconds(config.plain_slots)
    print("\n## Training, seconds per episode and seed\n")
    print("| device | threads | seeds | seconds | plain loop / this |\n|---|---|---|---|---|")
    print(f"| cpu, plain per-task loop | 1 | 1 | {plain:.1f} | 1 |")
    settings = [("cpu", threads, seeds) for threads in (1, 2) if threads <= cores for seeds in (1, 8)]
    if torch.cuda.is_available():
        settings += [("cuda", 1, 1), ("cuda", 1, 8)]
    for device, threads, seeds in settings[:1] if config.quick else settings:
        seconds = episode_seconds(device, seeds, threads, repeats)
        print(f"| {device} | {threads} | {seeds} | {seconds:.3f} | {plain / seconds:.0f} |", flush=True)
    if config.busy and not config.quick:
        with busy_processes(cores):
            for threads in (1, 2):
                seconds = episode_seconds("cpu", 1, threads, repeats)
                row = f"| cpu beside {cores} busy processes | {threads} | 1 | {seconds:.3f} | {plain / seconds:.0f} |"
                print(row, flush=True)
    if config.shares and not config.quick:
        one, eight = operator_shares(1), operator_shares(8)
        print("\n## Where the time goes, seconds per episode and seed (one thread, as a profiler counts)\n")
        print("| kind of operation | 1 seed | 8 seeds |\n|---|---|---|")
        for kind in one:
            print(f"| {kind} | {one[kind]:.3f} | {eight[kind]:.3f} |", flush=True)
    if config.scaling:
        print("\n## Decision, microseconds (actor and environment, one thread)\n")
        print("| servers B | tasks N | us per decision | per server, against B = 20, N = 50 |\n|---|---|---|---|")
        pairs = [(20, 50), (50, 50), (100, 50), (200, 50), (20, 200), (100, 200), (200, 200)]
        base = None
        for num_bs, num_tasks in pairs[:2] if config.quick else pairs:
            cost = decision_microseconds(num_bs, num_tasks, repeats)
            base = base or cost / num_bs
            print(f"| {num_bs} | {num_tasks} | {cost:.2f} | {cost / num_bs / base:.2f} |", flush=True)
    if config.vector:
        print("\n## Environment for other libraries, slots times environments in a second (per=bs, one thread)\n")
        print("| environments | CollaborativeMEC.step | MECVector.step | time, MECVector / bare |\n|---|---|---|---|")
        for num_envs in (1, 1000)[: 1 if config.quick else 2]:
            simulator, vector = vector_steps(num_envs, repeats if num_envs > 1 else 20 * repeats)
            print(f"| {num_envs} | {simulator:.0f} | {vector:.0f} | {simulator / vector:.2f} |", flush=True)
    print(f"\npeak memory {peak_memory('cuda' if torch.cuda.is_available() else 'cpu')}")


if __name__ == "__main__":
    command_line(BenchConfig, main, __doc__)
