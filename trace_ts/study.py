"""The study: its cells, what is trained for them, and how all is measured.

Start reading at `CELLS`, `train_all` and `measure`.
"""

import dataclasses
import functools
import json
import multiprocessing
import os
import shutil
import signal
import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import numpy as np

from common.parameters import ParameterError
from common.progress import Progress
from common.run_folder import replace_file
from common.tables import write_csv
from common.threads import cores
from trace_ts.central import bound
from trace_ts.fitting import validated
from trace_ts.metrics import by_block, measures
from trace_ts.model_trace import ScorePolicy
from trace_ts.policy_file import SUFFIXES, load_policy, read_policy, read_rule, save_policy, what_is_told, write_rule
from trace_ts.rules import RULES, Rule
from trace_ts.scenario import Scenario
from trace_ts.search import Search
from trace_ts.search_file import SearchFile
from trace_ts.training import (
    CENTRAL,
    CLASSES,
    LEARNED,
    PARTITION,
    Ready,
    changed,
    fit_rule,
    grid,
    practised,
    ready_policy,
    simulate_one,
    train_network,
)
from trace_ts.workload import Requests

BOUND = "lower bound"  # of the mean delay, beside the policies of cells without loading
BLOCKS = 10  # of the test half, for figures by time
EVERY = "every cell"  # what one policy is trained for, for all
CELLS: dict[str, dict[str, Any]] = {
    **{f"L 12, load {load:g}": {"load": load} for load in (0.6, 0.8, 0.95)},
    "L 12, load 0.8, resident first": {"discipline": "resident_first"},
    "L 12, load 0.95, resident first": {"load": 0.95, "discipline": "resident_first"},
    "L 12, load 0.8, age 10": {"age": 10.0},
    "L 12, load 0.8, age 60": {"age": 60.0},
    "L 12, load 0.8, M 3": {"resident_models": 3},
    "L 5, load 0.8": {"load_time": 5.0},
    **{f"L 0, load {load:g}": {"load": load, "load_time": 0.0} for load in (0.6, 0.8, 0.95)},
    "L 0, load 0.8, age 10": {"load_time": 0.0, "age": 10.0},
    "L 0, load 0.8, compress": {"load_time": 0.0, "time_scale": "compress"},
}
UNTRAINED: dict[str, dict[str, Any]] = {  # cells that policies of others are measured in
    "L 12, load 0.8, noise 0.35": {"noise": 0.35},
    "L 12, load 0.8, outages": {"up_time": 2000.0, "down_time": 100.0},
    "L 0, load 1.1": {"load": 1.1, "load_time": 0.0},
    "L 12, load 0.7": {"load": 0.7},
    "L 12, load 0.9": {"load": 0.9},
    "L 8, load 0.8": {"load_time": 8.0},
    "L 20, load 0.8": {"load_time": 20.0},
    "L 12, load 0.8, age 3": {"age": 3.0},
}
MAIN, STALE = "L 12, load 0.8", "L 12, load 0.8, age 10"
OTHER = "L 12, load 0.8, other requests"  # of the synthetic generator, which nothing was trained on
LIKE_MAIN = ("L 12, load 0.8, noise 0.35", "L 12, load 0.8, outages", OTHER)  # where its specialists are measured, too
ABLATED = ("lad_ts", "lad_ts_zeros", "score_unpriced", "d2sac_ts", "lad_ts_model", "lad_ts_station")
BY_GRADIENTS = ("score_ppo", "lad_ts_ppo", "lad_ts_sac", "sac_ts", "dqn_ts")


def scenario_of(cell: str) -> Scenario:
    """A cell's scenario."""
    return changed(Scenario(), **(CELLS | UNTRAINED).get(cell, {}))


@dataclasses.dataclass(frozen=True)
class Training:
    """A policy that is fitted or trained for a cell, with a seed."""

    cell: str
    policy: str
    seed: int

    @property
    def rule(self) -> bool:
        """Whether it is a rule with fitted constants."""
        return self.policy in RULES

    def scenarios(self) -> list[Scenario]:
        """What it is fitted or trained on."""
        return grid(Scenario()) if self.cell == EVERY else practised(scenario_of(self.cell))

    def path(self, out: Path) -> Path:
        """Its file."""
        name = f"{self.cell}, {self.policy}, {self.seed}".replace(" ", "_").replace(",", "")
        return out / "policies" / f"{name}.{'json' if self.rule else 'safetensors'}"

    def kept(self, out: Path) -> SearchFile:
        """What its search goes on from."""
        return SearchFile(self.path(out).with_suffix(".search.safetensors"), "out")

    def load(self, out: Path) -> Rule | ScorePolicy:
        """What was trained. Raises ParameterError, also for a file that holds another policy than its name says."""
        found = read_rule(self.path(out), "out") if self.rule else load_policy(self.path(out), "out")
        own = found.name == self.policy if isinstance(found, Rule) else found.design == LEARNED[self.policy].design
        if not own:
            raise ParameterError("out", self.path(out), f"must hold a {self.policy}, as its name says")
        return found


