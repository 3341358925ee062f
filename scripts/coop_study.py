"""Cooperative LAD-TS against Opt-TS: trains its variants, then tries them on scenarios and arrivals never seen.

Everything is a ratio to Opt-TS on the same arrivals, with 95 % intervals over the training seeds. Trainings go to
<out>/runs, and a second call goes on where the first ended. All seeds practise on the same scenarios. Writes
trials.csv, fairness.csv, a table of every experiment, and the figures loads, shapes, robustness and fairness, as PNG
and PDF. Settings were chosen on other arrivals and scenarios.
Example: python scripts/coop_study.py --jobs 2
"""

import dataclasses
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.ticker import LogLocator, NullFormatter
from tqdm import tqdm

from baselines.heuristics import HEURISTICS
from baselines.main_heuristics import HeuristicConfig
from baselines.methods import Job, folder_name, run_jobs
from common.command_line import command_line
from common.figures import plt, save_figure
from common.parameters import ParameterError, Parameters, parameter, resolve
from common.run_folder import (
    RESULTS,
    load_checkpoint,
    read_config,
    read_csv,
    writable,
    write_config,
    write_csv,
    write_text,
)
from common.statistics_seeds import mean_interval, with_interval
from coop_lad_ts.main_coop import METHOD, CoopConfig
from coop_lad_ts.model_coop import CoopAgents
from coop_lad_ts.queue_model import offered_load
from experiments.trials import (
    STATISTICS,
    Told,
    Trial,
    compare_in,
    episodes_of,
    misjudged,
    moved,
    scaled_to,
    unseen_scenarios,
)
from lad_ts.environment_lad import CollaborativeMEC, draw_scenario
from lad_ts.episodes import play
from lad_ts.references import OptTS
from lad_ts.scheduler import Scheduler
from lad_ts.training import restore

Make = Callable[[Trial], Scheduler]
EPISODES = {"mean": 35, "tail": 35, "slowdown": 35, "per_bs": 35, "prices": 50, "practised": 30, "tail_practised": 30}
LOADS = (0.6, 0.7, 0.8, 0.9, 1.0, 1.06, 1.1, 1.2, 1.3, 1.4, 1.5, 1.6)
SERVERS, SPREADS, HORIZONS = (5, 10, 20, 50, 100), (1.0, 2.0, 5.0, 10.0), (15, 30, 60, 120)
PANELS = {"servers": "Edge servers B", "spread": "Greatest over least capacity", "horizon": "Time slots T"}
LOAD, SPREAD = 1.25, 5.0  # where a trial does not vary them
REFERENCES = {
    **{f"SITA-{k}": ("size_interval", {"classes": k}) for k in range(2, 7)},
    "SITA-3, no feedback": ("size_interval_static", {"classes": 3}),
    "routing table": ("routing_table", {}),
    "routing table, no feedback": ("routing_table_static", {}),
    "virtual Opt": ("virtual_opt", {}),
}


@dataclasses.dataclass(kw_only=True)
class StudyConfig(Parameters):
    """Every parameter of coop_study.py."""

    variants: str = parameter("mean,tail,slowdown,per_bs,prices,practised", f"what to train: {', '.join(EPISODES)}")
    seeds: int = parameter(5, "training seeds, from 0 on", low=2, high=100)
    evaluation_episodes: int = parameter(10, "held-out episodes at the defaults", low=1)
    trial_episodes: int = parameter(
        2, "held-out episodes of every other trial, each seed on a scenario of its own", low=1
    )
    jobs: int = parameter(2, "trainings at the same time, best the number of cores", low=1)
    quick: bool = parameter(False, "tiny trainings and few trials, to see that all runs; the numbers mean nothing")
    out: str = parameter(str(RESULTS / "coop_study"), "folder of the study")


def train(config: StudyConfig, out: Path) -> dict[str, CoopAgents]:
    """The trained agents of every variant."""
    names = [name.strip() for name in config.variants.split(",")]
    if not set(names) <= set(EPISODES):
        raise ParameterError("variants", config.variants, f"must be some of {','.join(EPISODES)}")
    jobs = {}
    for name in names:
        method = f"coop_lad_ts:{name}"
        flags = {"episodes": EPISODES[name], "seeds": config.seeds}
        if config.quick:
            flags |= {"episodes": 2, "distil_updates": 5, "fit_steps": 5, "num_slots": 12}
        jobs[name] = Job(method, out / "runs" / folder_name(method), flags)
    run_jobs(list(jobs.values()), config.jobs)
    agents = {}
    for name, job in jobs.items():
        content = load_checkpoint(job.folder / "checkpoint.pt", "out")
        stored = resolve(CoopConfig, content["config"] | {"device": "cpu"})
        agents[name] = restore(stored, content, METHOD, f"--out={job.folder}")
        agents[name].training = False
    return agents


