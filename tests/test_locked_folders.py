"""Two processes in one folder: every script refuses a busy one before it changes anything, and files stay whole."""

import dataclasses
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import refusal, run_here

from baselines import main_opt
from common import locks
from common.command_line import parse
from common.entry_scripts import Script, find_scripts, load_module
from common.parameters import resolve
from common.run_folder import claimed, half_name, half_written, new_folder, replace_file, write_config
from meg.dataset import save_part
from pocket.emoji import SIDE, EmojiSet, save_emoji

ROOT = Path(__file__).resolve().parents[1]
SMALL = ["--num_bs=2", "--num_tasks=3", "--num_slots=4", "--episodes=4"]
LEARN = [*SMALL, "--learning_start=10"]
RUNS = ["--methods=opt_ts", "--episodes=2", "--seeds=1"]
MEG = ["--data=DATA", "--steps=4", "--batch=2", "--every=1", "--device=cpu", "--validation=2"]
# What makes each script come to its folder at once; DATA, RUNS, EMOJI and OWN are places that the tests make.
ARGUMENTS = {
    **{f"baselines/main_{name}.py": LEARN for name in ("dqn", "sac", "d2sac")},
    **{f"baselines/main_{name}.py": SMALL for name in ("opt", "heuristics")},
    "baselines/main_own.py": [*SMALL, "--method=OWN"],
    "lad_ts/main_lad.py": LEARN,
    "coop_lad_ts/main_coop.py": [*SMALL, "--fit_steps=2", "--distil_updates=2", "--batch_states=2"],
    "dedgeai/main_dedgeai.py": ["--simulate", "--scheduler=water_filling", "--num_tasks=4", "--num_servers=2"],
    "meg/make_dataset.py": ["--device=cpu", "--steps=1", "--images=2"],
    "meg/test_MEG.py": ["--device=cpu", "--steps=1", "--images=2"],
    "meg/fit_statistics.py": ["--data=DATA", "--validation=2", "--probes=0"],
    "meg/fit_shift_maps.py": ["--numbers=16", "--noises=1"],
    "meg/train_shift.py": MEG,
    "meg/ablate_shift.py": ["--data=DATA", "--validation=2", "--symbols=64"],
    "meg/bound_shift.py": ["--data=DATA", "--validation=2", "--symbols=64"],
    "meg/train_split.py": MEG,
    "meg/train_JSCC_merging.py": MEG,
    "resd3_medium/refine_sd3_infer.py": ["--models=models/pocket", "--prompt=dog", "--steps=1"],
    "scripts/check_gpu.py": ["--dry=True", "--part=step"],
    "scripts/compare.py": ["--runs=RUNS"],
    "scripts/reproduce.py": RUNS,
    "scripts/sweep.py": [*RUNS, "--values=3,4"],
    **{f"scripts/{name}.py": ["--emoji=EMOJI"] for name in ("eval_pocket", "train_pocket", "make_pocket_captions")},
}
LEARNER = """
from lad_ts.scheduler import LearningScheduler

class Own(LearningScheduler):
    def act(self, slot):
        return slot.mask.long() * 0

    def learn(self, slot, action, delay, following):
        pass

    def state_dict(self):
        return {}

    def load_state_dict(self, state):
        pass
"""


@pytest.fixture(scope="module")
def places(tmp_path_factory) -> dict[str, str]:
    """Data, runs, an archive and a learner that scripts can begin with."""
    top = tmp_path_factory.mktemp("places")
    (top / "data").mkdir()
    save_part(top / "data", 0, torch.zeros(8, 16, 8, 8), torch.zeros(8, 3, 64, 64))
    nothing: list[list[str]] = [[], []]
    save_emoji(top / "emoji.npz", EmojiSet(np.zeros((2, SIDE, SIDE, 4), np.uint8), ["a", "b"], nothing, nothing))
    (top / "own.py").write_text(LEARNER)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lad_ts.report.plot_delays", lambda *_: None)
        run_here(main_opt, *SMALL, "--out", top / "runs/opt")
    found = {"DATA": top / "data", "RUNS": top / "runs", "EMOJI": top / "emoji.npz", "OWN": f"{top / 'own.py'}:Own"}
    return {name: str(place) for name, place in found.items()}


def arguments_of(script: Script, places: dict[str, str]) -> list[str]:
    given = []
    for argument in ARGUMENTS.get(script.path, []):
        flag, _, value = argument.partition("=")
        given.append(f"{flag}={places[value]}" if value in places else argument)
    return given


def snapshot(folder: Path) -> dict[str, tuple[int, int]]:
    """Sizes and times of everything in a folder, and of the folder itself, by path."""
    states = {path: path.stat() for path in [folder, *folder.rglob("*")] if path.name != locks.LOCK}
    return {str(path): (state.st_size, state.st_mtime_ns) for path, state in states.items()}


def live(folder: Path) -> None:
    """What another process may have there: results, a journal that it is writing, half-written files."""
    (folder / "images").mkdir(parents=True)
    for name in ("config.json", "delay.csv", "images/0001_dog_s0.png", ".delay.partial.csv", ".progress"):
        (folder / name).write_text("7")
    (folder / "journal.jsonl").write_text('{"event": "submitted"}\n{"eve')


