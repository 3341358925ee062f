"""The trace's scheduling as a plain event loop over objects: the oracle of `test_trace_simulator.py`.

Start reading at `plain_simulation`.
"""

import dataclasses
import heapq
import itertools
import math

import numpy as np

from trace_ts.event_loop import GOLDEN
from trace_ts.memory import POPULARITY_TASKS

COMPLETION, SNAPSHOT, OUTAGE, ARRIVAL = range(4)  # events of one time happen in this order


@dataclasses.dataclass
class Task:
    """A request, and what became of it."""

    number: int
    time: float
    work: float
    model: int
    station: int
    noise: float
    uniform: float
    server: int = -1
    start: float = math.nan
    finish: float = math.nan
    loads: bool = False
    attempts: int = 0


def use(models, model, room):
    """The models in memory, the most recently used first, after a task of one of them."""
    return [model, *(m for m in models if m != model)][:room]


class Server:
    """A server with its queue, a list of tasks in the order in which they were sent."""

    def __init__(self, number, rate, scene):
        self.number, self.rate, self.scene = number, rate, scene
        self.up, self.models, self.running, self.nominal_end = True, [], None, 0.0
        self.waiting, self.expected, self.turn = [], {}, 0

    def service(self, task):
        return task.work / self.rate

    def memory(self):
        """The models that a new task finds, as far as can be said."""
        models = list(self.models)
        if self.scene.discipline == "fcfs":
            for task in self.waiting:
                models = use(models, task.model, self.scene.resident_models)
        return models

    def holds(self, model):
        queued = [t.model for t in self.waiting] + ([self.running.model] if self.running else [])
        return model in self.memory() or (self.scene.discipline != "fcfs" and model in queued)

    def victim(self):
        """The model that a load drives out, or None while there is room."""
        models = self.memory()
        return models[-1] if len(models) == self.scene.resident_models else None

    def backlog(self, now):
        running = max(self.nominal_end - now, 0.0) if self.running else 0.0
        return running + sum(self.expected[task.number] for task in self.waiting)

    def queue(self):
        return len(self.waiting) + (self.running is not None)

    def accept(self, task):
        loading = 0.0 if self.holds(task.model) else self.scene.load_time
        self.expected[task.number] = self.service(task) + loading
        self.waiting.append(task)

    def next_task(self, now):
        """The waiting task that the discipline takes."""
        oldest = self.waiting[0]
        if self.scene.discipline == "fcfs" or (self.scene.ageing and now - oldest.time > self.scene.ageing):
            return oldest

        def order(task):
            missing = task.model not in self.models
            seconds = self.service(task) + missing * self.scene.load_time
            return (missing and self.scene.discipline == "resident_first", seconds)

        return min(self.waiting, key=order)

    def begin(self, now):
        """Start the next task; returns when it will be done."""
        task = self.next_task(now)
        self.waiting.remove(task)
        task.loads, task.start = task.model not in self.models, now
        loading = task.loads * self.scene.load_time
        self.models = use(self.models, task.model, self.scene.resident_models)
        self.running, self.nominal_end = task, now + loading + self.service(task)
        self.turn += 1
        return now + loading + self.service(task) * task.noise

    def fail(self):
        """Go down; returns the tasks that are lost."""
        lost = ([self.running] if self.running else []) + self.waiting
        self.up, self.models, self.running, self.waiting = False, [], None, []
        self.turn += 1
        return lost


@dataclasses.dataclass
class Known:
    """What an agent knows of a server: seconds, tasks, whether the model is missing, what a load drives out."""

    number: int
    rate: float
    backlog: float
    queue: int
    miss: bool
    victim: int | None


class News:
    """What all agents were told last, and what each base station has sent since, by server."""

    def __init__(self, servers, models, now):
        self.free = [now + s.backlog(now) for s in servers]
        self.queue = [s.queue() for s in servers]
        self.held = [{m for m in range(models) if s.holds(m)} for s in servers]
        self.victim = [s.victim() for s in servers]
        self.sent = {}  # by base station and server: seconds and model of each

    def known(self, server, station, model, now):
        b = server.number
        sent = self.sent.get((station, b), [])
        backlog = max(self.free[b] - now, 0.0) + sum(seconds for seconds, _ in sent)
        held = self.held[b] | {m for _, m in sent}
        return Known(b, server.rate, backlog, self.queue[b] + len(sent), model not in held, self.victim[b])

    def note(self, task, server, load_time):
        sent = self.sent.setdefault((task.station, server.number), [])
        held = self.held[server.number] | {m for _, m in sent}
        sent.append((server.service(task) + (0.0 if task.model in held else load_time), task.model))


def drawn(weights, uniform):
    """The place in which `uniform` of the sum of the weights lies."""
    sums = list(itertools.accumulate(weights))
    return next((i for i, total in enumerate(sums) if uniform * sums[-1] < total), len(sums) - 1)


