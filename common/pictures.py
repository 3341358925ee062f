"""Tensors to image files: single pictures, and contact sheets of many."""

from pathlib import Path

import torch
from PIL import Image

from common.run_folder import replace_file


def to_image(pixels: torch.Tensor) -> Image.Image:
    """An image of [3, H, W] in -1..1, clipped and rounded."""
    levels = ((pixels.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    return Image.fromarray(levels.permute(1, 2, 0).cpu().numpy())


def save_sheet(path: Path, pictures: torch.Tensor, columns: int = 16) -> None:
    """Pictures [B, 3, H, W] in -1..1 as one PNG, row by row."""
    missing = -len(pictures) % columns
    filled = torch.cat([pictures.cpu(), torch.ones(missing, *pictures.shape[1:])])
    rows = [torch.cat(list(row), dim=2) for row in filled.split(columns)]
    image = to_image(torch.cat(rows, dim=1))
    replace_file(path, lambda temporary: image.save(temporary))
