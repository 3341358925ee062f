"""What people hand to the trace's scripts that is none of theirs: files, policies, folders, extremes of parameters."""

import dataclasses
import json
import os
import threading

import numpy as np
import pytest
from helpers import refusal, run_here
from safetensors.numpy import save_file
from scripts_by_path import load

from common.parameters import LARGEST, ParameterError
from trace_ts import main_trace, scenario
from trace_ts.metrics import measures
from trace_ts.model_trace import Design
from trace_ts.policy_file import load_policy, read_rule
from trace_ts.rules import RULES
from trace_ts.scenario import Scenario, draw_outages
from trace_ts.simulation import simulate
from trace_ts.sita import fit_size_intervals
from trace_ts.workload import GENTD26, LEAST_WORK, read_trace, requests_of

HEADER = "time_s,user,work,model\n"
DESIGN = dataclasses.asdict(Design())
START = Design().begin(np.array(RULES["priced"].constants), 0)


def write_policy(path, design, parameters=START):
    """A file of a policy whose design is any value, or any text."""
    text = design if isinstance(design, str) else json.dumps(design)
    save_file({"parameters": parameters}, path, metadata={"design": text})
    return path


@pytest.mark.parametrize(
    "design",
    [
        *({name: value} for name, value in DESIGN.items() if name != "hidden"),
        *(DESIGN | {"hidden": value} for value in (16.0, True, "16", None, 0, -1, 10_000, 10**400)),
        *(DESIGN | {"steps": value} for value in (1.5, True, "1", None, -1, 101)),
        *(DESIGN | {"latent": value} for value in (None, ["user"], "users", 1)),
        *(DESIGN | {"price": value} for value in ("yes", [1], None, 2, 1.0)),
        *("{", "[1]", "null", "3", "[" * 100_000),
        DESIGN | {"more": 1},
    ],
)
def test_a_policy_of_a_strange_design_is_refused(design, tmp_path):
    if design in ({"steps": 0}, {"latent": "user"}, {"price": True}):  # what is left out has its default
        assert load_policy(write_policy(tmp_path / "policy", design)).design == Design()
        return
    with pytest.raises(ParameterError, match="must be a policy"):
        load_policy(write_policy(tmp_path / "policy", design))


@pytest.mark.parametrize(("place", "value"), [(0, 1e3), (6, 800.0), (7, 1e39), (-1, -1e7), (3, np.nan), (9, np.inf)])
def test_a_policy_whose_scores_would_overflow_is_refused(place, value, tmp_path):
    parameters = START.copy()
    parameters[place] = value
    with pytest.raises(ParameterError, match=r"not finite|too large"):
        load_policy(write_policy(tmp_path / "policy", DESIGN, parameters))


def test_a_rule_of_endless_constants_is_refused(tmp_path):
    constants = dict.fromkeys(("alpha", "beta", "theta", "phi", "psi", "chi", "temperature"), 10**400)
    (tmp_path / "rule").write_text(json.dumps({"rule": "priced", "constants": constants}))
    with pytest.raises(ParameterError, match="must be a rule"):
        read_rule(tmp_path / "rule")


@pytest.mark.parametrize("work", [LEAST_WORK, 1.0, LARGEST])
def test_the_least_and_the_most_work_have_finite_measures(work, tmp_path):
    (tmp_path / "csv").write_text(HEADER + "".join(f"{k},a{k % 3},{work},m\n" for k in range(50)) + "60,b,30,m\n")
    requests = read_trace(tmp_path / "csv")
    found = measures(simulate(RULES["priced"], requests, Scenario(load_time=1e6), 0), requests)
    assert np.isfinite(list(found.values())).all() and 0 < found["fairness"] <= 1


