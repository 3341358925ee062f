"""The one loop that runs every method: episodes, progress, checkpoints, CSV and plot.

A script gives `run_method` its parameters and a `Method`, which names it and builds its scheduler. Learners train
episode by episode with checkpoints; fixed schedulers, whose episodes are independent, are run many episodes at once.
Opt-TS is computed on the same arrivals beside every run. Start reading at `run_method`.
"""

import dataclasses
import json
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from tqdm import tqdm

from common.command_line import fail
from common.parameters import ParameterError, Parameters, parameter, resolve
from common.run_folder import (
    RESULTS,
    claimed,
    create_folder,
    load_checkpoint,
    peak_mebibytes,
    peak_memory,
    save_checkpoint,
    writable,
    write_config,
    write_csv,
    write_text,
)
from common.statistics_seeds import episode_mean, final_span, with_interval
from lad_ts.environment_lad import CollaborativeMEC, EnvironmentParameters, Scenario, draw_arrivals, draw_scenario
from lad_ts.episodes import EpisodeStatistics, run_episode
from lad_ts.plots import Curve, plot_delays
from lad_ts.references import LowerBound, OptTS
from lad_ts.scheduler import Learner, Scheduler

HEADER = ("seed", "episode", "delay_s", "opt_delay_s", "p50_s", "p95_s", "p99_s", "max_s", "seconds")
# Parameters that the command line may change for a stored run.
FREE = {
    "resume": {"episodes", "device", "threads", "checkpoint_every"},
    "evaluate": {"evaluation_episodes", "evaluation_action", "device", "threads", "out"},
}
CELLS_AT_ONCE = 4_000_000  # task cells of the episodes that Opt-TS takes together, which bounds its memory


@dataclasses.dataclass(kw_only=True)
class RunParameters(Parameters):
    """What every script takes."""

    episodes: int = parameter(500, "episodes to run", low=1)
    seeds: int = parameter(1, "seeds that run together", low=1, high=1000)
    seed: int = parameter(0, "first seed; the others follow it", low=0)
    device: str = parameter("auto", "where learners live: auto, cpu or cuda; the rest runs on the CPU")
    threads: int = parameter(1, "CPU threads", low=1, high=1024)
    out: str | None = parameter(None, "folder of the run; default results/<method>/<run>")

    def check(self) -> None:
        super().check()
        choose_device(self.device)


@dataclasses.dataclass(kw_only=True)
class FixedParameters(RunParameters, EnvironmentParameters):
    """What the scripts of schedulers without learning take."""

    PRESETS: ClassVar = {"paper": {"tied_sizes": True}, "tuned": {}}

    preset: str = parameter(
        "tuned", "paper: the published environment, with rho and r tied; tuned: without", choices=("tuned", "paper")
    )
    held_out: bool = parameter(False, "use the held-out arrivals of --evaluate instead of those of training")


@dataclasses.dataclass(kw_only=True)
class TrainingParameters(RunParameters):
    """What every learner's script takes besides."""

    checkpoint_every: int = parameter(25, "episodes between checkpoints", unit="episodes", low=1)
    resume: str | None = parameter(None, "go on with the run in this folder; --episodes may be raised")
    evaluate: str | None = parameter(None, "evaluate this checkpoint on held-out arrivals instead of training")
    evaluation_episodes: int = parameter(10, "held-out episodes of an evaluation", low=1)

    @property
    def variant(self) -> str:
        """The run's kind in a word, for labels and the folder's name."""
        return self.preset


@dataclasses.dataclass(frozen=True)
class Method:
    """A method's name, its folder below results/, and how to build its scheduler."""

    name: str
    folder: str
    build: Callable[[Any, Sequence[int], torch.device], Scheduler]
    note: Callable[[Any], str] = lambda config: ""  # what a training's user should know in advance

    def label(self, config: Any) -> str:
        """The name, for learners with the preset, as figures and tables show it."""
        return f"{self.name} ({config.variant})" if isinstance(config, TrainingParameters) else self.name


