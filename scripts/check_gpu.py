"""Check and measure everything on a GPU in a few minutes: offline, with what is installed, part by part.

Each part runs under its own time limit. results.csv grows row by row, and report.md is written anew after every part,
with the card's name and the targets. A part that lacks a package says so. On a machine without a GPU, --dry True runs
all parts at tiny sizes on the CPU. Examples:
bash scripts/check_gpu.sh
bash scripts/check_gpu.sh --minutes 3 --part tests --part levels
"""

import common.quiet_start  # noqa: F401

import dataclasses
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from common.command_line import command_line
from common.failure import fail
from common.interruption import Interruption
from common.parameters import ParameterError, Parameters, parameter
from common.run_folder import RESULTS, new_folder, write_text
from gpu_check.machine import facts
from gpu_check.parts import PARTS, limit
from gpu_check.processes import Outcome, run_part
from gpu_check.report import report
from gpu_check.results import OUTCOME, Conditions, Results


@dataclasses.dataclass(kw_only=True)
class CheckConfig(Parameters):
    """Every parameter of check_gpu.py."""

    minutes: float = parameter(8.0, "time for all parts together", unit="min", above=0, high=1000)
    part: tuple[str, ...] = parameter((), f"a part to run, may be repeated: {', '.join(PARTS)}; default: all")
    dry: bool = parameter(
        False, "tiny sizes on the CPU, on any machine: shows that all parts run, and measures nothing"
    )
    out: str | None = parameter(None, "folder of the report; default results/gpu", path=True)

    def check(self) -> None:
        super().check()
        for name in self.part:
            if name not in PARTS:
                raise ParameterError("part", name, f"must be one of {', '.join(PARTS)}")


class Check:
    """The parts of a check in their order, in a folder for the results."""

    def __init__(self, config: CheckConfig, folder: Path, scratch: Path) -> None:
        self.config, self.folder, self.scratch = config, folder, scratch
        self.device = "cpu" if config.dry else "cuda"
        self.names = [name for name in PARTS if not config.part or name in config.part]
        self.machine, self.outcomes = facts(self.device), dict[str, Outcome]()
        self.until = time.time() + 60 * config.minutes
        (folder / "logs").mkdir(exist_ok=True)

    def run(self, interruption: Interruption) -> None:
        """Run every part that there is time for, and write down how it ended."""
        self.write()
        for name in self.names:
            left = self.until - time.time()
            if interruption.asked or left < 1:
                self.note(name, Outcome("interrupted" if interruption.asked else "skipped", 0.0, "no time was left"))
                continue
            until = time.time() + limit(name, self.names, left)
            given = Conditions(self.device, self.config.dry, until, str(self.folder), str(self.scratch))
            print(f"{name}: {PARTS[name].what}, at most {given.left():.0f} s", flush=True)
            log = self.folder / "logs" / f"{name}.log"
            self.note(name, run_part(name, given, log, lambda: interruption.asked))

    def note(self, name: str, outcome: Outcome) -> None:
        """Write down how a part ended."""
        self.outcomes[name] = outcome
        Results(self.folder, name).add("", OUTCOME, outcome.word, "", f"{outcome.seconds:.1f} s. {outcome.words}")
        print(f"{name}: {outcome.word} after {outcome.seconds:.0f} s. {outcome.words}", flush=True)
        self.write()

    def write(self) -> None:
        """report.md as of now."""
        rows = Results(self.folder, "").table.rows()
        page = report(self.machine, self.names, self.outcomes, rows, self.config.dry)
        write_text(self.folder / "report.md", page + "\n")


def main(config: CheckConfig, given: dict[str, Any]) -> None:
    """Run the parts, and end with exit code 1 when one has failed. Raises ParameterError."""
    if not config.dry and not torch.cuda.is_available():
        raise ParameterError(None, None, "torch sees no CUDA device here; --dry True runs tiny sizes on the CPU")
    with new_folder(config.out, RESULTS / "gpu") as folder:
        scratch = Path(tempfile.mkdtemp(prefix="check_gpu_"))
        try:
            with Interruption() as interruption:
                check = Check(config, folder.resolve(), scratch)
                check.run(interruption)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
        print(f"results.csv, report.md and logs in {folder}")
    bad = [name for name, outcome in check.outcomes.items() if outcome.word in ("failed", "out of time")]
    if interruption.asked:
        fail("interrupted; report.md has what was done", interruption.code)
    if bad:
        fail(f"{', '.join(bad)} did not succeed; report.md says how", 1)


if __name__ == "__main__":
    command_line(CheckConfig, main, __doc__)
