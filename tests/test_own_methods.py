"""Classes of a user's own file: learners from training to comparison, and mistakes, which end in one line."""

import json

import pytest
import torch
from helpers import ROOT, refusal, run_here
from pages import FENCE
from scripts_by_path import load

from baselines import main_heuristics, main_own
from baselines.methods import choose, full_name
from common.parameters import ParameterError
from common.tables import read_csv
from experiments.commands import command_behind

SMALL = ["--num_bs", 3, "--num_tasks", 4, "--num_slots", 6, "--episodes", 2]
BLOCKS = [body for _, _, body in FENCE.findall((ROOT / "docs" / "methods.md").read_text())]
BANDIT = next(block for block in BLOCKS if "class BanditAgents" in block)
HEAD = """
import abc, sys
import numpy as np
import torch
from lad_ts.agents import AgentParameters, StackedAgents
from lad_ts.scheduler import LearningScheduler, Scheduler

class Rule(Scheduler, abc.ABC):
    def act(self, slot):
        return np.zeros(slot.mask.shape, int)

class Learner(LearningScheduler, abc.ABC):
    def act(self, slot):
        return np.zeros(slot.mask.shape, int)
    def learn(self, slot, action, delay, following):
        pass
    def state_dict(self):
        return {}
    def load_state_dict(self, state):
        pass

"""


