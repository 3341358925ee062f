"""The README keeps its word: its example scheduler runs, and its table of parameters is the declared one."""

import re
import subprocess
import sys
from pathlib import Path

from baselines.main_heuristics import HeuristicConfig
from baselines.main_heuristics import main as run_heuristic
from common.parameters import resolve

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()


def test_the_example_scheduler_runs_and_is_short(tmp_path):
    code = next(block for block in re.findall(r"```python\n(.*?)```", README, re.S) if "class TwoChoices" in block)
    assert len(code.splitlines()) <= 30
    (tmp_path / "my_scheduler.py").write_text(code)
    given = {
        "method": f"{tmp_path / 'my_scheduler.py'}:TwoChoices",
        "episodes": 2,
        "num_slots": 6,
        "out": str(tmp_path / "run"),
    }
    run_heuristic(resolve(HeuristicConfig, given), given)
    delays = [float(line.split(",")[2]) for line in (tmp_path / "run" / "delay.csv").read_text().splitlines()[1:]]
    assert len(delays) == 2
    assert min(delays) > 0


def test_the_parameter_table_is_the_one_that_the_script_prints():
    script = [sys.executable, str(ROOT / "scripts/parameter_table.py")]
    table = subprocess.run(script, capture_output=True, text=True, check=True).stdout.strip()
    assert table.count("\n") > 40
    assert table in README


def test_every_script_that_the_readme_names_is_there():
    for name in set(re.findall(r"\b(?:lad_ts|baselines|scripts)/\w+\.(?:py|sh)\b", README)):
        assert (ROOT / name).is_file(), name


def test_nothing_is_left_to_fill_in():
    assert not re.findall(r"@[A-Z0-9]+@|TODO|TBD", README)
    for picture in re.findall(r"!\[.*?\]\((.*?)\)", README):
        assert (ROOT / picture).is_file(), picture
