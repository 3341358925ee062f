"""The files of rules: what they keep of fitted cuts and of a partition of models, and what they refuse."""

import dataclasses
import json

import numpy as np
import pytest
from helpers import refusal, run_here
from hypothesis import given, settings
from hypothesis import strategies as st

from common.parameters import ParameterError
from common.tables import read_csv
from trace_ts import main_trace
from trace_ts.policy_file import read_policy, read_rule, write_rule
from trace_ts.rules import RULES
from trace_ts.scenario import Scenario
from trace_ts.sita import Partition, partition, size_intervals
from trace_ts.workload import Requests

CUTS = size_intervals((20.0, 55.5), (0.25, 0.7), "fast_first")
PARTS = partition(2, (5.0, 40.0, 0.0, 5.0), (1, 0, 3, 2))


def content_of(rule, folder):
    """What a file of the rule holds."""
    write_rule(folder / "rule.json", rule)
    return json.loads((folder / "rule.json").read_text())


def put(content, path, value):
    """The content with one value in it, at this path of keys, replaced."""
    if not path:
        return value
    return content | {path[0]: put(content.get(path[0], {}), path[1:], value)}


# --- what is kept ---


@pytest.mark.parametrize("rule", [*RULES.values(), CUTS, PARTS], ids=lambda rule: rule.name)
def test_a_rule_is_the_same_after_it_was_kept(rule, tmp_path):
    rule = dataclasses.replace(rule, constants=(1.0, 0.1, 2.0, 1 / 3, 4.0, 5e-7, 0.0))
    write_rule(tmp_path / "rule.json", rule)
    assert read_rule(tmp_path / "rule.json") == rule == read_policy(tmp_path / "rule.json", "checkpoint")


def test_a_file_of_name_and_constants_alone_is_a_rule(tmp_path):
    constants = {"alpha": 1, "beta": 2, "theta": 3, "phi": 4, "psi": 5, "chi": 6, "temperature": 7}
    (tmp_path / "old.json").write_text(json.dumps({"rule": "priced", "constants": constants}))
    assert read_rule(tmp_path / "old.json") == dataclasses.replace(RULES["priced"], constants=(1, 2, 3, 4, 5, 6, 7))


def plain_classes(classes, work):
    """The class of each model, the most work first, and the work of each class."""
    total, found = [0.0] * classes, {}
    for model in sorted(work, key=lambda model: -work[model]):
        found[model] = total.index(min(total))
        total[found[model]] += work[model]
    return found


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.data())
def test_models_of_a_catalogue_stand_for_those_of_the_trace_by_rank(data):
    """As with the requests of a file: the work of the trace's models that a model stands for is its work."""
    models, catalogue, classes = (data.draw(st.integers(1, high)) for high in (8, 10, 4))
    count = data.draw(st.integers(models, 40))
    model = np.array([*range(models), *data.draw(st.lists(st.integers(0, models - 1), min_size=count, max_size=count))])
    work = 2.0 ** np.arange(len(model)) / 3  # no sums alike
    requests = Requests(np.arange(len(model)) * 1.0, model * 0, work, model, 1, models, len(model))
    popular = sorted(range(models), key=lambda m: (-np.sum(model == m), m))
    of_catalogue = dict.fromkeys(range(catalogue), 0.0)
    for rank, number in enumerate(popular):
        of_catalogue[rank % catalogue] += work[model == number].sum()
    there = Requests(np.zeros(1), np.zeros(1, int), np.ones(1), np.zeros(1, int), 1, catalogue)
    found = Partition(classes).on(requests)(np.ones(9), there)["class_of_model"]
    expected = plain_classes(min(classes, catalogue), of_catalogue)
    assert found.tolist() == [expected[m] for m in range(catalogue)]


# --- what is refused ---

