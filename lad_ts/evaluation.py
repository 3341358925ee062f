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
from lad_ts.environment_parameters import KINDS
from lad_ts.history import History
from lad_ts.method import Method
from lad_ts.policy_export import exported_place
from lad_ts.references import OptTS
from lad_ts.report import report, report_servers
from lad_ts.result import Result, with_export
from lad_ts.setting import Setting

# What an evaluation may change, and what of it is told.
ENVIRONMENT = tuple(field.name for field in dataclasses.fields(EnvironmentParameters))
NAMED = tuple(name for name in ENVIRONMENT if name != "arrivals_sha256")


def evaluate_checkpoint(config: Any, given: Collection[str], method: Method) -> Result:
    """Run `--evaluate`'s scheduler without learning on arrivals that no training episode saw.

    Every parameter comes from the checkpoint but how to evaluate (evaluation_episodes, evaluation_action, device,
    threads and out), and those of the environment that are `given`. The label and the folder's name tell the latter.
    Writes the same files as a run, and utilisation.csv, into a folder beside the checkpoint.
    """
    start, place, out = time.perf_counter(), Path(config.evaluate), config.out
    content = load_checkpoint(place, "evaluate")
    file = config.export
    trained = stored_config(config, set(given) - set(ENVIRONMENT), content, method, "evaluate")
    scheduler = restore(trained, content, method, "evaluate", place)
    config = elsewhere(trained, config, given)
    changed = [name for name in NAMED if getattr(config, name) != getattr(trained, name)]
    if changed:
        scheduler = scheduler.moved(config)
    scheduler.training = False
    label = method.label(config)
    if changed:
        label += f" on {', '.join(f'{name}={getattr(config, name)}' for name in changed)}"
    config = dataclasses.replace(config, evaluate=str(place))
    setting = Setting.of(config)
    seeds, scenario, env = setting.seeds, setting.scenario, setting.environment()
    writes = exported_place(file, scheduler, scenario)
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
        text, columns = "\n".join([*words, *lines]), history.columns(config.seeds)
        result = Result(config, folder, columns, scheduler, summary, text, interruption.code)
    return with_export(result, writes, scenario, method.key, seeds)


def elsewhere(trained: Any, config: Any, given: Collection[str]) -> Any:
    """The parameters of a training in the environment of `config`, as far as it is `given`.

    A named scenario takes back what that of the training had filled in. Raises ParameterError.
    """
    names = {name for name in ENVIRONMENT if name in given}
    for chooser, options in type(config).FILLS.items():
        if chooser in given:
            names |= options.get(getattr(config, chooser), {}).keys()
            before = options.get(getattr(trained, chooser), {})
            names |= {name for name, value in before.items() if getattr(trained, name) == value}
    values = {name: getattr(config, name) for name in names}
    if values.get("arrivals", trained.arrivals) != trained.arrivals:  # a file of its own, so not that of training
        values.setdefault("arrivals_sha256", None)
        if values["arrivals"] not in KINDS[1:]:  # which alone have a mean of their own
            values.setdefault("arrival_mean", None)
    return resolve(type(config), dataclasses.asdict(trained) | values)


def folder_name(config: Any, checkpoint: Path, changed: list[str]) -> str:
    """As evaluation_sample, evaluation_best_sample for best.pt, or evaluation_sample_num_tasks_65 elsewhere."""
    best = ["best"] if checkpoint.name == "best.pt" else []
    words = "_".join(f"{name}_{getattr(config, name)}" for name in changed)
    plain = re.sub(r"[^\w.-]+", "-", words)[:100]
    return "_".join(filter(None, ["evaluation", *best, getattr(config, "evaluation_action", "sample"), plain]))
