"""Weights that stay in the host's memory and visit the device block by block, so that a few blocks' memory is enough.

A model whose layers are alike is run from two buffers on the device: while one block computes, the next one's weights
are copied into the other. Start reading at `BlockStream.__iter__`.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import torch
from torch import nn


class BlockStream:
    """Iterates over blocks, each with its weights on `device` and in `dtype` while it is the current one.

    `weights` holds, for each block, its tensors in the host's memory. On CUDA they are first packed into pinned memory
    at `dtype`, and copies run on a stream of their own; on other devices a thread copies. A block must not be used
    after the next one was asked for.
    """

    def __init__(
        self,
        blocks: Sequence[nn.Module],
        weights: Sequence[dict[str, torch.Tensor]],
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        self.blocks, self.device = list(blocks), device
        self.cuda = device.type == "cuda"
        longest = max(sum(tensor.numel() for tensor in tensors.values()) for tensors in weights)
        self.buffers = [torch.empty(longest, device=device, dtype=dtype) for _ in range(2)]
        # Views of each buffer for the block's own tensors, made once: (host tensors, views in buffer i mod 2).
        self.host = pack(weights, dtype) if self.cuda else list(weights)
        self.views = [self.cut(self.buffers[i % 2], tensors) for i, tensors in enumerate(weights)]
        for block, views in zip(self.blocks, self.views, strict=True):
            block.load_state_dict(views, assign=True)
            block.requires_grad_(False)
        if self.cuda:
            self.copies = torch.cuda.Stream(device)
            self.copied, self.used = ([torch.cuda.Event() for _ in range(2)] for _ in range(2))
        else:
            self.thread = ThreadPoolExecutor(1)

    @staticmethod
    def cut(buffer: torch.Tensor, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Views of the buffer's start, one for each tensor, in its shape."""
        parts = buffer[: sum(t.numel() for t in tensors.values())].split([t.numel() for t in tensors.values()])
        return {name: part.view(t.shape) for (name, t), part in zip(tensors.items(), parts, strict=True)}

    def fetch(self, i: int) -> "Future[None] | None":
        """Begin to copy block i's weights into its buffer. Returns what tells the end, on CUDA None: events do."""
        if not self.cuda:
            return self.thread.submit(copy_all, self.views[i], self.host[i])
        with torch.cuda.stream(self.copies):
            self.copies.wait_event(self.used[i % 2])
            self.buffers[i % 2][: len(self.host[i])].copy_(self.host[i], non_blocking=True)
            self.copied[i % 2].record(self.copies)
        return None

    def __iter__(self) -> Iterator[nn.Module]:
        """The blocks in order, each with its weights in place, while the next one's are on their way."""
        if self.cuda:  # nothing of an earlier pass may still read the buffers
            for event in self.used:
                event.record(torch.cuda.current_stream(self.device))
        coming = self.fetch(0)
        for i, block in enumerate(self.blocks):
            ready, coming = coming, None
            if ready is not None:
                ready.result()
            if i + 1 < len(self.blocks):
                coming = self.fetch(i + 1)
            if self.cuda:
                torch.cuda.current_stream(self.device).wait_event(self.copied[i % 2])
            yield block
            if self.cuda:
                self.used[i % 2].record(torch.cuda.current_stream(self.device))


@torch.inference_mode()
def copy_all(views: dict[str, torch.Tensor], tensors: dict[str, torch.Tensor]) -> None:
    """Copy each tensor into the view of its name, which may be of another dtype."""
    for name, view in views.items():
        view.copy_(tensors[name])


def pack(weights: Sequence[dict[str, torch.Tensor]], dtype: torch.dtype) -> list[torch.Tensor]:
    """Each block's tensors in one row of pinned memory, so that a block is one copy.

    All rows share one piece of memory, since each pinned piece is rounded up to a power of two.
    """
    sizes = [sum(tensor.numel() for tensor in tensors.values()) for tensors in weights]
    rows = torch.empty(sum(sizes), dtype=dtype, pin_memory=True).split(sizes)
    for row, tensors in zip(rows, weights, strict=True):
        for part, tensor in zip(row.split([t.numel() for t in tensors.values()]), tensors.values(), strict=True):
            part.copy_(tensor.flatten())
    return list(rows)
