"""Which engine computes what agents do: torch, or the fused one, whose functions numba compiles for the CPU.

The torch code is what there is to read, and the only one on CUDA. Start reading at `with_engine`.
"""

import dataclasses
import functools
import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import fused
from common.parameters import ParameterError, parameter

ENGINES = ("auto", "torch", "fused")
LEARNING = {"q": "learn_values", "servers": "backward"}  # what takes longest to compile, by kind of agents
COLD, WARM = 80_000, 5_000  # updates of an agent that pay for compiling, and for loading what is compiled


def engine_parameter() -> Any:
    """The declaration of `--engine`."""
    return parameter(
        "auto",
        "what computes decisions and updates: fused, compiled for the CPU; torch; or the one that takes less time",
        choices=ENGINES,
        more="config.json tells which it was.",
    )


def check_engine(params: Any, kind: str, device: torch.device) -> None:
    """Raise ParameterError when the user wants the fused engine for agents of a kind that it does not compute."""
    wanted = getattr(params, "engine", "torch")
    if wanted == "fused" and (hindrance := hindered(kind, device) or no_compiler()):
        raise ParameterError("engine", wanted, f"must be torch or auto: {hindrance}")


def hindered(kind: str, device: torch.device) -> str:
    """Why the fused engine cannot compute agents that it knows as `kind`, "" for those that it does not know."""
    if not kind:
        return "these agents compute what the fused engine does not know"
    if device.type != "cpu":
        return f"the fused engine computes on the CPU only, and not on {device}"
    if importlib.util.find_spec("numba") is None:
        return "the fused engine needs the package numba"
    return ""


@functools.cache
def no_compiler() -> str:
    """Why numba, where it is installed, compiles nothing; "" where it does. Imports it, which takes a while."""
    try:
        from numba import config
    except Exception as error:  # such as that of a numba which does not fit numpy
        return f"numba cannot be imported, {' '.join(str(error).split()) or type(error).__name__}"
    return "NUMBA_DISABLE_JIT switches numba's compiler off" if vars(config)["DISABLE_JIT"] else ""


def with_engine(config: Any, agents: Any, device: torch.device, given: bool = True) -> tuple[Any, str]:
    """A run's parameters with the engine that takes less time in the place of `auto`, and why, in words.

    `agents` builds them, and is their class where they have a choice. Words are empty where there is none. An engine
    that was not given, but is that of a run so far, is left only where it cannot go on.
    """
    wanted = getattr(config, "engine", "torch")
    if wanted == "torch" or (wanted == "fused" and given):
        return config, ""
    kind = agents.fused_kind(config) if hasattr(agents, "fused_kind") else ""
    reason = hindered(kind, device) or (no_compiler() if wanted == "fused" else "")
    if wanted == "fused" and not reason:
        return config, ""
    engine, reason = ("torch", reason) if reason else shorter(kind, agents.fused_work(config))
    return dataclasses.replace(config, engine=engine), f"engine {engine}: {reason}"


def shorter(kind: str, updates: int) -> tuple[str, str]:
    """The engine that takes less time for so many updates of an agent of this kind, and why."""
    if updates < WARM:
        return "torch", "the run is too short to load compiled functions for"
    if reason := no_compiler():
        return "torch", reason
    from common.compiled import kept_code

    kept, warm = kept_code(Path(fused.__file__).parent, LEARNING.get(kind, "learn_actor_critic"))
    if not kept:
        return "torch", "there is no place to keep compiled functions in"
    if not warm and updates < COLD:
        return "torch", "the run is too short to compile functions for"
    return "fused", "compiled functions take less time"


def fused_engine(agents: Any, kind: str) -> Any:
    """The compiled part of agents of this kind, with `choose` and `update`."""
    from fused.engine import Engine

    return Engine(agents, kind)


def fused_network(actor: Any, threads: int) -> Any:
    """The compiled network of a ServerActor: x_0 from theta, features of servers and tasks, and shares."""
    from fused.server_engine import ServerNetwork

    return ServerNetwork(actor, threads)


@functools.cache
def compiled_fill() -> Callable[..., Any] | None:
    """counted_random's `draw`, compiled; None where numba is missing or compiles nothing."""
    if importlib.util.find_spec("numba") is None or no_compiler():
        return None
    from fused.random_lanes import drawn

    return drawn
