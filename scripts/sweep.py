"""Delay against one parameter, for chosen methods: trains every method at every value, and plots the final delay.

Runs go to <out>/runs; a second call goes on where the first ended. Writes sweep.png, sweep.pdf and sweep.csv. Examples:
python scripts/sweep.py --vary num_tasks --values 20,35,50,65
python scripts/sweep.py --vary denoising_steps --values 1,2,3,5,8 --methods lad_ts,d2sac_ts,opt_ts
"""

import common.quiet_start  # noqa: F401

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from common.command_line import command_line
from common.figures import plt, save_figure
from common.parameters import ParameterError, Parameters, convert, field_type, parameter
from common.run_folder import RESULTS, claimed, describe
from common.statistics_seeds import episode_mean, final_span, mean_interval, seconds
from common.tables import read_csv, write_csv
from experiments.jobs import Job, folder_name, parse_methods, run_jobs
from lad_ts.plots import legend_text, line_style
from lad_ts.run_parameters import TrainingParameters

WIDE = 30  # greatest over least value from which the axis is logarithmic; of learning rates it always is
AXIS = {
    "num_tasks": "Most tasks per slot and base station N",
    "num_bs": "Edge servers B",
    "capacity_max": "Greatest capacity of an edge server (Gcycles/s)",
    "quality_max": "Most denoising steps that a task asks for",
    "denoising_steps": "Denoising steps I of the policy",
    "actor_lr": "Learning rate of the actor",
    "critic_lr": "Learning rate of the critics",
    "temperature_lr": "Learning rate of the temperature",
    "learning_rate": "Learning rate of the Q network",
}


@dataclasses.dataclass(kw_only=True)
class SweepConfig(Parameters):
    """Every parameter of sweep.py."""

    vary: str = parameter(
        "num_tasks", f"what to vary: {', '.join(AXIS)}, or any other parameter of the methods' scripts"
    )
    values: str = parameter("20,35,50,65", "its values, separated by commas")
    methods: str = parameter(
        "lad_ts,sac_ts,opt_ts,capacity_proportional,water_filling", "methods, separated by commas, as in reproduce.py"
    )
    episodes: int = parameter(60, "training episodes of every run", low=2)
    seeds: int = parameter(2, "seeds of every run, trained together", low=1, high=1000)
    last: int = parameter(20, "the delay is the mean over this many last episodes, at most the last half", low=1)
    jobs: int = parameter(2, "runs at the same time, best the number of cores", low=1)
    out: str | None = parameter(None, "folder; default results/sweep_<vary>", path=True)


def parse_values(config: SweepConfig, jobs: list[Job]) -> list[float]:
    """The values as numbers that the methods accept. Raises ParameterError otherwise."""
    takers = [job.chosen[0].parameters for job in jobs if job.takes(config.vary)]
    if not takers or config.vary in TrainingParameters.__dataclass_fields__:
        raise ParameterError("vary", config.vary, "must be a parameter of the methods' environment or agents")
    if field_type(takers[0], config.vary)[0] not in (int, float):
        raise ParameterError("vary", config.vary, "must be a parameter that is a number")
    values = []
    for text in config.values.split(","):
        try:
            values.append(convert(takers[0], config.vary, float(text)))
        except ValueError as error:
            reason = error.reason if isinstance(error, ParameterError) else "must be a number"
            raise ParameterError("values", text.strip(), reason) from None
    values = list(dict.fromkeys(values))
    if len(values) < 2:
        raise ParameterError("values", config.values, "must be at least two different values")
    return values


def check_value(job: Job, vary: str, value: float) -> None:
    """Refuse a value that contradicts another parameter of a method. Raises ParameterError of --values."""
    try:
        job.check_flags()
    except ParameterError as error:
        reason = error.reason if error.flag == vary else f"not with {vary} of this value: {error}"
        raise ParameterError("values", f"{value:g}", f"{job.method} refuses it: {reason}") from None


