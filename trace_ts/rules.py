"""The rules by name: what each is, what it must know, and which of its constants are fitted.

Start reading at `RULES`.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from trace_ts.choosing import DRAWN, FEWEST_TASKS, LEAST_BACKLOG, PRICED, ROUND_ROBIN, TWO_CHOICES, Policy, new_policy
from trace_ts.scenario import Scenario
from trace_ts.score import Network, no_network
from trace_ts.workload import Requests

CONSTANTS = ("alpha", "beta", "theta", "phi", "psi", "chi", "temperature")
START = (1.0, 1.0, 4.0, 1.0, 4.0, 0.3, 0.3)  # of `priced`, where its search starts, too


def mean_service(requests: Requests, rate: np.ndarray) -> float:
    """S, the seconds of a mean request of those that training looks at, on a server of the mean of these rates [B]."""
    return float(requests.training().work.mean() / rate.mean())


@dataclasses.dataclass(frozen=True)
class Rule:
    """A rule as a policy of the simulator. `needs` says what it must know, `free` which constants are fitted.

    A rule whose `constants` [7] are those of `CONSTANTS` scores each server by
    alpha q + beta w / f + [miss] L (theta + phi q / S + psi r(victim)) / (1 + chi r(model)),
    with r(x) = B share(x) / holders(x), and takes the least. Where news are old (age > 0), it draws
    by exp(-score / (T S)) with a temperature T > 0.
    """

    name: str
    text: str
    needs: str
    kind: int
    constants: tuple[float, ...] = (1, 1, 0, 0, 0, 0, 0)
    free: tuple[str, ...] = ()
    more: Callable[[np.ndarray, Requests], dict[str, Any]] = lambda rate, requests: {}

    def arrays(self, scenario: Scenario, rate: np.ndarray, requests: Requests) -> tuple[Policy, Network]:
        """What the event loop needs."""
        more = self.more(rate, requests)
        constants = np.array(self.constants) * ([1] * 6 + [scenario.age > 0])
        policy = new_policy(
            self.kind, len(rate), constants=constants, mean_service=[mean_service(requests, rate)], **more
        )
        return policy, no_network(len(rate))

    def free_constants(self, scenario: Scenario) -> list[int]:
        """The numbers of the constants that matter in a scenario: no price without loading, no drawing without age."""
        dead = set() if scenario.load_time > 0 else {"theta", "phi", "psi", "chi"}
        dead |= set() if scenario.age > 0 else {"temperature"}
        return [CONSTANTS.index(name) for name in self.free if name not in dead]

    def with_constants(self, scenario: Scenario, logarithms: np.ndarray) -> "Rule":
        """The rule with its free constants, given as logarithms in the order of `free_constants`."""
        constants = np.array(self.constants, dtype=np.float64)
        constants[self.free_constants(scenario)] = np.exp(logarithms)
        return dataclasses.replace(self, constants=tuple(constants))


def by_rate(rate: np.ndarray, requests: Requests) -> dict[str, Any]:
    """Draws in proportion to the servers' rates [B]."""
    return {"share": rate}


QUEUES, MODELS = "backlogs, f, w", "backlogs, f, w, resident models, L"
POPULARITY = f"{MODELS}, models' popularity"
WEIGHTED = (1, 1, 0, 0, 0, 0, 0.3)
LOADING = (1, 1, 1, 0, 0, 0, 0)
AFFINITY = (1, 1, 4, 0, 0, 0, 0.3)

RULES = {
    rule.name: rule
    for rule in (
        Rule("random", "every server is equally likely", "nothing", DRAWN),
        Rule("capacity_proportional", "a server is as likely as it is fast", "f", DRAWN, more=by_rate),
        Rule("round_robin", "servers in turn, the fast ones more often", "f", ROUND_ROBIN, more=by_rate),
        Rule("two_choices", "the sooner done of two, drawn in proportion to speed", QUEUES, TWO_CHOICES, more=by_rate),
        Rule("jsq", "the shortest queue in seconds, the fastest server of equals", "backlogs, f", LEAST_BACKLOG),
        Rule("jsq_tasks", "the fewest tasks, the fastest server of equals", "numbers of tasks, f", FEWEST_TASKS),
        Rule("opt_ts", "least wait and service: the published Opt-TS, blind to models", QUEUES, PRICED),
        Rule("opt_ts_loading", "the same with loading", MODELS, PRICED, LOADING),
        Rule("weighted", "alpha q + beta w / f", QUEUES, PRICED, WEIGHTED, free=("alpha", "beta", "temperature")),
        Rule("affinity", "a load counts theta L", MODELS, PRICED, AFFINITY, ("theta", "temperature")),
        Rule("priced", "a load counts what it costs later", POPULARITY, PRICED, START, CONSTANTS),
    )
}
