"""From prompts to tokens: CLIP's byte pairs and T5's unigrams, from files that come with the project.

Start reading at `ClipTokenizer`.
"""

import dataclasses
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

START, END = 49406, 49407  # of CLIP's vocabulary


@dataclasses.dataclass(frozen=True)
class Tokens:
    """Token ids [length], and the end of the prompt that did not fit, as text."""

    ids: list[int]
    left_out: str


class ClipTokenizer:
    """CLIP's byte-pair tokenizer, from vocab.json and merges.txt in `folder`.

    Of a prompt, `rows - 2` tokens fit between start and end, 75 in the released models. CLIP-L fills up with the end
    token, CLIP-G with 0. A longer prompt is cut, or read in chunks that each have a start, an end and fillers.
    """

    def __init__(self, folder: Path) -> None:
        from transformers import CLIPTokenizer

        self.bpe = CLIPTokenizer(
            vocab=str(folder / "vocab.json"), merges=str(folder / "merges.txt"), model_max_length=10**9
        )

    def ids(self, text: str) -> list[int]:
        """The text's tokens, without start and end."""
        return self.bpe(text, add_special_tokens=False)["input_ids"]

    def __call__(self, prompt: str, rows: int, filler: int, most: int = 1) -> Tokens:
        """The tokens of at most `most` chunks one after another, each `rows` long and filled up with `filler`.

        A single chunk is full before it is cut. With `most` above 1, chunks end between words.
        """
        found, size = self.bpe(prompt, add_special_tokens=False).encodings[0], rows - 2
        ids = found.ids
        starts = chunk_starts(breaks(prompt, found.offsets, found.word_ids), size) if most > 1 and size > 0 else [0]
        ends = [*starts[1:], starts[-1] + size][:most]
        filled: list[int] = []
        for start, end in zip(starts, ends, strict=False):
            kept = ids[start:end]
            filled += [START, *kept, END] + [filler] * (size - len(kept))
        rest = ids[ends[-1] :]
        return Tokens(filled, self.bpe.decode(rest) if rest else "")


def breaks(prompt: str, places: Sequence[tuple[int, int]], parts: Sequence[int | None]) -> list[int]:
    """How well a chunk may start at each token: 2 at a word, 1 at a part such as a comma, 0 inside a part.

    `places` are the tokens' first and last characters in the prompt, `parts` the numbers of their parts.
    """
    found = [2] if places else []
    for (before, here), (left, right) in zip(pairwise(places), pairwise(parts), strict=True):
        apart = any(map(str.isspace, prompt[before[1] : here[0]]))
        found.append(2 if apart else int(left != right))
    return found


def chunk_starts(breaks: Sequence[int], size: int) -> list[int]:
    """The first token of every chunk of at most `size` tokens: each ends at the last of the best breaks in its reach.

    So a word is split only if it is longer than a chunk, and then between its parts, if they are short enough.
    """
    starts = [0]
    while len(breaks) - starts[-1] > size:
        reach = range(starts[-1] + 1, starts[-1] + size + 1)
        starts.append(max(reach, key=lambda i: (breaks[i], i)))
    return starts


class T5Tokenizer:
    """T5's unigram tokenizer, from t5_tokenizer.json in `folder`. Prompts end with 1 and are filled up with 0."""

    def __init__(self, folder: Path) -> None:
        from tokenizers import Tokenizer

        self.unigram = Tokenizer.from_file(str(folder / "t5_tokenizer.json"))

    def __call__(self, prompt: str, length: int) -> Tokens:
        """`length` tokens of a prompt."""
        ids = self.unigram.encode(prompt, add_special_tokens=False).ids
        kept, rest = ids[: length - 1], ids[length - 1 :]
        filled = [*kept, 1]
        return Tokens(filled + [0] * (length - len(filled)), self.unigram.decode(rest) if rest else "")
