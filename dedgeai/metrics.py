"""Figures of the service for Prometheus. Start reading at `Metrics`."""

from collections import Counter as Count
from collections.abc import Iterator

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

from dedgeai.records import DONE, FINAL, LIVE, WAITING, Record
from dedgeai.system import EdgeSystem

ACCEPTED = "accepted"
DELAYS = (0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 5000)  # s, upper ends of a histogram's classes
TIMES = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.5, 1, 10, 100)


class Metrics:
    """Counters and histograms of one service; queues and servers are looked at when they are asked for."""

    def __init__(self) -> None:
        disable_created_metrics()  # which double the figures, and say nothing that a restart does not
        self.registry = at = CollectorRegistry()
        ProcessCollector(registry=at)
        tasks = Counter("dedgeai_tasks_total", "Tasks by what became of them", ["state"], registry=at)
        self.tasks = {state: tasks.labels(state) for state in (ACCEPTED, *FINAL)}  # from 0 on
        self.delay = Histogram(
            "dedgeai_delay_seconds", "From a task's acceptance to its image", buckets=DELAYS, registry=at
        )
        self.queueing = Histogram(
            "dedgeai_queueing_seconds", "From acceptance to the begin at a server", buckets=DELAYS, registry=at
        )
        self.steps = Counter("dedgeai_denoising_steps_total", "Denoising steps of images that are done", registry=at)
        self.decision = Histogram(
            "dedgeai_decision_seconds", "Scheduler's time for a round of tasks", buckets=TIMES, registry=at
        )
        names = ["method", "path", "status"]
        self.requests = Counter("dedgeai_http_requests_total", "HTTP requests", names, registry=at)
        self.request_seconds = Histogram(
            "dedgeai_http_request_seconds", "Time of HTTP requests", buckets=TIMES, registry=at
        )

    def watch(self, system: EdgeSystem) -> None:
        """Count what happens in a system from now on."""
        self.system = system
        system.watchers.append(self.changed)
        system.rounds.timed = self.decision.observe
        self.registry.register(self)

    def changed(self, record: Record) -> None:
        """Count what became of a task."""
        if record.state == WAITING and record.decided is None:
            self.tasks[ACCEPTED].inc()
        if record.final:
            self.tasks[record.state].inc()
        if record.state == DONE:
            self.delay.observe(record.delay)
            self.queueing.observe(record.queueing or 0.0)
            self.steps.inc(record.task.steps)

    def request(self, method: str, path: str, status: int, seconds: float) -> None:
        """Count an HTTP request; `path` is that of its route."""
        method = method if method in ("GET", "POST", "DELETE", "HEAD", "OPTIONS") else "other"
        self.requests.labels(method, path, str(status)).inc()
        self.request_seconds.observe(seconds)

    def collect(self) -> Iterator[CounterMetricFamily | GaugeMetricFamily]:
        """What is as it is now."""
        tasks = GaugeMetricFamily("dedgeai_unfinished_tasks", "Tasks that wait or run", labels=["state"])
        states = Count(record.state for record in self.system.records.values())
        for state in LIVE:
            tasks.add_metric([state], states[state])
        up = GaugeMetricFamily("dedgeai_server_up", "Whether an edge server works", labels=["edge_server"])
        backlog = GaugeMetricFamily(
            "dedgeai_server_backlog_seconds", "Time until it has done what it has", labels=["edge_server"]
        )
        restarts = CounterMetricFamily("dedgeai_server_restarts", "Restarts of an edge server", labels=["edge_server"])
        loads = CounterMetricFamily("dedgeai_model_loads", "Loads of models by an edge server", labels=["edge_server"])
        took = CounterMetricFamily("dedgeai_model_load_seconds", "Time that these took", labels=["edge_server"])
        seconds = self.system.cluster.backlog_seconds()
        for server in self.system.cluster.servers:
            name = [str(server.number)]
            up.add_metric(name, float(server.up))
            backlog.add_metric(name, float(seconds[server.number]))
            restarts.add_metric(name, max(0, server.starts - 1))
            loads.add_metric(name, server.loads)
            took.add_metric(name, server.load_seconds)
        trouble = GaugeMetricFamily("dedgeai_store_trouble", "Whether nothing can be written to disk at present")
        trouble.add_metric([], float(bool(self.system.trouble)))
        yield from (tasks, up, backlog, restarts, loads, took, trouble)

    def text(self) -> bytes:
        """All figures, in Prometheus's form."""
        return generate_latest(self.registry)
