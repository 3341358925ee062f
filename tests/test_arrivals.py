"""Arrivals by kind and from a file, and named scenarios, against plain loops and frequencies."""

import csv
import dataclasses
import json
import math
import re
from collections import defaultdict

import numpy as np
import pytest
from helpers import ROOT, SCHEDULERS, make, refusal, run_here

from baselines import main_dqn, main_heuristics, main_opt, main_sac
from baselines.heuristics import LocalOnly
from baselines.rules import HeuristicConfig
from common.parameters import ParameterError
from common.random_streams import Stream
from coop_lad_ts import main_coop
from coop_lad_ts.practice import practice_lessons
from experiments.jobs import Job
from lad_ts import main_lad
from lad_ts.arrivals import draw_counts
from lad_ts.environment_lad import CollaborativeMEC, draw_arrivals, draw_scenario, offered_load, presence
from lad_ts.episodes import play, run_episode
from lad_ts.references import OptTS, pooled_srpt_bound
from lad_ts.scenarios import DESCRIPTIONS, SCENARIOS

HEADER = "time_s,base_station,input_mbit,steps,density,result_mbit\n"
SIZES = {"num_bs": 3, "num_tasks": 6, "num_slots": 12}
FLAGS = [f"--{name}={value}" for name, value in SIZES.items()]


def workload(path, slots=60, seed=0, spare=()):
    """A file of random tasks in a random order, without the columns in `spare`."""
    rng = np.random.default_rng(seed)
    names = [name for name in HEADER.strip().split(",") if name not in spare]
    rows = []
    for slot in range(slots):
        for b in range(3):
            for _ in range(rng.integers(0, 6)):
                time, size, steps = slot * 0.5 + 0.499 * rng.random(), rng.uniform(0, 9), rng.integers(1, 30)
                row = [time, b, size, steps, rng.uniform(0.05, 2), rng.uniform(0, 3)]
                rows.append([v for v, name in zip(row, HEADER.strip().split(","), strict=True) if name not in spare])
    rng.shuffle(rows)
    rows.append([slots * 0.5 - 0.25, 2, 1.0, 3, 0.5, 0.5][: len(names)])
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([names, *[[repr(float(v)) for v in row] for row in rows]])
    return str(path)


def plain_delays(path, config, scenario, first, greedy):
    """Delays of an episode that begins in slot `first` of the file, task by task, in scheduling order."""
    middle_density, middle_result = (config.density_min + config.density_max) / 2, 0.8
    slots = defaultdict(lambda: defaultdict(list))
    with open(path, newline="") as file:  # noqa: PTH123
        for row in csv.DictReader(file):
            slots[math.floor(float(row["time_s"]) / config.slot_length)][int(float(row["base_station"]))].append(row)
    f, v = scenario.capacity[0], scenario.link_rate[0]
    queue, delays, alone = [0.0] * config.num_bs, [], []
    for slot in range(first, first + config.num_slots - 1):
        for b in range(config.num_bs):
            for row in slots[slot][b]:
                work = float(row.get("density", middle_density)) * float(row["steps"])
                result, size = float(row.get("result_mbit", middle_result)), float(row["input_mbit"])
                own = [work / f[a] + result / v[a] for a in range(config.num_bs)]
                delay = [own[a] + (size / v[a] if a != b else 0) + queue[a] / f[a] for a in range(config.num_bs)]
                chosen = min(range(config.num_bs), key=delay.__getitem__) if greedy else b
                queue[chosen] += work
                delays.append(delay[chosen])
                alone.append(min(own))
        queue = [max(q - c * config.slot_length, 0) for q, c in zip(queue, f, strict=True)]
    return np.array(delays), np.array(alone)


