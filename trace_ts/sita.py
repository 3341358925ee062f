"""Rules that give each class of tasks servers of its own: size intervals (SITA) and a partition of the models.

Inside a class a task takes the server that is done first. Start reading at `fit_size_intervals` and `fit_partition`.
"""

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from common.parameters import ParameterError
from trace_ts.choosing import PRICED
from trace_ts.rules import MODELS, QUEUES, Rule
from trace_ts.scenario import Scenario
from trace_ts.simulation import simulate_all
from trace_ts.workload import Requests

QUANTILES = np.linspace(0, 1, 21)[1:-1]  # of the work: where a class of sizes may end
SHARES = np.linspace(0, 1, 21)[1:-1]  # of the capacity: where servers may be cut; finer cuts overfit
Cut = tuple[float, float]  # the greatest work of a class, and the share of the capacity up to there
SERVER_ORDERS = (SLOW_FIRST, FAST_FIRST, MIXED) = ("slow_first", "fast_first", "mixed")  # those of small tasks first
BLIND, LOADING = (1, 1, 0, 0, 0, 0, 0), (1, 1, 1, 0, 0, 0, 0)


def servers_of_classes(rate: np.ndarray, shares: Sequence[float], order: str) -> np.ndarray:
    """Servers of each class [C, B], of rates [B], cut at shares [C - 1] of the capacity, by one of `SERVER_ORDERS`.

    Every class gets a server; with fewer servers than classes the last ones share the last server.
    """
    return mixed(rate, shares) if order == MIXED and len(rate) > len(shares) else consecutive(rate, shares, order)


def mixed(rate: np.ndarray, shares: Sequence[float]) -> np.ndarray:
    """Servers of each class [C, B] of all speeds: the fastest one left goes to the class that lacks most capacity.

    So capacities come nearer to the shares than those of consecutive servers. Needs C servers, of which the last ones
    are for classes that have none.
    """
    lacking = np.diff([0, *shares, 1.0]) * rate.sum()
    allowed = np.zeros((len(lacking), len(rate)), dtype=np.bool_)
    for left, b in zip(range(len(rate), 0, -1), np.argsort(-rate, kind="stable"), strict=True):
        without = ~allowed.any(axis=1)
        number = np.where(without, lacking, -np.inf).argmax() if left == without.sum() else lacking.argmax()
        allowed[number, b] = True
        lacking[number] -= rate[b]
    return allowed


def consecutive(rate: np.ndarray, shares: Sequence[float], order: str) -> np.ndarray:
    """Servers of each class [C, B]: rates [B] in order of speed, cut at shares [C - 1] of the capacity."""
    in_order = np.argsort(-rate if order == FAST_FIRST else rate, kind="stable")
    capacity, classes, servers = rate[in_order].cumsum() / rate.sum(), len(shares) + 1, len(rate)
    allowed, begin = np.zeros((classes, servers), dtype=np.bool_), 0
    for number, share in enumerate((*shares, 1.0)):
        left = classes - 1 - number  # classes that still need a server
        end = servers if left == 0 else int(np.abs(capacity - share).argmin()) + 1
        begin = min(begin, servers - 1)
        end = max(min(end, servers - left), begin + 1)
        allowed[number, in_order[begin:end]] = True
        begin = end
    return allowed


@dataclasses.dataclass(frozen=True)
class SizeIntervals:
    """The cuts of SITA: limits [C - 1] of the work in image-steps and shares [C - 1] of the capacity, both ascending.

    The small tasks' servers are the slowest ones, the fastest, or of all speeds, by an order of `SERVER_ORDERS`. Raises
    ValueError for cuts that are none and for another order.
    """

    limits: tuple[float, ...]
    shares: tuple[float, ...]
    order: str = SLOW_FIRST

    def __post_init__(self) -> None:
        if not len(self.limits) == len(self.shares) > 0:
            raise ValueError(f"{len(self.limits)} limits and {len(self.shares)} shares")
        if self.order not in SERVER_ORDERS:
            raise ValueError(f"order {str(self.order)[:50]!r}, must be of {', '.join(SERVER_ORDERS)}")
        for name, cuts, largest in (("limits", self.limits, np.inf), ("shares", self.shares, 1.0)):
            edges = [0.0, *cuts, largest]
            if not all(low < high for low, high in itertools.pairwise(edges)):
                raise ValueError(f"{name} that do not ascend between 0 and {largest:g}")

    def __call__(self, rate: np.ndarray, requests: Requests) -> dict[str, Any]:
        """The servers, of rates [B], that each class may use, and the classes' limits."""
        return {"allowed": servers_of_classes(rate, self.shares, self.order), "limits": self.limits}