WRONG = [
    (PARTS, ("partition", "work"), [1.0, 2.0]),
    (PARTS, ("partition", "work"), [1.0, 2.0, 3.0, "4"]),
    (PARTS, ("partition", "work"), [1.0, 2.0, 3.0, -4.0]),
    (PARTS, ("partition", "work"), [1.0, 2.0, 3.0, float("nan")]),
    (PARTS, ("partition", "work"), [1.0, 2.0, 3.0, 10**400]),
    (PARTS, ("partition", "work"), [1e308] * 4),
    (PARTS, ("partition", "work"), [0.0] * 4),
    (PARTS, ("partition", "work"), None),
    (PARTS, ("partition",), {"classes": 2, "work": [], "rank": []}),
    (PARTS, ("partition",), {"classes": 2}),
    (PARTS, ("partition",), None),
    (PARTS, ("partition",), [2]),
    (PARTS, ("partition", "rank"), [1, 0, 3, 3]),
    (PARTS, ("partition", "rank"), [1, 0, 3, 4]),
    (PARTS, ("partition", "rank"), [1, 0, 3.0, 2]),
    (PARTS, ("partition", "rank"), [True, 0, 3, 2]),
    (PARTS, ("partition", "rank"), [[1], 0, 3, 2]),
    (PARTS, ("partition", "classes"), 0),
    (PARTS, ("partition", "classes"), 2.0),
    (PARTS, ("partition", "classes"), True),
    (PARTS, ("size_intervals",), {"limits": [1.0], "shares": [0.5], "order": "mixed"}),
    (PARTS, ("rule",), "sita_2"),
    (CUTS, ("rule",), "sita_2"),
    (CUTS, ("rule",), ["sita_3"]),
    (CUTS, ("size_intervals",), None),
    (CUTS, ("size_intervals",), "cuts"),
    (CUTS, ("size_intervals",), {"limits": [], "shares": [], "order": "mixed"}),
    (CUTS, ("size_intervals", "limits"), [20.0]),
    (CUTS, ("size_intervals", "limits"), [55.0, 20.0]),
    (CUTS, ("size_intervals", "limits"), [20.0, 20.0]),
    (CUTS, ("size_intervals", "limits"), [0.0, 20.0]),
    (CUTS, ("size_intervals", "limits"), [20.0, float("inf")]),
    (CUTS, ("size_intervals", "limits"), [20.0, float("nan")]),
    (CUTS, ("size_intervals", "limits"), [20.0, 10**400]),
    (CUTS, ("size_intervals", "limits"), {"20": 1, "50": 2}),
    (CUTS, ("size_intervals", "limits"), [False, 20.0]),
    (CUTS, ("size_intervals", "shares"), [0.2, 1.0]),
    (CUTS, ("size_intervals", "shares"), [0.2, 0.1]),
    (CUTS, ("size_intervals", "shares"), [0.2, None]),
    (CUTS, ("size_intervals", "order"), "faster_first"),
    (CUTS, ("size_intervals", "order"), ["mixed"]),
    (CUTS, ("constants", "alpha"), float("inf")),
    (RULES["priced"], ("constants", "alpha"), 10**400),
    (RULES["priced"], ("constants", "alpha"), "1"),
    (RULES["priced"], ("constants",), [1, 1, 1, 1, 1, 1, 1]),
    (RULES["priced"], ("size_intervals",), {"limits": [1.0], "shares": [0.5], "order": "mixed"}),
    (RULES["priced"], ("partition",), {"classes": 1, "work": [1.0], "rank": [0]}),
    (RULES["priced"], ("rule",), "sita_2"),
    (RULES["priced"], ("rule",), "partition"),
    (RULES["priced"], (), []),
    (RULES["priced"], (), None),
]


@pytest.mark.parametrize(("rule", "path", "value"), WRONG)
def test_a_malformed_file_is_refused_in_a_line(rule, path, value, tmp_path):
    (tmp_path / "bad.json").write_text(json.dumps(put(content_of(rule, tmp_path), path, value)))
    with pytest.raises(ParameterError, match=r"must be a rule of main_trace\.py") as error:
        read_rule(tmp_path / "bad.json", "checkpoint")
    assert error.value.flag == "checkpoint" and "\n" not in str(error.value) and len(str(error.value)) < 400


@pytest.mark.parametrize("rule", [CUTS, PARTS, RULES["priced"]], ids=lambda rule: rule.name)
def test_nothing_of_a_file_may_be_missing(rule, tmp_path):
    content = content_of(rule, tmp_path)
    for key, value in content.items():
        parts = value if isinstance(value, dict) else {}
        for less in ({k: v for k, v in content.items() if k != key}, *(lacking(content, key, part) for part in parts)):
            (tmp_path / "bad.json").write_text(json.dumps(less))
            with pytest.raises(ParameterError, match="must be a rule"):
                read_rule(tmp_path / "bad.json")