def final_delays(job: Job, last: int) -> tuple[np.ndarray, np.ndarray]:
    """Mean delay and Opt-TS's mean delay over the last episodes, for every seed.

    Raises ParameterError when the run's table is not whole.
    """
    try:
        rows = read_csv(job.folder / "delay.csv")
        columns = [np.array([float(row[name]) for row in rows]) for name in ("delay_s", "opt_delay_s")]
        delay, opt = (column.reshape(-1, job.flags["seeds"]) for column in columns)
    except (OSError, ValueError, LookupError) as error:
        raise ParameterError("out", job.folder, f"must hold a whole delay.csv ({describe(error)})") from None
    span = final_span(len(delay), last)
    return episode_mean(delay[-span:]), episode_mean(opt[-span:])


def main(config: SweepConfig, given: dict[str, Any]) -> None:
    out = Path(config.out) if config.out else RESULTS / f"sweep_{config.vary}"
    flags = {"episodes": config.episodes, "seeds": config.seeds}
    names = parse_methods(config.methods)
    values = parse_values(config, [Job(name, out, flags) for name in names])
    jobs = {}
    for name in names:
        plain = Job(name, out / "runs" / folder_name(name), flags)
        plain.check_flags()
        for value in values:
            # A method without the parameter runs once and is drawn as a level line.
            varied = Job(name, plain.folder.with_name(f"{plain.folder.name}_{value!r}"), flags | {config.vary: value})
            jobs[name, value] = varied if plain.takes(config.vary) else plain
            check_value(jobs[name, value], config.vary, value)
    with claimed(out):
        run_jobs(list(dict.fromkeys(jobs.values())), config.jobs)
        report(config, names, values, jobs, out)


def report(
    config: SweepConfig, names: list[str], values: list[float], jobs: dict[tuple[str, float], Job], out: Path
) -> None:
    """The figure, sweep.csv, and a printed table of the jobs of all methods and values."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(12, 4.5))
    rows = []
    for k, name in enumerate(names):
        finals = [final_delays(jobs[name, value], config.last) for value in values]
        delay, opt = (np.array(column) for column in zip(*finals, strict=True))  # [values, seeds]
        label = jobs[name, values[0]].label
        for axes, numbers in ((left, delay), (right, 100 * (delay / opt - 1))):
            mean, half = mean_interval(numbers, axis=1)
            style = line_style(k)
            style["marker"] = style["marker"] or "."
            axes.errorbar(values, mean, yerr=np.nan_to_num(half), capsize=3, label=legend_text(label), **style)
        for value, mine, best in zip(values, delay, opt, strict=True):
            rows += [
                [name, value, seed, float(a), float(b)] for seed, (a, b) in enumerate(zip(mine, best, strict=True))
            ]
    for axes, label in ((left, "Mean service delay (s)"), (right, "Above Opt-TS (%)")):
        axes.set(xlabel=AXIS.get(config.vary, config.vary.replace("_", " ")), ylabel=label)
        rate = config.vary.endswith(("_lr", "learning_rate"))
        if min(values) > 0 and (rate or max(values) >= WIDE * min(values)):
            axes.set_xscale("log")
            axes.set_xticks(values, [f"{value:g}" for value in values], rotation=30 if len(values) > 6 else 0)
            axes.minorticks_off()
        axes.grid(alpha=0.3)
    left.set_ylim(bottom=0)
    last = final_span(config.episodes, config.last)
    title = f"last {last} of {config.episodes} episodes, 95 % over {config.seeds} seeds"
    left.legend(fontsize=8, title=title, title_fontsize=7)
    save_figure(figure, out / "sweep")
    write_csv(out / "sweep.csv", ("method", config.vary, "seed", "delay_s", "opt_delay_s"), rows)
    print(f"{'method':24s}{config.vary:>16s}{'delay s':>10s}{'above Opt-TS %':>16s}")
    for name in names:
        for value in values:
            delay, opt = final_delays(jobs[name, value], config.last)
            print(f"{name:24s}{value:16g}{seconds(delay.mean()):>10s}{100 * (delay / opt - 1).mean():16.2f}")
    print(f"figure and CSV in {out}")


if __name__ == "__main__":
    command_line(SweepConfig, main, __doc__)
