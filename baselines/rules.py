"""The methods without learning by name, their parameters, and classes of a user's own.

`RULES` is what main_heuristics.py offers. Start reading at `rule`.
"""

import dataclasses
import hashlib
import importlib.util
import sys
from pathlib import Path
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
from baselines.size_interval import SizeInterval, SizeIntervalStatic
from common.parameters import ParameterError, parameter
from coop_lad_ts.routing_table import TableParameters
from lad_ts.method import Method
from lad_ts.references import LowerBound, VirtualOpt
from lad_ts.run_parameters import FixedParameters
from lad_ts.scheduler import Scheduler

SCRIPT = "baselines/main_heuristics.py"
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
    )
    classes: int = parameter(3, "task-size classes of size_interval and size_interval_static", low=1, high=20)

    def check(self) -> None:
        super().check()
        rule(self.method)


def rule(name: str, flag: str = "method") -> Method:
    """The method of a rule's name, or of FILE.py:ClassName. Raises ParameterError of `flag` when there is none."""
    build = RULES[name] if name in RULES else own_class(name, flag)
    key = name.rpartition(":")[2]
    label, compared = key.replace("_", " "), name in RULES and name not in OF_THE_STUDY
    source = "" if name in RULES else hashlib.sha256(Path(name.rpartition(":")[0]).read_bytes()).hexdigest()
    return Method(key, label, HeuristicConfig, build, SCRIPT, {"method": name}, compared=compared, source=source)


def own_class(place: str, flag: str) -> type[Scheduler]:
    """The scheduler class of FILE.py:ClassName. Raises ParameterError of `flag` when there is none."""
    file, _, name = place.rpartition(":")
    allowed = f"must be one of {', '.join(RULES)}, or FILE.py:ClassName"
    spec = importlib.util.spec_from_file_location(Path(file).stem, file) if Path(file).is_file() else None
    if spec is None or spec.loader is None:
        raise ParameterError(flag, place, allowed)
    module = importlib.util.module_from_spec(spec)
    before = sys.modules.get(spec.name)
    sys.modules[spec.name] = module  # where dataclasses look their annotations up
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:  # the user's file may fail in any way
        raise ParameterError(flag, place, f"the file fails with {type(error).__name__}: {error}") from None
    finally:
        if before is not None:  # a file called as a module of another, such as json.py, takes nobody's place
            sys.modules[spec.name] = before
    found = getattr(module, name, None)
    if not (isinstance(found, type) and issubclass(found, Scheduler) and not found.learns):
        raise ParameterError(flag, place, f"{allowed} of a Scheduler that does not learn ({name} is none)")
    if found.act is Scheduler.act:
        raise ParameterError(flag, place, "the class must define act(slot)")
    return found
