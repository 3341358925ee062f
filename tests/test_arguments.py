"""How arguments are read: what is help and what is a value, letters that stand for names, and paths below ~."""

import dataclasses
import json
import re

import pytest
from helpers import refusal, run_here

from baselines import main_heuristics, main_opt, main_own
from common.command_line import parse
from common.entry_scripts import find_scripts
from common.parameters import ParameterError, Parameters, field_type, parameter, resolve
from experiments.jobs import parse_methods
from resd3_medium.infer_parameters import InferConfig

SMALL = ["--num_bs=2", "--num_tasks=3", "--num_slots=2", "--episodes=1"]


def read(*arguments: str, cls: type[Parameters] = InferConfig) -> dict:
    return parse(cls, list(arguments), "what it does", "script.py")


@pytest.mark.parametrize(
    "arguments",
    [
        "-h",
        "--help",
        "-h 512",
        "-h=512",
        "--prompt dog -h",
        "--prompt dog --height 64 --help",
        "--height -h",
        "--out --help",
        "--sampler -h",
        "--prompt -h -h",
        "--prompt=dog --help",
        "--seed=1 --seed=2 --help",
        "-s 3 -h",
    ],
)
def test_help_is_help_wherever_it_stands(arguments, capsys):
    with pytest.raises(SystemExit) as ended:
        read(*arguments.split())
    assert ended.value.code == 0 and "--negative_prompt" in capsys.readouterr().out


@pytest.mark.parametrize("text", ["-h", "--help", "-h=1", "-s", "-1", "--help me", "- dash", "~/home", "=1", "1e5", ""])
@pytest.mark.parametrize("name", ["prompt", "negative_prompt"])
def test_a_value_that_follows_a_text_is_text(name, text):
    value = [text] if name == "prompt" else text
    assert read(f"--{name}={text}", "--width=64") == {name: value, "width": 64}
    if text != "--help me":  # which looks like a parameter's name
        assert read(f"--{name}", text, "--width", "64") == {name: value, "width": 64}


@dataclasses.dataclass(kw_only=True)
class Letters(Parameters):
    """Parameters, some of which have a letter of their own."""

    width: int = parameter(1, "width")
    gain: float = parameter(1.0, "gain")
    text: str = parameter("", "text", empty=True)
    same: bool = parameter(False, "same")
    slow: int = parameter(1, "slow")
    height: int = parameter(1, "height")


def test_letters_that_one_parameter_starts_with_stand_for_it(capsys):
    assert read("-w", "3", "-g=-2.5", "-t", "-s", cls=Letters) == {"width": 3, "gain": -2.5, "text": "-s"}
    assert read("-g", "-1e-3", "--slow", "-4", cls=Letters) == {"gain": -0.001, "slow": -4}
    assert read("--same", "--slow=2", cls=Letters) == {"same": True, "slow": 2}
    for arguments in (["-s", "3"], ["-s=3"], ["--s", "3"]):
        with pytest.raises(ParameterError, match=r"--s.*whole name of one parameter: --same or --slow"):
            read(*arguments, cls=Letters)
    with pytest.raises(ParameterError, match="--width: must be given once, not 2 times"):
        read("-w", "3", "--width=4", cls=Letters)
    with pytest.raises(ParameterError, match="no such parameter"):
        resolve(Letters, read("-z", "3", cls=Letters))


def paths() -> list:
    """Every parameter of the project's scripts whose words name a file or folder."""
    words = re.compile(r"\b(files?|folder|FILE|archive|image to start|PNG|checkpoint)\b")
    return [
        pytest.param(script.parameters, field, id=f"{script.path}-{field.name}")
        for script in find_scripts()
        for field in dataclasses.fields(script.parameters)
        if field_type(script.parameters, field.name)[0] in (str, tuple) and not field.metadata["choices"]
        if words.search(field.metadata["text"]) and field.name not in ("arrivals_sha256", "label", "methods")
    ]


@pytest.mark.parametrize(("cls", "field"), paths())
def test_every_parameter_that_is_a_path_knows_the_home_folder(cls, field, monkeypatch):
    monkeypatch.setenv("HOME", "/at/home")
    assert field.metadata["path"]
    given = read(f"--{field.name}", "~/a b/x~y", cls=cls)[field.name]
    several = field_type(cls, field.name)[0] is tuple
    assert given == (["/at/home/a b/x~y"] if several else "/at/home/a b/x~y")
    blank = cls(**{field.name: ("~",) if several else "~"})  # what a command line has not seen
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cls, "check", lambda self: None)
        value = getattr(blank.checked(), field.name)
    assert value == (("/at/home",) if several else "/at/home")


def test_what_is_no_path_or_nobodys_home_stays_as_it_is(monkeypatch):
    monkeypatch.setenv("HOME", "/at/home")
    assert read("--prompt", "~/x", "--negative_prompt=~") == {"prompt": ["~/x"], "negative_prompt": "~"}
    assert read("--out", "~nobody-of-this-name/x")["out"] == "~nobody-of-this-name/x"
    assert read("--out=a/~", "--lora", "~/a.safetensors:0.5")["lora"] == ["/at/home/a.safetensors:0.5"]


RULE = """
import numpy as np
from lad_ts.scheduler import Scheduler

class First(Scheduler):
    def act(self, slot):
        return np.zeros(slot.mask.shape, dtype=int)
"""


def test_runs_write_below_the_home_folder_and_record_the_whole_path(tmp_path, monkeypatch, capsys, no_plots):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "mine.py").write_text(RULE)
    (tmp_path / "tasks.csv").write_text("time_s,base_station,input_mbit,steps\n0,0,1,2\n0.5,1,1,2\n1.5,0,1,2\n")
    run_here(main_opt, *SMALL, "--arrivals", "~/tasks.csv", "--out", "~/run")
    stored = json.loads((tmp_path / "run" / "config.json").read_text())["parameters"]
    assert (stored["out"], stored["arrivals"]) == (str(tmp_path / "run"), str(tmp_path / "tasks.csv"))
    run_here(main_heuristics, *SMALL, "--method=~/mine.py:First", "--out=~/own")
    assert (tmp_path / "own" / "summary.json").is_file()
    assert f"--method={tmp_path}/mine.py:First: the class does not learn" in refusal(
        capsys, main_own, "--method", "~/mine.py:First"
    )
    assert parse_methods("opt_ts, ~/mine.py:First") == ["opt_ts", f"{tmp_path}/mine.py:First"]
