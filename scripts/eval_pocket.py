"""Measure the pocket model: are its pictures the ones asked for, and do its words combine?

Makes 3 images for each of 100 frequent names and one for every name, and looks for the nearest emoji in pixels and in
hand-made features (histograms of oriented gradients and mean colours), with the autoencoder's reconstructions as the
ceiling. Then asks for pairs of emoji and attribute that were held out of the training. Writes metrics.csv, names.csv
and contact sheets. Example:
python scripts/eval_pocket.py
"""

import common.quiet_start  # noqa: F401

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from PIL import Image

from common.command_line import command_line
from common.device import DEVICE_CHOICES, choose_device
from common.parameters import ParameterError, Parameters, parameter
from common.pictures import save_sheet
from common.progress import Progress
from common.run_folder import RESULTS, new_folder, write_config
from common.tables import write_csv
from pocket.captions import caption
from pocket.compositions import ATTRIBUTES, BACKGROUNDS, COLOURS, LAYOUTS, Compositions, Renderer, held_out
from pocket.emoji import ARCHIVE, EmojiSet, load_emoji
from pocket.measures import background_of, colour_of, count_of, features, pixels, ranks, with_limits
from pocket.vae_training import psnr
from resd3_medium.dtypes import DTYPES, choose_dtype
from resd3_medium.folders import POCKET
from resd3_medium.pipeline import Pipeline, Settings
from resd3_medium.tasks import DATASET, read_lines

NAMES = DATASET / "pocket_names.txt"
TRAINED = 300  # pairs of each kind that were trained on, drawn for comparison


@dataclasses.dataclass(kw_only=True)
class ModelParameters(Parameters):
    """The model, and how it draws."""

    GROUP: ClassVar[str] = "model"

    models: str = parameter(str(POCKET), "folder of the pocket model's files", path=True)
    steps: int = parameter(20, "denoising steps", unit="steps", low=1, high=1000)
    cfg_scale: float = parameter(3.0, "scale of the classifier-free guidance", low=0, high=100)
    shift: float = parameter(1.0, "shift of the noise levels", low=0.01, high=100)
    device: str = parameter("auto", "where the model runs", choices=DEVICE_CHOICES)
    dtype: str = parameter("auto", "dtype of the weights", choices=("auto", *DTYPES))


@dataclasses.dataclass(kw_only=True)
class EvaluationConfig(ModelParameters):
    """Every parameter of eval_pocket.py."""

    GROUP: ClassVar[str] = "evaluation"

    emoji: str = parameter(str(ARCHIVE), "archive made by prepare_emoji.py", path=True)
    names: str = parameter(str(NAMES), "file of frequent names, one per line", path=True)
    seed: int = parameter(0, "seed of the first image; image i has seed + i", low=0)
    training_seed: int = parameter(0, "seed of the training, which tells what was held out", low=0)
    per_name: int = parameter(3, "images of each frequent name", low=1)
    limit: int = parameter(0, "use only so many names and pairs of each kind, for a quick look; 0: all", low=0)
    batch_size: int = parameter(64, "images that are made together", low=1, high=1024)
    out: str | None = parameter(None, "folder of the results; default results/pocket/evaluation", path=True)


def to_tensor(images: Sequence[Image.Image]) -> torch.Tensor:
    """Images as [B, 3, H, W] in -1..1."""
    arrays = np.stack([np.asarray(image, dtype=np.float32) for image in images])
    return torch.from_numpy(arrays).permute(0, 3, 1, 2) / 127.5 - 1