def size_intervals(limits: Sequence[float], shares: Sequence[float], order: str = SLOW_FIRST) -> Rule:
    """SITA with the cuts of `SizeIntervals` (Harchol-Balter et al. 1999)."""
    cuts = SizeIntervals(tuple(limits), tuple(shares), order)
    text = f"sizes up to {', '.join(f'{x:g}' for x in limits)} apart on {', '.join(f'{x:.2f}' for x in shares)} of f"
    return Rule(f"sita_{len(limits) + 1}", text, f"{QUEUES}, distribution of w", PRICED, BLIND, more=cuts)


@dataclasses.dataclass(frozen=True)
class Partition:
    """Models partitioned over servers: at most so many classes of models, each with servers of its own.

    Models and servers are shared out by the models' work: the model with the most work left goes to the class with the
    least, then the fastest server left to the class with the most work for the servers it has.

    work [N] in image-steps and rank [N] are of the models of a trace, of equal work the one that comes first counts as
    more; by default they are those of the requests' first half. A model's rank, from 0, is that of its popularity,
    which is its number in a catalogue, too: there models stand for those of a trace by rank, in turn (read_replay).
    Raises ValueError for values that are not allowed.
    """

    classes: int
    work: tuple[float, ...] = ()
    rank: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.classes < 1:
            raise ValueError(f"{self.classes} classes")
        if sorted(self.rank) != [*range(len(self.work))]:
            raise ValueError("ranks that are not those of the models")
        if self.work and not (min(self.work) >= 0 and 0 < sum(self.work) < np.inf):
            raise ValueError("work of models that is negative, infinite or none at all")

    def on(self, requests: Requests) -> "Partition":
        """The partition by the work of these requests' models, where it has none of its own."""
        if self.work:
            return self
        seen = requests.training()
        work, rank = np.bincount(seen.model, seen.work, requests.num_models), np.argsort(requests.by_popularity())
        return dataclasses.replace(self, work=tuple(work.tolist()), rank=tuple(rank.tolist()))

    def __call__(self, rate: np.ndarray, requests: Requests) -> dict[str, Any]:
        """The servers, of rates [B], that each class may use, and the class of each of the requests' models."""
        known, models = self.on(requests), requests.num_models
        stands = np.array(known.rank) % models
        work, order = np.bincount(stands, known.work, models), [*dict.fromkeys([*stands.tolist(), *range(models)])]
        count = min(self.classes, len(rate), models)
        class_of_rank, of_class = np.zeros(models, dtype=np.int64), np.zeros(count)
        for model in sorted(order, key=lambda model: -work[model]):
            class_of_rank[model] = of_class.argmin()
            of_class[class_of_rank[model]] += work[model]
        allowed, capacity = np.zeros((count, len(rate)), dtype=np.bool_), np.zeros(count)
        for b in np.argsort(-rate, kind="stable"):
            number = np.divide(of_class, capacity, out=np.full(count, np.inf), where=capacity > 0).argmax()
            allowed[number, b] = True
            capacity[number] += rate[b]
        class_of_model = np.empty(models, dtype=np.int64)
        class_of_model[requests.by_popularity()] = class_of_rank
        return {"allowed": allowed, "class_of_model": class_of_model}


def partition(classes: int, work: Sequence[float] = (), rank: Sequence[int] = ()) -> Rule:
    """Models partitioned over servers, see `Partition`."""
    more = Partition(classes, tuple(work), tuple(rank))
    text = f"models in {classes} classes, each with servers of its own"
    return Rule("partition", text, f"{MODELS}, models' work", PRICED, LOADING, more=more)


