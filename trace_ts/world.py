"""The trace's world one decision at a time: for learners, and for rules that are no compiled ones.

Events are those of event_loop.py, which stops wherever a server is to be chosen. Start reading at `TraceWorld.send`.
"""

import operator
from typing import NamedTuple

import numpy as np

from common.parameters import ParameterError
from trace_ts import simulation
from trace_ts.cluster import NONE, Cluster, Tasks, send
from trace_ts.compiled import compiled
from trace_ts.event_loop import Course, find_task, prefer
from trace_ts.memory import Memory, remember
from trace_ts.model_trace import Design, ScorePolicy
from trace_ts.rules import CONSTANTS, RULES
from trace_ts.scenario import Scenario
from trace_ts.score import ON_SERVER, ON_TASK, Network, inputs
from trace_ts.simulation import Outcome, TracePolicy
from trace_ts.view import View, look, note
from trace_ts.workload import Requests

SERVER_FEATURES, TASK_FEATURES = ON_SERVER, ON_TASK - 1  # the chain's x gives its place to `up`, its step is left out


@compiled()
def place(w: Course, c: Cluster, v: View, m: Memory, tasks: Tasks, server: int) -> float:
    """Send the task, if there is one, to a server, and go to the next decision. Returns the task-seconds until then."""
    k = w.task[0]
    if k != NONE:
        send(c, tasks, k, server, w.now[0])
        note(v, c, tasks, k, server)
        if tasks.attempts[k] == 1:
            remember(m, tasks, k)
    w.cost[0] = 0.0
    find_task(w, c, v, tasks)
    return w.cost[0]


@compiled()
def see(n: Network, c: Cluster, v: View, m: Memory, tasks: Tasks, k: int, now: float) -> None:
    """Fill in what the base station of task k knows."""
    look(v, c, tasks.base_station[k], tasks.model[k], now)
    inputs(n, c, v, m, tasks, k)
    for b in range(len(c.rate)):
        n.on_server[ON_SERVER - 1, b] = c.up[b]


class Known(NamedTuple):
    """What a base station knows of B servers: rate [B] in image-steps/s, up [B], backlog [B] in s, queue [B] in tasks.

    miss [B] is true where the task's model would have to be loaded.
    """

    rate: np.ndarray
    up: np.ndarray
    backlog: np.ndarray
    queue: np.ndarray
    miss: np.ndarray


