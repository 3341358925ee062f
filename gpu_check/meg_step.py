"""The part `meg`: scripts/bench_meg.py on the device, a training step of MEG against a plain loop.

Start reading at `measure`.
"""

import re

from gpu_check.processes import run_script, script_flags
from gpu_check.results import Conditions, Results

TIMES = re.compile(r"a step of (\d+) images: ([\d.]+) ms, plain loop ([\d.]+) ms")
MEMORY = re.compile(r"peak memory: (\d+) MiB, plain loop (\d+) MiB")


def measure(given: Conditions, results: Results) -> None:
    """Add the times and the peak memory of both sides. Raises RuntimeError when the script prints others."""
    tiny = {"steps": 1, "turns": 1, "batch": 2} if given.dry else {}
    output = run_script("scripts/bench_meg.py", *script_flags(**tiny, device=given.device))
    times, memory = TIMES.search(output), MEMORY.search(output)
    if times is None or memory is None:
        raise RuntimeError("scripts/bench_meg.py printed neither times nor memory")
    for name, milliseconds, mebibytes in zip(("meg", "plain loop"), times.groups()[1:], memory.groups(), strict=True):
        results.add(name, "step", float(milliseconds), "ms", f"{times[1]} images")
        if given.device == "cuda":
            results.add(name, "peak", float(mebibytes) / 1024, "GiB")
        else:
            results.add(name, "peak", "", "GiB", "counted on CUDA only")