@pytest.mark.parametrize("work", ["1e-7", "5e-324", "2147483648"])
def test_work_beyond_is_refused(work, tmp_path):
    (tmp_path / "csv").write_text(f"{HEADER}1,a,{work},m\n")
    with pytest.raises(ParameterError, match=f"line 2: work='{work}': must be a number from 1e-06 to {LARGEST}"):
        read_trace(tmp_path / "csv")


def test_images_times_steps_are_work_within_bounds(tmp_path):
    row = "2024-11-19 08:30:00,g,{},{},1,4\n".format
    (tmp_path / "csv").write_text(",".join(GENTD26) + "\n" + row(2, 30) + row(50_000, 50_000))
    with pytest.raises(ParameterError, match="line 3: num_inference_steps='50000': must be at most"):
        read_trace(tmp_path / "csv")


def test_a_pipe_is_refused_rather_than_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    found = []

    def read():
        try:
            read_trace(tmp_path / "pipe")
        except ParameterError as error:
            found.append(str(error))

    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    thread.join(10)
    assert found and "must be a file, no pipe or device" in found[0]


def test_outages_without_end_are_refused():
    for up_time, down_time in ((1e-6, 1e-6), (1e-300, 1e-300), (0.01, 1e-9)):
        with pytest.raises(ParameterError, match=r"--up_time=.*must be 0, or at least") as error:
            draw_outages(Scenario(up_time=up_time, down_time=down_time), 1e4, 0)
        least = float(error.value.reason.split("at least ")[1].split()[0])
        allowed = Scenario(up_time=least * 1.01, down_time=down_time)
        assert least == pytest.approx(20 * scenario.LAST_FAILURE * 1e4 / scenario.MOST_OUTAGES - down_time, rel=0.01)
        assert len(draw_outages(allowed, 10.0, 0)[0]) > 0


@pytest.mark.parametrize("classes", [2, 3])
def test_size_intervals_of_too_few_sizes_are_an_error_of_the_requests(classes):
    requests = requests_of(np.arange(40.0), ["a"] * 40, [30.0] * 40, ["m"] * 40)
    with pytest.raises(ParameterError, match=f"must have works of {classes} sizes at least.*; there are 1") as error:
        fit_size_intervals(classes, requests, [Scenario()], range(1))
    assert error.value.flag == "requests"


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--load=1e-300"], "--load=1e-300: must be a number, at least 0.001 and at most 100"),
        (["--policies=jsq,priced,jsq"], "--policies=jsq,priced,jsq: must name jsq once"),
        (["--policies=jsq, priced"], "--policies= priced: must be of random"),
    ],
)
def test_extremes_are_told_in_a_line(flags, words, tmp_path, capsys):
    assert words in refusal(capsys, main_trace, *flags, f"--out={tmp_path / 'run'}")


def written(path, shift=0.0, count=120):
    """A file of requests."""
    path.write_text(HEADER + "".join(f"{k + shift},u{k % 7},{20 + k % 9},m{k % 4}\n" for k in range(count)))
    return path


def test_what_changes_nothing_is_told(tmp_path, capsys):
    idle = ["--own_sends=False", "--down_time=5", "--ageing=9", "--pairs=3", "--every_cell=True"]
    few = ["--num_requests=300", "--num_servers=3", "--draws=1"]
    run_here(main_trace, *idle, *few, "--policies=jsq,pull", f"--out={tmp_path / 'a'}")
    told = [line for line in capsys.readouterr().err.splitlines() if "does nothing" in line]
    assert {line.split()[1].split("=")[0] for line in told} == {flag.split("=")[0] for flag in idle}
    used = ["--own_sends=False", "--age=3", "--ageing=9", "--discipline=shortest", "--up_time=900", "--down_time=5"]
    run_here(main_trace, *used, *few, "--every_cell=True", "--policies=sita_2_fitted", f"--out={tmp_path / 'b'}")
    assert "does nothing" not in capsys.readouterr().err


