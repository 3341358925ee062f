"""The part `levels`: whole images of Stable Diffusion 3 medium at each memory level, and diffusers beside them.

The measuring is that of scripts/bench_sd3.py, in one process, so that libraries start once. Start reading at `measure`.
"""

import gc
import importlib.util
import time
from types import ModuleType

import torch

from common.command_line import ROOT
from common.entry_scripts import load_module
from common.parameters import resolve
from gpu_check.results import Conditions, Results
from gpu_check.sd3_files import random_files
from gpu_check.sd3_step import add_peak, start_peak

LEVELS = ("none", "model", "block")
SIZES = (512, 1024)
# The most important first; those that the time does not suffice for say so. `compare` runs diffusers beside us.
CASES = [
    *((level, side, "float16") for side in SIZES for level in LEVELS),
    ("model", 512, "fp8"),
    *(("compare", side, "float16") for side in SIZES),
    *((level, side, form) for form in ("fp8", "int8") for side in SIZES for level in LEVELS),
    *((level, side, "bfloat16") for side in SIZES for level in LEVELS),
    *(("compare", side, "bfloat16") for side in SIZES),
]
TINY = [("none", 32, "float32"), ("model", 32, "int8"), ("block", 32, "fp8"), ("compare", 32, "float32")]


def measure(given: Conditions, results: Results) -> None:
    """Add load time, seconds of a step and peak memory of every case. Raises SkipError without room for the files."""
    bench, models, device = load_module(ROOT / "scripts/bench_sd3.py"), random_files(given), torch.device(given.device)
    longest = 0.0
    for level, side, form in dict.fromkeys(TINY if given.dry else CASES):
        case = f"{level} {side} {form}"
        if given.left() < 1.5 * longest + 3:
            results.missing(case, "no time was left")
            continue
        if level == "compare" and importlib.util.find_spec("diffusers") is None:
            results.missing(case, "diffusers is not installed")
            continue
        began = time.perf_counter()
        eight = form in ("fp8", "int8")
        config = resolve(
            bench.BenchConfig,
            {
                "models": str(models),
                "device": given.device,
                "dtype": ("float32" if given.dry else "float16") if eight else form,
                "weights": form if eight else "full",
                "steps": 1 if given.dry else 4,
                "repeats": 1 if given.dry else 5,
            },
        )
        gc.collect()
        start_peak(device)
        try:
            one_case(bench, config, level, side, case, results)
        except torch.OutOfMemoryError as error:
            results.missing(case, f"out of memory: {error}"[:200])
            continue
        if level != "compare":
            add_peak(results, case, device)
        longest = max(longest, time.perf_counter() - began)


def one_case(bench: ModuleType, config: object, level: str, side: int, case: str, results: Results) -> None:
    """Add the times of one case. Nothing of it is left in memory."""
    if level == "compare":
        here, there, difference = bench.compare_step(config, side)
        results.add(case, "step", here, "s")
        results.add(case, "step of diffusers", there, "s")
        results.add(case, "step / diffusers", here / there)
        results.add(case, "largest relative difference", difference)
        return
    found = bench.measure(config, level, side)
    for name in ("load", "text", "step", "decode"):
        results.add(case, name, found[name], "s")
