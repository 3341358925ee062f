"""Say which weights a folder or file gives to which model, whole and of the right kind, reading headers only.

Ends with exit code 0 when all models but the optional T5 are right, else with 1. Example:
python scripts/check_models.py --models models --hash True
"""

import common.quiet_start  # noqa: F401

import dataclasses
import os
import sys
from pathlib import Path
from typing import Any

from common.command_line import command_line
from common.parameters import ParameterError, Parameters, parameter
from resd3_medium.finding import Candidate, Chosen, Weights, choose, opened, survey, unused, usual
from resd3_medium.folders import MODELS
from resd3_medium.parts import PARTS
from resd3_medium.pipeline import check_fit
from resd3_medium.weight_files import sha256
from resd3_medium.weights import PartWeights


@dataclasses.dataclass(kw_only=True)
class CheckConfig(Parameters):
    """Every parameter of check_models.py."""

    models: str = parameter(str(MODELS), "folder of the model files, or one file", path=True)
    hash: bool = parameter(False, "read all of each file, and print its SHA-256")


def judged(name: str, found: list[Candidate], chosen: Chosen) -> tuple[PartWeights | None, str, str]:
    """A model's weights, the file that gives them, and what is right or wrong with it in words."""
    if name not in chosen:
        damaged = next((c for c in found if c.reason and usual(name, c.name)), None)
        return (None, damaged.name, damaged.reason) if damaged else (None, PARTS[name].usual, "missing")
    candidate, space = chosen[name]
    try:
        part = opened(name, candidate, space)
    except ParameterError as error:
        return None, candidate.name, error.reason
    return part, candidate.name, f"right: {part.parameters:,} parameters in {part.precision}"


def main(config: CheckConfig, given: dict[str, Any]) -> None:
    """Print a line for each model, and for what is not used. Exits with 1 when a model is missing or wrong."""
    models = Path(config.models)
    if not models.exists():
        print(f"{models} does not exist")
    found = survey(models)
    chosen = choose(models, found)
    parts: dict[str, PartWeights] = {}
    whole = True
    for name in PARTS:
        part, file, words = judged(name, found, chosen)
        optional = name == "T5" and words == "missing"
        whole &= part is not None or optional
        if part is not None:
            parts[name] = part
            words += f", in a file of {part.file.size / 2**30:.2f} GiB"
        print(f"{name:8s}{file:26s}  {words}{' (optional)' if optional else ''}")
    for line in unused(models, found, chosen):
        print(f"not used: {line}")
    if config.hash:
        for path in dict.fromkeys(path for part in parts.values() for path in part.file.paths):
            print(f"{sha256(path)}  {os.path.relpath(path, models if models.is_dir() else models.parent)}")
    if whole:
        weights = Weights(models, parts, {name: chosen[name][0].name for name in parts}, [])
        try:
            check_fit(models, {name: part.config for name, part in parts.items()})
            print(f"together: {weights.kind}")
        except ParameterError as error:
            whole = False
            print(f"together: wrong: {error.reason}")
    if not whole:
        print("get the files with python scripts/download_models.py")
        sys.exit(1)


if __name__ == "__main__":
    command_line(CheckConfig, main, __doc__)
