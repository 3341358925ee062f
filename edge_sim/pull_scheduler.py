"""One queue for all servers of the edge system: `trace:pull` and its like, see trace_ts/central.py.

Tasks that no idle server takes are held back. Start reading at `PullScheduler.choose`.
"""

import numpy as np

from edge_sim.server_profile import Profile
from edge_sim.servers import Asked, Known, Models, Servers
from trace_ts.central import Pull, hand_out, put
from trace_ts.cluster import DISCIPLINES, NONE, Cluster, Tasks, new_cluster, unsent
from trace_ts.compiled import compiled


@compiled()
def pull_now(c: Cluster, tasks: Tasks, again: np.ndarray, order: int, waiting: np.ndarray) -> None:
    """Hand out all tasks [K], oldest first, that idle servers take. The others keep their server.

    Those of again [K] wait already; the others come one after another. waiting [K] is room.
    """
    count = 0
    for k in range(len(again)):
        if again[k]:
            put(waiting, count, k)
            count += 1
    count = hand_out(c, tasks, waiting, count, 0.0, order)
    for k in range(len(again)):
        if not again[k]:
            put(waiting, count, k)
            count = hand_out(c, tasks, waiting, count + 1, 0.0, order)


class PullScheduler:
    """The central queue on the servers of a profile. An idle server takes the task that costs it least.

    Its other parameters are those of `TraceScheduler`, which it does not need.
    """

    learns = training = False
    holds_back = True

    def __init__(self, pull: Pull, profile: Profile, models: Models, *more: float) -> None:
        self.models, self.order = models, DISCIPLINES[pull.order]
        self.cluster = new_cluster(1 / profile.seconds_per_step, models.seconds.copy(), models.most, 0, "fcfs", np.inf)
        none = np.empty(0, dtype=np.int64)
        nothing = Asked(np.empty(0), none, none, none.astype(bool))
        self.choose(none, nothing, Servers(profile, models).known(0.0))  # so that it is compiled now

    def choose(self, base_station: np.ndarray, asked: Asked, known: Known) -> np.ndarray:
        """The server [K] of each task, or NONE: it waits on. `asked` are all tasks that wait, the oldest one first.

        Those that are asked for `again` were held back before.
        """
        c, count = self.cluster, base_station.size
        c.load_seconds[:], c.up[:], c.planned[:] = known.loads, known.up, known.planned
        c.current[:], c.head[:], c.tail[:] = np.where(known.tasks > 0, 0, NONE), NONE, NONE
        room = c._replace(next=np.full(count, NONE), cost=np.zeros(count))
        tasks = unsent(
            time=np.zeros(count),
            work=asked.work.astype(np.float64),
            model=asked.model,
            user=np.zeros(count, dtype=np.int64),
            base_station=base_station,
            noise=np.ones(count),
        )
        pull_now(room, tasks, asked.again, self.order, np.empty(count, dtype=np.int64))
        return tasks.server
