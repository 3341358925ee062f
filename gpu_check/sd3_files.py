"""Model files of Stable Diffusion 3 medium with random weights, which several parts of a check share.

Start reading at `random_files`.
"""

import shutil
from pathlib import Path

from gpu_check.processes import run_script, script_flags
from gpu_check.results import Conditions, SkipError

NEEDED = 7.5e9  # bytes of the files at full size in float16, and some more


def random_files(given: Conditions) -> Path:
    """The folder of the files, written by the first part that asks. Raises SkipError when the disk has no room."""
    folder = Path(given.scratch) / "models"
    whole = folder / "sd3_medium.safetensors"  # written last
    if whole.exists():
        return folder
    free = shutil.disk_usage(given.scratch).free
    if not given.dry and free < NEEDED:
        raise SkipError(
            f"needs {NEEDED / 1e9:.1f} GB for model files in {given.scratch}, which has {free / 1e9:.1f} GB"
        )
    shutil.rmtree(folder, ignore_errors=True)  # of a part that was ended meanwhile
    sizes = {"size": "tiny", "dtype": "float32"} if given.dry else {"size": "full", "dtype": "float16"}
    run_script("scripts/make_random_models.py", *script_flags(**sizes, device=given.device, out=folder))
    return folder
