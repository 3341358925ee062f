"""Ctrl-C and SIGTERM while a script imports what it needs: no traceback, whenever they come."""

import ast
import os
import signal
import time

import pytest
from helpers import ROOT, answers_signals, start_script

from common.entry_scripts import command_class


def test_every_script_prepares_for_ctrl_c_before_anything_else():
    found = 0
    for path in sorted(ROOT.glob("[a-z]*/*.py")):
        tree = ast.parse(path.read_text())
        if path.parent.name == "tests" or not command_class(tree):
            continue
        found += 1
        first = next(node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom))
        assert ast.unparse(first) == "import common.quiet_start", path
    assert found >= 30


@pytest.mark.parametrize("script", ["lad_ts/main_lad.py", "scripts/sweep.py"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_during_imports_leaves_no_traceback(script, number, tmp_path):
    for delay in (0.0, 0.2, 0.5, 1.0):
        process = answers_signals(start_script(script, "--out", "run", folder=tmp_path))
        time.sleep(delay)
        process.send_signal(number)
        _, told = process.communicate(timeout=60)
        assert "Traceback" not in told
        assert process.returncode == 128 + number, told


def test_signals_after_the_end_change_nothing(tmp_path, monkeypatch):
    """Packages may have much to do when a process ends: an exit code is not lost there, and nothing is printed."""
    (tmp_path / "sitecustomize.py").write_text(
        "import atexit, os, signal\n"
        "for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):\n"
        "    atexit.register(os.kill, os.getpid(), number)\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    process = start_script("scripts/sweep.py", "--bogus", folder=tmp_path)
    _, told = process.communicate(timeout=60)
    assert process.returncode == 2 and told.startswith("error: --bogus") and told.count("\n") == 1, told