def cost_of(rule: Rule, requests: Requests, scenarios: Iterable[Scenario], draws: Sequence[int]) -> float:
    """The log of the mean delay of the requests, averaged over scenarios and draws."""
    outcomes = [simulate_all(rule, requests, scenario, draws) for scenario in scenarios]
    return float(np.mean([np.log(outcome.delay.mean()) for of_one in outcomes for outcome in of_one]))


def best_cut(
    cuts: list[Cut], place: int, sizes: np.ndarray, cost: Callable[[list[Cut]], float]
) -> tuple[float, list[Cut]]:
    """The cheapest cuts with one more at this place, of all pairs of a size and a share between its neighbours."""
    (small, little), (large, much) = ((0.0, 0.0), *cuts)[place], (*cuts, (np.inf, 1.0))[place]
    found = [(np.inf, cuts)]
    shares = SHARES[(little + 1e-9 < SHARES) & (much - 1e-9 > SHARES)]
    shares = shares if len(shares) else np.array([(little + much) / 2])
    for size in sizes[(sizes > small) & (sizes < large)]:
        for share in shares:
            tried = [*cuts[:place], (float(size), float(share)), *cuts[place:]]
            found.append((cost(tried), tried))
    return min(found, key=lambda pair: pair[0])


def best_cuts(number: int, sizes: np.ndarray, cost: Callable[[list[Cut]], float]) -> tuple[float, list[Cut]]:
    """So many cuts, found one by one: where one more brings most it is put, then each is moved while others stay."""
    found: tuple[float, list[Cut]] = (np.inf, [])
    for classes in range(2, number + 2):
        found = min((best_cut(found[1], i, sizes, cost) for i in range(classes - 1)), key=lambda pair: pair[0])
        for i in range(classes - 1 if classes > 2 else 0):
            others = [*found[1][:i], *found[1][i + 1 :]]
            found = min(found, best_cut(others, i, sizes, cost), key=lambda pair: pair[0])
    return found


def fit_size_intervals(classes: int, requests: Requests, scenarios: Sequence[Scenario], draws: Sequence[int]) -> Rule:
    """SITA with the cuts of the least mean delay on the first half, over scenarios and draws.

    Cuts are pairs of a size, of the quantiles `QUANTILES`, and a share of the capacity, of `SHARES`. Every one of
    `SERVER_ORDERS` is tried. Raises ValueError for fewer than two classes, and ParameterError, which is one, for
    requests of fewer sizes than they need.
    """
    requests = requests.halves()[0]
    work = requests.work
    sizes = np.unique(np.quantile(work, QUANTILES, method="lower"))
    sizes = sizes[sizes < work.max()]
    if classes < 2:
        raise ValueError(f"{classes} classes of work, must be 2 at least")
    if classes > len(sizes) + 1:
        words = f"must have works of {classes} sizes at least in their first half, for as many classes of work"
        raise ParameterError("requests", None, f"{words}; there are {len(sizes) + 1}")
    found = []
    for order in SERVER_ORDERS:

        def cost(cuts: list[Cut], order: str = order) -> float:
            return cost_of(size_intervals(*zip(*cuts, strict=True), order), requests, scenarios, draws)

        least, cuts = best_cuts(classes - 1, sizes, cost)
        found.append((least, size_intervals(*zip(*cuts, strict=True), order)))
    return min(found, key=lambda pair: pair[0])[1]


def fit_partition(requests: Requests, scenarios: Sequence[Scenario], draws: Sequence[int]) -> Rule:
    """The partition of models with the least mean delay on the first half, of 2 classes to one for each server."""
    requests = requests.halves()[0]
    most = min(requests.num_models, *(scenario.num_servers for scenario in scenarios))
    rules = [partition(classes) for classes in range(min(2, most), most + 1)]
    return min(rules, key=lambda rule: cost_of(rule, requests, scenarios, draws))
