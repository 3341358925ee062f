"""What an agent sees of a task and of the queues, as numbers. Start reading at `observe`."""

import dataclasses

import torch

from lad_ts.environment_lad import EnvironmentParameters, Scenario, Slot

KINDS = ("raw", "scaled", "relative")


@dataclasses.dataclass(frozen=True)
class Scales:
    """What `scaled` and `relative` features divide by: input size in Mbit, workload in Gcycles; the paper's maxima."""

    size: float = 5.0
    workload: float = 0.3072 * 14

    @classmethod
    def of(cls, params: EnvironmentParameters) -> "Scales":
        """The largest input size and workload that the parameters allow, or that are in a file's training."""
        if params.file_tasks is not None:
            tasks = params.file_tasks.learnt
            return cls(float(tasks["size"].max()) or 1.0, float(tasks["workload"].max()))
        return cls(params.input_max, params.density_max * params.quality_max)


PAPER_SCALES = Scales()


def width(kind: str, num_bs: int) -> int:
    """Numbers F in the observation of a task: d, w, and what tells the backlogs."""
    return num_bs + (3 if kind == "relative" else 2)


def observe(slot: Slot, scenario: Scenario, kind: str = "relative", scales: Scales = PAPER_SCALES) -> torch.Tensor:
    """The observation of every task of a slot, [S, B, N, F] float32: input size, workload, and the backlogs.

    `raw`: [d, w, q_0, .., q_B-1]; F is 2 + B. `scaled`: d and w over their scales, log(1 + q/f). `relative`: d and w as
    scaled, log(1 + mean of q/f), and each ES's difference to that mean in s; F is 3 + B. Cells without a task have
    numbers, too; slot.mask tells them apart. Raises ValueError for another kind.
    """
    capacity = torch.tensor(scenario.capacity, device=slot.backlog.device)
    return features(slot, capacity, kind, scales)


def features(slot: Slot, capacity: torch.Tensor, kind: str, scales: Scales) -> torch.Tensor:
    """`observe` for capacities [S, B] that lie on the slot's device."""
    return put_together(task_part(slot.size, slot.workload, kind, scales), queue_part(slot.backlog, capacity, kind))


def task_part(size: torch.Tensor, workload: torch.Tensor, kind: str, scales: Scales) -> torch.Tensor:
    """What an observation tells of tasks with a size and a workload [..], [.., 2] float32. Raises ValueError."""
    if kind not in KINDS:
        raise ValueError(f"kind {kind}: must be one of {', '.join(KINDS)}")
    part = torch.empty(*size.shape, 2, device=size.device)
    if kind == "raw":
        part[..., 0], part[..., 1] = size, workload
    else:
        torch.div(size, scales.size, out=part[..., 0])
        torch.div(workload, scales.workload, out=part[..., 1])
    return part


def queue_part(backlog: torch.Tensor, capacity: torch.Tensor, kind: str) -> torch.Tensor:
    """What an observation tells of backlogs [S, B], [S, F - 2] float32."""
    if kind == "raw":
        return backlog.float()
    seconds = backlog / capacity
    if kind == "scaled":
        return seconds.log1p().float()
    mean = seconds.mean(1, keepdim=True)
    return torch.cat([mean.log1p(), seconds - mean], 1).float()


def put_together(task: torch.Tensor, queue: torch.Tensor) -> torch.Tensor:
    """The observations [S, B, N, F] of tasks [S, B, N, 2] and queues [S, F - 2]."""
    return torch.cat([task, queue[:, None, None].expand(*task.shape[:3], -1)], -1)