@pytest.mark.parametrize("spare", [(), ("density",), ("density", "result_mbit")])
@pytest.mark.parametrize("scheduler", [LocalOnly, OptTS])
@pytest.mark.parametrize("stream", [Stream.TRAINING_ARRIVALS, Stream.HELD_OUT_ARRIVALS])
def test_delays_of_a_file_are_those_of_a_plain_loop_over_its_rows(spare, scheduler, stream, tmp_path):
    path = workload(tmp_path / "tasks.csv", spare=spare)
    config = make(HeuristicConfig, arrivals=path, slot_length=0.5, capacity_max=12, **SIZES)
    scenario, rows = draw_scenario(config, [0]), [(0, 3)]
    arrivals = draw_arrivals(config, rows, stream)
    held = stream == Stream.HELD_OUT_ARRIVALS
    ends = [plain_delays(path, config, scenario, first, scheduler is OptTS) for first in range(60)]
    env = CollaborativeMEC(scenario, slot_length=0.5)
    played = list(play(env, scheduler(config), arrivals, rows))
    got = np.concatenate([delay[slot.mask].numpy() for slot, _, delay, *_ in played])
    same = [k for k, (d, _) in enumerate(ends) if d.shape == got.shape and np.allclose(d, got, rtol=0, atol=1e-9)]
    assert len(same) == 1 and (same[0] >= 48 if held else same[0] <= 48 - 12)
    stats = run_episode(env, scheduler(config), arrivals, rows)
    delays, alone = ends[same[0]]
    np.testing.assert_allclose([stats.mean[0], stats.slowdown[0]], [delays.mean(), (delays / alone).mean()])
    assert stats.tasks[0] == delays.size
    assert pooled_srpt_bound(scenario, arrivals, 0.5)[0] < stats.mean[0]


def test_classes_of_a_file_have_its_mean_work_and_held_out_tasks_are_no_part_of_them(tmp_path):
    path = tmp_path / "tasks.csv"
    early = "".join(f"{t},{t % 2},3,{1 + t},1,1\n" for t in range(8))
    path.write_text(HEADER + early + "8,0,3,10000,1,1\n9,1,3,10000,1,1\n")
    config = make(HeuristicConfig, arrivals=str(path), num_bs=2, num_tasks=4, num_slots=4, scenario_seed=1)
    scenario = draw_scenario(config, [0])
    np.testing.assert_allclose(np.sort(scenario.workload[0]), [1.5, 3.5, 5.5, 7.5])
    np.testing.assert_allclose(presence(config), 8 / 8 / 2 / 4)
    np.testing.assert_allclose(offered_load(config, scenario), 36 / 8 / scenario.capacity.sum())
    assert draw_arrivals(config, [(0, 0)]).workload.max() <= 8
    assert draw_arrivals(config, [(0, 0)], Stream.VALIDATION_ARRIVALS).workload.max() == 10000


def test_a_short_file_ends_with_empty_slots_and_is_told_so(tmp_path, capsys):
    path = tmp_path / "short.csv"
    path.write_text("\ufeff" + HEADER + '0.9,1,2,3,.1,"1"\r\n\r\n4.2,0,1e0,2,.2,0\r\n')
    config = make(HeuristicConfig, arrivals=str(path), **SIZES)
    make(HeuristicConfig, arrivals=str(path), **SIZES)
    told = capsys.readouterr().out.splitlines()
    assert len(told) == 2 and "4 slots to train on" in told[0] and "1 held-out" in told[1]
    count = draw_arrivals(config, [(0, 0), (1, 7)]).count
    assert count.sum((1, 2)).tolist() == [1, 1] and count[:, 0, 1].all()


@pytest.mark.parametrize("kind", ["poisson", "bursty", "diurnal"])
def test_presence_is_how_often_an_nth_task_comes(kind):
    config = make(HeuristicConfig, arrivals=kind, num_bs=4, num_tasks=12, num_slots=31, day_spread=0.3)
    counts = draw_counts(config, np.random.default_rng(1), 3000, 30, 4)
    found = (counts[..., None] > np.arange(12)).mean((0, 1, 2))
    np.testing.assert_allclose(found, presence(config), atol=0.012)
    assert counts.min() == 0 and counts.max() == 12


