"""The part `levels`: whole images of Stable Diffusion 3 medium at each memory level, and diffusers beside them.

The measuring is that of scripts/bench_sd3.py, in one process, so that libraries start once. Start reading at `measure`.
"""

import gc
import importlib.util
import time
from pathlib import Path
from types import ModuleType

import torch

from common.command_line import ROOT
from common.entry_scripts import load_module
from common.parameters import Parameters, resolve
from gpu_check.results import Conditions, Results, SkipError
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
    bench, models = load_module(ROOT / "scripts/bench_sd3.py"), random_files(given)
    longest = 0.0
    for level, side, form in dict.fromkeys(TINY if given.dry else CASES):
        case, began = f"{level} {side} {form}", time.perf_counter()
        with results.case(case):
            if given.left() < 1.5 * longest + 3:
                raise SkipError("no time was left")
            if level == "compare" and importlib.util.find_spec("diffusers") is None:
                raise SkipError("diffusers is not installed")
            one_case(bench, parameters(bench, models, form, given), level, side, case, results)
        longest = max(longest, time.perf_counter() - began)


def parameters(bench: ModuleType, models: Path, form: str, given: Conditions) -> Parameters:
    """The benchmark's parameters for weights of a form: a dtype, or fp8 or int8, which are computed with in float16."""
    eight = form in ("fp8", "int8")
    values = {
        "models": str(models),
        "device": given.device,
        "dtype": ("float32" if given.dry else "float16") if eight else form,
        "weights": form if eight else "full",
        "steps": 1 if given.dry else 4,
        "repeats": 1 if given.dry else 5,
    }
    return resolve(bench.BenchConfig, values)


def one_case(bench: ModuleType, config: Parameters, level: str, side: int, case: str, results: Results) -> None:
    """Add the times of one case, and its peak memory."""
    device = torch.device(config.device)
    gc.collect()  # what earlier cases have left
    start_peak(device)
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
    add_peak(results, case, device)
