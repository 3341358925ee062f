"""Fitting and learned policies on a trace: what they start from, what they look at, and the command line."""

import dataclasses
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import refusal, run_here
from scripts_by_path import load

from common.parameters import ParameterError
from lad_ts.diffusion_lad import posterior_schedule
from trace_ts import main_trace
from trace_ts.event_loop import new_seen
from trace_ts.evolution import Evolution
from trace_ts.fitting import fit, validated
from trace_ts.model_trace import LATENTS, Design, ScorePolicy, chain_schedule
from trace_ts.policy_file import load_policy, read_policy, save_policy
from trace_ts.rules import RULES
from trace_ts.scenario import Scenario
from trace_ts.score_net import ScoreNet
from trace_ts.search import Search, improve
from trace_ts.simulation import simulate
from trace_ts.study import MAIN, Training, trainings
from trace_ts.synthetic import generate
from trace_ts.training import changed, fit_rule

ROOT = Path(__file__).resolve().parents[1]
REQUESTS = generate(1200, 0)
RULE = RULES["priced"]


def some_policy(design, seed=0):
    """A policy whose weights are far from those of a rule."""
    start = design.begin(np.array(RULE.constants), seed)
    return ScorePolicy(design, start + 0.3 * np.random.default_rng(seed).standard_normal(start.size))


@pytest.mark.parametrize("changes", [{}, {"load_time": 0.0}, {"discipline": "resident_first"}, {"resident_models": 3}])
def test_an_untrained_network_is_the_rule_that_it_begins_at(changes):
    scenario = changed(Scenario(), **changes)
    policy = ScorePolicy(Design(), Design().begin(np.array(RULE.constants), 0))
    rule, network = (simulate(one, REQUESTS, scenario, 1) for one in (RULE, policy))
    assert (rule.server == network.server).mean() > 0.99  # single precision decides a few near ties


@pytest.mark.parametrize("design", [Design(), Design(price=False), *(Design(steps=5, latent=name) for name in LATENTS)])
def test_compiled_scores_are_those_with_gradients(design):
    policy, seen = some_policy(design), new_seen(len(REQUESTS), 20)
    outcome = simulate(policy, REQUESTS, Scenario(), 0, seen=seen)
    inputs = (torch.from_numpy(array).float() for array in seen)
    with torch.no_grad():
        scores = ScoreNet(design, policy.parameters)(*inputs)
    assert (scores.argmin(1).numpy() == outcome.server).mean() > 0.995
    assert len(set(outcome.server.tolist())) > 5  # so that this says something


def test_a_chain_that_starts_from_what_it_remembers_differs_by_its_memory():
    chosen = [
        simulate(some_policy(Design(steps=5, latent=name)), REQUESTS, Scenario(), 0).server
        for name in ("zeros", "user")
    ]
    assert (chosen[0] != chosen[1]).any()


@pytest.mark.parametrize("steps", [1, 5, 8])
def test_the_chain_has_the_published_schedule(steps):
    schedule = posterior_schedule("vp", steps)
    expected = np.stack([schedule.mean_hat, schedule.mean_latent], 1)[::-1]
    np.testing.assert_allclose(chain_schedule(steps), expected, rtol=1e-12, atol=1e-12)


def test_a_policy_does_not_care_for_the_order_of_the_servers():
    rate, order = np.random.default_rng(0).uniform(5, 30, 12), np.random.default_rng(1).permutation(12)
    policy, scenario = some_policy(Design(hidden=8)), Scenario(num_servers=12)
    one = simulate(policy, REQUESTS, scenario, 0, rate=rate)
    other = simulate(policy, REQUESTS, scenario, 0, rate=rate[order])
    assert (order[other.server] == one.server).mean() > 0.99


def test_the_search_finds_the_least_and_is_the_same_again():
    goal = np.array([1.0, -2.0, 0.5])

    def costs(candidates, generator):
        return ((candidates - goal) ** 2).sum(1) + generator.normal() * 0  # the draw is the search's own

    def validate(point):
        return float(((point - goal) ** 2).sum())

    search = Search(200)
    found = [improve(Evolution(np.zeros(3), costs, search, 0), validate, search) for _ in range(2)]
    np.testing.assert_allclose(found[0].parameters, goal, atol=0.1)
    np.testing.assert_array_equal(found[0].parameters, found[1].parameters)
    assert found[0].cost == min(cost for _, cost in found[0].history)


def test_fitting_does_not_look_at_the_second_half():
    half, scenario, search = len(REQUESTS) // 2, Scenario(num_servers=5), Search(2, 2)
    free = RULE.free_constants(scenario)
    late = np.where(np.arange(len(REQUESTS)) < half, REQUESTS.model, 0)
    longer = np.where(np.arange(len(REQUESTS)) < half, REQUESTS.work, 5 * REQUESTS.work)
    found = [
        fit(lambda x: RULE.with_constants(scenario, x), np.zeros(len(free)), requests, [scenario], search, 0)
        for requests in (REQUESTS, dataclasses.replace(REQUESTS, model=late, work=longer))
    ]
    np.testing.assert_array_equal(found[0].parameters, found[1].parameters)
    assert found[0].cost == found[1].cost


def test_policies_are_kept_and_damaged_files_refused(tmp_path):
    policy, path = some_policy(Design(hidden=4, steps=3, latent="model")), tmp_path / "a.safetensors"
    save_policy(path, policy, {"name": "lad_ts"})
    again = load_policy(path)
    assert again.design == policy.design
    np.testing.assert_array_equal(again.parameters, policy.parameters)
    for content in (b"", path.read_bytes()[:-8], b"\0" * 100, path.read_bytes().replace(b"model", b"moddl")):
        (tmp_path / "b.safetensors").write_bytes(content)
        with pytest.raises(ParameterError, match="must be a policy"):
            load_policy(tmp_path / "b.safetensors")


