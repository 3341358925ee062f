"""How a run ends: its plot, its table row, the utilisation of the edge servers, and summary.json."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from common.run_folder import peak_mebibytes, peak_memory, write_text
from common.statistics_seeds import episode_mean, with_interval
from common.tables import write_csv
from lad_ts.episodes import EpisodeStatistics
from lad_ts.history import History
from lad_ts.plots import Curve, plot_delays
from lad_ts.setting import Setting


def report_servers(folder: Path, seeds: list[int], results: list[EpisodeStatistics]) -> list[str]:
    """Write the utilisation of every ES. Returns it in words, and the time per decision, over episodes' statistics.

    Nothing where servers were not used one by one, as by a bound.
    """
    utilisation = np.mean([stats.utilisation for stats in results], 0)  # [S, B]
    if np.isnan(utilisation).any():
        return []
    rows = [[seed, es, float(u)] for seed, row in zip(seeds, utilisation, strict=True) for es, u in enumerate(row)]
    write_csv(folder / "utilisation.csv", ("seed", "edge_server", "utilisation"), rows)
    shares = " ".join(f"{100 * share:.1f}" for share in utilisation.mean(0)[:50])
    microseconds = 1e6 * np.mean([stats.decision_seconds.mean() for stats in results])
    used = f"utilisation of ES 0, 1, .. in %: {shares}{' ..' if utilisation.shape[1] > 50 else ''}"
    return [used, f"time per decision {microseconds:.2f} us"]


def report(
    config: Any, setting: Setting, label: str, folder: Path, history: History, final: int, seconds: float
) -> tuple[list[str], dict[str, Any]]:
    """Plot the run. Returns lines with its table row, a mean over the `final` last episodes, its time and peak memory.

    At last writes summary.json, by which other scripts know that the run is whole, and returns what it holds.
    """
    delay, opt = history.column("delay_s", config.seeds), history.column("opt_delay_s", config.seeds)
    episodes = np.arange(1, len(delay) + 1)
    curves = [
        Curve(label, episodes, delay),
        Curve("Opt-TS, same arrivals", episodes, opt, reference=True),
    ]
    title = f"{label}: {config.num_bs} BSs, up to {config.num_tasks} tasks per slot"
    plot_delays(folder / "delay", {title: curves})
    means = {
        name: episode_mean(history.column(f"{name}_s", config.seeds)[len(delay) - final :])
        for name in ("delay", "opt_delay", "p50", "p95", "p99")
    }
    gap = 100 * (means["delay"] / means["opt_delay"] - 1)
    cells = [with_interval(values, None) for values in means.values()]
    pace = history.column("seconds", config.seeds).mean()
    lines = [
        f"results in {folder}; figures below are means of the last {final} of {len(delay)} episodes, in s",
        "| method | delay | Opt-TS | above Opt-TS % | p50 | p95 | p99 | s per episode and seed |",
        "|---|---|---|---|---|---|---|---|",
        f"| {' | '.join([label, *cells[:2], with_interval(gap), *cells[2:]])} | {pace:.3f} |",
        f"time {seconds:.1f} s, peak memory {peak_memory(setting.device)}",
    ]
    summary = {
        "episodes": history.episodes,
        "averaged_episodes": final,
        "seconds": round(seconds, 3),
        "peak_memory_mib": round(peak_mebibytes(), 1),
        **{f"{name}_s": float(values.mean()) for name, values in means.items() if not np.isnan(values).any()},
    }
    write_text(folder / "summary.json", json.dumps(summary, indent=2) + "\n")
    return lines, summary
