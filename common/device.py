"""The device of `--device`: where tensors of a run live."""

import re

import torch

from common.parameters import ParameterError

DEVICE_CHOICES = ("auto", "cuda", "cuda:N", "mps", "cpu")  # of --device; N is a number
DEVICES = {"cuda": "CUDA", "mps": "MPS", "cpu": "CPU"}  # in the order that auto tries them


def choose_device(name: str, allowed: tuple[str, ...] = ("cuda", "mps", "cpu")) -> torch.device:
    """The device called `name`, as cpu, cuda or cuda:1; `auto` is the first of `allowed` that this machine has.

    Raises ParameterError when it is not allowed, or the machine has none, or not so many.
    """
    present = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        return torch.device(next(device for device in DEVICES if device in allowed and present[device]))
    numbered = re.fullmatch(r"cuda:(\d{1,4})", name, re.ASCII)
    kind = "cuda" if numbered else name
    if kind not in allowed:
        words = ", ".join(
            f"{device} (cuda:0, cuda:1, ..)" if device == "cuda" else device for device in sorted(allowed)
        )
        raise ParameterError("device", name, f"must be one of auto, {words}")
    if not present[kind]:
        raise ParameterError("device", name, f"must be a device of this machine, which has no {DEVICES[kind]}")
    if numbered and int(numbered[1]) >= (count := torch.cuda.device_count()):
        raise ParameterError("device", name, f"must be at most cuda:{count - 1}, the last CUDA device of this machine")
    return torch.device(name)