def test_what_comes_with_the_project_is_whole_and_good_on_other_requests():
    """Its networks were trained on a trace; here they see the generator's requests."""
    paths = sorted((ROOT / "models/trace").iterdir())
    policies = {path.name: read_policy(path, "start_from") for path in paths}
    requests, test = generate(6000, 3), slice(3000, None)
    names = ("L_12_load_0.8_priced_0.json", "L_12_load_0.8_score_0.safetensors", "every_cell_score_0.safetensors")
    rules = RULES["opt_ts_loading"], RULES["affinity"]
    delays = [
        np.mean([simulate(one, requests, Scenario(), draw, test).delay.mean() for draw in range(3)])
        for one in (*rules, *(policies[name] for name in names))
    ]
    assert delays[0] > 3 * delays[2] and delays[1] > delays[2] > max(delays[3:])


def test_the_command_trains_measures_and_goes_on(tmp_path, capsys):
    out = tmp_path / "run"
    flags = ["--num_requests=600", "--num_servers=4", "--draws=2", "--generations=2", "--pairs=2"]
    run_here(main_trace, *flags, "--policies=opt_ts,affinity_fitted,score", f"--out={out}")
    assert "score" in capsys.readouterr().out
    kept = (out / "policies" / "score.safetensors").read_bytes()
    table = (out / "table.csv").read_text()
    assert (out / "delays.png").stat().st_size > 10_000
    run_here(main_trace, f"--resume={out}")
    assert (out / "policies" / "score.safetensors").read_bytes() == kept and (out / "table.csv").read_text() == table


REFUSED = [
    (("--policies=opt_ts,best",), "--policies=best: must be of random, "),
    (("--requests={one}",), "must hold at least two requests"),
    (("--requests={words}",), "line 2: work='much': must be a number"),
    (("--checkpoint={words}",), "must be a policy of main_trace.py"),
    (("--age=-1",), "--age=-1: must be a number, at least 0"),
]


@pytest.mark.parametrize(("flags", "words"), REFUSED)
def test_mistakes_are_told_in_a_line_before_anything_is_written(flags, words, tmp_path, capsys):
    (tmp_path / "one").write_text("time_s,user,work,model\n1,a,30,b\n")
    (tmp_path / "words").write_text("time_s,user,work,model\n1,a,much,b\n")
    given = [flag.format(one=tmp_path / "one", words=tmp_path / "words") for flag in flags]
    assert words in refusal(capsys, main_trace, *given, f"--out={tmp_path / 'run'}")
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_the_study_makes_its_tables_and_goes_on_with_what_is_there(tmp_path, capsys):
    out = tmp_path / "study"
    flags = ["--num_requests=1000", "--generations=1", "--seeds=1", "--draws=2", f"--out={out}"]
    trace_study = load("trace_study")
    run_here(trace_study, *flags)
    kept = {path: path.stat().st_mtime_ns for path in (out / "policies").iterdir()}
    tables = {name: (out / f"{name}.md").read_text() for name in ("cells", "main", "ablations", "blocks", "rules")}
    assert len(kept) == sum(map(len, trainings(1))) and all(
        " - |" not in tables[name] for name in ("main", "ablations", "blocks", "rules")
    )
    delays = [[float(word.split()[0]) for word in line.split("|")[2:6]] for line in tables["rules"].splitlines()[2:]]
    assert all((np.array(delays[-1]) < row).all() for row in delays[:-1])  # the bound is below every rule
    assert {"workload.png", "cells.png", "ablations.png"} <= {path.name for path in out.iterdir()}
    run_here(trace_study, *flags)
    assert kept == {path: path.stat().st_mtime_ns for path in (out / "policies").iterdir()}
    assert tables["cells"] == (out / "cells.md").read_text()
    again = tmp_path / "again"
    run_here(trace_study, *flags[:-1], f"--start_from={out / 'policies'}", "--only_measure=True", f"--out={again}")
    assert all((again / f"{name}.md").read_text() == text for name, text in tables.items() if name != "ablations")
    said = refusal(capsys, trace_study, *flags[:-1], f"--start_from={tmp_path}", f"--out={tmp_path / 'new'}")
    assert "--start_from=" in said and not (tmp_path / "new").exists()
    one, other = (Training(MAIN, name, 0).path(again) for name in ("score", "lad_ts"))
    shutil.copyfile(other, one)
    assert f"--out={one}: must hold a score" in refusal(
        capsys, trace_study, *flags[:-1], "--only_measure=True", f"--out={again}"
    )


def test_the_best_of_a_rules_searches_on_the_first_half_is_kept():
    scenarios, search, first = (
        [changed(Scenario(), num_servers=6)],
        Search(generations=2, pairs=2, threads=1),
        REQUESTS.halves()[0],
    )
    said: list[str] = []
    tell = lambda part, generation, cost: said.append(part)  # noqa: E731
    alone = [fit_rule(RULES["priced"], REQUESTS, scenarios, search, seed, tell, searches=1) for seed in range(3)]
    with ThreadPoolExecutor(1) as pool:
        costs = [validated(rule, first, scenarios, pool) for rule in alone]
    said.clear()
    best = fit_rule(RULES["priced"], REQUESTS, scenarios, search, 0, tell, searches=3)
    assert len(set(costs)) > 1 and best == alone[int(np.argmin(costs))]
    assert list(dict.fromkeys(said)) == ["priced 1/3", "priced 2/3", "priced 3/3"]
