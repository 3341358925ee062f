"""The device of `--device`: where tensors of a run live."""

import torch

from common.parameters import ParameterError

DEVICES = {"cuda": "CUDA", "mps": "MPS", "cpu": "CPU"}  # in the order that auto tries them


def choose_device(name: str, allowed: tuple[str, ...] = ("cuda", "mps", "cpu")) -> torch.device:
    """The device called `name`; `auto` is the first of `allowed` that this machine has.

    Raises ParameterError when it is not allowed, or the machine has none.
    """
    present = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        return torch.device(next(device for device in DEVICES if device in allowed and present[device]))
    if name not in allowed:
        raise ParameterError("device", name, f"must be one of auto, {', '.join(sorted(allowed))}")
    if not present[name]:
        raise ParameterError("device", name, f"must be a device of this machine, which has no {DEVICES[name]}")
    return torch.device(name)
