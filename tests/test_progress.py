"""Progress bars without a terminal, and the devices of --device."""

import re
from pathlib import Path

import pytest
import torch

from common import progress
from common.device import choose_device
from common.failure import fail
from common.parameters import ParameterError
from common.progress import Progress, brief, hidden
from lad_ts.model_lad import LadConfig
from lad_ts.run_parameters import DEVICES
from resd3_medium.infer_parameters import ModelParameters

ROOT = Path(__file__).resolve().parents[1]


def test_without_a_terminal_a_bar_is_a_line_every_so_often(capsys, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    with Progress(total=500, unit="episode", desc="LAD-TS") as bar:
        for _ in range(500):
            now[0] += 0.5
            bar.update()
            bar.set_postfix_str(f"delay {brief(0.00234)} s")
    text = capsys.readouterr().err
    counts = [int(n) for n in re.findall(r"(\d+)/500", text)]
    assert counts == [0, *range(60, 500, 60), 500]
    assert "\r" not in text and len(text.splitlines()) == len(counts) and "delay 0.00234 s" in text


def test_what_fails_has_its_error_as_its_last_line(capsys):
    with pytest.raises(SystemExit), Progress(total=3) as bar:
        bar.update()
        fail("lost", 1)
    assert capsys.readouterr().err.splitlines()[-1] == "error: lost"


def test_short_bars_that_a_terminal_would_clear_and_hidden_ones_say_nothing(capsys):
    list(Progress(range(3), leave=False))
    with hidden():
        list(Progress(range(3)))
    assert capsys.readouterr().err == ""


def test_every_bar_of_the_project_is_a_progress():
    files = [path for path in ROOT.glob("[a-z]*/*.py") if re.search(r"^(from|import) tqdm", path.read_text(), re.M)]
    assert [path.relative_to(ROOT).as_posix() for path in files] == ["common/progress.py"]


@pytest.mark.parametrize(("value", "text"), [(7.876, "7.88"), (0.0023412, "0.00234"), (1234.4, "1234")])
def test_a_brief_number_has_three_digits_that_count(value, text):
    assert brief(value) == text


def test_a_device_may_be_one_of_several(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert choose_device("cuda:1") == torch.device("cuda", 1)
    assert ModelParameters.of(device="cuda:1").device == LadConfig.of(device="cuda:1").device == "cuda:1"
    for wrong, words in (("cuda:2", "at most cuda:1"), ("cuda:x", "one of"), ("cuda:-1", "one of"), ("mps", "one of")):
        with pytest.raises(ParameterError, match=words):
            choose_device(wrong, DEVICES)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ParameterError, match=r"--device=cuda:0: .* has no CUDA"):
        choose_device("cuda:0")


@pytest.mark.parametrize("wrong", ["cuda:N", "cuda:", "mps:0", "auto1"])
def test_a_device_that_is_none_is_refused(wrong):
    with pytest.raises(ParameterError, match="device"):
        choose_device(ModelParameters.of(device=wrong).device)