def choose_device(name: str) -> torch.device:
    """The device of `--device`. Raises ParameterError when there is none."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name not in ("cpu", "cuda"):
        raise ParameterError("device", name, "must be one of auto, cpu, cuda")
    if name == "cuda" and not torch.cuda.is_available():
        raise ParameterError("device", "cuda", "must be a device of this machine, which has no CUDA")
    return torch.device(name)


def training_seeds(config: RunParameters) -> list[int]:
    return list(range(config.seed, config.seed + config.seeds))


def run_block(
    config: EnvironmentParameters,
    scenario: Scenario,
    scheduler: Scheduler | LowerBound,
    seeds: list[int],
    episodes: range,
    held_out: bool = False,
) -> EpisodeStatistics:
    """Run a fixed scheduler on all (seed, episode) at once; rows are seeds within episodes: [E * S]."""
    rows = [(seed, episode) for episode in episodes for seed in seeds]
    columns = [getattr(scenario, field.name) for field in dataclasses.fields(scenario)]
    stacked = Scenario(*(np.tile(column, (len(episodes), 1)) for column in columns))
    arrivals = draw_arrivals(config, rows, held_out)
    if isinstance(scheduler, LowerBound):
        return scheduler.statistics(stacked, arrivals, config.slot_length)
    return run_episode(CollaborativeMEC(stacked, slot_length=config.slot_length), scheduler, arrivals, rows)


def block_length(config: EnvironmentParameters, seeds: int) -> int:
    """Episodes that fit into CELLS_AT_ONCE, at least one."""
    return max(1, CELLS_AT_ONCE // (config.num_slots * config.num_bs * config.num_tasks * seeds))


class History:
    """Rows of delay.csv, one for each seed and episode."""

    def __init__(self, rows: list[list[float]] | None = None) -> None:
        self.rows = rows or []

    def add(self, seeds: list[int], episode: int, stats: EpisodeStatistics, opt: np.ndarray, seconds: float) -> None:
        columns = (stats.mean, opt, stats.p50, stats.p95, stats.p99, stats.max)
        for row, seed in enumerate(seeds):
            values = [float(column[row]) for column in columns]
            self.rows.append([seed, episode, *values, seconds / len(seeds)])

    @classmethod
    def stored(cls, rows: list, seeds: list[int]) -> "History":
        """The history of a checkpoint. Raises ValueError when it does not fit the seeds."""
        table = np.array(rows, dtype=float)
        if table.size and (table.ndim != 2 or table.shape[1] != len(HEADER) or len(table) % len(seeds)):
            raise ValueError(f"a history of shape {table.shape}")
        if table.size and not (table[:, 0].reshape(-1, len(seeds)) == seeds).all():
            raise ValueError("a history of other seeds")
        return cls(rows)

    @property
    def episodes(self) -> int:
        return int(self.rows[-1][1]) + 1 if self.rows else 0

    def column(self, name: str, seeds: int) -> np.ndarray:
        """A column as [episodes, seeds]."""
        return np.array([row[HEADER.index(name)] for row in self.rows]).reshape(-1, seeds)

    def write(self, folder: Path) -> None:
        """delay.csv holds what the parameters determine; seconds.csv what the machine adds."""
        write_csv(folder / "delay.csv", HEADER[:-1], [[int(r[0]), int(r[1]), *r[2:-1]] for r in self.rows])
        write_csv(
            folder / "seconds.csv",
            ("seed", "episode", "seconds"),
            [[int(r[0]), int(r[1]), round(r[-1], 4)] for r in self.rows],
        )


def run_method(config: Any, given: dict[str, Any], method: Method) -> None:
    """Train, resume or evaluate a learner, or run a fixed scheduler, as the parameters say."""
    torch.set_num_threads(config.threads)
    if getattr(config, "evaluate", None) and config.resume:
        raise ParameterError("evaluate", config.evaluate, "must not be combined with --resume")
    if getattr(config, "evaluate", None):
        from lad_ts.evaluation import evaluate_checkpoint

        evaluate_checkpoint(config, given, method)
        return
    start = time.perf_counter()
    if getattr(config, "resume", None):
        folder = Path(config.resume)
        if not (folder / "checkpoint.pt").is_file():
            raise ParameterError("resume", folder, "must be a run's folder that holds a checkpoint.pt")
        with claimed(writable(folder)):
            config, scheduler, history = resume_run(config, given, method)
            finish_run(config, method, folder, scheduler, history, start)
    else:
        learns = isinstance(config, TrainingParameters)
        if note := method.note(config):
            print(note)
        name = f"{config.variant if learns else 'fixed'}_e{config.episodes}_s{config.seed}-{training_seeds(config)[-1]}"
        scheduler = method.build(config, training_seeds(config), choose_device(config.device))
        folder = create_folder(config.out, RESULTS / method.folder / name)
        with claimed(folder):
            finish_run(config, method, folder, scheduler, History(), start)


def finish_run(
    config: Any, method: Method, folder: Path, scheduler: Scheduler | LowerBound, history: History, start: float
) -> None:
    """Run from the history's end to the last episode, and report. Exits with 130 when Ctrl-C ended it."""
    write_config(folder, method.label(config), dataclasses.asdict(config))
    try:
        run = train if isinstance(scheduler, Learner) else run_fixed
        complete = run(config, method, folder, scheduler, history)
    except BaseException:
        if [path.name for path in folder.iterdir()] == ["config.json"]:  # nothing came of it
            (folder / "config.json").unlink()
        raise
    history.write(folder)
    final = final_span(history.episodes) if isinstance(scheduler, Learner) else history.episodes
    report(config, method, folder, history, final, time.perf_counter() - start)
    if not complete:
        ways = f"go on with --resume {folder}" if isinstance(scheduler, Learner) else f"{folder} holds what was done"
        print(f"interrupted after episode {history.episodes}; {ways}")
        sys.exit(130)


