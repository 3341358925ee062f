"""Schedulers on a real service's requests: the study that docs/trace.md explains.

Fits and trains on the first half of the requests, measures on the second. A second call goes on where the first ended.
Writes policies/, cells.csv, blocks.csv, delays.csv, training.csv, tables as Markdown, and the figures workload, cells,
ablations and training.
Example: python scripts/trace_study.py --requests data/gentd26/lora_request_trace.csv --jobs 2
"""

import common.quiet_start  # noqa: F401

import dataclasses
from pathlib import Path
from typing import Any

from common.command_line import command_line
from common.parameters import ParameterError, Parameters, parameter
from common.run_folder import RESULTS, claimed, describe, read_json, unused, write_config
from trace_ts.plot_workload import plot_workload
from trace_ts.search import Search
from trace_ts.study import measure, policy_files, take_over, train_all, validations
from trace_ts.study_report import draw_ablations, draw_cells, draw_training, write_delays, write_report, write_training
from trace_ts.synthetic import generate
from trace_ts.workload import Requests, is_gentd26, read_trace

METHOD = "trace_study"
STUDIED = 1000  # requests at least
KEPT = ("requests", "num_requests", "generations")  # which must be the same when a study is gone on with


@dataclasses.dataclass(kw_only=True)
class TraceStudyConfig(Parameters):
    """Every parameter of trace_study.py."""

    requests: str | None = parameter(
        None, "file of requests, as of main_trace.py; default: the synthetic generator", path=True
    )
    num_requests: int = parameter(26_467, "requests of the synthetic generator", low=STUDIED, high=10_000_000)
    generations: int = parameter(100, "generations of each search", low=1, high=100_000)
    seeds: int = parameter(3, "training seeds of each network, from 0 on", low=1, high=100)
    draws: int = parameter(
        5, "draws to measure on: of speeds, users' base stations, noise and failures", low=2, high=1000
    )
    jobs: int = parameter(2, "trainings at the same time, best the number of cores", low=1, high=1000)
    start_from: str | None = parameter(
        None, "folder of policies of such a study, which are taken over and not trained again", path=True
    )
    only_measure: bool = parameter(False, "train nothing more, measure what there is")
    out: str = parameter(str(RESULTS / "trace_study"), "folder of the study", path=True)


def keep_parameters(config: TraceStudyConfig, requests: Requests, out: Path) -> None:
    """Write config.json. Raises ParameterError when the folder holds a study of other requests or searches."""
    kept = dataclasses.asdict(config)
    if (out / "config.json").exists():
        try:
            stored = read_json(out / "config.json")
            before, source = {name: stored["parameters"][name] for name in KEPT}, stored.get("source")
            if stored["method"] != METHOD:
                raise ValueError(f"it is of {stored['method']}")
        except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
            raise ParameterError("out", out, f"must be empty or hold a study ({describe(error)})") from None
        for name, value in before.items():
            if kept[name] != value and not (name == "requests" and source):
                raise ParameterError(name, kept[name], f"must be {value}, as in the study in {out}")
        if source and source != requests.fingerprint():
            raise ParameterError("requests", config.requests, f"must hold the requests of the study in {out}")
    elif not unused(out):
        raise ParameterError("out", out, "must be empty or hold a study, to overwrite nothing")
    write_config(out, METHOD, kept, requests.fingerprint())


def main(config: TraceStudyConfig, given: dict[str, Any]) -> None:
    requests = read_trace(config.requests, least=STUDIED) if config.requests else generate(config.num_requests, 0)
    there = policy_files(Path(config.start_from)) if config.start_from else []
    with claimed(Path(config.out)) as out:
        keep_parameters(config, requests, out)
        other = generate(config.num_requests, 1)
        name = "GenTD26" if config.requests and is_gentd26(config.requests) else "requests"
        plot_workload({name: requests, "synthetic": other}, out)
        take_over(there, out)
        if not config.only_measure:
            train_all(requests, config.seeds, Search(generations=config.generations), config.jobs, out)
        rows, blocks = measure(requests, other, config.seeds, config.draws, out)
        write_report(out, rows, blocks)
        write_delays(out / "delays.csv", rows)
        draw_cells(out / "cells", rows)
        draw_ablations(out / "ablations", rows)
        trained = validations(config.seeds, out)
        write_training(out / "training.md", trained)
        draw_training(out / "training", trained)
        print(f"tables and figures in {out}")


if __name__ == "__main__":
    command_line(TraceStudyConfig, main, __doc__)