def trainings(seeds: int) -> tuple[list[Training], list[Training]]:
    """What is fitted first, and the networks, which begin at the fitted rules of seed 0."""
    rules = [Training(cell, "priced", seed) for seed in range(seeds) for cell in (*CELLS, EVERY)]
    for name in ("affinity", "weighted"):
        rules += [Training(cell, name, seed) for seed in range(seeds) for cell in (MAIN, STALE)]
    networks = [Training(cell, "score", seed) for seed in range(seeds) for cell in (EVERY, *CELLS)]
    for name in (*ABLATED[:3], *BY_GRADIENTS, *ABLATED[3:]):
        networks += [Training(cell, name, seed) for seed in range(seeds) for cell in (MAIN, STALE)]
    return rules, networks


def policy_files(folder: Path) -> list[Path]:
    """The policies in a folder. Raises ParameterError of --start_from when there are none, or damaged ones."""
    paths = [path for path in sorted(folder.glob("*")) if path.suffix in SUFFIXES and ".search" not in path.suffixes]
    if not paths:
        raise ParameterError("start_from", folder, "must be a folder of policies of trace_study.py")
    for path in paths:
        read_policy(path, "start_from")
    return paths


def take_over(paths: list[Path], out: Path) -> None:
    """Copy policies that the study in `out` has not."""
    (out / "policies").mkdir(exist_ok=True)
    for path in paths:
        if not (out / "policies" / path.name).exists():
            replace_file(out / "policies" / path.name, functools.partial(shutil.copyfile, path))


_requests: list[Requests] = []  # of a process that trains


def _begin(requests: Requests) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the first process ends the others
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _requests[:] = [requests]


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)  # it was killed: who goes on with the study trains the same policies


def train(training: Training, out: Path, search: Search) -> None:
    """Train one policy and keep it, from where its search was killed; one that is there is not trained again."""
    if training.path(out).exists():
        return
    kept = training.kept(out)
    requests = _requests[0]
    scenarios = training.scenarios()
    quiet = lambda *told: None  # noqa: E731
    if training.rule:
        rule = fit_rule(RULES[training.policy], requests, scenarios, search, training.seed, quiet, kept, searches=1)
        write_rule(training.path(out), rule)
        kept.remove()
        return
    begin = Training(training.cell, "priced", 0).load(out)
    assert isinstance(begin, Rule)
    policy, history = train_network(training.policy, requests, scenarios, search, training.seed, quiet, begin, kept)
    told = {"cell": training.cell, "policy": training.policy, "history": json.dumps(history)}
    save_policy(training.path(out), policy, told)
    kept.remove()


def train_all(requests: Requests, seeds: int, search: Search, jobs: int, out: Path) -> None:
    """Train everything that is not there yet, `jobs` at a time, each with one thread."""
    (out / "policies").mkdir(exist_ok=True)
    context = multiprocessing.get_context("spawn")
    single = dataclasses.replace(search, threads=1)
    for part, name in zip(trainings(seeds), ("fitting", "training"), strict=True):
        left = [one for one in part if not one.path(out).exists()]
        for one in set(part) - set(left):
            one.kept(out).remove()  # of a study that was killed before it did so
        with ProcessPoolExecutor(jobs, context, _begin, (requests,)) as pool:
            try:
                running = [pool.submit(train, one, out, single) for one in left]
                for done in Progress(as_completed(running), total=len(left), unit="policy", desc=name):
                    done.result()
            except BaseException:
                for process in list(pool._processes.values()):
                    process.terminate()
                raise


