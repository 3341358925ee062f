"""Evaluation of a trained checkpoint on held-out arrivals, apart from training. Start at `evaluate_checkpoint`."""

import dataclasses
import sys
import time
from pathlib import Path
from typing import Any

from tqdm import tqdm

from common.run_folder import create_folder, load_checkpoint, write_config
from lad_ts.environment_lad import CollaborativeMEC, draw_arrivals, draw_scenario
from lad_ts.episodes import run_episode
from lad_ts.references import OptTS
from lad_ts.training import (
    History,
    Interruption,
    Method,
    choose_device,
    report,
    report_servers,
    restore,
    run_block,
    stored_config,
    training_seeds,
)


def evaluate_checkpoint(config: Any, given: dict[str, Any], method: Method) -> None:
    """Run `--evaluate`'s policy without learning on arrivals that no training episode saw.

    Every parameter comes from the checkpoint but how to evaluate: evaluation_episodes, evaluation_action, device,
    threads and out. Writes the same files as a run, and utilisation.csv, into a folder beside the checkpoint.
    """
    start, place = time.perf_counter(), Path(config.evaluate)
    content = load_checkpoint(place, "evaluate")
    out = config.out
    config = stored_config(config, given, content, method, "evaluate")
    learner = restore(config, content, method, f"--evaluate={place}")
    folder = create_folder(out, place.parent / f"evaluation_{config.evaluation_action}")
    learner.training = False
    seeds = training_seeds(config)
    scenario = draw_scenario(config, seeds)
    env = CollaborativeMEC(scenario, choose_device(config.device), config.slot_length)
    history, results = History(), []
    with Interruption() as interruption:
        for episode in tqdm(
            range(config.evaluation_episodes), unit="episode", desc=f"{method.label(config)}, held out"
        ):
            rows = [(seed, episode) for seed in seeds]
            began = time.perf_counter()
            results.append(run_episode(env, learner, draw_arrivals(config, rows, held_out=True), rows))
            seconds = time.perf_counter() - began
            opt = run_block(config, scenario, OptTS(), seeds, range(episode, episode + 1), held_out=True).mean
            history.add(seeds, episode, results[-1], opt, seconds)
            if interruption.asked:
                break
    write_config(folder, f"{method.label(config)}, evaluation", dataclasses.asdict(config))
    history.write(folder)
    report_servers(folder, seeds, results)
    report(config, method, folder, history, history.episodes, time.perf_counter() - start)
    if interruption.asked:
        print(f"interrupted after episode {history.episodes}")
        sys.exit(130)
