"""Cooperative LAD-TS against Opt-TS: trains its variants, then tries them on scenarios and arrivals never seen.

Everything is a ratio to Opt-TS on the same arrivals, with 95 % intervals over the training seeds. Trainings go to
<out>/runs, and a second call goes on where the first ended. All seeds practise on the same scenarios. Writes
trials.csv, fairness.csv, a table of every experiment, and the figures loads, shapes, robustness and fairness, as PNG
and PDF. Settings were chosen on other arrivals and scenarios.
Example: python scripts/coop_study.py --jobs 2
"""

import common.quiet_start  # noqa: F401

import dataclasses
from pathlib import Path
from typing import Any

from common.command_line import command_line
from common.parameters import ParameterError, Parameters, parameter, resolve
from common.progress import Progress
from common.run_folder import RESULTS, claimed, load_checkpoint, read_config, write_config, write_text
from coop_lad_ts.model_coop import METHOD, VARIANTS, CoopAgents
from experiments.fairness import study_fairness
from experiments.jobs import Job, folder_name, run_jobs
from experiments.study_figures import draw_loads, draw_robustness, draw_shapes
from experiments.study_results import StudyResults
from experiments.study_trials import PANELS, Make, contestants, study_trials
from lad_ts.checkpoints import restore
from lad_ts.references import OptTS


@dataclasses.dataclass(kw_only=True)
class StudyConfig(Parameters):
    """Every parameter of coop_study.py."""

    variants: str = parameter("mean,tail,slowdown,per_bs,prices,practised", f"what to train, of {', '.join(VARIANTS)}")
    seeds: int = parameter(5, "training seeds, from 0 on", low=2, high=100)
    evaluation_episodes: int = parameter(10, "held-out episodes at the defaults", low=1)
    trial_episodes: int = parameter(
        2, "held-out episodes of every other trial, each seed on a scenario of its own", low=1
    )
    jobs: int = parameter(2, "trainings at the same time, best the number of cores", low=1)
    quick: bool = parameter(False, "tiny trainings and few trials, to see that all runs; the numbers mean nothing")
    out: str = parameter(str(RESULTS / "coop_study"), "folder of the study", path=True)


def train(config: StudyConfig, out: Path) -> dict[str, CoopAgents]:
    """The trained agents of every variant."""
    names = [name.strip() for name in config.variants.split(",")]
    if not set(names) <= set(VARIANTS):
        raise ParameterError("variants", config.variants, f"must be some of {','.join(VARIANTS)}")
    jobs = {}
    for name in names:
        method = f"{METHOD.key}:{name}"
        flags: dict[str, Any] = {"episodes": VARIANTS[name].episodes, "seeds": config.seeds}
        if config.quick:
            flags |= {"episodes": 2, "distil_updates": 5, "fit_steps": 5, "num_slots": 12}
        jobs[name] = Job(method, out / "runs" / folder_name(method), flags)
    run_jobs(list(jobs.values()), config.jobs)
    agents = {}
    for name, job in jobs.items():
        content = load_checkpoint(job.folder / "checkpoint.pt", "out")
        stored = resolve(METHOD.parameters, content["config"] | {"device": "cpu"})
        agents[name] = restore(stored, content, METHOD, "out", job.folder)
        agents[name].training = False
    return agents


def keep_parameters(config: StudyConfig, out: Path) -> None:
    """Write config.json. Raises ParameterError when the folder holds a study of other parameters."""
    kept = dataclasses.asdict(config)
    if (out / "config.json").is_file():
        before = read_config(out)[1]
        for name in {*kept} - {"variants", "jobs", "out"}:
            if kept[name] != before.get(name):
                raise ParameterError(name, kept[name], f"must be {before.get(name)}, as in the study in {out}")
    write_config(out, "coop_study", kept)


def main(config: StudyConfig, given: dict[str, Any]) -> None:
    with claimed(Path(config.out)) as out:
        keep_parameters(config, out)
        study(config, out)


def study(config: StudyConfig, out: Path) -> None:
    """Train, try, draw and sum up, in a folder of this process."""
    agents = train(config, out)
    first = next(iter(agents.values()))
    many, few = config.evaluation_episodes, config.trial_episodes
    who = contestants(agents)
    trials = study_trials(first.params, first.seeds, who, many, few, config.quick)

    results = StudyResults()
    results.load(out / "trials.csv")
    order = [(tried.experiment, tried.setting, name) for tried in trials for name in tried.methods]
    for tried in Progress(trials, unit="trial", desc="trials"):
        if results.run(tried):
            results.save(out / "trials.csv", order)

    seeds = len(first.seeds)
    draw_loads(out / "loads", results, seeds)
    draw_shapes(out / "shapes", results, seeds)
    draw_robustness(out / "robustness", results, seeds)
    left_out = ("virtual Opt", "Coop per_bs", *(name for name in who.coop if "practised" in name))
    opt: dict[str, Make] = {"Opt-TS": lambda _: OptTS()}
    sized = opt | {name: make for name, make in who.own.items() if name not in left_out}
    study_fairness(out, trials[0].trial, sized, many)
    for experiment in ("defaults", "robustness", "load", *PANELS):
        write_text(out / f"{experiment}.md", results.table(experiment) + "\n")
    print(results.table("defaults"))
    print(f"ratios to Opt-TS, 95 % intervals over {seeds} training seeds; tables and figures in {out}")


if __name__ == "__main__":
    command_line(StudyConfig, main, __doc__)
