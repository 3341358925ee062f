"""Learned policies as files: safetensors with their design in the header. Start reading at `save_policy`."""

import dataclasses
import json
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from common.parameters import ParameterError
from common.run_folder import describe, read_json, replace_file, write_text
from trace_ts.model_trace import LATENTS, Design, ScorePolicy
from trace_ts.rules import CONSTANTS, RULES, Rule

LARGEST_LOG, LARGEST_WEIGHT = 500, 1e6  # of constants and of weights; no training comes near, and no sum overflows


def save_policy(path: Path, policy: ScorePolicy, told: dict[str, str]) -> None:
    """Write a policy; `told` says what it was trained on."""
    header = {"design": json.dumps(dataclasses.asdict(policy.design)), **told}
    replace_file(path, lambda temporary: save_file({"parameters": policy.parameters}, temporary, metadata=header))


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
    """Write a rule's name and constants."""
    content = {"rule": rule.name, "constants": dict(zip(CONSTANTS, map(float, rule.constants), strict=True))}
    write_text(path, json.dumps(content, indent=2) + "\n")


def read_rule(path: Path, flag: str = "resume") -> Rule:
    """A rule that `write_rule` wrote. Raises ParameterError for anything else."""
    try:
        content = read_json(path)
        constants = tuple(float(content["constants"][name]) for name in CONSTANTS)
        if not np.isfinite(constants).all():
            raise ValueError("constants that are not finite")
        return dataclasses.replace(RULES[content["rule"]], constants=constants)
    except (OSError, ValueError, LookupError, TypeError, OverflowError) as error:
        raise ParameterError(flag, path, f"must be a rule of main_trace.py ({describe(error)})") from None