@pytest.mark.parametrize(
    ("path", "words"),
    [
        (("wait",), "an unknown wait"),
        (("constants", "gamma"), "an unknown gamma"),
        (("size_intervals", "slow_first"), "an unknown slow_first"),
        (("rule",), "sita_3 in place of nothing"),
    ],
)
def test_what_a_file_has_besides_is_named(path, words, tmp_path):
    """And so is what it lacks: no name of Python's own errors."""
    (tmp_path / "bad.json").write_text(json.dumps(put(content_of(CUTS, tmp_path), path, "nothing")))
    with pytest.raises(ParameterError, match=words):
        read_rule(tmp_path / "bad.json")
    (tmp_path / "bad.json").write_text(json.dumps(lacking(content_of(CUTS, tmp_path), "size_intervals", "order")))
    with pytest.raises(ParameterError, match="order is missing"):
        read_rule(tmp_path / "bad.json")


def lacking(content, key, part):
    """The content without a part of what stands under a key."""
    return content | {key: {k: v for k, v in content[key].items() if k != part}}


def test_a_partition_that_knows_no_work_cannot_be_kept(tmp_path):
    with pytest.raises(ValueError, match="knows no work"):
        write_rule(tmp_path / "rule.json", partition(3))
    assert not any(tmp_path.iterdir())


# --- main_trace.py ---

FITTED = ("affinity_fitted", "sita_2_fitted", "partition_fitted")
SMALL = ("--num_requests=400", "--num_servers=3", "--draws=2", "--generations=1", "--pairs=1")


def test_fits_are_kept_and_found_again(tmp_path, monkeypatch):
    out = tmp_path / "run"
    run_here(main_trace, *SMALL, f"--policies=jsq,{','.join(FITTED)}", f"--out={out}")
    kept = {path.name: path.read_bytes() for path in (out / "policies").iterdir()}
    draws = (out / "draws.csv").read_bytes()
    assert sorted(kept) == sorted(f"{name}.json" for name in FITTED)
    made = []
    real = main_trace.ready_policy
    monkeypatch.setattr(main_trace, "ready_policy", lambda name, *more: made.append(name) or real(name, *more))
    run_here(main_trace, f"--resume={out}")
    assert made == ["jsq"] and (out / "draws.csv").read_bytes() == draws
    assert kept == {path.name: path.read_bytes() for path in (out / "policies").iterdir()}


@pytest.mark.parametrize("name", ["sita_2_fitted", "partition_fitted"])
def test_a_fitted_rule_is_measured_from_its_file(name, tmp_path):
    run_here(main_trace, *SMALL, f"--policies={name}", f"--out={tmp_path / 'run'}")
    file = tmp_path / "run/policies" / f"{name}.json"
    run_here(main_trace, *SMALL, "--policies=jsq", f"--checkpoint={file}", f"--out={tmp_path / 'again'}")
    first, again = (read_csv(tmp_path / part / "table.csv") for part in ("run", "again"))
    found = [row | {"policy": name} for row in again if row["policy"] == "checkpoint"]
    assert found == first != []


def test_a_file_that_is_no_rule_is_refused_before_anything_is_written(tmp_path, capsys):
    (tmp_path / "bad.json").write_text('{"rule": "sita_2"}')
    for name in ("bad.json", "none.json", "none.safetensors", "."):
        words = refusal(capsys, main_trace, f"--checkpoint={tmp_path / name}", f"--out={tmp_path / 'run'}")
        assert "--checkpoint=" in words and "of main_trace.py (" in words and not (tmp_path / "run").exists()
    run_here(main_trace, *SMALL, "--policies=jsq", f"--out={tmp_path / 'run'}")
    (tmp_path / "run/policies").mkdir()
    (tmp_path / "run/policies/sita_2_fitted.json").write_text("[]")
    capsys.readouterr()
    assert "--resume=" in refusal(capsys, main_trace, f"--resume={tmp_path / 'run'}", "--policies=sita_2_fitted")


def test_a_partition_follows_the_servers_that_there_are():
    """A file of three classes on one or two servers."""
    rule = partition(3, PARTS.more.work, PARTS.more.rank)
    requests = Requests(np.zeros(1), np.zeros(1, int), np.ones(1), np.zeros(1, int), 1, 4, 1)
    for servers in (1, 2, 3, 7):
        policy, _ = rule.arrays(Scenario(num_servers=servers), np.arange(1.0, servers + 1), requests)
        assert policy.allowed.sum() == servers and (policy.allowed.sum(0) == 1).all()
        assert set(policy.class_of_model) == set(range(min(3, servers)))