def train(config: Any, method: Method, folder: Path, learner: Learner, history: History) -> bool:
    """The training loop. Returns False when Ctrl-C ended it; the checkpoint then holds all whole episodes."""
    seeds = training_seeds(config)
    scenario = draw_scenario(config, seeds)
    env = CollaborativeMEC(scenario, choose_device(config.device), config.slot_length)
    block, ahead, opt = block_length(config, len(seeds)), range(0), np.empty(0)  # Opt-TS is some episodes ahead
    with (
        Interruption() as interruption,
        tqdm(
            total=config.episodes, initial=history.episodes, unit="episode", desc=method.label(config), smoothing=0.1
        ) as bar,
    ):
        for episode in range(history.episodes, config.episodes):
            if episode not in ahead:
                ahead = range(episode, min(episode + block, config.episodes))
                opt = run_block(config, scenario, OptTS(), seeds, ahead).mean.reshape(-1, len(seeds))
            began = time.perf_counter()
            rows = [(seed, episode) for seed in seeds]
            stats = run_episode(env, learner, draw_arrivals(config, rows), rows)
            if not learner.finite():
                history.write(folder)
                bar.close()
                fail(f"training diverged in episode {episode}: a network holds NaN or infinity; see {folder}", 1)
            history.add(seeds, episode, stats, opt[episode - ahead.start], time.perf_counter() - began)
            gap = (stats.mean / opt[episode - ahead.start] - 1).mean()
            bar.set_postfix_str(f"delay {stats.mean.mean():.2f} s, {gap:+.1%} to Opt-TS")
            bar.update()
            last = episode + 1 == config.episodes or interruption.asked
            if last or (episode + 1) % config.checkpoint_every == 0:
                history.write(folder)
                save_checkpoint(
                    folder / "checkpoint.pt",
                    {
                        "method": method.name,
                        "config": dataclasses.asdict(config),
                        "learner": learner.state_dict(),
                        "history": history.rows,
                    },
                )
            if interruption.asked:
                return episode + 1 == config.episodes
    return True


