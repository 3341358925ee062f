"""Compiled code that is kept in files: what becomes of a simulation when they are damaged or cannot be written."""

import os
import subprocess
import sys

import pytest

from common.entry_scripts import ROOT

PROGRAM = """
import pathlib, sys
from common import compiled
place = pathlib.Path(sys.argv[1])
compiled.place = lambda folder: place
if sys.argv[2] == "full":
    def full(*given):
        raise OSError(28, "No space left on device")
    from numba.core.caching import IndexDataCacheFile
    IndexDataCacheFile._open_for_write = full
@compiled.compiler(place)()
def double(x):
    return 2 * x
print(double(21), sum(double.stats.cache_hits.values()))
"""


def told(tmp_path, how="kept"):
    """What a program of its own prints: a compiled function's value, and how often its code was found."""
    program = tmp_path / "program.py"
    if not program.exists():
        program.write_text(PROGRAM)
    given = [sys.executable, str(program), str(tmp_path / "kept"), how]
    done = subprocess.run(
        given, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False
    )
    assert not done.returncode, done.stderr
    return done.stdout.split()


@pytest.mark.parametrize(
    ("kind", "damage"),
    [
        ("*.nbi", lambda content: b""),
        ("*.nbi", lambda content: b"\xb8" + content),
        ("*.nbc", lambda content: content[: len(content) // 2]),
    ],
)
def test_damaged_code_is_compiled_anew_and_kept(kind, damage, tmp_path):
    (tmp_path / "kept").mkdir()
    assert told(tmp_path) == ["42", "0"] and told(tmp_path) == ["42", "1"]
    files = list((tmp_path / "kept").rglob(kind))
    assert files
    for file in files:
        file.write_bytes(damage(file.read_bytes()))
    assert told(tmp_path) == ["42", "0"] and told(tmp_path) == ["42", "1"]


def test_a_full_disk_keeps_no_code_and_stops_nothing(tmp_path):
    (tmp_path / "kept").mkdir()
    assert told(tmp_path, "full") == ["42", "0"]
    assert not list((tmp_path / "kept").rglob("*.nb?"))
