"""The story of a run, for every method: a folder, episodes with progress and checkpoints, and a report.

`train` takes parameters and a `Method`, and gives a `Result`; scripts call it through `run_method`. Methods that learn
train episode by episode; the episodes of the others are independent and run many at once. Start reading at `train`.
"""

import dataclasses
import shlex
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from common.failure import fail
from common.interruption import Interruption
from common.parameters import ParameterError
from common.progress import Progress, brief, hidden
from common.random_streams import Stream
from common.run_folder import RESULTS, claimed, new_folder, progress_file, write_config
from common.statistics_seeds import final_span
from lad_ts.blocks import OptDelays, block_length, run_block
from lad_ts.checkpoints import keep_best, resume_run, write_checkpoint
from lad_ts.engines import with_engine
from lad_ts.environment_lad import draw_arrivals
from lad_ts.evaluation import evaluate_checkpoint
from lad_ts.event_log import event_log
from lad_ts.history import History
from lad_ts.method import Method, Runnable
from lad_ts.metrics import Metrics
from lad_ts.policy_export import exported_place
from lad_ts.references import OptTS
from lad_ts.report import report, report_servers
from lad_ts.result import DivergedError, Result, with_export
from lad_ts.run_parameters import FixedParameters
from lad_ts.scheduler import LearningScheduler
from lad_ts.setting import Setting
from lad_ts.validation import Validation


def run_method(config: Any, given: dict[str, Any], method: Method) -> None:
    """`train` as a script: prints what the run came to. Exits with 1, or 128 + a signal's number, if not whole."""
    if not (method.learns and (config.evaluate or config.resume)) and (note := method.note(config)):
        print(note)
    try:
        result = train(config, method)
    except DivergedError as error:
        fail(str(error), 1)
    print(result.report)
    if result.interrupted:
        sys.exit(result.interrupted)


def train(config: Any, method: Method, progress: bool = True) -> Result:
    """Train, resume or evaluate a method that learns, or run one that does not, as the parameters say.

    `progress` says whether to show a bar on standard error; nothing else is shown. Ctrl-C and SIGTERM in the main
    thread end the run after the episode, with a checkpoint, and `interrupted` tells; in another thread nothing changes
    what they do. Raises ParameterError for parameters that are not allowed, and DivergedError.
    """
    given, config = config.explicit(), config.checked()
    threads = torch.get_num_threads()
    torch.set_num_threads(config.threads)
    try:
        with hidden(not progress):
            return run(config, set(given), method)
    finally:
        torch.set_num_threads(threads)


def run(config: Any, given: set[str], method: Method) -> Result:
    """`train` with checked parameters; `given` names those that the user has given."""
    start = time.perf_counter()
    if method.learns and config.evaluate:
        if config.resume:
            raise ParameterError("evaluate", config.evaluate, "must not be combined with --resume")
        return evaluate_checkpoint(config, given, method)
    if method.learns and config.resume:
        if not any(Path(config.resume, name).is_file() for name in ("checkpoint.pt", "config.json")):
            raise ParameterError("resume", config.resume, "must be a run's folder, with a checkpoint.pt or config.json")
        with claimed(Path(config.resume), "resume") as folder:
            file = config.export
            config, scheduler, history, words = resume_run(config, given, method)
            setting = Setting.of(config)
            writes = exported_place(file, scheduler, setting.scenario)
            result = finish_run(config, setting, method, folder, scheduler, history, start, words)
            return with_export(result, writes, setting.scenario, method.key, setting.seeds)
    setting, kind = Setting.of(config), (config.variant or "run") if method.learns else "fixed"
    config, words = with_engine(config, method.build, setting.device)
    runnable = method.build(config, setting.seeds, setting.device)
    name = f"{kind}_e{config.episodes}_s{setting.seeds[0]}-{setting.seeds[-1]}"
    file = config.export if method.learns else None
    if file:
        config = dataclasses.replace(config, export=None)  # a place is no property of the run
    writes = exported_place(file, runnable, setting.scenario)
    with new_folder(config.out, RESULTS / method.key / name) as folder:
        result = finish_run(config, setting, method, folder, runnable, History(), start, words)
    return with_export(result, writes, setting.scenario, method.key, setting.seeds)


