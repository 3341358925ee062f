"""Weights that stay in the host's memory and visit the device block by block, so that a few blocks' memory is enough.

A model whose layers are alike is run from two buffers on the device: while one block computes, the next one's weights
are copied into the other. Start reading at `BlockStream.__iter__`.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import torch
from torch import nn

ALIGNED = 64  # bytes; where tensors begin in a buffer
Reader = Callable[[], dict[str, torch.Tensor]]


class BlockStream:
    """Iterates over blocks, each with its weights on `device` while it is the current one.

    The blocks come from the meta device, which tells the shape and dtype of every tensor. `readers` holds, for each
    block, functions that give its tensors on the host, by their names in it. On CUDA they are first packed into pinned
    memory, and copies run on a stream of their own; on other devices a thread reads and copies. A block must not be
    used after the next one was asked for.
    """

    def __init__(self, blocks: Sequence[nn.Module], readers: Sequence[Sequence[Reader]], device: torch.device) -> None:
        self.blocks, self.readers, self.device = list(blocks), readers, device
        self.cuda = device.type == "cuda"
        states = [block.state_dict() for block in self.blocks]
        longest = max(room(state) for state in states)
        self.buffers = [torch.empty(longest, device=device, dtype=torch.uint8) for _ in range(2)]
        # Views of each buffer for the block's own tensors, made once: those of block i lie in buffer i mod 2.
        self.views = [cut(self.buffers[i % 2], state) for i, state in enumerate(states)]
        for block, views in zip(self.blocks, self.views, strict=True):
            block.load_state_dict(views, assign=True)
            block.requires_grad_(False)
        if self.cuda:
            self.pinned = pin(states, readers)
            self.copies = torch.cuda.Stream(device)
            self.copied, self.used = ([torch.cuda.Event() for _ in range(2)] for _ in range(2))
        else:
            self.thread = ThreadPoolExecutor(1)

    def fetch(self, i: int) -> "Future[None] | None":
        """Begin to copy block i's weights into its buffer. Returns what tells the end, on CUDA None: events do."""
        if not self.cuda:
            return self.thread.submit(copy_all, self.views[i], self.readers[i])
        with torch.cuda.stream(self.copies):
            self.copies.wait_event(self.used[i % 2])
            self.buffers[i % 2][: len(self.pinned[i])].copy_(self.pinned[i], non_blocking=True)
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


def room(state: dict[str, torch.Tensor]) -> int:
    """Bytes of a buffer that all tensors fit in, each at an aligned place."""
    return sum(-(-tensor.nbytes // ALIGNED) * ALIGNED for tensor in state.values())


def cut(buffer: torch.Tensor, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Views of a buffer of bytes, one for each tensor, in its shape and dtype."""
    views, place = {}, 0
    for name, tensor in state.items():
        views[name] = buffer[place : place + tensor.nbytes].view(tensor.dtype).view(tensor.shape)
        place += -(-tensor.nbytes // ALIGNED) * ALIGNED
    return views


@torch.inference_mode()
def copy_all(views: dict[str, torch.Tensor], readers: Sequence[Reader]) -> None:
    """Read every tensor and copy it into the view of its name."""
    for read in readers:
        for name, tensor in read().items():
            views[name].copy_(tensor)


def pin(states: Sequence[dict[str, torch.Tensor]], readers: Sequence[Sequence[Reader]]) -> list[torch.Tensor]:
    """Each block's tensors in one row of pinned memory, placed as in the buffers, so that a block is one copy.

    All rows share one piece of memory, since each pinned piece is rounded up to a power of two.
    """
    sizes = [room(state) for state in states]
    rows = torch.empty(sum(sizes), dtype=torch.uint8, pin_memory=True).split(sizes)
    for row, state, read in zip(rows, states, readers, strict=True):
        copy_all(cut(row, state), read)
    return list(rows)
