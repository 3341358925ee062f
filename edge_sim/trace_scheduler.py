"""The policies of trace_ts as schedulers of the edge system: `trace:NAME` of a rule, `trace:FILE` of what was fitted.

They decide each task when it comes, and know which models servers hold; pull_scheduler.py has the central queue. Start
reading at `TraceScheduler.choose`.
"""

import functools
import os
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import numpy as np

from common.parameters import ParameterError
from common.random_streams import Stream, random_generator
from edge_sim.pull_scheduler import PullScheduler
from edge_sim.server_profile import Profile
from edge_sim.servers import Asked, Known, Models, Servers
from lad_ts.method import Method
from lad_ts.run_parameters import FixedParameters
from trace_ts.central import CENTRAL, Pull
from trace_ts.choosing import ROUND_ROBIN, Policy
from trace_ts.cluster import NONE, Cluster, Tasks, new_cluster, unsent
from trace_ts.compiled import compiled
from trace_ts.event_loop import Seen, decide, new_seen
from trace_ts.memory import Memory, new_memory, remember
from trace_ts.policy_file import SUFFIXES, read_policy
from trace_ts.rules import RULES
from trace_ts.scenario import Scenario
from trace_ts.score import BY_USER, Network
from trace_ts.simulation import TracePolicy
from trace_ts.view import View, new_view
from trace_ts.workload import Requests

PREFIX = "trace:"
USER_CELLS = 2**24  # numbers that are kept of users, one for each server; who has not been seen for longest goes


def trace_method(name: str) -> Method:
    """The method of --scheduler trace:NAME or trace:FILE. Raises ParameterError when there is none."""
    what = name.removeprefix(PREFIX)
    path = Path(os.path.expanduser(what))  # noqa: PTH111
    build: Callable[..., TraceScheduler | PullScheduler] = TraceScheduler
    policy: TracePolicy | Pull
    if what in RULES:
        policy = RULES[what]
    elif what in CENTRAL:
        policy, build = CENTRAL[what], PullScheduler
    elif path.suffix in SUFFIXES and path.is_file():
        policy = read_policy(path, "scheduler")
    else:
        form = f"{PREFIX}FILE of a policy of trace_ts/main_trace.py, which ends with .safetensors or .json"
        raise ParameterError(
            "scheduler", name, f"must be {PREFIX} with one of {', '.join([*RULES, *CENTRAL])}, or {form}"
        )
    key = f"trace_{path.stem[:60]}"
    return Method(key, name, FixedParameters, functools.partial(build, policy), "trace_ts/main_trace.py")


@compiled()
def decide_all(
    p: Policy,
    n: Network,
    c: Cluster,
    v: View,
    m: Memory,
    tasks: Tasks,
    again: np.ndarray,
    uniform: np.ndarray,
    cost: np.ndarray,
    seen: Seen,
) -> None:
    """Decide all tasks, which have come now, one after another. Each is in its server's queue for those after it."""
    for k in range(len(tasks.time)):
        decide(p, n, c, v, m, tasks, k, 0.0, uniform[k], cost, seen)
        if not again[k]:
            remember(m, tasks, k)


class TraceScheduler:
    """A policy of trace_ts on the servers of a profile.

    `mean_work` is that of a task in image-steps, and `load` the offered load, as networks know it. Draws begin as those
    of the simulator of trace_ts with the draw `seed`. The mean service S of the policies is that on a server of the
    mean of these servers' rates.
    """

    learns = training = holds_back = False

    def __init__(
        self, policy: TracePolicy, profile: Profile, models: Models, mean_work: float, load: float, seed: int
    ) -> None:
        servers, count = profile.servers, models.seconds.size
        rate = 1 / profile.seconds_per_step
        scenario = Scenario(
            load=load,
            num_base_stations=servers,
            load_time=float(models.seconds.mean()),
            resident_models=models.most,
        )
        self.most_users = max(1, USER_CELLS // servers)
        none = np.zeros(1, dtype=np.int64)  # one request of the first model, so that models rank as in the catalogue
        traffic = Requests(none.astype(float), none, np.array([mean_work]), none, min(64, self.most_users), count, 1)
        self.policy, self.network = policy.arrays(scenario, rate, traffic)
        self.cluster = new_cluster(rate, models.seconds.copy(), models.most, 0, "fcfs", np.inf)
        self.view = new_view(servers, count, servers, 0.0, True)
        self.models = models
        self.random = random_generator(Stream.TRACE_CHOICES, seed)
        in_turn = self.policy.kind[0] == ROUND_ROBIN
        self.memory = new_memory(servers, count, traffic.num_users, servers if in_turn else 1)
        if in_turn:
            self.memory.credit[:] = rate * self.random.random(self.memory.credit.shape)
        else:
            self.random.bit_generator.advance(servers * servers)  # so many draws
        self.users: OrderedDict[int | str, int] = OrderedDict()  # their numbers, who was seen last is last
        self.room, self.seen = np.empty(servers), new_seen(0, servers)
        nothing = Asked(np.empty(0), none[:0], none[:0], np.empty(0, dtype=bool))
        self.choose(none[:0], nothing, Servers(profile, models).known(0.0))  # so that it is compiled now

    def choose(self, base_station: np.ndarray, asked: Asked, known: Known) -> np.ndarray:
        """The server [K] of each of the tasks at base stations [K], by what is known of the servers."""
        count, c = base_station.size, self.cluster
        c.load_seconds[:] = known.loads
        self.network.scene[1] = c.load_seconds.mean() / self.network.mean_service[0]
        c.up[:], c.count[:], c.planned[:] = known.up, known.tasks, known.planned
        c.current[:], c.nominal_end[:], c.seconds[:] = 0, known.seconds, 0.0  # all that they have is one task
        c.head[:], c.tail[:] = NONE, NONE
        held = known.planned[known.planned != NONE]
        c.holders[:] = np.bincount(held, minlength=c.holders.size)
        user = np.array([self.number_of(user) for user in asked.user.tolist()], dtype=np.int64)
        tasks = unsent(
            time=np.zeros(count),
            work=asked.work.astype(np.float64),
            model=asked.model,
            user=user,
            base_station=base_station,
            noise=np.ones(count),
        )
        waiting = c._replace(next=np.full(count, NONE), cost=np.zeros(count))
        uniform = self.random.random(count)
        state = self.policy, self.network, waiting, self.view, self.memory, tasks
        decide_all(*state, asked.again, uniform, self.room, self.seen)
        return tasks.server

    def number_of(self, user: int | str) -> int:
        """The number of a user, in what is remembered of users; there are at most `most_users`."""
        if user not in self.users:
            m, n, count = self.memory, self.network, len(self.users)
            by_user = n.latent[0] == BY_USER and len(n.schedule)
            if count == self.most_users:
                _, number = self.users.popitem(last=False)
                m.last_model[number] = NONE
                if by_user:
                    n.memory[number] = 0.0
            else:
                number = count
            if number == len(m.last_model):
                more = min(2 * number, self.most_users) - number
                self.memory = m._replace(last_model=np.append(m.last_model, np.full(more, NONE)))
                if by_user:
                    self.network = n._replace(memory=np.append(n.memory, np.zeros((more, n.memory.shape[1])), axis=0))
            self.users[user] = number
        self.users.move_to_end(user)
        return self.users[user]