def test_a_run_goes_on_with_its_own_requests_alone(tmp_path, capsys):
    out, file = tmp_path / "run", written(tmp_path / "requests.csv")
    some = ["--policies=jsq,priced_fitted", "--generations=1", "--pairs=1", "--draws=2"]
    run_here(main_trace, *some, f"--requests={file}", f"--out={out}")
    table = (out / "table.csv").read_bytes()
    moved = file.rename(tmp_path / "moved.csv")
    assert "must be a file that can be read" in refusal(capsys, main_trace, f"--resume={out}")
    run_here(main_trace, f"--resume={out}", f"--requests={moved}")
    assert (out / "table.csv").read_bytes() == table
    assert "must hold the requests that" in refusal(
        capsys, main_trace, f"--resume={out}", f"--requests={written(tmp_path / 'other.csv', count=121)}"
    )
    written(moved, 0.5)
    assert "must hold the requests that" in refusal(capsys, main_trace, f"--resume={out}")


@pytest.mark.parametrize("policies", ["jsq,jsq", "best", "jsq,"])
def test_wrong_policies_for_a_stored_run_leave_it_as_it_is(policies, tmp_path, capsys):
    out = tmp_path / "run"
    run_here(main_trace, "--policies=jsq", "--num_requests=100", "--draws=2", f"--out={out}")
    before = (out / "config.json").read_bytes()
    assert "--policies=" in refusal(capsys, main_trace, f"--resume={out}", f"--policies={policies}")
    assert (out / "config.json").read_bytes() == before
    run_here(main_trace, f"--resume={out}")


def test_policies_of_another_name_are_not_taken_for_ones_own(tmp_path, capsys):
    out, file = tmp_path / "run", written(tmp_path / "requests.csv")
    some = ["--generations=1", "--pairs=1", "--draws=2", f"--requests={file}"]
    run_here(main_trace, "--policies=jsq,priced_fitted,score", *some, f"--out={out}")
    before = (out / "table.csv").read_text().splitlines()
    kept = out / "policies"
    (kept / "jsq.json").write_bytes((kept / "priced_fitted.json").read_bytes())  # which is not read
    run_here(main_trace, f"--resume={out}")
    assert (out / "table.csv").read_text().splitlines() == before
    (kept / "affinity_fitted.json").write_bytes((kept / "priced_fitted.json").read_bytes())
    (kept / "lad_ts.safetensors").write_bytes((kept / "score.safetensors").read_bytes())
    for name, words in (("affinity_fitted", "must be the rule affinity_fitted"), ("lad_ts", "of the design of lad_ts")):
        assert words in refusal(capsys, main_trace, f"--resume={out}", f"--policies={name}")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("config.json", "[1]"),
        ("config.json", "{"),
        ("config.json", '{"parameters": 3, "method": "trace_study"}'),
        ("config.json", '{"parameters": {"requests": null}, "method": "trace_study"}'),
        ("config.json", '{"parameters": {"requests": null, "num_requests": 1, "generations": 1}, "method": "lad_ts"}'),
        ("thesis.txt", "mine"),
    ],
)
def test_a_study_leaves_what_is_no_study_alone(name, content, tmp_path, capsys):
    (tmp_path / name).write_text(content)
    words = refusal(capsys, load("trace_study"), "--num_requests=1000", f"--out={tmp_path}")
    assert "must be empty or hold a study" in words
    assert [path.name for path in tmp_path.iterdir()] == [name] and (tmp_path / name).read_text() == content


def test_a_study_of_few_requests_and_live_runs_of_no_policy_are_refused(tmp_path, capsys):
    file, trace_live = written(tmp_path / "requests.csv"), load("trace_live")
    assert "must hold at least 1000" in refusal(capsys, load("trace_study"), f"--requests={file}", f"--out={tmp_path}")
    for name in ("best", "jsq,", "jsq,jsq"):
        words = refusal(capsys, trace_live, f"--policies={name}", f"--out={tmp_path / 'live'}")
        assert "--policies=" in words and not (tmp_path / "live").exists()
