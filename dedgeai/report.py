"""What a run tells: the published table with ours in it, every task, and measured delays beside the simulator's.

Numbers go to CSV first, plots come from the same numbers. Start reading at `predict`.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from common.figures import plt, save_figure
from common.tables import write_csv
from dedgeai.records import DONE, Record
from dedgeai.server_profile import Profile
from dedgeai.simulation import Simulated, first_in_first_out
from dedgeai.task_stream import TaskStream

COUNTS = (1, 100, 500, 1000)  # tasks, the columns of the published table
# Total generation delay in s, and price in USD of 1,000 images (arXiv 2412.18212). The platforms' rows are N times the
# delay of a single image, as if requests came one after another.
PUBLISHED = (
    ("Midjourney", "Midjourney v6", (75.9, 7590, 37950, 75900), "66"),
    ("OpenAI", "DALL-E 3", (14.7, 1470, 7350, 14700), "40"),
    ("Replicate", "SD1.5", (32.9, 3290, 16450, 32900), "8.56"),
    ("Deepinfra", "SD2.1", (12.7, 1270, 6350, 12700), "3.76"),
    ("Stability.AI", "SD3", (5.4, 540, 2700, 5400), "65"),
    ("DEdgeAI, published", "reSD3-medium", (18.3, 382.4, 1921.5, 3895.4), "free"),
)
LISTED = 100_000  # most tasks that a simulation writes one by one
TASK_HEADER = (
    *("task", "prompt", "steps", "base_station", "round", "decided_server", "server", "attempts", "moves", "state"),
    *("submitted_s", "sent_s", "finished_s", "delay_s", "predicted_delay_s", "image", "error"),
)


@dataclasses.dataclass(frozen=True)
class FinishedRun:
    """Tasks that were run together, and how long that took: None where it was interrupted."""

    records: list[Record]
    seconds: float | None


def table_rows(label: str, model: str, totals: dict[int, float]) -> list[list[str]]:
    """The published rows and ours: `totals` maps numbers of tasks to total generation delays in s."""
    counts = sorted({*COUNTS, *totals})
    rows = []
    for platform, name, delays, price in PUBLISHED:
        known = dict(zip(COUNTS, delays, strict=True))
        rows.append([platform, name, *(f"{known[n]:g}" if n in known else "-" for n in counts), price])
    rows.append([label, model, *(f"{totals[n]:.4g}" if n in totals else "-" for n in counts), "free"])
    return [["platform", "model", *(f"N = {n}" for n in counts), "USD per 1,000"], *rows]


def print_table(rows: Sequence[Sequence[str]]) -> None:
    """Print rows of which the first is the header."""
    header, *others = rows
    print(f"| {' | '.join(header)} |")
    print(f"|{'---|' * len(header)}")
    for row in others:
        print(f"| {' | '.join(row)} |")
    print("total generation delay in s; the platforms' rows assume one request at a time")


def predict(records: Sequence[Record], profile: Profile) -> np.ndarray:
    """What the simulator says of tasks' delays [K] in s: NaN for those that failed or were done by an earlier process.

    It has the same tasks, the servers on which the tasks ended up and the times at which they were sent there, and
    mean service times of the profile. A task lost with a server is counted on the server that did it at last.
    """
    delay = np.full(len(records), np.nan)
    usable = [k for k, record in enumerate(records) if not record.recalled and record.state == DONE]
    usable.sort(key=lambda k: (records[k].sent, records[k].task.number))
    free = np.zeros(profile.servers)
    groups: dict[float, list[int]] = {}
    for k in usable:
        groups.setdefault(records[k].sent, []).append(k)
    for sent, group in groups.items():
        server = np.array([records[k].server for k in group])
        seconds = profile.seconds(server, np.array([records[k].task.steps for k in group]))
        _, finish = first_in_first_out(server, sent, seconds, free)
        delay[group] = finish - [records[k].submitted for k in group]
    return delay


def write_tasks(folder: Path, records: Sequence[Record], predicted: np.ndarray) -> None:
    """tasks.csv of a live run, a row for each task; predicted [K] are the simulator's delays in s, or NaN."""

    def cell(value: float | None) -> str:
        return "" if value is None or np.isnan(value) else f"{value:.4f}"

    rows = [
        [
            *(r.task.number, r.task.prompt, r.task.steps, r.task.base_station, r.round, r.decided, r.server),
            *(r.attempts, r.moves, r.state, cell(r.submitted), cell(r.sent), cell(r.finished), cell(r.delay)),
            *(cell(expected), r.image, r.error),
        ]
        for r, expected in zip(records, predicted, strict=True)
    ]
    write_csv(folder / "tasks.csv", TASK_HEADER, rows)


