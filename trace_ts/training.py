"""From a name to a policy that is ready: rules as they are or fitted, networks trained, all on the first half.

Start reading at `ready_policy`.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np

from common.parameters import ParameterError
from common.threads import cores
from trace_ts.central import CENTRAL, Pull
from trace_ts.fitting import FIRST_DRAW, TRAINING_DRAWS, fit
from trace_ts.model_trace import Design, ScorePolicy
from trace_ts.rules import RULES, Rule
from trace_ts.scenario import MOST_LOAD, Scenario
from trace_ts.search import Found, Search
from trace_ts.search_file import SearchFile
from trace_ts.simulation import Outcome, simulate
from trace_ts.sita import Partition, fit_partition, fit_size_intervals
from trace_ts.workload import Requests

EVOLUTION = "evolution"
CHAIN = Design(steps=5, latent="user")


class Learned(NamedTuple):
    """A learned policy: what it is, what it is made of, and what trains it: `EVOLUTION` or one of `LEARNERS`."""

    text: str
    design: Design = Design()
    trained_by: str = EVOLUTION


LEARNED = {
    "score": Learned("a network's score, from the fitted priced rule on"),
    "lad_ts": Learned("LAD-TS: a chain of five such scores from the user's last one", CHAIN),
    "lad_ts_model": Learned("the same from the model's last one", Design(steps=5, latent="model")),
    "lad_ts_station": Learned("the same from the base station's last one", Design(steps=5, latent="base_station")),
    "lad_ts_zeros": Learned("the same without a latent action: from zeros", Design(steps=5, latent="zeros")),
    "d2sac_ts": Learned("the same from noise", Design(steps=5, latent="noise")),
    "score_unpriced": Learned("a network's score without the price of a load", Design(price=False)),
    "score_ppo": Learned("the score, trained by gradients: PPO", trained_by="ppo"),
    "lad_ts_ppo": Learned("LAD-TS, trained by gradients: PPO", CHAIN, "ppo"),
    "lad_ts_sac": Learned("LAD-TS, trained as published: soft actor-critic", CHAIN, "sac"),
    "sac_ts": Learned("SAC-TS: the score, trained by soft actor-critic", trained_by="sac"),
    "dqn_ts": Learned("DQN-TS: the score, trained by double Q-learning", trained_by="dqn"),
}
CLASSES = {"sita_2_fitted": 2, "sita_3_fitted": 3}  # classes of sizes
PARTITION = "partition_fitted"
SEARCHES = 3  # of a rule's constants
OVERLOADS = (1.0, 1.5, 2.25)
Ready = Rule | ScorePolicy | Pull
Progress = Callable[[str, int, float], None]


def policy_names() -> list[str]:
    """Every name that `ready_policy` takes: rules, those with fitted constants, learned policies."""
    fitted = [f"{name}_fitted" for name, rule in RULES.items() if rule.free]
    return [*RULES, *fitted, *CLASSES, PARTITION, *CENTRAL, *LEARNED]


def simulate_draws(
    policy: Ready, requests: Requests, scenario: Scenario, draws: Iterable[int], part: slice
) -> list[Outcome]:
    """What becomes of a part of the requests under a policy in each draw, as many at a time as there are cores."""
    with ThreadPoolExecutor(cores()) as pool:
        return list(pool.map(lambda draw: simulate_one(policy, requests, scenario, draw, part), draws))


def simulate_one(policy: Ready, requests: Requests, scenario: Scenario, draw: int, part: slice) -> Outcome:
    """The same in one draw."""
    one = policy.simulate if isinstance(policy, Pull) else functools.partial(simulate, policy)
    return one(requests, scenario, draw, part)


def fit_rule(
    rule: Rule,
    requests: Requests,
    scenarios: Sequence[Scenario],
    search: Search,
    seed: int,
    progress: Progress,
    kept: SearchFile | None = None,
    searches: int = SEARCHES,
) -> Rule:
    """The rule with its free constants fitted to the scenarios: the best of so many searches, on the first half.

    They differ in their random numbers, since some end in a poor place, and go on from `kept`.
    """
    base = scenarios[0]
    for scenario in scenarios:
        if len(rule.free_constants(scenario)) > len(rule.free_constants(base)):
            base = scenario
    numbers = rule.free_constants(base)
    if not numbers:
        return rule
    start = np.log(np.array(rule.constants)[numbers])
    told = [rule.name, rule.constants, rule.free]

    def searched(number: int) -> Found:
        name = f"{rule.name} {number + 1}/{searches}" if searches > 1 else rule.name
        tell = lambda generation, cost: progress(name, generation, cost)  # noqa: E731
        part, own = kept and kept.part(name, policy=told), seed * searches + number
        return fit(lambda x: rule.with_constants(base, x), start, requests, scenarios, search, own, tell, part)

    best = min(map(searched, range(searches)), key=lambda found: found.cost)
    return rule.with_constants(base, best.parameters)


def train_network(
    name: str,
    requests: Requests,
    scenarios: Sequence[Scenario],
    search: Search,
    seed: int,
    progress: Progress,
    begin: Rule | None = None,
    kept: SearchFile | None = None,
) -> tuple[ScorePolicy, list[tuple[int, float]]]:
    """A network of `LEARNED`, trained from the priced rule on: `begin`, or what one search finds.

    Both searches go on from `kept`. Beside it (generation, log of the mean delay) of every validation on the way; the
    network is that of the least one.
    """
    _, design, trained_by = LEARNED[name]
    begin = begin or fit_rule(RULES["priced"], requests, scenarios, search, seed, progress, kept, searches=1)
    start = design.begin(np.array(begin.constants), seed)
    tell = lambda generation, cost: progress(name, generation, cost)  # noqa: E731
    part = kept and kept.part(name, policy=dataclasses.asdict(design))
    if trained_by == EVOLUTION:
        found = fit(lambda x: ScorePolicy(design, x), start, requests, scenarios, search, seed, tell, part)
    else:
        from trace_ts.gradients import fit_by_gradients  # torch takes seconds to load

        found = fit_by_gradients(trained_by, design, start, requests, scenarios, search, seed, tell, part)
    return ScorePolicy(design, found.parameters), found.history


def ready_policy(
    name: str,
    requests: Requests,
    scenarios: Sequence[Scenario],
    search: Search,
    seed: int,
    progress: Progress,
    kept: SearchFile | None = None,
) -> Ready:
    """A policy by its name, fitted or trained for these scenarios where it has something to learn.

    Searches go on from `kept`. Raises ParameterError for a name that there is not, and when that file is damaged.
    """
    if name in RULES:
        return RULES[name]
    if name.endswith("_fitted") and name.removesuffix("_fitted") in RULES:
        return fit_rule(RULES[name.removesuffix("_fitted")], requests, scenarios, search, seed, progress, kept)
    if name in CENTRAL:
        return CENTRAL[name]
    draws = range(FIRST_DRAW, FIRST_DRAW + TRAINING_DRAWS)
    if name in CLASSES:
        return fit_size_intervals(CLASSES[name], requests, scenarios, draws)
    if name == PARTITION:
        rule = fit_partition(requests, scenarios, draws)
        assert isinstance(rule.more, Partition)
        return dataclasses.replace(rule, more=rule.more.on(requests))  # so that it can be kept
    if name in LEARNED:
        return train_network(name, requests, scenarios, search, seed, progress, kept=kept)[0]
    raise ParameterError("policies", name, f"must be of {', '.join(policy_names())}")


def practised(scenario: Scenario) -> list[Scenario]:
    """What a policy for one scenario is fitted on.

    That is the scenario itself; with compressed time, whose second half has other peaks than the first, overload too,
    and the same requests at all these loads without peaks.
    """
    if scenario.time_scale == "flat":
        return [scenario]
    loads = [min(scenario.load * more, MOST_LOAD) for more in OVERLOADS]
    return [changed(scenario, load=load, time_scale=scale) for scale in (scenario.time_scale, "flat") for load in loads]


def changed(scenario: Scenario, **values: float | str) -> Scenario:
    """The scenario with other values. Raises ParameterError for those that are not allowed."""
    return dataclasses.replace(scenario, **values).checked()


def grid(scenario: Scenario) -> list[Scenario]:
    """The cells that one policy is trained for at once: loads, loading times, resident models and old news."""
    cells = (
        *({"load": load, "load_time": 12.0} for load in (0.6, 0.8, 0.95)),
        *({"load": load, "load_time": 0.0} for load in (0.6, 0.8, 0.95)),
        {"load": 0.8, "load_time": 5.0},
        {"load": 0.8, "load_time": 12.0, "resident_models": 3},
        {"load": 0.8, "load_time": 0.0, "age": 10.0},
        {"load": 0.6, "load_time": 12.0, "age": 10.0},
        {"load": 0.8, "load_time": 12.0, "age": 10.0},
        {"load": 0.8, "load_time": 12.0, "age": 60.0},
    )
    return [changed(scenario, **cell) for cell in cells]
