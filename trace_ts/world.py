"""The trace's world one decision at a time: for learners, and for rules that are no compiled ones.

The same events in the same order as in `event_loop.run`, which this waits in wherever a server is to be chosen. Start
reading at `TraceWorld.send`.
"""

import operator
from typing import NamedTuple

import numpy as np

from common.parameters import ParameterError
from trace_ts import simulation
from trace_ts.cluster import NONE, Cluster, Tasks, advance, fail, recover, send
from trace_ts.compiled import compiled
from trace_ts.event_loop import in_system, news, prefer
from trace_ts.memory import Memory, remember
from trace_ts.model_trace import Design, ScorePolicy
from trace_ts.rules import CONSTANTS, RULES
from trace_ts.scenario import Scenario, draw_outages
from trace_ts.score import ON_SERVER, ON_TASK, Network, inputs
from trace_ts.simulation import Outcome, TracePolicy
from trace_ts.view import View, look, note
from trace_ts.workload import Requests

FOREVER = 1e300  # s
SERVER_FEATURES, TASK_FEATURES = ON_SERVER, ON_TASK - 1  # the chain's x gives its place to `up`, its step is left out


class Course(NamedTuple):
    """How far an episode is, and what fails in it.

    now [1] in s, task [1] that is to be placed, or NONE; cost [1] in task-seconds since the last decision. arrived [1]
    tasks and happened [1] outage events so far; lost [K] tasks to be sent anew, of which those from begin [1] to before
    end [1] are still to be. outage_time, outage_server, outage_up [E] as in `event_loop.run`.
    """

    now: np.ndarray
    task: np.ndarray
    cost: np.ndarray
    arrived: np.ndarray
    happened: np.ndarray
    lost: np.ndarray
    begin: np.ndarray
    end: np.ndarray
    outage_time: np.ndarray
    outage_server: np.ndarray
    outage_up: np.ndarray


def new_course(tasks: int, outages: tuple[np.ndarray, np.ndarray, np.ndarray]) -> Course:
    """The course before the first of so many tasks."""
    place = [np.zeros(1, dtype=np.int64) for _ in range(4)]
    lost = np.empty(tasks, dtype=np.int64)
    return Course(np.zeros(1), np.full(1, NONE), np.zeros(1), place[0], place[1], lost, place[2], place[3], *outages)


@compiled()
def pass_time(w: Course, c: Cluster, v: View, tasks: Tasks, now: float) -> None:
    """Let servers work until a time in s, be it the end of all time. Adds the task-seconds meanwhile."""
    since = w.now[0]
    c.past[0], c.past[1] = since, 0.0
    if now < FOREVER:
        news(v, c, tasks, now)
        w.now[0] = now
    advance(c, tasks, now)
    w.cost[0] += c.past[1] + in_system(c) * (now - since)


@compiled()
def find_task(w: Course, c: Cluster, v: View, tasks: Tasks) -> None:
    """Let time go on until a task is to be placed, or all are served."""
    count, events = len(tasks.time), len(w.outage_time)
    while w.begin[0] == w.end[0]:
        last, event = w.arrived[0] == count, w.happened[0]
        now, outage = FOREVER if last else tasks.time[w.arrived[0]], False
        if event < events and w.outage_time[event] <= now and not (last and in_system(c) == 0):
            now, outage = w.outage_time[event], True
        pass_time(w, c, v, tasks, now)
        if not outage:
            w.task[0] = NONE if last else w.arrived[0]
            w.arrived[0] += 1
            return
        w.happened[0] += 1
        if w.outage_up[event]:
            recover(c, tasks, w.outage_server[event], now)
        else:
            w.begin[0], w.end[0] = 0, fail(c, w.outage_server[event], w.lost)
    w.task[0] = w.lost[w.begin[0]]
    w.begin[0] += 1


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
        self._course = new_course(len(state.tasks.time), draw_outages(self.scenario, state.tasks.time[-1] * 1.5, draw))
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
