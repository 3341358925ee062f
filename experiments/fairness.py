"""Who waits how long: the mean delay of each task number against its workload, for several methods."""

from pathlib import Path

import numpy as np

from common.figures import plt, save_figure
from common.progress import Progress
from common.run_folder import write_text
from common.statistics_seeds import mean_interval, with_interval
from common.tables import write_csv
from experiments.study_trials import Make
from experiments.trials import Told, Trial, episodes_of
from lad_ts.environment_lad import CollaborativeMEC
from lad_ts.episodes import play


def study_fairness(out: Path, trial: Trial, methods: dict[str, Make], episodes: int) -> None:
    """The mean delay of each task number against its workload, in fairness.csv and a figure; fairness.md sums it up."""
    rows, lines = [], ["| method | smallest third | middle third | largest third | largest |\n|" + "---|" * 5]
    figure, opt = plt.figure(figsize=(7.5, 5)), None
    axes = figure.gca()
    workload = trial.scenario.workload[0]
    order = np.argsort(workload)
    for k, (name, make) in enumerate(Progress(methods.items(), unit="method", desc="fairness")):
        scheduler, total, count = make(trial), 0.0, 0.0
        for arrivals, row in episodes_of(trial, episodes):
            env = CollaborativeMEC(trial.scenario, slot_length=trial.params.slot_length)
            for slot, _, delay, *_ in play(env, Told(scheduler, trial, env), arrivals, row):
                total, count = total + delay.sum(1).numpy(), count + slot.mask.sum(1).numpy()
        delay = total / np.maximum(count, 1)  # [S, N]
        opt = delay if opt is None else opt  # the first method is Opt-TS
        parts = [*np.array_split(order, 3), order[-1:]]
        cells = [with_interval(delay[:, part].mean(1) / opt[:, part].mean(1), 2) for part in parts]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
        rows += [[name, seed, n, workload[n], delay[s, n]] for s, seed in enumerate(trial.seeds) for n in order]
        mean, half = mean_interval(delay)
        colour = "black" if name == "Opt-TS" else plt.get_cmap("tab10").colors[k % 10]
        axes.plot(workload[order], mean[order], color=colour, lw=1.5, ls="--" if name == "Opt-TS" else "-", label=name)
        axes.fill_between(workload[order], (mean - half)[order], (mean + half)[order], color=colour, alpha=0.2, lw=0)
    axes.set(xlabel="Workload of a task (Gcycles)", ylabel="Mean delay of its task number (s)")
    axes.grid(alpha=0.3)
    title = f"defaults; band: 95 % interval over {len(trial.seeds)} training seeds"
    axes.legend(fontsize=8, title=title, title_fontsize=7)
    save_figure(figure, out / "fairness")
    write_text(out / "fairness.md", "\n".join(lines) + "\n")
    write_csv(out / "fairness.csv", ("method", "seed", "task number", "workload_gcycles", "delay_s"), rows)
