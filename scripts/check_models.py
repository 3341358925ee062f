"""Say which model files are there, whole and of the right kind, reading their headers only.

Ends with exit code 0 when all files but the optional T5 are right, else with 1. Example:
python scripts/check_models.py --models models
"""

import common.quiet_start  # noqa: F401

import dataclasses
import sys
from pathlib import Path
from typing import Any

from common.command_line import command_line
from common.parameters import ParameterError, Parameters, parameter
from resd3_medium.folders import MODELS
from resd3_medium.weights import PARTS, Part, WeightsFile, file_dtype, structure


@dataclasses.dataclass(kw_only=True)
class CheckConfig(Parameters):
    """Every parameter of check_models.py."""

    models: str = parameter(str(MODELS), "folder of the model files", path=True)


def judged(part: Part, models: Path) -> tuple[bool, str]:
    """Whether the part's file is right, and what it holds or lacks, in words."""
    path = models / part.file
    if not path.is_file():
        return False, "missing"
    try:
        file = WeightsFile(path)
        model = structure(part, file)
    except ParameterError as error:
        return False, error.reason
    count = sum(parameter.numel() for parameter in model.parameters())
    kind = str(file_dtype(file, part.prefix)).removeprefix("torch.")
    return True, f"right: {count:,} parameters in {kind}, {path.stat().st_size / 2**30:.2f} GiB"


def main(config: CheckConfig, given: dict[str, Any]) -> None:
    """Print a line for each model. Exits with 1 when one is missing or wrong."""
    whole = True
    for part in PARTS.values():
        right, words = judged(part, Path(config.models))
        optional = part.name == "T5"
        whole &= right or (optional and words == "missing")
        print(f"{part.name:8s}{part.file:26s}{words}{' (optional)' if optional and not right else ''}")
    if not whole:
        print("get the files with python scripts/download_models.py")
        sys.exit(1)


if __name__ == "__main__":
    command_line(CheckConfig, main, __doc__)