class TraceWorld:
    """Requests on edge servers, stopped at every decision.

    Costs are task-seconds: those of an episode add up to the sum of its tasks' delays. A task that a failing server
    loses is placed again at once. S is the mean service time of the requests' first half.
    """

    def __init__(
        self,
        requests: Requests,
        scenario: Scenario | None = None,
        part: slice = slice(None),
        policy: TracePolicy = RULES["opt_ts_loading"],
    ) -> None:
        """An episode is of a part of the requests. `policy` is whom `advice` asks.

        Raises ParameterError for too few requests.
        """
        if len(requests) < 2 or not len(requests.time[part]):
            words = "must be two at least, and one in the part that is scheduled"
            raise ParameterError(None, None, f"requests {words}")
        self.requests, self.part, self.policy = requests, part, policy
        self.scenario = Scenario() if scenario is None else scenario
        self.draw: int | None = None

    def reset(self, draw: int) -> None:
        """Begin an episode with idle servers. The draw gives rates, base stations, noise and outages."""
        state = simulation.begin(self.policy, self.requests, self.scenario, draw, self.part)
        design = Design(hidden=1)
        features = ScorePolicy(design, design.begin(np.ones(len(CONSTANTS)), 0))  # for its inputs alone
        _, self._network = features.arrays(self.scenario, state.cluster.rate, self.requests)
        self._course = simulation.course_of(state.tasks, self.scenario, draw)
        self._state, self._room, self.draw = state, np.empty(len(state.cluster.rate)), draw
        self._go(NONE)

    def send(self, server: int) -> float:
        """Send the task to a server. Returns the task-seconds until the next decision, or until all are served.

        A server that is down keeps what it is sent until it is back. Raises ValueError for no server's number, and
        RuntimeError when there is no task to be placed.
        """
        _ = self.number
        try:
            chosen = -1 if isinstance(server, bool) else operator.index(server)
        except TypeError:
            chosen = -1
        if not 0 <= chosen < self.num_servers:
            raise ValueError(f"server {server!r}: must be an integer within 0..{self.num_servers - 1}")
        return self._go(chosen)

    def outcome(self) -> Outcome:
        """What became of the tasks. Raises RuntimeError before the end."""
        if not self.over:
            raise RuntimeError("the episode is not over")
        return simulation.outcome(self._state.tasks, self._state.cluster.rate)

    @property
    def num_servers(self) -> int:
        """B, the servers that a task can be sent to."""
        return self.scenario.num_servers

    @property
    def over(self) -> bool:
        """Whether all tasks are served."""
        if self.draw is None:
            raise RuntimeError("no episode has begun: call reset() first")
        return bool(self._course.task[0] == NONE)

    @property
    def time(self) -> float:
        """The time in s; at the end, when the last task was done."""
        return float(self._state.tasks.finish.max() if self.over else self._course.now[0])

    @property
    def number(self) -> int:
        """Which task is to be placed, 0 being the part's first. Raises RuntimeError when there is none."""
        if self.over:
            raise RuntimeError("the episode is over: call reset() first")
        return int(self._course.task[0])

    @property
    def base_station(self) -> int:
        """The base station that is to place it."""
        return int(self._state.tasks.base_station[self.number])

    @property
    def work(self) -> float:
        """Its work in image-steps."""
        return float(self._state.tasks.work[self.number])

    @property
    def model(self) -> int:
        """Its model."""
        return int(self._state.tasks.model[self.number])

    @property
    def attempts(self) -> int:
        """How often it has been sent before: 0 unless servers fail."""
        return int(self._state.tasks.attempts[self.number])

    def known(self) -> Known:
        """What its base station knows of the servers, in units."""
        self._see()
        c, v = self._state.cluster, self._state.view
        return Known(*(values.copy() for values in (c.rate, c.up, v.backlog, v.queue, v.miss)))

    def observe(self) -> np.ndarray:
        """The same scaled, [B, SERVER_FEATURES] float32: what score.py's networks see, `up` in place of the chain's x.

        With backlogs q, work w, rates f and S: log(1 + q / S); (q - mean q) / (S + mean q); log(w / f S); whether the
        model is missing; log(1 + r) of the model that its load drives out, with r as in `Rule`; f / mean f - 1;
        log(1 + tasks); whether the server is up.
        """
        self._see()
        return self._network.on_server.T.copy()

    def observe_task(self) -> np.ndarray:
        """What it knows of the task, [TASK_FEATURES] float32: what score.py's networks see but for the chain's step.

        log(1 + q / S) of the mean backlog, of the least, and of the least of servers that hold the model; log(1 +
        holders); the log of the model's share of requests; its share of work over its holders' share of speed; whether
        its user's last task had it; log(w / mean w); the scenario's load, loading time, age and resident models.
        """
        self._see()
        return self._network.on_task[:TASK_FEATURES].copy()

    def advice(self) -> int:
        """The server that the policy chooses."""
        k = self.number
        if self._advice == NONE:  # it is asked once, since it may remember what it chose
            policy, network, *world, uniform = self._state
            self._advice = int(prefer(policy, network, *world, k, self.time, uniform[k], self._room))
        return self._advice

    def _go(self, server: int) -> float:
        _, _, cluster, view, memory, tasks, _ = self._state
        self._seen, self._advice = False, NONE
        return float(place(self._course, cluster, view, memory, tasks, server))

    def _see(self) -> None:
        k = self.number
        if not self._seen:
            _, _, *world, _ = self._state
            see(self._network, *world, k, self.time)
            self._seen = True
