"""What agents draw: numbers of each seed's own, told by the episode and the number of the draw.

On the CPU they are those of common/counted_random.py, whatever makes them; other devices draw from their own
generators. So do agents for what they start from, before their first episode. Start reading at `Draws.rows`.
"""

from collections.abc import Sequence

import numpy as np
import torch

from common.counted_random import draw, key_of
from common.random_streams import Stream
from lad_ts.engines import compiled_fill

MANY = 20_000_000  # numbers after which compiled functions are worth their time


class Draws:
    """Random numbers of S seeds. `drawing` [S] tells which of them draw; others get zeros, and their counts wait."""

    def __init__(self, seeds: Sequence[int], device: torch.device, by_place: bool = True) -> None:
        """`by_place` says whether numbers after the first episode's begin are told by their place, on the CPU."""
        self.device, self.by_place = device, by_place and device.type == "cpu"
        self.generators = [torch.Generator(device) for _ in seeds]
        self.keys, self.calls = np.zeros((len(seeds), 2), np.uint32), np.zeros(len(seeds), np.int64)
        self.drawing = np.ones(len(seeds), bool)
        self.counted = False  # whether numbers are told by their place
        self.made = 0
        self.begin(Stream.WEIGHTS, [(seed, 0) for seed in seeds])

    def begin(self, stream: Stream, rows: Sequence[tuple[int, int]]) -> None:
        """Start anew for each seed's (seed, episode), so that an episode's draws depend on its number only."""
        self.counted = stream != Stream.WEIGHTS and self.by_place
        self.keys[:] = [key_of(stream, seed, episode) for seed, episode in rows]
        self.calls[:] = 0
        if not self.counted:
            for generator, (seed, episode) in zip(self.generators, rows, strict=True):
                entropy = np.random.SeedSequence([int(stream), seed, episode])
                generator.manual_seed(int(entropy.generate_state(1, np.uint64)[0] >> 1))

    def take(self, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Keys [S, 2] and the number of the next draw [S], of which the caller makes `count`."""
        calls = self.calls.copy()
        np.add(self.calls, count, out=self.calls, where=self.drawing)
        return self.keys, calls

    def rows(self, kind: str, *shape: int) -> torch.Tensor:
        """`uniform` numbers in [0, 1) or standard `normal` ones, [S, *shape]."""
        if not self.counted:
            return self.generated(kind, *shape)
        keys, calls = self.take(1)
        out = np.zeros((len(keys), *shape), np.float32)
        self.made += out.size
        fill = compiled_fill() if self.made > MANY else None
        for row, key, call, drawing in zip(out, keys.tolist(), calls.tolist(), self.drawing, strict=True):
            if drawing:
                row[...] = (fill or draw)(kind, (key[0], key[1]), call, shape)
        return torch.from_numpy(out)

    def generated(self, kind: str, *shape: int) -> torch.Tensor:
        """As `rows`, from the device's generators."""
        out = torch.zeros(len(self.generators), *shape, device=self.device)
        fill = {"uniform": torch.Tensor.uniform_, "normal": torch.Tensor.normal_}[kind]
        for row, generator, drawing in zip(out, self.generators, self.drawing, strict=True):
            if drawing:
                fill(row, generator=generator)
        return out
