"""Schedulers on a real text-to-image service's requests: delays of rules and of learned policies.

Fits and trains on the first half of the requests, measures on the second, over several draws of servers. Writes
results/trace_ts/<run>/ with config.json, table.csv, draws.csv, delays.png and delays.pdf, and in policies/ what was
fitted or trained. Without --requests, the requests come from the synthetic generator. docs/trace.md explains policies
and quantities. Examples:
python trace_ts/main_trace.py --policies opt_ts,opt_ts_loading,affinity,priced
python trace_ts/main_trace.py --requests data/gentd26/lora_request_trace.csv --policies priced_fitted,score
"""

import common.quiet_start  # noqa: F401

import dataclasses
import sys
from pathlib import Path
from typing import Any, ClassVar

from common.command_line import command_line
from common.parameters import ParameterError, parameter
from common.progress import Progress
from common.run_folder import RESULTS, peak_memory, read_source, resumed, run_place, write_config
from common.statistics_seeds import with_interval
from trace_ts.central import CENTRAL
from trace_ts.metrics import measures
from trace_ts.plot_delays import plot_delays, write_tables
from trace_ts.policy_file import SUFFIXES, read_policy, save_policy, write_rule
from trace_ts.rules import RULES, Rule
from trace_ts.scenario import Scenario
from trace_ts.search import Search
from trace_ts.search_file import SearchFile
from trace_ts.simulation import Outcome
from trace_ts.synthetic import generate
from trace_ts.training import LEARNED, grid, policy_names, practised, ready_policy, simulate_draws
from trace_ts.workload import Requests, read_trace

FREE = ("resume", "policies", "draws", "requests", "checkpoint")  # what may be given anew for a stored run


@dataclasses.dataclass(kw_only=True)
class TraceConfig(Scenario):
    """Every parameter of main_trace.py."""

    GROUP: ClassVar[str] = "run"

    requests: str | None = parameter(
        None,
        "file of requests: GenTD26's, or a CSV with time_s,user,work,model; default: the synthetic generator",
        path=True,
        more="time_s is in s, work in image-steps; user and model are any texts.",
    )
    num_requests: int = parameter(26_467, "requests of the synthetic generator", low=100, high=10_000_000)
    policies: str = parameter(
        "capacity_proportional,jsq,opt_ts,opt_ts_loading,affinity,priced",
        "what decides: names with commas, as docs/trace.md lists them",
        more=f"Of {', '.join(policy_names())}. A name with _fitted has its constants fitted; learned policies are "
        "trained.",
    )
    checkpoint: str | None = parameter(None, "file of a trained policy or fitted rule, to be measured, too", path=True)
    every_cell: bool = parameter(
        False,
        "fit and train for twelve cells of the study at once",
        more="They differ in load, loading time, age and resident models. The scenario given is what is measured.",
    )
    generations: int = parameter(150, "generations of each search", low=1, high=100_000)
    pairs: int = parameter(16, "pairs of candidates in a generation", low=1, high=1000)
    draws: int = parameter(
        5, "draws to measure on: of speeds, users' base stations, noise and failures", low=1, high=10_000
    )
    seed: int = parameter(0, "seed of requests, searches and weights", low=0)
    resume: str | None = parameter(
        None,
        "go on in this folder; policies that are done are kept",
        path=True,
        more="A search that was killed goes on. --policies, --draws and --checkpoint may be given anew, and --requests "
        "for a file that has moved.",
    )
    out: str | None = parameter(None, "folder of the run; default results/trace_ts/<run>", path=True)

    def check(self) -> None:
        super().check()
        names = self.policies.split(",")
        for name in names:
            if name not in policy_names():
                raise ParameterError("policies", name, f"must be of {', '.join(policy_names())}")
            if names.count(name) > 1:
                raise ParameterError("policies", self.policies, f"must name {name} once")

    def scenario(self) -> Scenario:
        """The scenario alone."""
        return Scenario(**{field.name: getattr(self, field.name) for field in dataclasses.fields(Scenario)})


def load_requests(config: TraceConfig) -> Requests:
    """The requests of a file or of the generator. Raises ParameterError."""
    if config.requests is None:
        return generate(config.num_requests, config.seed)
    return read_trace(config.requests, config.seed, least=2)


def same_requests(config: TraceConfig, requests: Requests, given: bool) -> None:
    """Raises ParameterError when a stored run, whose policies are kept, began with other requests."""
    before = read_source(Path(config.resume or ""))
    if before != requests.fingerprint() and (before or given):  # older versions did not keep it
        raise ParameterError("requests", config.requests, f"must hold the requests that {config.resume} began with")