class Agents:
    """A rule with its constants. `credit` [G, B] is where the base stations' rounds begin."""

    def __init__(self, rule, constants, mean_service, credit, by_rate, load_time):
        self.rule, self.mean_service, self.by_rate, self.load_time = rule, mean_service, by_rate, load_time
        self.constants, self.credit, self.seen = constants, credit.tolist(), []

    def share(self, model):
        weights = [math.exp(i / POPULARITY_TASKS) for i in range(len(self.seen))]
        of_model = [w for w, m in zip(weights, self.seen, strict=True) if m == model]
        return sum(of_model) / sum(weights) if weights else 0.0

    def price(self, known, model, holders, servers):
        """What the load costs that this task needs there."""
        theta, phi, psi, chi = self.constants[2:6]

        def worth(m):
            return servers * self.share(m) / max(holders(m), 1)

        driven_out = worth(known.victim) if psi and known.victim is not None else 0.0
        own = worth(model) if chi else 0.0
        return self.load_time * (theta + phi * known.backlog / self.mean_service + psi * driven_out) / (1 + chi * own)

    def choose(self, task, candidates, holders, rates, uniform):
        """The number of the server for a task; candidates are what is known of those that may be chosen."""
        weights = [k.rate if self.by_rate else 1.0 for k in candidates]
        if self.rule in ("random", "two_choices"):
            first = candidates[drawn(weights, uniform)]
            if self.rule == "random":
                return first.number
            second = candidates[drawn(weights, uniform * 7919.0 % 1.0)]
            return min(first, second, key=lambda k: k.backlog + task.work / k.rate).number
        if self.rule == "round_robin":
            credit = self.credit[task.station]
            for k, weight in zip(candidates, weights, strict=True):
                credit[k.number] += weight
            chosen = max(candidates, key=lambda k: credit[k.number]).number
            credit[chosen] -= sum(weights)
            return chosen
        alpha, beta, temperature = self.constants[0], self.constants[1], self.constants[6]
        if self.rule == "jsq_tasks":
            score = [k.queue - 0.5 * k.rate / max(rates) for k in candidates]
        elif self.rule == "jsq":
            score = [k.backlog - 1e-6 * k.rate / max(rates) for k in candidates]
        else:
            score = [alpha * k.backlog + beta * task.work / k.rate for k in candidates]
            for i, k in enumerate(candidates):
                score[i] += self.price(k, task.model, holders, len(rates)) if k.miss else 0.0
        if temperature and self.rule == "priced":
            least = min(score)
            weights = [math.exp((least - s) / (temperature * self.mean_service)) for s in score]
            return candidates[drawn(weights, uniform)].number
        return candidates[score.index(min(score))].number


def plain_simulation(tasks, rate, scene, agents, outages, models):
    """Schedule and serve tasks in order of time; fills in what becomes of them.

    scene is a `Scenario`, rate [B] in image-steps/s, outages (time, server, whether it comes back) each [E].
    """
    servers = [Server(b, float(f), scene) for b, f in enumerate(rate)]
    rates = [s.rate for s in servers]
    news, order, events, left = News(servers, models, 0.0), itertools.count(), [], len(tasks)

    def push(time, kind, what):
        heapq.heappush(events, (time, kind, next(order), what))

    def begin(server, now):
        if server.up and server.running is None and server.waiting:
            push(server.begin(now), COMPLETION, (server, server.turn))

    def send(task, now):
        some_up = any(s.up for s in servers)
        candidates = []
        for s in servers:
            if s.up or not some_up:
                fresh = Known(s.number, s.rate, s.backlog(now), s.queue(), not s.holds(task.model), s.victim())
                candidates.append(news.known(s, task.station, task.model, now) if scene.age else fresh)

        def holders(model):
            return sum(model in held for held in news.held) if scene.age else sum(s.holds(model) for s in servers)

        uniform = (task.uniform + GOLDEN * task.attempts) % 1.0
        server = servers[agents.choose(task, candidates, holders, rates, uniform)]
        if scene.own_sends:
            news.note(task, server, scene.load_time)
        task.server, task.attempts = server.number, task.attempts + 1
        server.accept(task)
        begin(server, now)

    for task in tasks:
        push(task.time, ARRIVAL, task)
    for time, b, up in zip(*outages, strict=True):
        push(float(time), OUTAGE, (servers[b], up))
    if scene.age:
        push(scene.age, SNAPSHOT, 1)
    while left:
        now, kind, _, what = heapq.heappop(events)
        if kind == COMPLETION:
            server, turn = what
            if server.turn == turn:
                server.running.finish, server.running, left = now, None, left - 1
                begin(server, now)
        elif kind == SNAPSHOT:
            news = News(servers, models, now)
            push((what + 1) * scene.age, SNAPSHOT, what + 1)
        elif kind == OUTAGE:
            server, server.up = what
            if server.up:
                begin(server, now)
            else:
                for task in server.fail():
                    send(task, now)
        else:
            send(what, now)
            agents.seen.append(what.model)
    return {
        name: np.array([getattr(t, name) for t in tasks]) for name in ("server", "start", "finish", "loads", "attempts")
    }
