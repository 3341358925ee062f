"""What several test files share."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def models(tmp_path_factory) -> Path:
    """A folder with tiny random model files of Stable Diffusion 3's layout, T5 included."""
    folder = tmp_path_factory.mktemp("models")
    script = [sys.executable, str(ROOT / "scripts/make_random_models.py"), "--t5=True", f"--out={folder}"]
    subprocess.run(script, check=True, capture_output=True)
    return folder