@pytest.fixture
def place(tmp_path, monkeypatch, no_plots) -> str:
    """The learner of docs/methods.md as it stands there, by a name below the working directory."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_bandit.py").write_text(BANDIT)
    return "my_bandit.py:BanditAgents"


def test_the_pages_learner_trains_and_goes_on_to_the_same_numbers(place, tmp_path, capsys):
    small = ["--method", place, *SMALL[:-2], "--learning_start", 10, "--step", 0.2]
    run_here(main_own, *small, "--episodes", 4, "--out", "whole")
    run_here(main_own, *small, "--episodes", 2, "--out", "parts")
    run_here(main_own, "--resume", "parts", "--episodes", 4)
    assert (tmp_path / "parts/delay.csv").read_bytes() == (tmp_path / "whole/delay.csv").read_bytes()
    value = torch.load(tmp_path / "whole/checkpoint.pt", weights_only=True)["learner"]["value"]
    assert value.shape == (3, 3) and (value < 0).any()  # mean rewards, which are negative delays
    run_here(main_own, "--evaluate", "whole/checkpoint.pt", "--evaluation_episodes", 1)
    assert "another state" not in capsys.readouterr().out
    command = command_behind(tmp_path / "whole").command
    assert f"main_own.py --method {place}" in command and "--step 0.2" in command

    (tmp_path / "my_bandit.py").write_text(BANDIT + "\n")
    told = "another state of the file of BanditAgents"
    assert told in refusal(capsys, main_own, "--resume", "whole", "--episodes", 5)
    run_here(main_own, "--evaluate", "whole/checkpoint.pt", "--evaluation_episodes", 1)
    assert told in capsys.readouterr().out


def test_help_lists_the_parameters_of_the_class(place, capsys):
    with pytest.raises(SystemExit):
        run_here(main_own, "--method", place, "--help")
    assert "--step " in capsys.readouterr().out
    assert "--method: must be given" in refusal(capsys, main_own)


def test_names_of_own_learners_have_variants(place):
    assert full_name(place) == f"{place}:tuned"
    method, variant = choose(f"{place}:paper")
    assert method.learns and method.source and variant.flags == {"preset": "paper"}
    for name in (f"{place}:best", f"{place}:", "my_bandit.py", "lad_ts:"):
        with pytest.raises(ParameterError):
            choose(name)


def test_own_learners_are_compared_and_swept(place, tmp_path, capsys):
    short = ["--episodes", 2, "--seeds", 1]
    reproduce = load("reproduce")
    run_here(reproduce, "--methods", f"{place}:paper,opt_ts", *short, "--out", "both")
    assert {"BanditAgents (paper)", "Opt-TS"} <= {row["method"] for row in read_csv(tmp_path / "both/table.csv")}
    sweep = ["--vary", "step", "--values", "0.1,1", "--methods", place, *short, "--out", "swept"]
    run_here(load("sweep"), *sweep)
    stored = [json.loads(path.read_text()) for path in sorted((tmp_path / "swept/runs").glob("*/config.json"))]
    assert [run["parameters"]["step"] for run in stored] == [0.1, 1.0]
    (tmp_path / "my_bandit.py").write_text(BANDIT + "\n")
    assert "another state of this file" in refusal(
        capsys, reproduce, "--methods", f"{place}:paper,opt_ts", *short, "--out", "both"
    )


def test_each_script_names_the_other_for_a_class_of_the_other_kind(tmp_path, capsys):
    (tmp_path / "mine.py").write_text(HEAD)
    learner, rule = (["--method", f"{tmp_path / 'mine.py'}:{name}"] for name in ("Learner", "Rule"))
    assert "the class learns; python baselines/main_own.py runs it" in refusal(capsys, main_heuristics, *learner)
    assert "does not learn; python baselines/main_heuristics.py runs it" in refusal(capsys, main_own, *rule)
    run_here(main_own, *learner, *SMALL, "--out", tmp_path / "run")  # one without presets
    assert json.loads((tmp_path / "run/config.json").read_text())["method"] == "Learner"
    run_here(main_own, "--evaluate", tmp_path / "run/checkpoint.pt", "--evaluation_episodes", 1)


ACT = "class Own({base}):\n    def act(self, slot):\n        "
LEARNS = "class Own(Learner):\n    "
MISTAKES = [
    (ACT + "return 1 / 0", "Own.act failed at mine.py:24 with ZeroDivisionError: division by zero"),
    (ACT + "sys.exit(0)", "Own.act failed at mine.py:24 with SystemExit: 0"),
    (ACT + "return None", "Own.act returned NoneType; must be integers"),
    (ACT + "return 'first'", "Own.act returned str; must be integers"),
    (ACT + "return object()", "Own.act returned object; must be integers"),
    (ACT + "return [[0], [1, 2]]", "Own.act returned list; must be integers"),
    (ACT + "return np.full(slot.mask.shape, np.nan)", "Own.act returned float64 ["),
    (ACT + "return torch.zeros(slot.mask.shape)", "Own.act returned torch.float32 ["),
    (ACT + "return slot.mask", "Own.act returned torch.bool ["),
    (ACT + "return np.full(slot.mask.shape, 2**63, np.uint64)", "must be within 0..2"),
    (
        ACT + "return np.zeros(slot.mask.shape, int)\n    def begin(self, scenario, rows):\n        rows.a = 1",
        "Own.begin",
    ),
    (ACT + "return np.zeros(slot.mask.shape, int)\n    def __init__(self): pass", "must have __init__(self, params"),
    (ACT + "return self.random\n    def begin(self, scenario, rows): pass", "Own.begin must call super().begin(scen"),
    (ACT + "return self.params\n    def __init__(self, p, s, d): pass", "Own.__init__ must call super().__init__(par"),
    (
        ACT + "pass\n    @abc.abstractmethod\n    def more(self): pass",
        "must define more",
    ),
    (ACT + "pass\n    def run(self): pass", "must not define run"),
]


@pytest.mark.parametrize("base", ["Rule", "Learner"])
@pytest.mark.parametrize(("code", "told"), MISTAKES)
def test_a_mistake_of_an_own_class_is_told_in_one_line(base, code, told, tmp_path, capsys):
    (tmp_path / "mine.py").write_text(HEAD + code.format(base=base))
    script = main_heuristics if base == "Rule" else main_own
    line = refusal(capsys, script, "--method", f"{tmp_path / 'mine.py'}:Own", *SMALL, "--out", tmp_path / "run")
    assert told in line


@pytest.mark.parametrize(
    ("code", "told"),
    [
        ("class Own(Rule):\n    training = True", "Own must have training = False"),
        ("class Own(Rule):\n    learns = True", "Own must have learns = False"),
        ("class Own(Learner):\n    learns = False", "Own must have learns = True"),
        ("class Own(LearningScheduler):\n    def act(self, slot): pass", "Own must define learn(slot, action"),
        ("class Own(StackedAgents): pass", "Own must define choose(state, slot)"),
        (LEARNS + "def learn(self, *args): self.x", "Own.learn failed at mine.py:23 with AttributeError"),
        (LEARNS + "def state_dict(self): return {'a': np.zeros(1)}", "Own.state_dict: holds ndarray as 'a'"),
        (LEARNS + "def state_dict(self): return None", "Own.state_dict: returned NoneType"),
        (LEARNS + "Parameters = 3", "Own.Parameters must be a subclass of EnvironmentParameters"),
        (
            "class P(AgentParameters):\n    x: int = 3\nclass Own(StackedAgents):\n    Parameters = P",
            "P must be",
        ),
        ("class Own(:", "the file failed at mine.py:22 with SyntaxError"),
    ],
)
def test_a_mistake_of_an_own_learner_is_told_in_one_line(code, told, tmp_path, capsys):
    (tmp_path / "mine.py").write_text(HEAD + code)
    own = ["--method", f"{tmp_path / 'mine.py'}:Own", *SMALL, "--out", tmp_path / "run"]
    assert told in refusal(capsys, main_own, *own)


def test_a_state_that_does_not_fit_is_told(tmp_path, capsys, no_plots):
    code = LEARNS + "def load_state_dict(self, state): raise IndexError('none')"
    (tmp_path / "mine.py").write_text(HEAD + code)
    run_here(main_own, "--method", f"{tmp_path / 'mine.py'}:Own", *SMALL, "--out", tmp_path / "run")
    line = refusal(capsys, main_own, "--resume", tmp_path / "run", "--episodes", 3)
    assert "Own.load_state_dict failed at mine.py:23 with IndexError: none" in line


def test_a_learner_that_rewrites_what_it_is_shown_changes_nothing(tmp_path, no_plots):
    honest = "class Honest(Learner): pass\n"
    code = "for shown in (slot.backlog, action, delay, following.backlog, following.size): shown.zero_()"
    (tmp_path / "mine.py").write_text(
        HEAD + honest + f"{LEARNS}def learn(self, slot, action, delay, following):\n        {code}"
    )
    for name in ("Honest", "Own"):
        run_here(main_own, "--method", f"{tmp_path / 'mine.py'}:{name}", *SMALL, "--out", tmp_path / name)
    assert (tmp_path / "Own/delay.csv").read_bytes() == (tmp_path / "Honest/delay.csv").read_bytes()


def test_the_whole_traceback_is_shown_when_asked_for(tmp_path, capsys, monkeypatch):
    (tmp_path / "mine.py").write_text(HEAD + (ACT + "return 1 / 0").format(base="Rule"))
    own = ["--method", f"{tmp_path / 'mine.py'}:Own", *SMALL, "--out", tmp_path / "run"]
    monkeypatch.setenv("DEDGEAI_TRACEBACK", "1")
    with pytest.raises(SystemExit):
        run_here(main_heuristics, *own)
    assert "return 1 / 0" in capsys.readouterr().err