def run_fixed(
    config: FixedParameters, method: Method, folder: Path, scheduler: Scheduler | LowerBound, history: History
) -> bool:
    """Episodes of a scheduler that does not learn, many at a time. Returns False when Ctrl-C ended them."""
    seeds = training_seeds(config)
    scenario = draw_scenario(config, seeds)
    block = block_length(config, len(seeds))
    results = []
    with Interruption() as interruption, tqdm(total=config.episodes, unit="episode", desc=method.name) as bar:
        for first in range(0, config.episodes, block):
            episodes = range(first, min(first + block, config.episodes))
            began = time.perf_counter()
            stats = run_block(config, scenario, scheduler, seeds, episodes, config.held_out)
            seconds = (time.perf_counter() - began) / len(episodes)
            if isinstance(scheduler, OptTS):
                opt = stats.mean
            else:
                opt = run_block(config, scenario, OptTS(), seeds, episodes, config.held_out).mean
            for k, episode in enumerate(episodes):
                part = slice(k * len(seeds), (k + 1) * len(seeds))
                history.add(seeds, episode, stats.rows(part), opt[part], seconds)
                results.append(stats.rows(part))
            bar.update(len(episodes))
            if interruption.asked:
                break
    print(f"must know: {scheduler.needs}")
    if not isinstance(scheduler, LowerBound):
        report_servers(folder, seeds, results)
    return history.episodes == config.episodes


class Interruption:
    """Turns the first Ctrl-C into a request to stop after the current episode; a second one stops at once."""

    def __enter__(self) -> "Interruption":
        self.asked = False
        self.previous = signal.signal(signal.SIGINT, self.ask)
        return self

    def ask(self, *_: Any) -> None:
        self.asked = True
        signal.signal(signal.SIGINT, self.previous)

    def __exit__(self, *_: Any) -> None:
        signal.signal(signal.SIGINT, self.previous)


def stored_config(config: Any, given: dict[str, Any], content: dict[str, Any], method: Method, flag: str) -> Any:
    """The parameters of a checkpoint with those of `FREE[flag]` taken from the command line.

    Raises ParameterError when the checkpoint is another method's or version's, or when the command line contradicts a
    stored parameter that is not free.
    """
    place, free, stored = f"--{flag}={getattr(config, flag)}", FREE[flag], content["config"]
    if content["method"] != method.name:
        raise ParameterError(f"{place}: holds a run of {content['method']}; must be one of {method.name}")
    known = {field.name for field in dataclasses.fields(config)}
    if known != stored.keys():
        names = ", ".join(sorted(known ^ stored.keys())[:3])
        raise ParameterError(f"{place}: must hold the parameters of this version; they differ in {names}")
    for name in given.keys() - free - {flag}:
        if getattr(config, name) != stored[name]:
            raise ParameterError(name, getattr(config, name), f"must be {stored[name]}, as stored in {place}")
    changes = {name: getattr(config, name) for name in given.keys() & free}
    try:
        return resolve(type(config), stored | changes | {"resume": None, "evaluate": None})
    except ParameterError as error:
        raise ParameterError(f"{place}: holds a parameter that is not allowed ({error})") from None


def resume_run(config: Any, given: dict[str, Any], method: Method) -> tuple[Any, Learner, History]:
    """Take up the run in `--resume`'s folder at its last checkpoint; one that is at its end is only drawn again."""
    place = f"--resume={config.resume}"
    content = load_checkpoint(Path(config.resume) / "checkpoint.pt", "resume")
    config = stored_config(config, given, content, method, "resume")  # describes the run, interrupted or not
    learner = restore(config, content, method, place)
    try:
        history = History.stored(content["history"], training_seeds(config))
    except (ValueError, TypeError) as error:
        raise ParameterError(f"{place}: must hold a whole checkpoint ({error})") from None
    if history.episodes > config.episodes:
        raise ParameterError("episodes", config.episodes, f"must be at least the {history.episodes} of {place}")
    return config, learner, history