def validations(seeds: int, out: Path) -> list[dict[str, Any]]:
    """What every validation of the trained networks found, a row for each; writes training.csv.

    mean_s is the mean delay in s on the first half, the geometric mean over servers that no training sees.
    """
    rows = []
    for one in trainings(seeds)[1]:
        if one.path(out).exists():
            what = {"cell": one.cell, "policy": one.policy, "seed": one.seed}
            history = json.loads(what_is_told(one.path(out)).get("history", "[]"))
            rows += [what | {"generation": number, "mean_s": float(np.exp(cost))} for number, cost in history]
    if rows:
        write_csv(out / "training.csv", list(rows[0]), [list(row.values()) for row in rows])
    return rows


def best_rules(requests: Requests, seeds: int, out: Path) -> dict[tuple[str, str], Rule]:
    """The fitted rules that there are, by cell and name: of several seeds the best on the requests' first half."""
    first, found = requests.halves()[0], {}
    with ThreadPoolExecutor(cores()) as pool:
        for one in trainings(seeds)[0]:
            if one.path(out).exists():
                rule = one.load(out)
                cost = validated(rule, first, one.scenarios(), pool)
                found.setdefault((one.cell, one.policy), []).append((cost, one.seed, rule))
    return {place: min(of_seeds)[2] for place, of_seeds in found.items()}


def contestants(
    cell: str, requests: Requests, fitted: Mapping[tuple[str, str], Rule], seeds: int, out: Path
) -> Iterator[tuple[str, int, Ready]]:
    """What is measured in a cell: name, training seed (0 where there is none) and policy."""
    quick = [*RULES, *CENTRAL, *(CLASSES if scenario_of(cell).load_time == 0 else (PARTITION,))]
    for name in quick:
        yield name, 0, ready_policy(name, requests, practised(scenario_of(cell)), Search(), 0, lambda *told: None)
    own = MAIN if cell in LIKE_MAIN else cell
    for (of, name), rule in fitted.items():
        if of in (own, EVERY):
            yield f"{name}_fitted, one for all" if of == EVERY else f"{name}_fitted", 0, rule
    for one in trainings(seeds)[1]:
        if one.cell in (own, EVERY) and one.path(out).exists():
            yield f"{one.policy}, one for all" if one.cell == EVERY else one.policy, one.seed, one.load(out)


def measure(
    requests: Requests, other: Requests, seeds: int, draws: int, out: Path
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The rows of cells.csv and blocks.csv, which it writes: one for each cell, policy, training seed and draw.

    A row of cells.csv has the figures of `measures` and us_a_task, the simulation's time for a task in microseconds,
    which for the first policy of all counts compilation; that of `BOUND` has mean_s alone. A row of blocks.csv has the
    mean delay in s of one of `BLOCKS` consecutive parts, from 0 on. `other` are the requests of the cell `OTHER`.
    """
    rows: list[dict[str, Any]] = []
    blocks: list[dict[str, Any]] = []
    fitted = best_rules(requests, seeds, out)
    for cell in Progress([*CELLS, *UNTRAINED, OTHER], unit="cell", desc="measuring"):
        scenario, asked = scenario_of(cell), other if cell == OTHER else requests
        simulate_one(RULES["random"], asked, scenario, 0, slice(100))  # so that no compilation is timed
        test = slice(len(asked) // 2, None)
        tested = asked.part(test)
        for name, seed, policy in contestants(cell, asked, fitted, seeds, out):
            for draw in range(draws):
                begun = time.thread_time()
                outcome = simulate_one(policy, asked, scenario, draw, test)
                seconds = time.thread_time() - begun
                what = {"cell": cell, "policy": name, "seed": seed, "draw": draw}
                rows.append(what | measures(outcome, tested) | {"us_a_task": 1e6 * seconds / len(tested)})
                values = enumerate(by_block(outcome, BLOCKS).tolist())
                blocks += [what | {"block": number, "mean_s": value} for number, value in values]
        if scenario.load_time == 0:
            unknown = dict.fromkeys(rows[-1], np.nan) | {"cell": cell, "policy": BOUND, "seed": 0}
            rows += [unknown | {"draw": d, "mean_s": bound(asked, scenario, d, test)} for d in range(draws)]
    for name, table in (("cells", rows), ("blocks", blocks)):
        write_csv(out / f"{name}.csv", list(table[0]), [list(row.values()) for row in table])
    return rows, blocks


def means(rows: list[dict[str, Any]], cell: str, policy: str, quantity: str) -> np.ndarray:
    """A quantity [seeds, draws] of a policy in a cell."""
    found = [row for row in rows if row["cell"] == cell and row["policy"] == policy]
    seeds = sorted({row["seed"] for row in found})
    return np.array([[row[quantity] for row in found if row["seed"] == seed] for seed in seeds])
