"""A slot of the simulator of lad_ts/environment_lad.py, to the last bit. Start reading at `Steps`."""

import numpy as np
import torch

from fused.vectors import compiled

MOST_VIEWS = 100  # that are kept


@compiled()
def step(
    shape, mask, size, workload, work_step, result, result_step, action, capacity, rate, length, backlog, delay, sent
):
    """Delays [S, B, N] of a slot's tasks, and the work `sent` [S, B]; the backlogs [S, B] go on to the next slot.

    All arrays are flat; shape is S, B, N, and work_step and result_step are the numbers from a station to the next.
    Returns whether every task has a server; what it makes is of no use otherwise.
    """
    seeds, stations, tasks = shape
    for s in range(seeds):
        row = s * stations
        work_row = s * (stations * work_step if work_step else tasks)
        result_row = s * (stations * result_step if result_step else tasks)
        for e in range(stations):
            sent[row + e] = 0.0
        for b in range(stations):
            for n in range(tasks):
                k = (row + b) * tasks + n
                if not mask[k]:
                    delay[k] = 0.0
                    continue
                e = action[k]
                if e < 0 or e >= stations:
                    return False
                work, f = workload[work_row + b * work_step + n], capacity[row + e]
                upload = size[k] if e != b else 0.0
                transmission = (upload + result[result_row + b * result_step + n]) / rate[row + e]
                delay[k] = transmission + work / f + (backlog[row + e] + sent[row + e]) / f
                sent[row + e] += work
        for e in range(row, row + stations):
            backlog[e] = max(backlog[e] + sent[e] - capacity[e] * length, 0.0)
    return True


class Steps:
    """Slots of a simulator, one after another."""

    def __init__(self) -> None:
        self.view = Views()

    def __call__(
        self,
        tasks: tuple[torch.Tensor, ...],
        action: torch.Tensor,
        capacity: torch.Tensor,
        rate: torch.Tensor,
        length: float,
        backlog: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The delays [S, B, N], following backlogs [S, B] and work sent [S, B] of a slot.

        tasks are its mask, size, workload and result size, [S, B, N] each, and the last two perhaps the same at every
        BS. Raises ValueError for shapes that do not fit, and IndexError for servers that there are not.
        """
        mask, size, workload, result = tasks
        shape, per_server = mask.shape, backlog.shape
        fits = shape == size.shape == workload.shape == action.shape and shape[:2] == per_server
        if not fits or (result.shape[0], result.shape[2]) != (shape[0], shape[2]):
            shapes = [tuple(part.shape) for part in (backlog, action, *tasks)]
            raise ValueError(f"backlogs, actions and tasks of shapes {shapes} must fit each other")
        following, sent, delay = flat(backlog).copy(), np.empty(backlog.numel()), np.empty(mask.numel())
        parts = flat(mask.contiguous()), flat(size.contiguous()), *self.view.per_station(workload)
        given = flat(action.contiguous()), self.view(capacity), self.view(rate), length, following, delay, sent
        if not step(tuple(shape), *parts, *self.view.per_station(result), *given):
            raise IndexError(f"an action is none of the servers 0..{per_server[1] - 1}")
        delays, *works = map(torch.from_numpy, (delay, following, sent))
        return delays.view(shape), works[0].view(per_server), works[1].view(per_server)


def flat(tensor: torch.Tensor) -> np.ndarray:
    """The memory of a tensor as an array of one dimension. Raises ValueError for one that is not contiguous."""
    if not tensor.is_contiguous():
        raise ValueError(f"a tensor of strides {tensor.stride()} must be contiguous")
    return (tensor.detach() if tensor.requires_grad else tensor).numpy().reshape(-1)


class Views:
    """`flat`, once for each tensor: asked for anew, it is seen to whether the tensor still has that memory."""

    def __init__(self) -> None:
        self.known: dict[int, tuple[torch.Tensor, int, np.ndarray]] = {}

    def __reduce__(self) -> tuple[type, tuple[()]]:
        """A copy knows nothing: its tensors are others."""
        return Views, ()

    def __call__(self, tensor: torch.Tensor) -> np.ndarray:
        """The memory of a tensor as an array of one dimension. Raises ValueError as `flat` does."""
        array = self.found(tensor)
        return self.kept(tensor, flat(tensor)) if array is None else array

    def per_station(self, values: torch.Tensor) -> tuple[np.ndarray, int]:
        """Values [S, B, N] as a flat array, and the numbers from a station to the next: 0 where all have the same."""
        same = values.shape[1] == 1 or values.stride(1) == 0
        array = self.found(values)
        if array is None:
            part = values[:, 0] if same else values
            array = self.kept(values, flat(part)) if part.is_contiguous() else flat(part.contiguous())
        return array, 0 if same else values.shape[2]

    def found(self, tensor: torch.Tensor) -> np.ndarray | None:
        """The array that was made of the tensor, if it still is its memory."""
        known = self.known.get(id(tensor))
        return known[2] if known and known[0] is tensor and known[1] == tensor.data_ptr() else None

    def kept(self, tensor: torch.Tensor, array: np.ndarray) -> np.ndarray:
        """The array, which `found` finds from now on."""
        if len(self.known) >= MOST_VIEWS:
            self.known.clear()
        self.known[id(tensor)] = tensor, tensor.data_ptr(), array
        return array