OTHER = """
import sys
from pathlib import Path
from common.run_folder import claimed, replace_file

def write(half):
    half.write_text("whole")
    print("writing", flush=True)
    sys.stdin.readline()

for line in sys.stdin:
    folder = Path(line.strip())
    with claimed(folder):
        for name in ("config.json", ".delay.partial.csv"):
            (folder / name).touch()
        replace_file(folder / "table.csv", write)
    print("written", flush=True)
"""


class OtherProcess:
    """A process that works in one folder after another, and is half through with writing a table there."""

    def __init__(self) -> None:
        pipe = subprocess.PIPE
        self.process = subprocess.Popen([sys.executable, "-c", OTHER], stdin=pipe, stdout=pipe, text=True, cwd=ROOT)

    def tell(self, line: str) -> str:
        """Go on with a line. Returns what the process says then."""
        self.process.stdin.write(f"{line}\n")
        self.process.stdin.flush()
        return self.process.stdout.readline().strip()


@pytest.fixture(scope="module")
def other() -> Iterator[OtherProcess]:
    other = OtherProcess()
    yield other
    other.process.communicate()
    assert other.process.returncode == 0


WRITERS = [s for s in find_scripts() if "out" in s.parameters.__dataclass_fields__]
FOLDERS = [s for s in WRITERS if s.parameters.__dataclass_fields__["out"].metadata["text"].startswith("folder")]


def test_every_script_writes_a_folder_or_one_file():
    files = {script.path for script in WRITERS} - {script.path for script in FOLDERS}
    names = ("report", "parameter_table", "prepare_emoji", "download_trace")
    assert files == {f"scripts/{name}.py" for name in names}
    assert len(FOLDERS) > 20


def stored_config(script: Script, given: list[str], folder: Path) -> None:
    """The config.json of a run of the script with those arguments."""
    if "simulate" in script.parameters.__dataclass_fields__:  # a simulation has nothing to go on with
        given = ["--compute=simulated", "--scheduler=water_filling"]
    config = resolve(script.parameters, parse(script.parameters, given, "", ""))
    write_config(folder, "run", dataclasses.asdict(config))


@pytest.mark.parametrize(
    ("script", "flag"),
    [
        pytest.param(script, flag, id=f"{script.path}-{flag}")
        for script in FOLDERS
        for flag in ("out", "resume")
        if flag in script.parameters.__dataclass_fields__
    ],
)
def test_every_script_refuses_a_busy_folder_before_it_changes_anything(script, flag, other, places, tmp_path, capsys):
    folder = tmp_path / "busy"
    live(folder)
    given = arguments_of(script, places)
    if flag == "resume":
        stored_config(script, given, folder)
        given = [argument for argument in given if argument.startswith("--method=")]
    assert other.tell(str(folder)) == "writing"
    before = snapshot(folder)
    line = refusal(capsys, load_module(ROOT / script.path), *given, f"--{flag}={folder}")
    assert line == f"error: --{flag}={folder}: must be free, but another process is working in it"
    assert snapshot(folder) == before and any("table" in name for name in before)
    assert other.tell("") == "written"
    assert (folder / "table.csv").read_text() == "whole"


def test_two_writers_without_a_lock_each_give_the_whole_file(tmp_path):
    """As two pages of results, or two exports of a policy."""
    code = """
from pathlib import Path
from common.run_folder import replace_file
print("ready", flush=True)
for k in range(100):
    replace_file(Path("page.html"), lambda half: half.write_text("b" * 50_000))
"""
    other = subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path, stdout=subprocess.PIPE)
    path, found = tmp_path / "page.html", set()
    other.stdout.readline()
    while other.poll() is None:
        replace_file(path, lambda half: half.write_text("a" * 30_000))
        found.add(path.read_text())
    assert other.returncode == 0
    assert {"a" * 30_000} <= found <= {"a" * 30_000, "b" * 50_000}
    assert [path.name for path in tmp_path.iterdir()] == ["page.html"]


def test_files_that_live_processes_are_writing_are_not_swept(tmp_path):
    sleeper = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    mine, theirs = half_name(tmp_path / "a.csv"), tmp_path / f".b.{sleeper.pid}-{sleeper.pid}.partial.csv"
    for path in (mine, theirs, tmp_path / ".c.partial.csv"):
        path.touch()
    assert sorted(half_written(tmp_path)) == sorted([mine, theirs, tmp_path / ".c.partial.csv"])
    with claimed(tmp_path):
        assert {path.name for path in tmp_path.iterdir()} == {mine.name, theirs.name}
    sleeper.communicate(b"\n")
    with new_folder(str(tmp_path), tmp_path):
        assert [path.name for path in tmp_path.iterdir()] == [mine.name]


def test_a_refused_folder_is_not_swept(tmp_path, capsys):
    (tmp_path / "mine.txt").touch()
    (tmp_path / ".delay.partial.csv").touch()
    before = snapshot(tmp_path)
    assert "new or empty folder" in refusal(capsys, main_opt, *SMALL, "--out", tmp_path)
    assert snapshot(tmp_path) == before


def test_long_names_can_be_written(tmp_path):
    path = tmp_path / ("n" * (os.pathconf(tmp_path, "PC_NAME_MAX") - len(".partial.csv") - 1) + ".csv")
    replace_file(path, lambda half: half.write_text("whole"))
    assert [p.read_text() for p in tmp_path.iterdir()] == ["whole"]
