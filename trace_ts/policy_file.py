"""Policies as files: networks as safetensors with their design in the header, rules as JSON.

A rule's file holds its name and constants; that of SITA its cuts, too, and that of a partition the work of the models
by their rank of popularity: see `write_rule`. Start reading at `read_policy`.
"""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from common.parameters import ParameterError
from common.run_folder import describe, read_json, replace_file, write_text
from trace_ts.model_trace import LATENTS, Design, ScorePolicy
from trace_ts.rules import CONSTANTS, RULES, Rule
from trace_ts.sita import Partition, SizeIntervals, partition, size_intervals

SUFFIXES = (".safetensors", ".json")
LARGEST_LOG, LARGEST_WEIGHT = 500, 1e6  # of constants and of weights; no training comes near, and no sum overflows


def read_policy(path: Path, flag: str) -> ScorePolicy | Rule:
    """A policy of either kind, told apart by the suffix. Raises ParameterError for anything else."""
    return read_rule(path, flag) if path.suffix == ".json" else load_policy(path, flag)


def save_policy(path: Path, policy: ScorePolicy, told: dict[str, str]) -> None:
    """Write a policy; `told` says what it was trained on."""
    header = {"design": json.dumps(dataclasses.asdict(policy.design)), **told}
    replace_file(path, lambda temporary: save_file({"parameters": policy.parameters}, temporary, metadata=header))


def what_is_told(path: Path) -> dict[str, str]:
    """What `save_policy` was told of a policy. Raises ParameterError for what is no policy."""
    load_policy(path)
    with safe_open(path, framework="numpy") as file:
        return {name: text for name, text in file.metadata().items() if name != "design"}


def load_policy(path: Path, flag: str = "checkpoint") -> ScorePolicy:
    """A policy that `save_policy` wrote. Raises ParameterError for anything else."""
    try:
        with safe_open(path, framework="numpy") as file:
            design = Design(**json.loads(file.metadata()["design"]))
            parameters = file.get_tensor("parameters").astype(np.float64)
        types = [type(value) for value in dataclasses.astuple(design)]
        if types != [int, int, str, bool]:
            raise ValueError("a design with values of the wrong type")
        if not (0 < design.hidden < 10_000 and 0 <= design.steps <= 100 and design.latent in LATENTS):
            raise ValueError("a design that is not allowed")
        if parameters.shape != (len(CONSTANTS) + sum(int(np.prod(shape)) for shape in design.shapes),):
            raise ValueError("parameters of another design")
        if not np.isfinite(parameters).all():
            raise ValueError("parameters that are not finite")
        logarithms, weights = np.split(parameters, [len(CONSTANTS)])
        if logarithms.max() > LARGEST_LOG or np.abs(weights).max() > LARGEST_WEIGHT:
            raise ValueError("parameters that are too large")
    except (OSError, SafetensorError, ValueError, LookupError, TypeError, RecursionError) as error:
        raise ParameterError(flag, path, f"must be a policy of main_trace.py ({describe(error)})") from None
    return ScorePolicy(design, parameters)


def write_rule(path: Path, rule: Rule) -> None:
    """Write a rule: its name and constants, and what else it was fitted with.

    For SITA that are its limits in image-steps, its shares of the capacity, and which servers its small tasks have.
    For a partition it is the number of classes, and of each model its work in image-steps and its rank of popularity,
    from 0. The rank tells a scheduler which model of its catalogue is meant: the first one stands for the most popular
    one, and so on in turn, as with the requests of a file (edge_sim/replay.py). Raises ValueError for a partition that
    knows no work.
    """
    content: dict[str, Any] = {"rule": rule.name}
    content["constants"] = dict(zip(CONSTANTS, map(float, rule.constants), strict=True))
    if isinstance(rule.more, SizeIntervals):
        content["size_intervals"] = dataclasses.asdict(rule.more)
    if isinstance(rule.more, Partition):
        if not rule.more.work:
            raise ValueError("a partition that knows no work of models")
        content["partition"] = dataclasses.asdict(rule.more)
    write_text(path, json.dumps(content, indent=2) + "\n")


def read_rule(path: Path, flag: str = "resume") -> Rule:
    """A rule that `write_rule` wrote. Raises ParameterError for anything else."""
    try:
        content = keyed(read_json(path), ("rule", "constants"), ("size_intervals", "partition"))
        given = keyed(content["constants"], CONSTANTS)
        constants = numbers([given[name] for name in CONSTANTS])
        if not np.isfinite(constants).all():
            raise ValueError("constants that are not finite")
        return dataclasses.replace(named_rule(content), constants=constants)
    except (OSError, ValueError, LookupError, TypeError, OverflowError) as error:
        raise ParameterError(flag, path, f"must be a rule of main_trace.py ({describe(error)})") from None


def named_rule(content: dict[str, Any]) -> Rule:
    """The rule of a file's content, with constants as they are. Raises what `read_rule` turns into its own error."""
    name, cuts, parts = content["rule"], content.get("size_intervals"), content.get("partition")
    if cuts is None and parts is None:
        if not isinstance(name, str) or name not in RULES:
            raise ValueError(f"no rule {str(name)[:50]}")
        return RULES[name]
    if cuts is not None:
        keyed(cuts, ("limits", "shares", "order"))
        rule = size_intervals(numbers(cuts["limits"]), numbers(cuts["shares"]), cuts["order"])
    else:
        keyed(parts, ("work", "rank", "classes"))
        work, rank, classes = numbers(parts["work"]), parts["rank"], parts["classes"]
        if not (work and isinstance(rank, list) and all(type(number) is int for number in [classes, *rank])):
            raise TypeError("no work of models, or ranks and classes that are no whole numbers")
        rule = partition(classes, work, rank)
    if rule.name != name or (cuts is not None and parts is not None):
        raise ValueError(f"{rule.name} in place of {str(name)[:50]}")
    return rule


def keyed(content: Any, names: Sequence[str], others: Sequence[str] = ()) -> dict[str, Any]:
    """A part of a file, which has these names, and perhaps others. Raises ValueError for any else, or fewer."""
    if not isinstance(content, dict):
        raise ValueError(f"no object with {', '.join(names)}")
    for name in names:
        if name not in content:
            raise ValueError(f"{name} is missing")
    for name in content:
        if name not in (*names, *others):
            raise ValueError(f"an unknown {str(name)[:50]}")
    return content


def numbers(values: Any) -> tuple[float, ...]:
    """The numbers of a list of a file. Raises TypeError for anything else, and OverflowError for too large ones."""
    if not (isinstance(values, list) and all(type(value) in (int, float) for value in values)):
        raise TypeError("values that are no list of numbers")
    return tuple(map(float, values))
