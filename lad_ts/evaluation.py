"""Evaluation of a trained checkpoint on held-out arrivals, apart from training. Start at `evaluate_checkpoint`."""

import dataclasses
import sys
import time
from pathlib import Path
from typing import Any

from common.interruption import Interruption
from common.progress import Progress
from common.random_streams import Stream
from common.run_folder import load_checkpoint, new_folder, write_config
from lad_ts.blocks import run_block
from lad_ts.checkpoints import restore, stored_config
from lad_ts.environment_lad import draw_arrivals
from lad_ts.history import History
from lad_ts.method import Method
from lad_ts.references import OptTS
from lad_ts.report import report, report_servers
from lad_ts.setting import Setting


def evaluate_checkpoint(config: Any, given: dict[str, Any], method: Method) -> None:
    """Run `--evaluate`'s scheduler without learning on arrivals that no training episode saw.

    Every parameter comes from the checkpoint but how to evaluate: evaluation_episodes, evaluation_action, device,
    threads and out. Writes the same files as a run, and utilisation.csv, into a folder beside the checkpoint.
    """
    start, place = time.perf_counter(), Path(config.evaluate)
    content = load_checkpoint(place, "evaluate")
    out = config.out
    config = stored_config(config, given, content, method, "evaluate")
    scheduler = restore(config, content, method, "evaluate", place)
    scheduler.training = False
    setting, label = Setting.of(config), method.label(config)
    seeds, scenario, env = setting.seeds, setting.scenario, setting.environment()
    with new_folder(out, place.parent / f"evaluation_{config.evaluation_action}") as folder:
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
        report_servers(folder, seeds, results)
        report(config, setting, method, folder, history, history.episodes, time.perf_counter() - start)
    if interruption.asked:
        print(f"interrupted after episode {history.episodes}")
        sys.exit(interruption.code)
