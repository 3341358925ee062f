"""The part `overlap`: how much of the copies' time the level `block` hides under compute, from a trace of steps.

Start reading at `hidden`, then `measure`.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from common.command_line import ROOT
from common.entry_scripts import load_module
from gpu_check.results import Conditions, Results, SkipError
from gpu_check.sd3_files import random_files
from resd3_medium.pipeline import Pipeline

Spans = Sequence[tuple[float, float]]  # begin and end, in one unit of time
COPY = "Memcpy HtoD"


def union(spans: Spans) -> list[tuple[float, float]]:
    """The same time in spans that do not overlap, in order."""
    found: list[tuple[float, float]] = []
    for begin, end in sorted(spans):
        if found and begin <= found[-1][1]:
            found[-1] = found[-1][0], max(end, found[-1][1])
        else:
            found.append((begin, end))
    return found


def total(spans: Spans) -> float:
    """The time that spans take, what several share counted once."""
    return sum(end - begin for begin, end in union(spans))


def hidden(copies: Spans, kernels: Spans) -> float:
    """The share of the copies' time in which a kernel computes, too; NaN where nothing is copied."""
    copied, computed = total(copies), total(kernels)
    return (copied + computed - total([*copies, *kernels])) / copied if copied else float("nan")


def measure(given: Conditions, results: Results) -> None:
    """Trace steps at the level `block`, add its shares, and write the trace into the results' folder."""
    bench, device = load_module(ROOT / "scripts/bench_sd3.py"), torch.device(given.device)
    dtype = torch.float32 if given.dry else torch.float16
    pipeline = Pipeline(random_files(given), device, dtype, "block")
    text = bench.random_conditioning(pipeline)
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device.type == "cuda" else [])]
    for side in (32,) if given.dry else (512, 1024):
        case = f"block {side} {str(dtype).removeprefix('torch.')}"
        with results.case(case):
            settings = bench.settings(side, 2)
            pipeline.denoise([text], [text], [0], settings)  # warms up
            with profile(activities=activities) as trace:
                pipeline.denoise([text], [text], [0], settings)
            if device.type != "cuda":
                raise SkipError("there are no copies to a GPU")
            copies, kernels = spans_of(trace)
            results.add(case, "copies", total(copies) / 1e6, "s", "two steps")
            results.add(case, "kernels", total(kernels) / 1e6, "s", "two steps")
            results.add(case, "copies hidden under kernels", hidden(copies, kernels))
            trace.export_chrome_trace(str(Path(given.folder) / f"block_{side}.trace.json.gz"))


def spans_of(trace: profile) -> tuple[Spans, Spans]:
    """When copies to the GPU ran, and when kernels did, in microseconds."""
    copies, kernels = [], []
    for event in trace.events():
        if event.device_type != torch.autograd.DeviceType.CUDA or getattr(event, "is_user_annotation", False):
            continue
        span = event.time_range.start, event.time_range.end
        if event.name.startswith(COPY):
            copies.append(span)
        elif not event.name.startswith(("Memcpy", "Memset")):
            kernels.append(span)
    return copies, kernels
