"""The part `pocket`: scripts/train_pocket.py as it is, a minute for each of its two stages.

Start reading at `measure`.
"""

import colorsys
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from common.command_line import ROOT
from common.run_folder import load_checkpoint
from gpu_check.processes import run_script, script_flags
from gpu_check.results import Conditions, Results, SkipError
from pocket.emoji import ARCHIVE, SIDE, EmojiSet, save_emoji

SCRIPT = "scripts/train_pocket.py"
SECONDS = 60.0  # of each stage
TINY = {"vae_steps": 2, "vae_batch": 2, "latents": 16, "flow_steps": 2, "flow_batch": 2, "every": 2, "threads": 1}
MEASURES = {"vae": "psnr_db", "flow": "top1"}


def painted(count: int) -> EmojiSet:
    """Discs and squares of different colours and sizes on a transparent ground, where the archive of emoji is not."""
    pictures = []
    for k in range(count):
        image = Image.new("RGBA", (SIDE, SIDE))
        red, green, blue = (round(255 * c) for c in colorsys.hsv_to_rgb(k / count, 0.8, 0.9))
        shape = ImageDraw.Draw(image).ellipse if k % 2 else ImageDraw.Draw(image).rectangle
        shape((4 + k % 16, 4, 59, 59 - k % 16), fill=(red, green, blue, 255))
        pictures.append(np.array(image))
    names = [f"{'disc' if k % 2 else 'square'} {k}" for k in range(count)]
    return EmojiSet(np.stack(pictures), names, [[f"thing {k}"] for k in range(count)], [["shape"]] * count)


def archive(given: Conditions) -> tuple[Path, str]:
    """The archive of emoji, or of painted shapes where there is none and in a dry run; and which of them it is."""
    if ARCHIVE.exists() and not given.dry:
        return ARCHIVE, "Fluent emoji"
    path = Path(given.scratch) / "emoji.npz"
    save_emoji(path, painted(12 if given.dry else 128))
    return path, "painted shapes"


def measure(given: Conditions, results: Results) -> None:
    """Train each stage for a minute, and add its steps a second and its measure then."""
    path, data = archive(given)
    shared: dict[str, object] = {"emoji": path, "device": given.device}
    if given.dry:  # both stages of a few steps, in one run that comes to its end by itself
        out = Path(given.scratch) / "pocket"
        run_script(SCRIPT, *script_flags(**shared, **TINY, out=out))
        for stage in MEASURES:
            add(results, stage, out / f"{stage}.pt", data)
        return
    runs: dict[str, dict[str, object]] = {"vae": {}, "flow": {"vae": ROOT / "models/pocket", "latents": 20_000}}
    for waiting, (stage, flags) in zip((2, 1), runs.items(), strict=True):
        with results.case(stage):
            seconds = min(SECONDS, given.left() / waiting - 15)
            if seconds < 10:
                raise SkipError("no time was left")
            out = Path(given.scratch) / f"pocket_{stage}"
            run_script(SCRIPT, *script_flags(**shared, **flags, every=250, out=out), seconds=seconds)
            add(results, stage, out / f"{stage}.pt", data)


def add(results: Results, stage: str, checkpoint: Path, data: str) -> None:
    """Add what the last checkpoint of a stage tells. Raises RuntimeError when there is none."""
    if not checkpoint.exists():
        raise RuntimeError(f"the stage {stage} has not come to its first checkpoint")
    content = load_checkpoint(checkpoint, "out")
    steps, loss, measured = content["history"][-1]
    results.add(stage, "steps a second", steps / content["seconds"], "1/s", f"{data}, {steps} steps, samples included")
    results.add(stage, "loss", float(loss))
    results.add(stage, MEASURES[stage], float(measured), "dB" if stage == "vae" else "")