def reference(name: str) -> Make:
    """How to make one of REFERENCES for a trial."""
    method, given = REFERENCES[name]

    def make(trial: Trial) -> Scheduler:
        known = {f.name: getattr(trial.params, f.name) for f in dataclasses.fields(HeuristicConfig) if f.name in common}
        return HEURISTICS[method](resolve(HeuristicConfig, known | given), trial.seeds, "cpu")

    own = {"resume", "evaluate", "out", "capacities", "objective", "tail_weight", "tail_threshold"}
    common = {field.name for field in dataclasses.fields(CoopConfig)} - own
    common &= {field.name for field in dataclasses.fields(HeuristicConfig)}
    return make


def learned(agents: CoopAgents) -> Make:
    return lambda trial: moved(agents, dataclasses.replace(agents.params, **shape_of(trial)))


def shape_of(trial: Trial) -> dict[str, Any]:
    return {"num_bs": trial.scenario.capacity.shape[1], "num_slots": trial.params.num_slots}


class Study:
    """Rows of trials.csv: experiment, value, method, seed, and the ratios to Opt-TS."""

    def __init__(self, episodes: int) -> None:
        self.rows: list[list[Any]] = []
        self.episodes = episodes

    def run(
        self, experiment: str, value: float | str, trial: Trial, methods: dict[str, Make], episodes: int = 0
    ) -> None:
        setting = value if isinstance(value, str) else float(value)
        for name, ratio in compare_in(trial, methods, episodes or self.episodes).items():
            for k, seed in enumerate(trial.seeds):
                self.rows.append([experiment, setting, name, seed, *(float(ratio[s][k]) for s in STATISTICS)])

    def missing(self, experiment: str, value: float | str, methods: dict[str, Make]) -> dict[str, Make]:
        """Those of the methods that have no rows yet."""
        there = {tuple(row[:3]) for row in self.rows}
        return {name: make for name, make in methods.items() if (experiment, value, name) not in there}

    def load(self, path: Path) -> None:
        """Take back the rows of an interrupted study."""
        if path.is_file():
            for row in read_csv(path):
                try:
                    setting: float | str = float(row["setting"])
                except ValueError:
                    setting = row["setting"]
                ratios = (float(row[name]) for name in STATISTICS)
                self.rows.append([row["experiment"], setting, row["method"], int(row["seed"]), *ratios])

    def save(self, path: Path, order: list[tuple[str, float | str, str]]) -> None:
        """Write trials.csv, first the rows of `order`."""
        place = {key: k for k, key in enumerate(order)}
        self.rows.sort(key=lambda row: (place.get(tuple(row[:3]), len(place)), row[3]))
        write_csv(path, ("experiment", "setting", "method", "seed", *STATISTICS), self.rows)

    def values(self, experiment: str, value: float | str, method: str, statistic: str) -> np.ndarray:
        """One statistic's ratios, one for each seed."""
        column = 4 + STATISTICS.index(statistic)
        return np.array([row[column] for row in self.rows if row[:3] == [experiment, value, method]])

    def methods(self, experiment: str) -> list[str]:
        return list(dict.fromkeys(row[2] for row in self.rows if row[0] == experiment))

    def settings(self, experiment: str) -> list[Any]:
        return list(dict.fromkeys(row[1] for row in self.rows if row[0] == experiment))

    def table(self, experiment: str) -> str:
        """All statistics of an experiment's methods, one row for each setting and method."""
        lines = ["| setting | method | " + " | ".join(STATISTICS) + " |", "|---" * (2 + len(STATISTICS)) + "|"]
        for value in self.settings(experiment):
            shown = value if isinstance(value, str) else f"{value:g}"
            for method in self.methods(experiment):
                cells = [self.values(experiment, value, method, statistic) for statistic in STATISTICS]
                if cells[0].size:
                    lines.append(f"| {shown} | {method} | " + " | ".join(with_interval(c, 3) for c in cells) + " |")
        return "\n".join(lines)


