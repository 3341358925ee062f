"""The part `tests`: pytest runs those marked cuda, which compare the GPU with the CPU.

Start reading at `measure`.
"""

import importlib.util
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

from common.command_line import ROOT
from gpu_check.processes import environment
from gpu_check.results import Conditions, Results, SkipError


def measure(given: Conditions, results: Results) -> None:
    """Run the tests, and add a row for each. Raises SkipError without pytest, RuntimeError when a test fails."""
    if importlib.util.find_spec("pytest") is None:
        raise SkipError("needs pytest, which is not installed")
    files = [str(path) for path in sorted((ROOT / "tests").glob("test_cuda_*.py"))]
    record = Path(given.scratch) / "tests.xml"
    flags = [
        "-m",
        "cuda",
        "-v",
        "--continue-on-collection-errors",
        "-p",
        "no:cacheprovider",
        f"--junitxml={record}",
        *files,
    ]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *flags],
        cwd=ROOT,
        env=environment() | {"DEDGEAI_GPU": given.device, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
        check=False,
    )
    if not record.exists():
        raise RuntimeError(f"pytest ended with exit code {done.returncode} and no record")
    found = outcomes(record)
    for name, (outcome, seconds, words) in found.items():
        results.add(name, "test", outcome, note=f"{seconds:.1f} s. {words}")
    bad = [name for name, (outcome, *_) in found.items() if outcome == "failed"]
    if bad or not found or done.returncode:
        names = ", ".join(bad) or f"pytest's exit code is {done.returncode}"
        raise RuntimeError(f"{len(bad)} of {len(found)} tests failed: {names}")


def outcomes(record: Path) -> dict[str, tuple[str, float, str]]:
    """By test, of pytest's record in XML: passed, failed or skipped, its seconds, and the first words of why.

    A file that cannot be imported counts as a test that failed, one that skips itself as one that was skipped.
    """
    found = {}
    for case in ElementTree.parse(record).iter("testcase"):
        outcome, words = "passed", ""
        for kind, shown in (("skipped", "skipped"), ("failure", "failed"), ("error", "failed")):
            if (node := case.find(kind)) is not None:
                message = node.get("message", "")
                outcome, words = shown, (message if message != "collection skipped" else node.text or "")[:200]
        name = f"{case.get('classname', '').rpartition('.')[2]}: {case.get('name')}".removeprefix(": ")
        found[name] = outcome, float(case.get("time", 0)), words
    return found
