"""The methods without learning by name, their parameters, and classes of a user's own.

`RULES` is what main_heuristics.py offers. Start reading at `rule`.
"""

import dataclasses
from typing import ClassVar

from baselines.fitted_table import FittedTable, FittedTableStatic
from baselines.heuristics import (
    CapacityProportional,
    CapacityRoundRobin,
    LocalOnly,
    ShortestQueue,
    UniformRandom,
    WaterFilling,
)
from baselines.own import FORM, LEARNERS_SCRIPT, RULES_SCRIPT, own_class
from baselines.size_interval import SizeInterval, SizeIntervalStatic
from common.parameters import ParameterError, parameter
from coop_lad_ts.routing_table import TableParameters
from lad_ts.method import Method
from lad_ts.references import LowerBound, VirtualOpt
from lad_ts.run_parameters import FixedParameters

RULES: dict[str, type] = {
    "uniform_random": UniformRandom,
    "local_only": LocalOnly,
    "capacity_proportional": CapacityProportional,
    "capacity_round_robin": CapacityRoundRobin,
    "shortest_queue": ShortestQueue,
    "water_filling": WaterFilling,
    "size_interval": SizeInterval,
    "size_interval_static": SizeIntervalStatic,
    "routing_table": FittedTable,
    "routing_table_static": FittedTableStatic,
    "virtual_opt": VirtualOpt,
    "lower_bound": LowerBound,
}
# What is compared with Cooperative LAD-TS, by scripts/coop_study.py, and not by default with the papers' methods.
OF_THE_STUDY = ("size_interval_static", "routing_table", "routing_table_static", "virtual_opt")


@dataclasses.dataclass(kw_only=True)
class HeuristicConfig(FixedParameters, TableParameters):
    """Every parameter of main_heuristics.py."""

    GROUP: ClassVar[str] = "method"

    method: str = parameter(
        "water_filling",
        "rule to run, by name, or FILE.py:ClassName for your own",
        more=f"One of {', '.join(RULES)}.",
        path=True,
    )
    classes: int = parameter(3, "task-size classes of size_interval and size_interval_static", low=1, high=20)

    def check(self) -> None:
        super().check()
        rule(self.method)


def rule(name: str, flag: str = "method") -> Method:
    """The method of a rule's name, or of FILE.py:ClassName. Raises ParameterError of `flag` when there is none."""
    if name in RULES:
        build, source = RULES[name], ""
    else:
        build, source = own_class(name, flag, f"must be one of {', '.join(RULES)}, or {FORM}")
        if build.learns:
            raise ParameterError(flag, name, f"the class learns; python {LEARNERS_SCRIPT} runs it")
    key = name.rpartition(":")[2]
    label, compared = key.replace("_", " "), name in RULES and name not in OF_THE_STUDY
    return Method(key, label, HeuristicConfig, build, RULES_SCRIPT, {"method": name}, compared=compared, source=source)