def test_bursts_keep_the_mean_last_as_long_as_said_and_spread_the_counts():
    given = {"num_bs": 5, "num_tasks": 200, "arrival_mean": 20, "num_slots": 40, "burst_factor": 6}
    config = make(HeuristicConfig, arrivals="bursty", burst_share=0.2, burst_length=4, **given)
    counts = draw_counts(config, np.random.default_rng(0), 1500, 39, 5)
    poisson = draw_counts(dataclasses.replace(config, arrivals="poisson"), np.random.default_rng(0), 1500, 39, 5)
    for t in (0, 20, 38):  # stationary
        assert counts[:, t].mean() == pytest.approx(20, rel=0.03)
    # rates 10 and 60: variance 20 + 0.2 * 0.8 * 50**2; a burst goes on with probability 3/4
    assert counts.var() == pytest.approx(420, rel=0.04) and poisson.var() == pytest.approx(20, rel=0.02)
    inside = counts > 30
    assert inside[:, 1:][inside[:, :-1]].mean() == pytest.approx(0.75, abs=0.02)
    assert abs(np.corrcoef(counts[:, 9, 0], counts[:, 9, 1])[0, 1]) < 0.1


def test_a_day_peaks_in_its_middle_and_stations_may_be_apart():
    given = {"num_bs": 3, "num_tasks": 100, "arrival_mean": 20, "num_slots": 41}
    config = make(HeuristicConfig, arrivals="diurnal", day_swing=0.5, **given)
    mean = draw_counts(config, np.random.default_rng(0), 4000, 40, 3).mean(0)
    np.testing.assert_allclose(mean[[0, 10, 19, 20, 30]].mean(1), [10, 20.4, 30, 30, 19.6], atol=0.4)
    apart = dataclasses.replace(config, day_spread=0.5, day_length=20)
    peaks = draw_counts(apart, np.random.default_rng(0), 4000, 20, 3).mean(0).argmax(0)
    np.testing.assert_allclose(peaks, [4.5, 9.5, 14.5], atol=1.5)


@pytest.mark.parametrize("method", [*SCHEDULERS, "lower_bound"])
def test_every_rule_runs_on_a_file_and_on_bursts(method, tmp_path):
    path = workload(tmp_path / "tasks.csv")
    for kind in (path, "bursty"):
        out = tmp_path / kind.replace("/", "_")
        flags = [*FLAGS, "--episodes=2", "--method", method, "--arrivals", kind, "--held_out", "True", "--fit_steps=3"]
        run_here(main_heuristics, *flags, "--slot_length=0.5", "--out", out)
        rows = list(csv.DictReader((out / "delay.csv").open()))
        assert len(rows) == 2 and all(float(row["delay_s"]) > 0 for row in rows)


LEARNERS = [
    (main_lad, ["--learning_start=6"]),
    (main_sac, ["--learning_start=6", "--preset=paper"]),
    (main_dqn, ["--learning_start=6"]),
    (main_coop, ["--takeover=0", "--distil_episodes=2", "--distil_updates=2", "--fit_steps=2", "--practice=4"]),
    (main_coop, ["--takeover=0", "--distil_episodes=2", "--distil_updates=2", "--fit_steps=2", "--actor=per_bs"]),
]


@pytest.mark.parametrize(("script", "flags"), LEARNERS)
def test_learners_learn_from_a_file_go_on_and_are_evaluated(script, flags, tmp_path, capsys):
    path, out = workload(tmp_path / "tasks.csv"), tmp_path / "run"
    flags = [*FLAGS, *flags, "--slot_length=0.5", "--arrivals", path]
    run_here(script, *flags, "--episodes=3", "--out", out)
    run_here(script, "--resume", out, "--episodes=4")
    run_here(script, "--evaluate", out / "checkpoint.pt", "--evaluation_episodes=1", "--out", tmp_path / "evaluation")
    assert len((out / "delay.csv").read_text().splitlines()) == 5
    stored = json.loads((out / "config.json").read_text())["parameters"]
    assert stored["arrivals"] == path and len(stored["arrivals_sha256"]) == 64
    with open(path, "a") as file:  # noqa: PTH123
        file.write("1,1,1,1,1,1\n")
    assert "has changed" in refusal(capsys, script, "--resume", out, "--episodes=5")


