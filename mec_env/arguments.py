"""What users of the environment give: parameters, seeds, options of a reset. Start at `environment_parameters`."""

import dataclasses
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from common.parameters import ParameterError, resolve
from lad_ts.environment_parameters import EnvironmentParameters

OPTIONS = ("episode", "held_out", "scenario_seed")  # of a reset


def environment_parameters(scenario: str | EnvironmentParameters = "paper", **changes: Any) -> EnvironmentParameters:
    """The parameters of a named scenario (lad_ts/scenarios.py), or given ones, with some changed.

    Raises ParameterError for unknown names and for values out of range.
    """
    if isinstance(scenario, str):
        return resolve(EnvironmentParameters, {"scenario": scenario} | changes)
    stored = {field.name: getattr(scenario, field.name) for field in dataclasses.fields(EnvironmentParameters)}
    return resolve(EnvironmentParameters, stored | changes)


def without_unknown(options: Mapping[str, Any] | None, known: Sequence[str] = OPTIONS) -> dict[str, Any]:
    """Options of a reset by another library: what is not known here is left out, with a warning."""
    options = dict(options or {})
    if unknown := sorted(map(str, options.keys() - set(known))):
        warnings.warn(f"options not used: {', '.join(unknown)}; known are {', '.join(known)}", stacklevel=3)
    return {name: value for name, value in options.items() if name in known}


def whole_number(name: str, value: Any) -> int:
    """A number that a generator can be seeded by. Raises ParameterError for others."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or not 0 <= value < 2**31:
        raise ParameterError(name, value, "must be an integer, at least 0 and below 2**31")
    return int(value)
