"""How fast methods train and decide: each engine, a plain per-task loop and the fused engine's floor, in the same run.

Prints tables: seconds per training episode and seed, quiet and beside busy processes; what a first training costs,
compilation included; what kinds of operation an episode of the torch engine goes to, the cost of a decision for growing
numbers of servers and tasks, and what the environment for other libraries adds to the simulator's step. The floor is
the same matrix products and random numbers without anything else. What is compared runs in turns, and times are the
least of several repeats, since other programs only ever add. Examples:
python scripts/bench_training.py --quick True
python scripts/bench_training.py --device cuda --seeds 1,8,64,512
"""

import common.quiet_start  # noqa: F401

import dataclasses
import math
import multiprocessing
import re
import statistics
import time
from collections.abc import Callable
from contextlib import contextmanager
from typing import Any

import torch

from baselines.methods import METHODS
from common.command_line import command_line
from common.device import choose_device
from common.parameters import ParameterError, Parameters, parameter
from common.run_folder import peak_memory
from experiments.first_runs import first_runs
from experiments.plain_training import PlainLoop
from experiments.training_times import Training, in_turns
from lad_ts.draws import MANY
from lad_ts.environment_lad import CollaborativeMEC, draw_arrivals
from lad_ts.run_parameters import DEVICES
from mec_env.vector import MECVector

MOST_SEEDS = 1000  # of a run


@dataclasses.dataclass(kw_only=True)
class BenchConfig(Parameters):
    """Every parameter of bench_training.py."""

    repeats: int = parameter(5, "timed episodes of each setting; the least time counts", low=1)
    plain_slots: int = parameter(
        2, "slots that the plain loop runs in a turn, of which the faster counts", low=1, high=50
    )
    device: str = parameter(
        "auto", "auto: every table; cpu, cuda or cuda:N: only that of the torch engine there, by --seeds"
    )
    seeds: str = parameter("1,8", "seeds that train together in the table of a device, separated by commas")
    busy: bool = parameter(True, "also measure one seed beside as many busy processes as there are cores")
    compilation: bool = parameter(True, "also measure a first training, whose functions must be compiled")
    shares: bool = parameter(True, "also measure what kinds of operation the time of the torch engine goes to")
    scaling: bool = parameter(True, "also measure the cost of a decision up to 200 servers and 200 tasks")
    vector: bool = parameter(True, "also measure the environment for other libraries")
    quick: bool = parameter(False, "one repeat, and only the smallest of each table")

    def check(self) -> None:
        super().check()
        choose_device(self.device, DEVICES)
        self.seed_counts()

    def seed_counts(self) -> list[int]:
        """The numbers of `seeds`. Raises ParameterError."""
        parts = [part.strip() for part in self.seeds.split(",")]
        if not all(re.fullmatch(r"[1-9]\d{0,3}", part, re.ASCII) and int(part) <= MOST_SEEDS for part in parts):
            raise ParameterError("seeds", self.seeds, f"must be numbers of 1 to {MOST_SEEDS}, separated by commas")
        return [int(part) for part in parts]


# Method, seeds and threads of the table of engines; the first is that of --quick.
SETTINGS = [("lad_ts", 1, 1), ("lad_ts", 8, 1), ("lad_ts", 1, 2), ("lad_ts", 8, 2)]
SETTINGS += [("sac_ts", 1, 1), ("d2sac_ts", 1, 1), ("dqn_ts", 1, 1)]


def engine_seconds(
    method: str, seeds: int, threads: int, repeats: int, **others: Callable[[], float]
) -> dict[str, float]:
    """Seconds per training episode and seed with each engine, of the fused one's floor, and of what else is given."""
    from fused.floor import Floor  # imports numba, which takes a while

    given = {"seeds": seeds, "threads": threads, "device": "cpu"}
    slow, fast = (Training(method, engine=engine, **given) for engine in ("torch", "fused"))
    floor = Floor(fast.agents.engine)

    def least() -> float:
        fast.begin()
        return floor.seconds(fast.config.num_slots - 1) / seeds

    timed = in_turns({"torch": slow.episode, "fused": fast.episode, "floor": least} | others, repeats)
    return {name: min(seconds) for name, seconds in timed.items()}


def busy_seconds(repeats: int) -> dict[str, float]:
    """Seconds per training episode of LAD-TS with one seed, with each engine on one thread and on two, as medians.

    The least time would be that of an episode beside which the other processes had to wait.
    """
    trainings = {
        f"{engine} | {threads}": Training("lad_ts", engine=engine, threads=threads, device="cpu").episode
        for engine in ("torch", "fused")
        for threads in (1, 2)
    }
    return {name: statistics.median(seconds) for name, seconds in in_turns(trainings, repeats).items()}


# Operators by what they do; all others are elementwise work, sums, copies and the calls themselves.
KINDS = {
    "batched matrix products": ("aten::bmm", "aten::baddbmm", "aten::baddbmm_"),
    "random numbers": ("aten::normal_", "aten::uniform_"),
    "softmax": ("aten::_softmax", "aten::_softmax_backward_data"),
}


def operator_shares(seeds: int) -> dict[str, float]:
    """Seconds per seed that one training episode of the torch engine spends in each kind of operator, on one thread."""
    training = Training("lad_ts", engine="torch", seeds=seeds, device="cpu")
    training.episode()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        training.episode()
    times = {event.key: event.self_cpu_time_total / 1e6 / seeds for event in profile.key_averages()}
    shares = {kind: sum(times.pop(name, 0.0) for name in names) for kind, names in KINDS.items()}
    return shares | {"elementwise operations, sums, copies and calls": sum(times.values())}


