"""Which engine computes what agents do: torch, or the fused one, whose functions numba compiles for the CPU.

The torch code is what there is to read, and the only one on CUDA. Start reading at `chosen_engine`.
"""

import functools
import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import fused
from common.parameters import ParameterError

ENGINES = ("auto", "torch", "fused")
COLD, WARM = 150_000, 5_000  # updates of an agent that pay for compiling, and for loading what is compiled


def chosen_engine(params: Any, kind: str, device: torch.device) -> tuple[str, str]:
    """torch or fused, and the reason in words; empty when it was the user's choice.

    `kind` is what the fused engine knows the agents as, "" for agents that it does not know. Raises ParameterError when
    the user wants it in vain.
    """
    wanted = getattr(params, "engine", "torch")
    if wanted == "torch":
        return "torch", ""
    if not kind:
        reason = "these agents compute what the fused engine does not know"
    elif device.type != "cpu":
        reason = f"the fused engine computes on the CPU only, and not on {device}"
    elif importlib.util.find_spec("numba") is None:
        reason = "the fused engine needs the package numba"
    else:
        reason = ""
    if wanted == "fused":
        if reason:
            raise ParameterError("engine", "fused", f"must be torch or auto: {reason}")
        return "fused", ""
    return ("torch", reason) if reason else shorter(params)


def shorter(params: Any) -> tuple[str, str]:
    """The engine that takes less time for a run of these parameters, and why."""
    from common.compiled import kept_code  # these import numba, which takes a while

    episodes, seeds = getattr(params, "episodes", 1), getattr(params, "seeds", 1)
    updates = episodes * seeds * (params.num_slots - 1) * params.num_bs * params.updates_per_slot
    if updates < WARM:
        return "torch", "the run is too short to load compiled functions for"
    kept, warm = kept_code(Path(fused.__file__).parent, "decide")
    if not kept:
        return "torch", "there is no place to keep compiled functions in"
    if not warm and updates < COLD:
        return "torch", "the run is too short to compile functions for"
    return "fused", "the run is long enough"


def fused_engine(agents: Any, kind: str) -> Any:
    """The compiled part of agents of this kind, with `choose` and `update`."""
    from fused.engine import Engine

    return Engine(agents, kind)


@functools.cache
def compiled_fill() -> Callable[..., Any] | None:
    """counted_random's `draw`, compiled; None where there is no numba."""
    if importlib.util.find_spec("numba") is None:
        return None
    from fused.random_lanes import drawn

    return drawn
