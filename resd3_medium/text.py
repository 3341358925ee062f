"""From prompts to what the transformer takes: tokens, and the text encoders one after another.

Start reading at `TextEncoding.encode`.
"""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from common.parameters import ParameterError
from resd3_medium.folders import TOKENIZERS
from resd3_medium.refine_other_impls import (
    ClipConfig,
    ClipTokenizer,
    T5Tokenizer,
    Tokens,
    joined,
)


@dataclasses.dataclass(frozen=True)
class Conditioning:
    """A prompt as the transformer takes it: context [1, rows, width] and pooled [1, width], on the host."""

    context: torch.Tensor
    pooled: torch.Tensor


class TextEncoding:
    """The tokenizers, and the encoders that `bring` returns by their names: CLIP-L, CLIP-G and, with `t5_rows`, T5.

    `t5_rows` is the number of T5 tokens per prompt, 0 without T5; `zero_rows` appends as many rows of zeros where T5
    is left out, as diffusers does (256). `clip` has the sizes of CLIP-L, `models` is named in errors.
    """

    def __init__(
        self,
        bring: Callable[[str], Any],
        clip: ClipConfig,
        context_width: int,
        models: Path,
        device: torch.device,
        t5_rows: int = 0,
        zero_rows: int = 0,
    ) -> None:
        self.bring, self.clip, self.context_width = bring, clip, context_width
        self.models, self.device, self.t5_rows, self.zero_rows = models, device, t5_rows, zero_rows
        self.clip_tokens = ClipTokenizer(TOKENIZERS)
        self.t5_tokens = T5Tokenizer(TOKENIZERS) if t5_rows else None

    def tokens(self, prompt: str) -> dict[str, Tokens]:
        """The prompt's tokens for every encoder."""
        fillers = {"CLIP-L": 49407, "CLIP-G": 0}
        found = {name: self.clip_tokens(prompt, self.clip.rows, filler) for name, filler in fillers.items()}
        if self.t5_tokens:
            found["T5"] = self.t5_tokens(prompt, self.t5_rows)
        return found

    def unknown_words(self, prompt: str) -> list[str]:
        """The prompt's words that a model with a vocabulary of its own has never seen."""
        known = None if self.clip.known is None else set(self.clip.known)
        return [] if known is None else [w for w in prompt.split() if not known.issuperset(self.clip_tokens.ids(w))]

    @torch.inference_mode()
    def encode(self, prompts: Sequence[str], progress: Callable[[], None] = lambda: None) -> dict[str, Conditioning]:
        """Every different prompt's conditioning. An encoder runs over all prompts before the next one is brought in.

        `progress` is called after each prompt and encoder. Raises ParameterError when an encoder has too few tokens.
        """
        different = list(dict.fromkeys(prompts))
        tokens = {prompt: self.tokens(prompt) for prompt in different}
        outputs: dict[str, list] = {}
        for name in ("CLIP-L", "CLIP-G", *(["T5"] if self.t5_rows else [])):
            model = self.bring(name)
            outputs[name] = []
            for prompt in different:
                ids = tokens[prompt][name].ids
                if getattr(model, "known", None) is None and max(ids) >= model.config.vocabulary:
                    raise ParameterError(
                        "models",
                        self.models,
                        f"the file of {name} has {model.config.vocabulary} tokens; must have all of the tokenizer's, "
                        f"up to {max(ids)}",
                    )
                outputs[name].append(model(torch.tensor([ids], device=self.device)))
                progress()
            del model  # else it stays in memory beside the next one
        found = {}
        for i, prompt in enumerate(different):
            t5 = outputs["T5"][i] if self.t5_rows else None
            if t5 is None and self.zero_rows:
                t5 = torch.zeros(1, self.zero_rows, self.context_width, device=self.device)
            found[prompt] = Conditioning(
                *(x.cpu() for x in joined(outputs["CLIP-L"][i], outputs["CLIP-G"][i], t5, self.context_width))
            )
        return found