def draw(axes: plt.Axes, study: Study, experiment: str, statistic: str = "mean") -> None:
    """Ratios against an experiment's settings, with 95 % bands over seeds, and the line of Opt-TS."""
    settings = study.settings(experiment)
    methods = study.methods(experiment)
    references = [method for method in methods if not method.startswith("Coop")]
    for k, method in enumerate(methods):
        values = np.stack([study.values(experiment, value, method, statistic) for value in settings])
        mean, half = mean_interval(values, axis=1)
        if method in references:
            colour = plt.get_cmap("tab20b").colors[2 * references.index(method) % 20]
            style = {"ls": "-.", "lw": 1, "marker": "^", "ms": 3}
        else:
            colour, style = plt.get_cmap("tab10").colors[k % 10], {"lw": 1.8, "marker": "o", "ms": 4}
        axes.plot(settings, mean, color=colour, label=method, **style)
        axes.fill_between(settings, mean - half, mean + half, color=colour, alpha=0.15, lw=0)
    axes.axhline(1, color="black", ls="--", lw=1, label="Opt-TS")
    axes.grid(alpha=0.3)


def draw_loads(path: Path, study: Study, seeds: int) -> None:
    figure, row = plt.subplots(1, 3, figsize=(17, 4.5), layout="constrained")
    for axes, statistic in zip(row, ("mean", "p95", "slowdown"), strict=True):
        draw(axes, study, "load", statistic)
        axes.set(xlabel="Offered load", ylabel=f"{'mean delay' if statistic == 'mean' else statistic} / Opt-TS's")
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 5, 7)))
        axes.yaxis.set_minor_formatter(NullFormatter())
    title = f"unseen scenarios; bands: 95 % intervals over {seeds} training seeds"
    row[1].set_title(title, fontsize=8)
    row[-1].legend(fontsize=7, loc="upper left", bbox_to_anchor=(1.02, 1))
    save_figure(figure, path)


def draw_shapes(path: Path, study: Study, seeds: int) -> None:
    figure, row = plt.subplots(1, len(PANELS), figsize=(15, 4.5), sharey=True)
    for axes, (experiment, label) in zip(row, PANELS.items(), strict=True):
        draw(axes, study, experiment)
        axes.set(xlabel=f"{label} (load {LOAD:g})", xscale="log", ylim=(0, None))
        axes.set_xticks(study.settings(experiment), [f"{x:g}" for x in study.settings(experiment)])
        axes.minorticks_off()
    row[0].set_ylabel("Mean delay / Opt-TS's")
    row[0].legend(fontsize=7, title=f"unseen scenarios; band: 95 % interval, {seeds} training seeds", title_fontsize=6)
    save_figure(figure, path)