def decision_microseconds(num_bs: int, num_tasks: int, repeats: int) -> float:
    """Microseconds per decision of the torch engine and the environment's step, without learning."""
    sizes = {"num_bs": num_bs, "num_tasks": num_tasks, "num_slots": 2, "replay_capacity": 1000}
    training = Training("lad_ts", engine="torch", device="cpu", **sizes)
    training.begin()
    config, env, agents = training.config, training.env, training.agents
    agents.training = False
    agents.draws.made = MANY + 1  # random numbers are compiled, as after some episodes
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


def table(title: str, columns: str) -> None:
    """Print the head of a table."""
    print(f"\n## {title}\n\n| {columns} |\n|{'---|' * (columns.count('|') + 1)}", flush=True)


def print_engines(config: BenchConfig, repeats: int, plain_loop: Callable[[], float]) -> None:
    """Print the tables of engines on the CPU."""
    cores, plain = multiprocessing.cpu_count(), math.nan
    columns = "method | seeds | threads | torch s | fused s | torch / fused | floor s | fused / floor"
    table("Training by engine, seconds per episode and seed", f"{columns} | plain / torch | plain / fused")
    for method, seeds, threads in SETTINGS[:1] if config.quick else SETTINGS:
        if threads > cores:
            continue
        s = engine_seconds(method, seeds, threads, repeats, **({} if plain > 0 else {"plain": plain_loop}))
        if "plain" in s:
            plain = s["plain"]
            print(f"| LAD-TS, plain per-task loop | 1 | 1 | {plain:.1f} |{' - |' * 6}")
        row = f"| {METHODS[method].name} | {seeds} | {threads} | {s['torch']:.4f} | {s['fused']:.4f} "
        row += f"| {s['torch'] / s['fused']:.2f} | {s['floor']:.4f} | {s['fused'] / s['floor']:.2f} "
        words = [f"{plain / s[engine]:.0f}" if method == "lad_ts" else "-" for engine in ("torch", "fused")]
        print(row + f"| {words[0]} | {words[1]} |", flush=True)
    if config.busy and not config.quick:
        columns = "engine | threads | seconds | this / one thread | plain / this"
        table(f"LAD-TS beside {cores} busy processes, one seed, medians", columns)
        with busy_processes(cores):
            found = busy_seconds(repeats)
        for name, seconds in found.items():
            one = found[f"{name.partition(' ')[0]} | 1"]
            print(f"| {name} | {seconds:.4f} | {seconds / one:.2f} | {plain / seconds:.0f} |", flush=True)
    if config.compilation and not config.quick:
        table("A first training of LAD-TS, one episode, as a process", "engine | seconds | peak memory MiB")
        for name, seconds, memory in first_runs():
            print(f"| {name} | {seconds:.1f} | {memory:.0f} |", flush=True)


def print_device(config: BenchConfig, device: str, repeats: int, plain_loop: Callable[[], float]) -> None:
    """Print the table of the torch engine on a device, by seeds."""
    table("Training on a device, torch engine, seconds per episode and seed", "device | seeds | seconds | plain / this")
    for seeds in config.seed_counts()[: 1 if config.quick else None]:
        training = Training("lad_ts", engine="torch", seeds=seeds, device=device)
        found = in_turns({"torch": training.episode, "plain": plain_loop}, repeats)
        seconds, plain = min(found["torch"]), min(found["plain"])
        print(f"| {device} | {seeds} | {seconds:.5f} | {plain / seconds:.0f} |", flush=True)
    print(f"\npeak memory {peak_memory(device)}", flush=True)


def main(config: BenchConfig, given: dict[str, Any]) -> None:
    device = choose_device(config.device, DEVICES)
    repeats, loop = 1 if config.quick else config.repeats, PlainLoop()

    def plain_loop() -> float:
        return loop.seconds(config.plain_slots)

    if config.device != "auto":
        print_device(config, str(device), repeats, plain_loop)
        return
    print_engines(config, repeats, plain_loop)
    if device.type != "cpu":
        print_device(config, str(device), repeats, plain_loop)
    if config.shares and not config.quick:
        one, eight = operator_shares(1), operator_shares(8)
        title = (
            "Where the time of the torch engine goes, seconds per episode and seed (one thread, as a profiler counts)"
        )
        table(title, "kind of operation | 1 seed | 8 seeds")
        for kind in one:
            print(f"| {kind} | {one[kind]:.3f} | {eight[kind]:.3f} |", flush=True)
    if config.scaling:
        columns = "servers B | tasks N | us per decision | per server, against B = 20, N = 50"
        table("Decision, microseconds (torch engine and environment, one thread)", columns)
        pairs = [(20, 50), (50, 50), (100, 50), (200, 50), (20, 200), (100, 200), (200, 200)]
        base = None
        for num_bs, num_tasks in pairs[:2] if config.quick else pairs:
            cost = decision_microseconds(num_bs, num_tasks, repeats)
            base = base or cost / num_bs
            print(f"| {num_bs} | {num_tasks} | {cost:.2f} | {cost / num_bs / base:.2f} |", flush=True)
    if config.vector:
        columns = "environments | CollaborativeMEC.step | MECVector.step | time, MECVector / bare"
        table("Environment for other libraries, slots times environments in a second (per=bs, one thread)", columns)
        for num_envs in (1, 1000)[: 1 if config.quick else 2]:
            simulator, vector = vector_steps(num_envs, repeats if num_envs > 1 else 20 * repeats)
            print(f"| {num_envs} | {simulator:.0f} | {vector:.0f} | {simulator / vector:.2f} |", flush=True)
    print(f"\npeak memory {peak_memory()}")


if __name__ == "__main__":
    command_line(BenchConfig, main, __doc__)
