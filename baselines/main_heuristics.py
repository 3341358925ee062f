"""Schedulers without learning on LAD-TS's environment: honest yardsticks for every learner, and the lower bound.

Writes results/<method>/<run>/ with config.json, delay.csv, utilisation.csv, delay.png and delay.pdf.
--method also takes a class of your own as FILE.py:ClassName, see the README. Example:
python baselines/main_heuristics.py --method water_filling --episodes 60 --seeds 2
"""

import dataclasses
import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

from baselines.heuristics import HEURISTICS
from common.command_line import command_line
from common.parameters import ParameterError, parameter
from lad_ts.references import LowerBound
from lad_ts.routing_table import TableParameters
from lad_ts.scheduler import Learner, Scheduler
from lad_ts.training import FixedParameters, Method, run_method


@dataclasses.dataclass(kw_only=True)
class HeuristicConfig(FixedParameters, TableParameters):
    """Every parameter of main_heuristics.py."""

    method: str = parameter(
        "water_filling",
        f"one of {', '.join([*HEURISTICS, 'lower_bound'])}; or FILE.py:ClassName for your own",
    )
    classes: int = parameter(3, "task-size classes of size_interval and size_interval_static", low=1, high=20)


def load_class(place: str, flag: str = "method") -> Callable[..., Scheduler]:
    """The scheduler class of a method's name or of FILE.py:ClassName. Raises ParameterError when there is none."""
    if place in HEURISTICS:
        return HEURISTICS[place]
    if place == "lower_bound":
        return lambda *_: LowerBound()
    file, _, name = place.rpartition(":")
    refusal = f"--{flag}={place}: must be one of {', '.join([*HEURISTICS, 'lower_bound'])}, or FILE.py:ClassName"
    if not Path(file).is_file():
        raise ParameterError(refusal)
    spec = importlib.util.spec_from_file_location(Path(file).stem, file)
    if spec is None or spec.loader is None:
        raise ParameterError(refusal)
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:  # the user's file may fail in any way
        raise ParameterError(flag, place, f"the file fails with {type(error).__name__}: {error}") from None
    found = getattr(module, name, None)
    if not (isinstance(found, type) and issubclass(found, Scheduler) and not issubclass(found, Learner)):
        raise ParameterError(f"{refusal} of a Scheduler that does not learn ({name} is none)")
    if found.act is Scheduler.act:
        raise ParameterError(flag, place, "the class must define act(slot)")
    return found


def main(config: HeuristicConfig, given: dict[str, Any]) -> None:
    name = config.method.rpartition(":")[2]
    run_method(config, given, Method(name.replace("_", " "), name, load_class(config.method)))


if __name__ == "__main__":
    command_line(HeuristicConfig, main, __doc__)