def draw_robustness(path: Path, study: Study, seeds: int) -> None:
    """Ratios in every setting of experiment robustness, a dot with its 95 % interval for each method."""
    settings, methods = study.settings("robustness"), study.methods("robustness")
    figure, row = plt.subplots(1, 2, figsize=(13, 6.5), sharey=True)
    place = np.arange(len(settings))
    for axes, statistic in zip(row, ("mean", "p95"), strict=True):
        for k, method in enumerate(methods):
            values = np.stack([study.values("robustness", value, method, statistic) for value in settings])
            mean, half = mean_interval(values, axis=1)
            offset = 0.7 * ((k + 0.5) / len(methods) - 0.5)
            axes.errorbar(mean, place + offset, xerr=half, fmt="o", ms=4, lw=1, color=f"C{k}", label=method)
        axes.axvline(1, color="black", ls="--", lw=1, label="Opt-TS, which always knows")
        for between in place[1:] - 0.5:
            axes.axhline(between, color="0.85", lw=0.8)
        axes.set(xlabel=f"{'Mean delay' if statistic == 'mean' else statistic} / Opt-TS's", xscale="log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.tick_params(axis="x", labelsize=8)
        axes.grid(alpha=0.3, axis="x", which="both")
    row[0].set_yticks(place, [textwrap.fill(str(value), 28) for value in settings])
    row[0].invert_yaxis()
    title = f"defaults but for what is named; 95 % intervals over {seeds} training seeds"
    row[1].legend(fontsize=7, title=title, title_fontsize=6)
    save_figure(figure, path)


def fairness(out: Path, trial: Trial, methods: dict[str, Make], episodes: int) -> None:
    """The mean delay of each task number against its workload, in fairness.csv and a figure; fairness.md sums it up."""
    rows, lines = [], ["| method | smallest third | middle third | largest third | largest |\n|" + "---|" * 5]
    figure, opt = plt.figure(figsize=(7.5, 5)), None
    axes = figure.gca()
    workload = trial.scenario.workload[0]
    order = np.argsort(workload)
    for k, (name, make) in enumerate(tqdm(methods.items(), unit="method", desc="fairness")):
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


def main(config: StudyConfig, given: dict[str, Any]) -> None:
    out = writable(Path(config.out))
    kept = dataclasses.asdict(config)
    if (out / "config.json").is_file():
        before = read_config(out)[1]
        for name in {*kept} - {"variants", "jobs", "out"}:
            if kept[name] != before.get(name):
                raise ParameterError(name, kept[name], f"must be {before.get(name)}, as in the study in {out}")
    write_config(out, "coop_study", kept)
    agents = train(config, out)
    first = next(iter(agents.values()))
    params, seeds = first.params, first.seeds
    coop = {f"Coop {name}": learned(a) for name, a in agents.items()}
    anywhere = {name: make for name, make in coop.items() if agents[name.removeprefix("Coop ")].shared}
    practised = {name: make for name, make in coop.items() if "practised" in name} or anywhere
    others = {name: reference(name) for name in ("SITA-3", "routing table", "virtual Opt")}
    usual = Trial(params, draw_scenario(params, seeds), seeds)
    load = float(offered_load(params, usual.scenario)[0])
    study = Study(config.trial_episodes)

    trials: list[tuple[str, float | str, Trial, dict[str, Make], int]] = []
    every = coop | {name: reference(name) for name in REFERENCES}
    trials.append(("defaults", f"load {load:.2f}", usual, every, config.evaluation_episodes))

    def unseen(
        experiment: str,
        value: float,
        servers: int = 20,
        at: float = LOAD,
        spread: float = SPREAD,
        slots: int = 0,
        methods: dict[str, Make] = practised | others,
    ):
        shape = dataclasses.replace(params, num_bs=servers, num_slots=slots or params.num_slots)
        trial = Trial(shape, unseen_scenarios(shape, seeds, servers, at, spread), seeds)
        trials.append((experiment, value, trial, methods, 0))

    for value in LOADS[::6] if config.quick else LOADS:
        unseen("load", value, at=value, methods=every)
    for value in SERVERS[:1] if config.quick else SERVERS:
        unseen("servers", value, servers=value)
    for value in SPREADS[:1] if config.quick else SPREADS:
        unseen("spread", value, spread=value)
    for value in HORIZONS[:1] if config.quick else HORIZONS:
        unseen("horizon", value, slots=value)

    own = coop | others
    wrong = dataclasses.replace(usual, scenario=misjudged(usual.scenario, seeds, 0.15), believed=usual.scenario)
    many = config.evaluation_episodes
    trials.append(("robustness", "as trained", usual, own, many))
    trials.append(("robustness", "capacities misjudged by up to 15 %", wrong, own, many))
    for off in (-0.15, 0.15):
        other = scaled_to(usual.scenario, load / (load + off))
        words = f"load {load + off:.2f} instead of {load:.2f}"
        trials.append(("robustness", f"{words}, known", dataclasses.replace(usual, scenario=other), own, many))
        unknown = dataclasses.replace(usual, scenario=other, believed=usual.scenario)
        trials.append(("robustness", f"{words}, not known", unknown, own, many))
    for told in (True, False):
        failing = dataclasses.replace(usual, fails_at=params.num_slots // 2, told=told)
        words = "fastest server fails in the middle, "
        trials.append(("robustness", words + ("known" if told else "not known"), failing, own, many))

    order = [(experiment, value, name) for experiment, value, _, methods, _ in trials for name in methods]
    study.load(out / "trials.csv")
    for experiment, value, trial, methods, episodes in tqdm(trials, unit="trial", desc="trials"):
        missing = study.missing(experiment, value, methods)
        if trial is usual and experiment == "robustness":  # these have been tried
            study.rows += [
                [experiment, value, *row[2:]] for row in study.rows if row[0] == "defaults" and row[2] in missing
            ]
        elif missing:
            study.run(experiment, value, trial, missing, episodes)
            study.save(out / "trials.csv", order)
    draw_loads(out / "loads", study, len(seeds))
    draw_shapes(out / "shapes", study, len(seeds))
    draw_robustness(out / "robustness", study, len(seeds))
    left_out = ("virtual Opt", "Coop per_bs", *(name for name in coop if "practised" in name))
    sized = {name: make for name, make in own.items() if name not in left_out}
    sized = {"Opt-TS": lambda _: OptTS()} | sized
    fairness(out, usual, sized, config.evaluation_episodes)
    for experiment in ("defaults", "robustness", "load", *PANELS):
        write_text(out / f"{experiment}.md", study.table(experiment) + "\n")
    print(study.table("defaults"))
    print(f"ratios to Opt-TS, 95 % intervals over {len(seeds)} training seeds; tables and figures in {out}")


if __name__ == "__main__":
    command_line(StudyConfig, main, __doc__)