def sim_to_real(folder: Path, records: Sequence[Record], predicted: np.ndarray) -> dict[str, float]:
    """Plot measured against predicted delays. Returns the errors: mean, and relative to the mean delay."""
    measured = np.array([np.nan if r.delay is None else r.delay for r in records])
    both = np.isfinite(measured) & np.isfinite(predicted)
    if not both.any():
        return {}
    x, y = predicted[both], measured[both]
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4.2))
    left.scatter(x, y, s=8, alpha=0.5, label=f"{x.size} tasks")
    top = max(x.max(), y.max()) * 1.05
    left.plot([0, top], [0, top], color="black", linewidth=1, label="equal")
    left.set(xlabel="delay by the simulator (s)", ylabel="measured delay (s)", xlim=(0, top), ylim=(0, top))
    share = np.arange(1, x.size + 1) / x.size
    right.plot(np.sort(y), share, label="measured")
    right.plot(np.sort(x), share, linestyle="--", label="simulator")
    right.set(xlabel="delay (s)", ylabel="share of the tasks", ylim=(0, 1), xlim=(0, top))
    for axis in (left, right):
        axis.grid(alpha=0.3)
        axis.legend()
    figure.suptitle("Live run beside the simulator: same arrivals, profile and servers")
    save_figure(figure, folder / "sim_to_real")
    return {
        "measured_mean_s": float(y.mean()),
        "predicted_mean_s": float(x.mean()),
        "mean_absolute_error_s": float(np.abs(y - x).mean()),
        "error_of_mean_percent": float(100 * (x.mean() / y.mean() - 1)),
    }


def plot_queues(folder: Path, samples: Sequence[tuple[float, Sequence[int]]]) -> None:
    """Queue lengths of a live run over time, a line for each server."""
    header = ("time_s", *(f"server_{k}" for k in range(len(samples[0][1]) if samples else 0)))
    write_csv(folder / "queues.csv", header, [[f"{now:.3f}", *lengths] for now, lengths in samples])
    if not samples:
        return
    times, lengths = [now for now, _ in samples], np.array([lengths for _, lengths in samples])
    figure, axis = plt.subplots(figsize=(7, 4.2))
    if lengths.shape[1] <= 10:
        for server in range(lengths.shape[1]):
            axis.step(times, lengths[:, server], where="post", label=f"ES {server}")
    else:
        axis.fill_between(times, lengths.min(1), lengths.max(1), alpha=0.3, label="least to greatest")
        axis.plot(times, lengths.mean(1), label="mean of the servers")
    axis.set(xlabel="time (s)", ylabel="tasks that wait or run", title="Queues of the edge servers", ylim=(0, None))
    axis.grid(alpha=0.3)
    axis.legend()
    save_figure(figure, folder / "queues")


def report_simulation(folder: Path, stream: TaskStream, found: Simulated, seconds: Sequence[tuple[float, int]]) -> None:
    """Print and write decision times, queue lengths and delay percentiles, and plot queues and delays.

    `seconds` holds what each decision took in s, for how many tasks.
    """
    took, tasks = np.array(seconds).T
    quantiles = {f"p{q:g}": np.percentile(found.delay, q) for q in (50, 95, 99, 99.9)}
    rows = [
        ("tasks", found.delay.size, ""),
        ("last task finished", found.finish.max(), "s"),
        ("delay mean", found.delay.mean(), "s"),
        *((f"delay {name}", value, "s") for name, value in quantiles.items()),
        ("delay maximum", found.delay.max(), "s"),
        ("queue length mean", found.queue_length[:, 0].mean(), "tasks"),
        ("queue length p95 over servers, mean over slots", found.queue_length[:, 1].mean(), "tasks"),
        ("queue length maximum", found.queue_length[:, 2].max(), "tasks"),
        ("decision time of a round, median", 1e3 * np.median(took), "ms"),
        ("decision time of a round, p99", 1e3 * np.percentile(took, 99), "ms"),
        ("decision time per task", 1e6 * took.sum() / tasks.sum(), "us"),
    ]
    write_csv(folder / "summary.csv", ("quantity", "value", "unit"), rows)
    for name, value, unit in rows:
        print(f"{name:48} {value:12.6g} {unit}")
    write_csv(
        folder / "queues.csv",
        ("time_s", "mean", "p95", "max"),
        [[now, *lengths] for now, lengths in zip(found.queue_time, found.queue_length.tolist(), strict=True)],
    )
    at = np.linspace(0, 100, 1001)
    delays = np.percentile(found.delay, at)
    write_csv(folder / "delays.csv", ("percent", "delay_s"), list(zip(at.tolist(), delays.tolist(), strict=True)))
    if found.delay.size <= LISTED:
        columns = (stream.time, stream.base_station, stream.steps, found.server, found.start, found.finish)
        rows = zip(*(column.tolist() for column in (*columns, found.delay)), strict=True)
        header = ("task", "submitted_s", "base_station", "steps", "server", "start_s", "finished_s", "delay_s")
        write_csv(folder / "tasks.csv", header, [[k, *row] for k, row in enumerate(rows)])
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4.2))
    for column, label in enumerate(("mean", "95th percentile", "maximum")):
        left.step(found.queue_time, found.queue_length[:, column], where="post", label=label)
    left.set(xlabel="time (s)", ylabel="tasks at a server when a slot begins", title="Queues", ylim=(0, None))
    right.plot(delays, at / 100)
    right.set(xlabel="delay (s)", ylabel="share of the tasks", title="Delays", ylim=(0, 1))
    left.legend()
    for axis in (left, right):
        axis.grid(alpha=0.3)
    save_figure(figure, folder / "simulation")
