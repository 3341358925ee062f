"""Draw captions that the pocket model understands, for MEG's data and its test, into two files.

The test's captions are of emoji that the data's never show. Needs the archive of scripts/prepare_emoji.py. What comes
with the project was made by:
python scripts/make_pocket_captions.py
"""

import common.quiet_start  # noqa: F401

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import torch

from common.command_line import command_line
from common.parameters import ParameterError, Parameters, parameter
from common.run_folder import claimed, write_text
from pocket.captions import Captions
from pocket.compositions import Compositions, Renderer, draw, held_out
from pocket.emoji import ARCHIVE, load_emoji
from resd3_medium.folders import TOKENIZERS
from resd3_medium.tasks import DATASET


@dataclasses.dataclass(kw_only=True)
class CaptionsConfig(Parameters):
    """Every parameter of make_pocket_captions.py."""

    emoji: str = parameter(str(ARCHIVE), "archive made by prepare_emoji.py", path=True)
    captions: int = parameter(3200, "captions for the data", low=1)
    test_captions: int = parameter(200, "captions for the test", low=1)
    test_emoji: int = parameter(160, "emoji that only the test shows", low=1)
    plain: float = parameter(0.5, "share of captions without attributes", low=0, high=1)
    seed: int = parameter(0, "seed of the draws", low=0)
    out: str = parameter(str(DATASET), "folder of pocket_captions.txt and pocket_test_captions.txt", path=True)


def main(config: CaptionsConfig, given: dict[str, Any]) -> None:
    """Draw both files' captions, in a folder of this process. Raises ParameterError."""
    with claimed(Path(config.out)) as out:
        draw_captions(config, out)


def draw_captions(config: CaptionsConfig, folder: Path) -> None:
    """Draw both files' captions, one after the other. Raises ParameterError."""
    emoji = load_emoji(Path(config.emoji))
    if config.test_emoji >= len(emoji):
        raise ParameterError("test_emoji", config.test_emoji, f"must be less than the archive's {len(emoji)} emoji")
    renderer, captions = Renderer(emoji), Captions(emoji, TOKENIZERS)
    generator = torch.Generator().manual_seed(config.seed)
    words = np.random.default_rng(config.seed)
    out = held_out(renderer, config.seed)
    of_test = torch.zeros(len(emoji), dtype=torch.bool)
    of_test[torch.randperm(len(emoji), generator=generator)[: config.test_emoji]] = True
    for name, count, members in (
        ("pocket_captions.txt", config.captions, ~of_test),
        ("pocket_test_captions.txt", config.test_captions, of_test),
    ):
        parts: list[Compositions] = []
        while sum(map(len, parts)) < count:
            drawn = draw(4 * count, renderer, out, generator, config.plain)
            parts.append(drawn[members[drawn.emoji]])
        texts = captions.draw(Compositions.joined(parts)[:count], words)
        write_text(folder / name, "\n".join(texts) + "\n")
        print(f"{count} captions of {int(members.sum())} emoji in {folder / name}")


if __name__ == "__main__":
    command_line(CaptionsConfig, main, __doc__)