def main(config: TraceConfig, given: dict[str, Any]) -> None:
    """Fit, train, measure, write. Raises ParameterError before anything starts."""
    if config.resume:
        config = resumed(config, given, FREE)
    warn(config, given)
    requests = load_requests(config)
    if config.resume:
        same_requests(config, requests, "requests" in given)
    checkpoint = read_policy(Path(config.checkpoint), "checkpoint") if config.checkpoint else None
    default = RESULTS / "trace_ts" / f"{'trace' if config.requests else 'synthetic'}_load{config.load:g}"
    with run_place(config.resume, config.out, default) as folder:
        write_config(folder, "trace_ts", dataclasses.asdict(config), requests.fingerprint())
        scenario, test = config.scenario(), slice(len(requests) // 2, None)
        outcomes: dict[str, list[Outcome]] = {}
        made = {name: trained(config, name, requests, folder) for name in config.policies.split(",")}
        if checkpoint is not None:
            made["checkpoint"] = checkpoint
        for name, policy in made.items():
            outcomes[name] = simulate_draws(policy, requests, scenario, range(config.draws), test)
        found = {name: [measures(one, requests.part(test)) for one in of] for name, of in outcomes.items()}
        write_tables(folder, found)
        plot_delays(folder / "delays", outcomes, found)
        say(found)
        print(f"results in {folder}; peak memory {peak_memory()}")


def warn(config: TraceConfig, given: dict[str, Any]) -> None:
    """Tell of parameters that were given and that change nothing."""
    names = config.policies.split(",")
    fitted = any(name.endswith("_fitted") or name in LEARNED for name in names)
    searched = any((name.removesuffix("_fitted") in RULES and name not in RULES) or name in LEARNED for name in names)
    reasons = {
        "num_requests": config.requests is not None and "--requests says what there is",
        "own_sends": config.age == 0 and "all is known at once without --age",
        "resident_models": config.load_time == 0 and "models need no loading with --load_time=0",
        "ageing": config.discipline == "fcfs" and "the oldest task is the next one with --discipline=fcfs",
        "down_time": config.up_time == 0 and "no server fails without --up_time",
        **dict.fromkeys(("generations", "pairs"), not searched and "no policy of --policies is searched for"),
        "every_cell": not fitted and "no policy of --policies is fitted or trained",
    }
    for name, reason in reasons.items():
        if name in given and reason:
            print(f"warning: --{name}={getattr(config, name)} does nothing: {reason}", file=sys.stderr)


def trained(config: TraceConfig, name: str, requests: Requests, folder: Path) -> Any:
    """A policy by its name; one that has to be fitted or trained is kept in the folder, or found there."""
    place = folder / "policies"
    kept = SearchFile(place / f"{name}.search.safetensors")
    for path in (place / f"{name}{suffix}" for suffix in SUFFIXES):
        if path.exists() and (name in LEARNED or name.endswith("_fitted")):
            kept.remove()  # of a run that was killed before it did so
            policy = read_policy(path, "resume")
            if isinstance(policy, Rule) and f"{policy.name}_fitted" != name:
                raise ParameterError("resume", path, f"must be the rule {name}, but is {policy.name}")
            if not isinstance(policy, Rule) and (name not in LEARNED or policy.design != LEARNED[name][1]):
                raise ParameterError("resume", path, f"must be of the design of {name}, but is of another")
            return policy
    scenarios = grid(config.scenario()) if config.every_cell else practised(config.scenario())
    search = Search(generations=config.generations, pairs=config.pairs)
    bars: dict[str, Progress] = {}

    def tell(part: str, generation: int, cost: float) -> None:
        if part not in bars:
            bars[part] = Progress(
                total=config.generations, unit="generation", desc=f"{name}: {part}", initial=generation
            )
        bars[part].update(generation - bars[part].n)
        if generation == config.generations:
            bars[part].close()

    policy = ready_policy(name, requests, scenarios, search, config.seed, tell, kept)
    if name not in RULES and name not in CENTRAL:
        place.mkdir(exist_ok=True)
        if isinstance(policy, Rule):
            write_rule(place / f"{name}.json", policy)
        else:
            save_policy(place / f"{name}.safetensors", policy, {"name": name})
        kept.remove()
    return policy


def say(found: dict[str, list[dict[str, float]]]) -> None:
    """Print the main figures of every policy, with 95 % intervals over draws."""
    shown = ("mean_s", "p50_s", "p95_s", "p99_s", "slowdown", "slo_5", "switches")
    print(f"{'policy':24}" + "".join(f" {name:>18}" for name in shown))
    for name, rows in found.items():
        cells = [with_interval([row[key] for row in rows], None if key.endswith("_s") else 2) for key in shown]
        print(f"{name:24}" + "".join(f" {cell:>18}" for cell in cells))


if __name__ == "__main__":
    command_line(TraceConfig, main, __doc__)