def test_tables_are_fitted_to_a_files_classes_and_put_tasks_into_the_nearest(tmp_path):
    path = workload(tmp_path / "tasks.csv", slots=300)
    config = make(HeuristicConfig, arrivals=path, slot_length=0.5, method="routing_table", fit_steps=30, **SIZES)
    rows, scenario = [(0, 0)], draw_scenario(config, [0])
    scheduler, env = SCHEDULERS["routing_table"](config), CollaborativeMEC(scenario, slot_length=0.5)
    slot = env.reset(draw_arrivals(config, rows))
    scheduler.begin(scenario, rows)
    gap = np.abs(slot.workload.numpy()[..., None] - scenario.workload[0])
    np.testing.assert_array_equal(scheduler.number(slot), gap.argmin(-1))
    lessons = practice_lessons(dataclasses.replace(config, fit_steps=1), "cpu", 2, 1)
    assert [lesson.tasks.shape[-1] for lesson in lessons] == [8, 20] and all(le.tasks.sum() > 0 for le in lessons)


def test_a_finished_run_is_not_taken_for_one_of_a_changed_file(tmp_path):
    path, out = workload(tmp_path / "tasks.csv"), tmp_path / "run"
    flags = {"episodes": 1, "seeds": 1, **SIZES, "arrivals": path, "slot_length": 0.5}
    run_here(main_opt, *[f"--{name}={value}" for name, value in flags.items()], "--out", out)
    Job("opt_ts", out, flags).check_folder()
    workload(tmp_path / "tasks.csv", seed=1)
    with pytest.raises(ParameterError, match="another state of the file"):
        Job("opt_ts", out, flags).check_folder()


GOOD = "0,0,1,1,1,1\n1,1,1,1,1,1\n"
BAD = {
    "": "line 1: must name",
    "time_s,steps\n0,1\n": "line 1: lacks base_station, input_mbit",
    HEADER.replace("density", "densty") + GOOD: "no column 'densty'",
    HEADER.replace("density", "steps") + GOOD: "names steps twice",
    HEADER.replace(",", ";") + GOOD: "line 1: lacks",
    HEADER: "must hold tasks",
    HEADER + "\n\n": "must hold tasks",
    HEADER + GOOD + "\n2,0,nan,1,1,1\n": "line 5: input_mbit=nan",
    HEADER + GOOD + "inf,0,1,1,1,1\n": "line 4: time_s=inf",
    HEADER + GOOD + "-1,0,1,1,1,1\n": "line 4: time_s=-1",
    HEADER + GOOD + "2,0,1,1.5,1,1\n": "line 4: steps=1.5: must be an integer",
    HEADER + GOOD + "2,0,1,0,1,1\n": "line 4: steps=0",
    HEADER + GOOD + "2,0,1,1,0,1\n": "line 4: density=0: must be a number above 0",
    HEADER + GOOD + "2,0,1,1,1,-2\n": "line 4: result_mbit=-2",
    HEADER + GOOD + "2,3,1,1,1,1\n": "line 4: base_station=3: must be at most 2, since --num_bs=3",
    HEADER + GOOD + "2,0.5,1,1,1,1\n": "line 4: base_station=0.5",
    HEADER + GOOD + "2,0,1,1,,1\n": "line 4: density='': must be a number",
    HEADER + GOOD + "2,0,x,1,1,1\n": "line 4: input_mbit='x'",
    HEADER + GOOD + "\n2,0,1,1,1\n": "line 5: has 5 values",
    HEADER + "0,0,1,1,1\n": "line 2: has 5 values",
    HEADER
    + GOOD
    + "2,0,1,1,1,1\n"
    * 8: "line 10: slot 2 brings base station 0 more than --num_tasks=6 tasks; the file takes --num_tasks=8",
    HEADER + "1.7e9,0,1,1,1,1\n1.7e9,0,1,1,1,1\n": "counted from time 0",
}


