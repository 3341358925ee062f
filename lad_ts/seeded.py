"""Agents of several training seeds that learn side by side, each with random draws of its own.

Start reading at `SeededScheduler`.
"""

from collections.abc import Sequence
from typing import Any, ClassVar

import torch

from common.parameters import ParameterError
from common.random_streams import Stream
from lad_ts.draws import Draws
from lad_ts.engines import check_engine
from lad_ts.environment_lad import EnvironmentParameters, Scenario
from lad_ts.scheduler import LearningScheduler


class SeededScheduler(LearningScheduler):
    """One that learns several seeds at once: random draws of each seed from its own generator, and state by parts.

    Rows of an episode are the training seeds, always in the same order.
    """

    draws_by_place: ClassVar[bool] = True  # whether compiled functions draw the same numbers
    fused: ClassVar[str] = ""  # what the fused engine knows agents of just this class as

    def __init__(self, params: EnvironmentParameters, seeds: Sequence[int], device: torch.device | str) -> None:
        self.params, self.seeds, self.device = params, list(seeds), torch.device(device)
        self.num_bs = params.num_bs
        check_engine(params, self.fused_kind(params), self.device)
        self.draws = Draws(self.seeds, self.device, self.draws_by_place)
        self.generators = self.draws.generators  # of what agents start from

    @classmethod
    def fused_kind(cls, params: Any) -> str:
        """The kind of agents that the fused engine knows these as; "" where it does not, as for a subclass of them."""
        return vars(cls).get("fused", "")

    @classmethod
    def fused_work(cls, params: Any) -> int:
        """How many updates of an agent of LAD-TS take as long, by the measure of their sizes, as a run of `params`."""
        return 0

    def draw_rows(self, kind: str, *shape: int) -> torch.Tensor:
        """`uniform` or `normal` numbers [S, *shape], each seed's from its own generator; 0 for seeds that wait."""
        return self.draws.rows(kind, *shape)

    def begin(self, scenario: Scenario, rows: Sequence[tuple[int, int]]) -> None:
        if [seed for seed, _ in rows] != self.seeds:
            raise ValueError(f"rows of seeds {rows}: these agents were made for seeds {self.seeds}")
        self.scenario = scenario
        self._capacity = torch.tensor(scenario.capacity, device=self.device)
        self.draws.begin(Stream.ACTIONS, rows)

    def modules(self) -> dict[str, Any]:
        """Parts with state: tensors, and objects with state_dict and load_state_dict."""
        return {}

    def finite(self) -> bool:
        tensors = [part for part in self.modules().values() if isinstance(part, torch.Tensor)]
        return all(bool(tensor.isfinite().all()) for tensor in tensors)

    def state_dict(self) -> dict[str, torch.Tensor]:
        state: dict[str, torch.Tensor] = {}
        for name, part in self.modules().items():
            entries = {"": part} if isinstance(part, torch.Tensor) else part.state_dict()
            state |= {f"{name}.{key}".rstrip("."): value for key, value in entries.items()}
        return state

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        for name, tensor in self.state_dict().items():
            if state[name].shape != tensor.shape:
                raise ValueError(f"{name} has shape {list(state[name].shape)}, not {list(tensor.shape)}")
        for name, part in self.modules().items():
            if isinstance(part, torch.Tensor):
                part.copy_(state[name])
            else:
                part.load_state_dict({key: state[f"{name}.{key}"] for key in part.state_dict()})

    def moved(self, params: Any) -> "SeededScheduler":
        """Cells of a memory that training did not have start as those of untrained agents; others are cut."""
        other = type(self)(params, self.seeds, self.device)
        trained = self.state_dict()
        for name, tensor in other.state_dict().items():
            common = tuple(slice(min(sizes)) for sizes in zip(tensor.shape, trained[name].shape, strict=True))
            tensor[common] = trained[name][common]
        other.training = False
        return other


def check_stations(params: EnvironmentParameters, num_bs: int) -> None:
    """Raise ParameterError for another number of BSs than that which networks were made for."""
    if params.num_bs != num_bs:
        raise ParameterError("num_bs", params.num_bs, f"must be {num_bs}, for which the networks of each BS were made")