def finish_run(
    config: Any,
    setting: Setting,
    method: Method,
    folder: Path,
    runnable: Runnable,
    history: History,
    start: float,
    note: str,
) -> Result:
    """Run from the history's end to the last episode, and report, with a note unless it is empty."""
    label = method.label(config)
    write_config(folder, label, dataclasses.asdict(config), method.source)
    words: list[str] = []
    try:
        with progress_file(folder) as tell:
            if isinstance(runnable, LearningScheduler):
                code = learn(config, setting, method, folder, runnable, history, tell)
            else:
                code, words = run_fixed(config, setting, method, folder, runnable, history, tell)
    except BaseException:
        if [path.name for path in folder.iterdir()] == ["config.json"]:  # nothing came of it
            (folder / "config.json").unlink()
        raise
    history.write(folder)
    final = final_span(history.episodes) if runnable.learns else history.episodes
    lines, summary = report(config, setting, label, folder, history, final, time.perf_counter() - start)
    lines = [*filter(None, [note]), *words, *lines]
    if code:
        ways = f"go on with --resume {shlex.quote(str(folder))}" if runnable.learns else f"{folder} holds what was done"
        lines.append(f"interrupted after episode {history.episodes}; {ways}")
    columns = history.columns(config.seeds)
    return Result(config, folder, columns, runnable, summary, "\n".join(lines), code)


def learn(
    config: Any,
    setting: Setting,
    method: Method,
    folder: Path,
    scheduler: LearningScheduler,
    history: History,
    tell: Callable[[int], None],
) -> int:
    """The training loop. Returns the exit code, not 0 when a signal ended it; the checkpoint then is up to date."""
    seeds, scenario, env = setting.seeds, setting.scenario, setting.environment()
    if getattr(config, "engine", "") == "fused":
        env.compiled = True
        torch.set_num_threads(1)  # compiled functions have threads of their own, and what is left is little
    opt_delays = OptDelays(config, scenario, seeds, config.episodes)
    validation = Validation(config, setting, method)
    label, first = method.label(config), history.episodes
    metrics = scheduler.metrics if isinstance(scheduler.metrics, Metrics) else None  # an own class may use the name
    history.measure(metrics.names if metrics else ())
    keep_best(folder, history)  # a run may have been killed between checkpoint.pt and best.pt
    with (
        Interruption() as interruption,
        event_log(config.log, folder, seeds, history) as log,
        Progress(total=config.episodes, initial=first, unit="episode", desc=label, smoothing=0.1) as bar,
    ):
        for episode in range(first, config.episodes):
            opt = opt_delays.of(episode)
            began = time.perf_counter()
            rows = [(seed, episode) for seed in seeds]
            stats = scheduler.run(env, draw_arrivals(config, rows), rows)
            if not scheduler.finite():
                history.write(folder)
                words = f"training diverged in episode {episode}: a network holds NaN or infinity; see {folder}"
                raise DivergedError(words)
            seconds, measured = time.perf_counter() - began, metrics.take() if metrics else {}
            history.add(seeds, episode, stats, opt, seconds, measured)
            bar.set_postfix_str(f"delay {brief(stats.mean.mean())} s, {(stats.mean / opt - 1).mean():+.1%} to Opt-TS")
            bar.update()
            tell(episode + 1)
            if evaluated := validation.due(episode + 1):
                history.evaluations += validation.run(scheduler, episode + 1)
            if log:
                log.episode(history, episode)
            last = episode + 1 == config.episodes or interruption.asked
            if last or evaluated or (episode + 1) % config.checkpoint_every == 0:
                write_checkpoint(folder, config, method, scheduler, history)
                keep_best(folder, history)
                history.write(folder)
            if interruption.asked:
                return 0 if episode + 1 == config.episodes else interruption.code
    return 0


def run_fixed(
    config: FixedParameters,
    setting: Setting,
    method: Method,
    folder: Path,
    runnable: Runnable,
    history: History,
    tell: Callable[[int], None],
) -> tuple[int, list[str]]:
    """Episodes of a method that does not learn, many at a time.

    Returns the exit code, not 0 at a signal, and lines that tell of the servers.
    """
    seeds, scenario = setting.seeds, setting.scenario
    block = block_length(config, len(seeds))
    stream = Stream.HELD_OUT_ARRIVALS if config.held_out else Stream.TRAINING_ARRIVALS
    results = []
    with Interruption() as interruption, Progress(total=config.episodes, unit="episode", desc=method.name) as bar:
        for first in range(0, config.episodes, block):
            episodes = range(first, min(first + block, config.episodes))
            began = time.perf_counter()
            stats = run_block(config, scenario, runnable, seeds, episodes, stream)
            seconds = (time.perf_counter() - began) / len(episodes)
            if type(runnable) is OptTS:  # the reference itself, and no subclass
                opt = stats.mean
            else:
                opt = run_block(config, scenario, OptTS(), seeds, episodes, stream).mean
            for k, episode in enumerate(episodes):
                part = slice(k * len(seeds), (k + 1) * len(seeds))
                history.add(seeds, episode, stats.rows(part), opt[part], seconds)
                results.append(stats.rows(part))
            bar.update(len(episodes))
            tell(episodes.stop)
            if interruption.asked:
                break
    words = [f"must know: {runnable.needs}", *report_servers(folder, seeds, results)]
    return 0 if history.episodes == config.episodes else interruption.code, words
