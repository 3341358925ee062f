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
from edge_sim.server_profile import Profile
from edge_sim.servers import Models, Servers

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
TASK_HEADER = (
    *("task", "prompt", "steps", "base_station", "round", "decided_server", "server", "attempts", "moves", "state"),
    *("submitted_s", "sent_s", "finished_s", "delay_s", "predicted_delay_s", "image", "error", "model"),
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


def predict(
    records: Sequence[Record], profile: Profile, load_time: dict[str, float] | None = None, most: int = 1
) -> np.ndarray:
    """What the simulator says of tasks' delays [K] in s: NaN for those that failed or were done by an earlier process.

    It has the same tasks, the servers on which the tasks ended up and the times at which they were sent there, and
    mean service times of the profile. A task lost with a server is counted on the server that did it at last.
    `load_time` are those of the models of a catalogue in s, the default one first; a server holds `most` of them.
    """
    delay = np.full(len(records), np.nan)
    usable = [k for k, record in enumerate(records) if not record.recalled and record.state == DONE]
    usable.sort(key=lambda k: (records[k].sent, records[k].task.number))
    numbers = {name: number for number, name in enumerate(load_time or [""])}
    servers = Servers(profile, Models(np.array([*(load_time or {"": 0.0}).values()]), most))
    groups: dict[float, list[int]] = {}
    for k in usable:
        groups.setdefault(records[k].sent, []).append(k)
    for sent, group in groups.items():
        server = np.array([records[k].server for k in group])
        seconds = profile.seconds(server, np.array([records[k].task.steps for k in group]))
        servers.at(sent)
        model = np.array([numbers.get(records[k].task.model, 0) for k in group])
        _, finish, _ = servers.take(server, sent, seconds, model)
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
            *(cell(expected), r.image, r.error, r.task.model),
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