@pytest.mark.parametrize(("text", "words"), BAD.items())
def test_a_file_with_a_mistake_is_refused_in_one_line(text, words, tmp_path, capsys):
    (tmp_path / "tasks.csv").write_text(text)
    line = refusal(capsys, main_opt, *FLAGS, "--arrivals", tmp_path / "tasks.csv", "--out", tmp_path / "run")
    assert words in line and not (tmp_path / "run").exists()


@pytest.mark.parametrize("content", [bytes(range(256)), b"\x00\x01,\x02\n", HEADER.encode() + b"0,0,1,1,1,\xff\n"])
def test_a_binary_file_is_refused(content, tmp_path, capsys):
    (tmp_path / "tasks.csv").write_bytes(content)
    assert "CSV file in UTF-8" in refusal(capsys, main_opt, "--arrivals", tmp_path / "tasks.csv")


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--arrivals=poison"], "did you mean poisson"),
        (["--arrivals=poisson", "--arrival_mean=51"], "--arrival_mean=51.0: the mean must be at most --num_tasks=50"),
        (["--arrivals=bursty", "--burst_share=0.9"], "--burst_length=5.0"),
        (["--arrivals=bursty", "--burst_share=1"], "--burst_share=1"),
        (["--arrival_mean=5"], "must come with --arrivals poisson, bursty, diurnal"),
        (["--arrivals_sha256=0"], "must come with --arrivals FILE"),
        (["--scenario=papers"], "--scenario=papers: must be one of paper, light"),
    ],
)
def test_parameters_of_arrivals_that_do_not_fit_are_refused(flags, words, capsys):
    assert words in refusal(capsys, main_opt, *flags)


@pytest.mark.parametrize("name", SCENARIOS)
def test_a_scenario_has_the_load_that_it_is_described_with(name):
    config = make(HeuristicConfig, scenario=name, episodes=1)
    load = offered_load(config, draw_scenario(config, [0]))[0]
    assert f"load {load:.2f}" in DESCRIPTIONS[name] and list(DESCRIPTIONS) == list(SCENARIOS)
    counts = draw_arrivals(config, [(0, 0), (0, 1)]).count[:, :-1, :, None] > np.arange(config.num_tasks)
    scenario = draw_scenario(config, [0])
    measured = (counts.mean((0, 1)) * scenario.workload[0]).sum() / scenario.capacity.sum()
    assert measured == pytest.approx(load, rel=0.05)
    for number, bound in ((r"capacities from (\d+)", min), (r"to (\d+) G", max), (r"(\d+) base", len)):
        for found in re.findall(number, DESCRIPTIONS[name]):
            values = scenario.capacity[0]
            assert bound(values) == int(found) or (bound is min and values.min() >= int(found))


def test_what_is_given_counts_more_than_a_scenario_and_paper_changes_nothing():
    given = make(HeuristicConfig, scenario="heterogeneous", capacity_max=200, preset="paper")
    assert (given.capacity_min, given.capacity_max, given.num_tasks, given.tied_sizes) == (4, 200, 90, True)
    assert make(HeuristicConfig, scenario="paper") == make(HeuristicConfig)
    assert SCENARIOS["paper"] == {}


def test_the_page_lists_every_scenario_as_it_is_described():
    page = (ROOT / "docs/scheduling.md").read_text()
    listed = dict(re.findall(r"^\| `(\w+)` \| (.*?)(?:; the default)? \|$", page, flags=re.MULTILINE))
    assert DESCRIPTIONS.items() <= listed.items()
