"""The dtype of `--dtype`: what a model's weights are held and computed in."""

import torch

DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}


def choose_dtype(name: str, device: torch.device) -> torch.dtype:
    """The dtype called `name`, one of DTYPES or `auto`: float32 on the CPU, float16 elsewhere."""
    if name == "auto":
        return torch.float32 if device.type == "cpu" else torch.float16
    return DTYPES[name]
