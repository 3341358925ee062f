"""A slot of the simulator of lad_ts/environment_lad.py, to the last bit. Start reading at `scheduled`."""

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


def scheduled(
    tasks: tuple[torch.Tensor, ...],
    action: torch.Tensor,
    capacity: torch.Tensor,
    rate: torch.Tensor,
    length: float,
    backlog: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The delays [S, B, N], following backlogs [S, B] and work sent [S, B] of a slot.

    tasks are its mask, size, workload and result size, [S, B, N] each, and the last two perhaps the same at every BS.
    Raises ValueError for shapes that do not fit, and IndexError for servers that there are not.
    """
    mask, size, workload, result = tasks
    shapes = {tuple(part.shape) for part in (mask, size, workload, action)}
    if shapes != {(*backlog.shape, mask.shape[2])} or (result.shape[0], result.shape[2]) != mask.shape[::2]:
        raise ValueError(f"tasks and actions of shapes {sorted(shapes)} and {tuple(result.shape)} must fit each other")
    following, sent = backlog.clone(), torch.empty_like(backlog)
    parts = flat(mask.contiguous()), flat(size.contiguous()), *per_station(workload), *per_station(result)
    given = flat(action.contiguous()), flat(capacity), flat(rate), length, flat(following)
    delay = torch.empty(mask.shape, dtype=torch.float64)
    if not step(tuple(mask.shape), *parts, *given, flat(delay), flat(sent)):
        raise IndexError(f"an action is none of the servers 0..{backlog.shape[1] - 1}")
    return delay, following, sent


def per_station(values: torch.Tensor) -> tuple[np.ndarray, int]:
    """Values [S, B, N] as a flat array, and the numbers from a station to the next: 0 where all have the same."""
    if values.shape[1] == 1 or values.stride(1) == 0:
        return flat(values[:, 0].contiguous()), 0
    return flat(values.contiguous()), values.shape[2]


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
        found = self.known.get(id(tensor))
        if found and found[0] is tensor and found[1] == tensor.data_ptr() and found[2].size == tensor.numel():
            return found[2]
        if len(self.known) >= MOST_VIEWS:
            self.known.clear()
        array = flat(tensor)
        self.known[id(tensor)] = tensor, tensor.data_ptr(), array
        return array