class Evaluation:
    """The model and the truth, and rows of metrics.csv as they are found."""

    def __init__(self, config: EvaluationConfig, emoji: EmojiSet, folder: Path) -> None:
        device = choose_device(config.device)
        self.config, self.emoji, self.folder = config, emoji, folder
        self.pipeline = Pipeline(Path(config.models), device, choose_dtype(config.dtype, device))
        self.renderer = Renderer(emoji)
        self.truth = self.renderer(Compositions.plain(torch.arange(len(emoji))))
        self.spaces: dict[str, Callable] = {"pixels": pixels, "features": features}
        self.known = {name: space(self.truth) for name, space in self.spaces.items()}
        self.rows: list[list[Any]] = []

    def made(self, prompts: list[str], what: str) -> torch.Tensor:
        """Pictures of prompts, each with a seed of its own."""
        c, texts, images = self.config, self.pipeline.encode([*prompts, ""]), []
        settings = Settings(c.steps, 64, 64, c.cfg_scale, c.shift)
        for start in Progress(range(0, len(prompts), c.batch_size), unit="batch", desc=what):
            part = prompts[start : start + c.batch_size]
            seeds = [c.seed + start + i for i in range(len(part))]
            latents = self.pipeline.denoise([texts[p] for p in part], [texts[""]] * len(part), seeds, settings)
            images += self.pipeline.decode(latents)
        return to_tensor(images)

    @torch.inference_mode()
    def reconstructed(self, pictures: torch.Tensor) -> torch.Tensor:
        """Pictures through the autoencoder, as whole images."""
        vae = self.pipeline.bring("VAE")
        parts = pictures.to(self.pipeline.device).split(64)
        images = torch.cat([vae.decode(vae.encode(part)).cpu() for part in parts])
        return ((images.clamp(-1, 1) + 1) * 127.5).round() / 127.5 - 1

    def add(self, what: str, right: torch.Tensor, ceiling: torch.Tensor | None = None, truth: Any = None) -> None:
        """A row: the share that is right, its interval, the reconstructions' share and the true pictures'."""
        share, low, high, n = with_limits(right)
        above = ["" if t is None else float(t.float().mean()) for t in (ceiling, truth)]
        self.rows.append([what, share, low, high, n, *above])
        print(f"{what:45s} {100 * share:5.1f} % ({100 * low:.1f} to {100 * high:.1f}, {n})")

    def names(self) -> None:
        """Top-1 and top-5 of frequent names and of all names; names.csv and sheets."""
        numbers = {name: i for i, name in enumerate(self.emoji.names)}
        numbers |= {alias: i for i, own in enumerate(self.emoji.aliases) for alias in own}
        frequent = read_lines(Path(self.config.names), "names")
        if unknown := [name for name in frequent if name not in numbers]:
            raise ParameterError("names", self.config.names, f"must be names of emoji; {unknown[0]!r} is none")
        chosen = list(range(len(self.emoji)))[: self.config.limit or None]
        frequent = frequent[: self.config.limit or None]
        sets = {
            "frequent": (frequent * self.config.per_name, [numbers[n] for n in frequent] * self.config.per_name),
            "all": ([self.emoji.names[i] for i in chosen], chosen),
        }
        again = self.reconstructed(self.truth)
        quality = psnr(again, self.truth)
        self.rows.append(
            [
                "reconstruction PSNR (dB)",
                float(quality.mean()),
                *quality.quantile(torch.tensor([0.025, 0.975])).tolist(),
                len(quality),
                "",
                "",
            ]
        )
        print(f"reconstruction PSNR {quality.mean():.2f} dB")
        for kind, (prompts, answers) in sets.items():
            made, answers = self.made(prompts, f"{kind} names"), torch.tensor(answers)
            table = {}
            for space, function in self.spaces.items():
                found = ranks(function(made), self.known[space], answers)
                ceiling = ranks(function(again[answers]), self.known[space], answers)
                table[space] = found
                for top in (1, 5):
                    self.add(f"{kind} names, top-{top} in {space}", found <= top, ceiling <= top)
            write_csv(
                self.folder / f"{kind}_names.csv",
                ("prompt", "emoji", *(f"rank_in_{space}" for space in table)),
                [
                    [p, self.emoji.names[a], *(int(table[s][i]) for s in table)]
                    for i, (p, a) in enumerate(zip(prompts, answers.tolist(), strict=True))
                ],
            )
            save_sheet(
                self.folder / f"{kind}.png",
                made[: len(frequent)] if kind == "frequent" else made,
                20 if kind == "frequent" else 40,
            )
            if kind == "all":
                worst = torch.stack(list(table.values())).amin(0).argsort(descending=True)[:20]
                pairs = torch.stack([self.truth[answers[worst]], made[worst]]).flatten(0, 1)
                save_sheet(self.folder / "failures.png", pairs, 20)
                print("failures: " + "; ".join(prompts[i] for i in worst.tolist()))

    def attributes(self) -> None:
        """All held-out pairs of emoji and attribute, and some that were trained on."""
        out = held_out(self.renderer, self.config.training_seed)
        single = count_of(self.truth) == 1
        generator = torch.Generator().manual_seed(self.config.training_seed)
        for held in (True, False):
            word, sheets = "held-out" if held else "trained", []
            for kind, members in {
                "colour": range(len(COLOURS)),
                "background": range(len(COLOURS), len(COLOURS) + len(BACKGROUNDS) - 1),
                "count": [ATTRIBUTES.index("two"), ATTRIBUTES.index("three")],
                "size and place": [ATTRIBUTES.index(a) for a in ("small", "large", "left", "right")],
            }.items():
                usable = out if held else ~out
                usable = usable.clone()
                if kind == "colour":
                    usable &= self.renderer.colourful[:, None]
                if kind == "count":
                    usable &= single[:, None]
                members = list(members)
                emoji, column = usable[:, members].nonzero().T
                limit = self.config.limit or (len(emoji) if held else TRAINED)
                order = torch.randperm(len(emoji), generator=generator)[:limit]
                if not len(order):
                    continue
                emoji, attribute = emoji[order], torch.tensor(members)[column[order]]
                wanted = Compositions.single(emoji, attribute)
                prompts = [self.prompt(wanted, i) for i in range(len(wanted))]
                made, truth = self.made(prompts, f"{word} {kind}"), self.renderer(wanted)
                again = self.reconstructed(truth)
                judged = {
                    "colour": lambda p, w=wanted: colour_of(p) == w.colour,
                    "background": lambda p, w=wanted: background_of(p) == w.background,
                    "count": lambda p, w=wanted: count_of(p) == w.layout + 1,
                    "size and place": lambda p, w=wanted: self.layout_of(p, w) == w.layout,
                }[kind]
                self.add(f"{word} pairs, {kind}", judged(made), judged(again), judged(truth))
                kept = self.kept(made, wanted, attribute)
                self.add(f"{word} pairs, {kind}: emoji, top-1 in pixels", kept, self.kept(again, wanted, attribute))
                sheets.append(made[:40])
            save_sheet(self.folder / f"{word}.png", torch.cat(sheets), 20)

    def prompt(self, wanted: Compositions, i: int) -> str:
        """The words for composition i."""
        colour, background = int(wanted.colour[i]), int(wanted.background[i])
        return caption(
            self.emoji.names[int(wanted.emoji[i])],
            list(COLOURS)[colour] if colour >= 0 else "",
            list(BACKGROUNDS)[background] if background else "",
            LAYOUTS[int(wanted.layout[i])],
        )

    def layout_of(self, pictures: torch.Tensor, wanted: Compositions) -> torch.Tensor:
        """Numbers [B] of the layouts in which the emoji comes nearest to the pictures, by pixels."""
        each = [
            self.renderer(dataclasses.replace(wanted, layout=torch.full_like(wanted.layout, number)))
            for number in range(len(LAYOUTS))
        ]
        return torch.stack([(pictures - e).square().flatten(1).mean(1) for e in each]).argmin(0)

    def kept(self, pictures: torch.Tensor, wanted: Compositions, attribute: torch.Tensor) -> torch.Tensor:
        """Whether [B] the emoji asked for is the nearest in pixels among all emoji with the same attribute."""
        right = torch.zeros(len(pictures), dtype=torch.bool)
        for number in attribute.unique():
            everyone = torch.arange(len(self.emoji))
            truth = self.renderer(Compositions.single(everyone, torch.full_like(everyone, int(number))))
            rows = attribute == number
            right[rows] = ranks(pixels(pictures[rows]), pixels(truth), wanted.emoji[rows]) == 1
        return right


def main(config: EvaluationConfig, given: dict[str, Any]) -> None:
    """Measure names, then attributes, and write the tables. Raises ParameterError."""
    emoji = load_emoji(Path(config.emoji))
    with new_folder(config.out, RESULTS / "pocket" / "evaluation") as folder:
        evaluation = Evaluation(config, emoji, folder)
        write_config(folder, "pocket evaluation", dataclasses.asdict(config))
        evaluation.names()
        evaluation.attributes()
        header = ("measure", "value", "low", "high", "images", "reconstructions", "true_pictures")
        write_csv(folder / "metrics.csv", header, evaluation.rows)
    print(f"metrics.csv, tables of names and contact sheets in {folder}")


if __name__ == "__main__":
    command_line(EvaluationConfig, main, __doc__)
