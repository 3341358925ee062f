"""Evaluation of a trained checkpoint on held-out arrivals, apart from training. Start at `evaluate_checkpoint`."""

import dataclasses
import re
import time
from collections.abc import Collection
from pathlib import Path
from typing import Any

from common.interruption import Interruption
from common.parameters import resolve
from common.progress import Progress
from common.random_streams import Stream
from common.run_folder import load_checkpoint, new_folder, write_config
from lad_ts.blocks import run_block
from lad_ts.checkpoints import restore, stored_config
from lad_ts.environment_lad import EnvironmentParameters, draw_arrivals
from lad_ts.history import History
from lad_ts.method import Method
from lad_ts.references import OptTS
from lad_ts.report import report, report_servers
from lad_ts.result import Result
from lad_ts.setting import Setting

# What an evaluation may change.
ENVIRONMENT = tuple(field.name for field in dataclasses.fields(EnvironmentParameters))


def evaluate_checkpoint(config: Any, given: Collection[str], method: Method) -> Result:
    """Run `--evaluate`'s scheduler without learning on arrivals that no training episode saw.

    Every parameter comes from the checkpoint but how to evaluate (evaluation_episodes, evaluation_action, device,
    threads and out), and those of the environment that are `given`. The label and the folder's name tell the latter.
    Writes the same files as a run, and utilisation.csv, into a folder beside the checkpoint.
    """
    start, place, out = time.perf_counter(), Path(config.evaluate), config.out
    content = load_checkpoint(place, "evaluate")
    trained = stored_config(config, set(given) - set(ENVIRONMENT), content, method, "evaluate")
    scheduler = restore(trained, content, method, "evaluate", place)
    elsewhere = {name: getattr(config, name) for name in ENVIRONMENT if name in given}
    changed = [name for name, value in elsewhere.items() if value != getattr(trained, name)]
    config = resolve(type(config), dataclasses.asdict(trained) | elsewhere)
    if changed:
        scheduler = scheduler.moved(config)
    scheduler.training = False
    label = method.label(config)
    if changed:
        label += f" on {', '.join(f'{name}={getattr(config, name)}' for name in changed)}"
    config = dataclasses.replace(config, evaluate=str(place))
    setting = Setting.of(config)
    seeds, scenario, env = setting.seeds, setting.scenario, setting.environment()
    with new_folder(out, place.parent / folder_name(config, place, changed)) as folder:
        history, results = History(), []
        with Interruption() as interruption:
            for episode in Progress(range(config.evaluation_episodes), unit="episode", desc=f"{label}, held out"):
                rows = [(seed, episode) for seed in seeds]
                began = time.perf_counter()
                results.append(scheduler.run(env, draw_arrivals(config, rows, Stream.HELD_OUT_ARRIVALS), rows))
                seconds = time.perf_counter() - began
                opt = run_block(
                    config, scenario, OptTS(), seeds, range(episode, episode + 1), Stream.HELD_OUT_ARRIVALS
                ).mean
                history.add(seeds, episode, results[-1], opt, seconds)
                if interruption.asked:
                    break
        write_config(folder, f"{label}, evaluation", dataclasses.asdict(config))
        history.write(folder)
        words = [method.note(config)] if changed and method.note(config) else []
        words += report_servers(folder, seeds, results)
        lines, summary = report(config, setting, label, folder, history, history.episodes, time.perf_counter() - start)
        if interruption.asked:
            lines.append(f"interrupted after episode {history.episodes}")
        text = "\n".join([*words, *lines])
        return Result(config, folder, history.columns(config.seeds), scheduler, summary, text, interruption.code)


def folder_name(config: Any, checkpoint: Path, changed: list[str]) -> str:
    """As evaluation_sample, evaluation_best_sample for best.pt, or evaluation_sample_num_tasks_65 elsewhere."""
    best = ["best"] if checkpoint.name == "best.pt" else []
    words = "_".join(f"{name}_{getattr(config, name)}" for name in changed)
    plain = re.sub(r"[^\w.-]+", "-", words)[:100]
    return "_".join(filter(None, ["evaluation", *best, config.evaluation_action, plain]))
