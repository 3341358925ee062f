"""Captions of compositions, and their tokens: the words that the pocket model learns.

A caption puts the attributes around one of the emoji's names, as in "a photo of two blue apples on a black background".
Start reading at `Captions.draw`.
"""

from pathlib import Path

import numpy as np
import torch

from pocket.compositions import BACKGROUNDS, COLOURS, LAYOUTS, Compositions
from pocket.emoji import EmojiSet
from resd3_medium.prompt_tokens import END, START, ClipTokenizer

ROWS = 18  # tokens of a prompt with start and end: enough for every name
UNKNOWN = START - 1  # a token that no caption has
TEMPLATES = ("{}", "a {}", "a photo of {}", "a photo of a {}", "a picture of a {}", "an emoji of a {}", "{} emoji")


def caption(label: str, colour: str = "", background: str = "", layout: str = "alone") -> str:
    """The words for an emoji of that label with attributes."""
    size = layout if layout in ("two", "three", "small", "large") else ""
    place = f"on the {layout}" if layout in ("left", "right") else ""
    ground = f"on a {background} background" if background else ""
    return " ".join(filter(None, [size, colour, label, place, ground]))


def plural(label: str) -> str:
    """The label with its last word in the plural, as English forms it most often."""
    return label if label.endswith("s") else label + "s"


class Captions:
    """Captions for an emoji set, tokenized word by word with a cache; `vocabulary` holds every token they can have."""

    def __init__(self, emoji: EmojiSet, tokenizers: Path) -> None:
        self.emoji, self.tokenizer = emoji, ClipTokenizer(tokenizers)
        self.words: dict[str, list[int]] = {}
        labels = [label for group in (emoji.names, *emoji.aliases, *emoji.keywords) for label in group]
        texts = [*labels, *map(plural, labels), *TEMPLATES, "and on the with background", *COLOURS, *BACKGROUNDS]
        texts += [layout for layout in LAYOUTS if layout != "alone"]
        self.vocabulary = sorted({0, START, END} | {i for text in texts for i in self.word_ids(text.replace("{}", ""))})

    def word_ids(self, text: str) -> list[int]:
        """The text's tokens, those of its words one after another."""
        for word in text.split():
            if word not in self.words:
                self.words[word] = self.tokenizer.ids(word)
        return [i for word in text.split() for i in self.words[word]]

    def ids(self, texts: list[str], unknown: np.random.Generator | None = None) -> torch.Tensor:
        """Tokens [B, ROWS] of texts, filled up with the end token; what does not fit is cut off.

        With a generator, one token in fifty is made one that the model does not know, so that it learns to ignore such.
        """
        rows = []
        for text in texts:
            inside = self.word_ids(text)[: ROWS - 2]
            if unknown is not None:
                inside = [UNKNOWN if u < 0.02 else i for i, u in zip(inside, unknown.random(len(inside)), strict=True)]
            rows.append([START, *inside] + [END] * (ROWS - 1 - len(inside)))
        return torch.tensor(rows)

    def label(self, emoji: int, draw: np.random.Generator) -> str:
        """One of the emoji's labels: its name in about half of the cases, else an alias, or keywords with it."""
        name, aliases, keywords = self.emoji.names[emoji], self.emoji.aliases[emoji], self.emoji.keywords[emoji]
        kind = draw.random()
        if kind < 0.35 and aliases:
            name = aliases[draw.integers(len(aliases))]
        elif kind < 0.45 and keywords:
            name = f"{name} {keywords[draw.integers(len(keywords))]}"
        words = name.split()
        if len(words) > 1 and draw.random() < 0.15:  # word dropout
            kept = draw.random(len(words)) < 0.7
            words = [word for word, keep in zip(words, kept, strict=True) if keep] or words
        return " ".join(words)

    def draw(self, wanted: Compositions, draw: np.random.Generator) -> list[str]:
        """A random caption for each composition."""
        colours, backgrounds = list(COLOURS), ["", *list(BACKGROUNDS)[1:]]
        numbers = zip(wanted.emoji, wanted.colour, wanted.background, wanted.layout, strict=True)
        texts = []
        for emoji, colour, background, layout in [[int(n) for n in row] for row in numbers]:
            label = self.label(emoji, draw)
            if LAYOUTS[layout] in ("two", "three") and draw.random() < 0.5:
                label = plural(label)
            words = caption(label, colours[colour] if colour >= 0 else "", backgrounds[background], LAYOUTS[layout])
            template = TEMPLATES[draw.integers(len(TEMPLATES))] if draw.random() < 0.5 else "{}"
            if LAYOUTS[layout] in ("two", "three"):
                template = template.replace("a {}", "{}")
            texts.append(template.format(words))
        return texts
