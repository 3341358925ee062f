"""The trials of the study of Cooperative LAD-TS: loads, shapes, wrong beliefs, a failure, and who is tried in them.
them.

Start reading at `study_trials`.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

from baselines.rules import RULES, HeuristicConfig
from common.parameters import resolve
from coop_lad_ts.coop_parameters import CoopConfig
from coop_lad_ts.model_coop import CoopAgents
from experiments.trials import Trial, misjudged, moved, scaled_to, unseen_scenarios
from lad_ts.environment_lad import draw_scenario, offered_load
from lad_ts.scheduler import Scheduler

Make = Callable[[Trial], Scheduler]
LOADS = (0.6, 0.7, 0.8, 0.9, 1.0, 1.06, 1.1, 1.2, 1.3, 1.4, 1.5, 1.6)
SERVERS, SPREADS, HORIZONS = (5, 10, 20, 50, 100), (1.0, 2.0, 5.0, 10.0), (15, 30, 60, 120)
PANELS = {"servers": "Edge servers B", "spread": "Greatest over least capacity", "horizon": "Time slots T"}
LOAD, SPREAD = 1.25, 5.0  # where a trial does not vary them
REFERENCES: dict[str, tuple[str, dict[str, Any]]] = {
    **{f"SITA-{k}": ("size_interval", {"classes": k}) for k in range(2, 7)},
    "SITA-3, no feedback": ("size_interval_static", {"classes": 3}),
    "routing table": ("routing_table", {}),
    "routing table, no feedback": ("routing_table_static", {}),
    "virtual Opt": ("virtual_opt", {}),
}


@dataclasses.dataclass(frozen=True)
class Tried:
    """A trial of some methods: the experiment that it belongs to, its setting, and its held-out episodes.

    `same_as` names an experiment whose only trial is the same, so that its rows count.
    """

    experiment: str
    setting: float | str
    trial: Trial
    methods: dict[str, Make]
    episodes: int
    same_as: str | None = None


@dataclasses.dataclass(frozen=True)
class Contestants:
    """Who is tried: trained agents, those of them that take any number of servers, and the references."""

    coop: dict[str, Make]
    anywhere: dict[str, Make]  # practised agents, or where there are none all with a shared network
    some: dict[str, Make]  # the references of every trial
    every: dict[str, Make]  # all references

    @property
    def own(self) -> dict[str, Make]:
        """Who is tried where the agents were trained."""
        return self.coop | self.some


def contestants(agents: dict[str, CoopAgents]) -> Contestants:
    """Agents by the names of their variants, and the references."""
    coop = {f"Coop {name}": learned(a) for name, a in agents.items()}
    shared = {f"Coop {name}": coop[f"Coop {name}"] for name, a in agents.items() if a.shared}
    practised = {name: make for name, make in coop.items() if "practised" in name} or shared
    some = {name: reference(name) for name in ("SITA-3", "routing table", "virtual Opt")}
    return Contestants(coop, practised, some, {name: reference(name) for name in REFERENCES})


def reference(name: str) -> Make:
    """How to make one of REFERENCES for a trial."""
    method, given = REFERENCES[name]

    def make(trial: Trial) -> Scheduler:
        known = {f.name: getattr(trial.params, f.name) for f in dataclasses.fields(HeuristicConfig) if f.name in common}
        return RULES[method](resolve(HeuristicConfig, known | given), trial.seeds, "cpu")

    own = {"resume", "evaluate", "out", "capacities", "objective", "tail_weight", "tail_threshold"}
    common = {field.name for field in dataclasses.fields(CoopConfig)} - own
    common &= {field.name for field in dataclasses.fields(HeuristicConfig)}
    return make


def learned(agents: CoopAgents) -> Make:
    """How to make trained agents for a trial, with its number of servers and slots."""

    def make(trial: Trial) -> Scheduler:
        shape = {"num_bs": trial.scenario.capacity.shape[1], "num_slots": trial.params.num_slots}
        return moved(agents, dataclasses.replace(agents.params, **shape))

    return make


def study_trials(
    params: CoopConfig, seeds: list[int], who: Contestants, many: int, few: int, quick: bool
) -> list[Tried]:
    """All trials: `many` held-out episodes where agents were trained, `few` on scenarios of each seed's own."""
    usual = Trial(params, draw_scenario(params, seeds), seeds)
    load = float(offered_load(params, usual.scenario)[0])
    defaults = Tried("defaults", f"load {load:.2f}", usual, who.coop | who.every, many)
    return [
        defaults,
        *unseen_trials(params, seeds, who, few, quick),
        *robustness_trials(usual, load, who.own, many),
    ]


def unseen_trials(params: CoopConfig, seeds: list[int], who: Contestants, episodes: int, quick: bool) -> list[Tried]:
    """Scenarios that no training saw, one for each seed: against load, servers, spread and horizon."""

    def unseen(
        experiment: str,
        setting: float,
        methods: dict[str, Make],
        servers: int = 20,
        load: float = LOAD,
        spread: float = SPREAD,
        slots: int = params.num_slots,
    ) -> Tried:
        shape = dataclasses.replace(params, num_bs=servers, num_slots=slots)
        trial = Trial(shape, unseen_scenarios(shape, seeds, servers, load, spread), seeds)
        return Tried(experiment, setting, trial, methods, episodes)

    few = who.anywhere | who.some
    trials = [unseen("load", x, who.coop | who.every, load=x) for x in (LOADS[::6] if quick else LOADS)]
    trials += [unseen("servers", x, few, servers=x) for x in (SERVERS[:1] if quick else SERVERS)]
    trials += [unseen("spread", x, few, spread=x) for x in (SPREADS[:1] if quick else SPREADS)]
    return trials + [unseen("horizon", x, few, slots=x) for x in (HORIZONS[:1] if quick else HORIZONS)]


def robustness_trials(usual: Trial, load: float, methods: dict[str, Make], episodes: int) -> list[Tried]:
    """The scenario of the training, with wrong beliefs about capacities and load, and with a server that fails."""
    scenario, slots = usual.scenario, usual.params.num_slots
    found = {"as trained": usual}
    wrong = dataclasses.replace(usual, scenario=misjudged(scenario, usual.seeds, 0.15), believed=scenario)
    found["capacities misjudged by up to 15 %"] = wrong
    for off in (-0.15, 0.15):
        other = dataclasses.replace(usual, scenario=scaled_to(scenario, load / (load + off)))
        words = f"load {load + off:.2f} instead of {load:.2f}"
        found[f"{words}, known"] = other
        found[f"{words}, not known"] = dataclasses.replace(other, believed=scenario)
    for told in (True, False):
        words = f"fastest server fails in the middle, {'known' if told else 'not known'}"
        found[words] = dataclasses.replace(usual, fails_at=slots // 2, told=told)
    return [
        Tried("robustness", words, trial, methods, episodes, "defaults" if trial is usual else None)
        for words, trial in found.items()
    ]