def restore(config: Any, content: dict[str, Any], method: Method, place: str) -> Learner:
    """A learner with a checkpoint's state. Raises ParameterError when they do not fit."""
    learner = method.build(config, training_seeds(config), choose_device(config.device))
    try:
        learner.load_state_dict(content["learner"])
    except (KeyError, ValueError, RuntimeError, AttributeError, TypeError) as error:
        raise ParameterError(f"{place}: the checkpoint must fit its own parameters ({error})") from None
    if not learner.finite():
        raise ParameterError(f"{place}: must hold finite weights, but has NaN or infinity")
    return learner


def report_servers(folder: Path, seeds: list[int], results: list[EpisodeStatistics]) -> None:
    """Write and print the utilisation of every ES, and print the time per decision, over episodes' statistics."""
    utilisation = np.mean([stats.utilisation for stats in results], 0)  # [S, B]
    rows = [[seed, es, float(u)] for seed, row in zip(seeds, utilisation, strict=True) for es, u in enumerate(row)]
    write_csv(folder / "utilisation.csv", ("seed", "edge_server", "utilisation"), rows)
    shares = " ".join(f"{100 * share:.1f}" for share in utilisation.mean(0)[:50])
    print(f"utilisation of ES 0, 1, .. in %: {shares}{' ..' if utilisation.shape[1] > 50 else ''}")
    microseconds = 1e6 * np.mean([stats.decision_seconds.mean() for stats in results])
    print(f"time per decision {microseconds:.2f} us")


def report(config: Any, method: Method, folder: Path, history: History, final: int, seconds: float) -> None:
    """Plot the run and print its table row, a mean over the `final` last episodes, its time and peak memory.

    At last writes summary.json, by which other scripts know that the run is whole.
    """
    delay, opt = history.column("delay_s", config.seeds), history.column("opt_delay_s", config.seeds)
    episodes = np.arange(1, len(delay) + 1)
    curves = [
        Curve(method.label(config), episodes, delay),
        Curve("Opt-TS, same arrivals", episodes, opt, reference=True),
    ]
    title = f"{method.label(config)}: {config.num_bs} BSs, up to {config.num_tasks} tasks per slot"
    plot_delays(folder / "delay", {title: curves})
    means = {
        name: episode_mean(history.column(f"{name}_s", config.seeds)[len(delay) - final :])
        for name in ("delay", "opt_delay", "p50", "p95", "p99")
    }
    gap = 100 * (means["delay"] / means["opt_delay"] - 1)
    cells = [with_interval(values) for values in means.values()]
    pace = history.column("seconds", config.seeds).mean()
    print(f"results in {folder}; figures below are means of the last {final} of {len(delay)} episodes, in s")
    print("| method | delay | Opt-TS | above Opt-TS % | p50 | p95 | p99 | s per episode and seed |")
    print("|---|---|---|---|---|---|---|---|")
    print(f"| {' | '.join([method.label(config), *cells[:2], with_interval(gap), *cells[2:]])} | {pace:.3f} |")
    print(f"time {seconds:.1f} s, peak memory {peak_memory(choose_device(config.device))}")
    summary = {
        "episodes": history.episodes,
        "averaged_episodes": final,
        "seconds": round(seconds, 3),
        "peak_memory_mib": round(peak_mebibytes(), 1),
        **{f"{name}_s": float(values.mean()) for name, values in means.items() if not np.isnan(values).any()},
    }
    write_text(folder / "summary.json", json.dumps(summary, indent=2) + "\n")
