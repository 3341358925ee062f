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
from resd3_medium.foreign_syntax import foreign_syntax
from resd3_medium.prompt_tokens import ClipTokenizer, T5Tokenizer, Tokens
from resd3_medium.refine_other_impls import ClipConfig, joined

FILLERS = {"CLIP-L": 49407, "CLIP-G": 0}  # tokens after the end of a prompt
MOST_CHUNKS = 32  # that CLIP reads of a prompt: 2,400 tokens, 10,000 characters or so
MOST_WARNINGS = 10  # lines about the prompts of a run
MOST_SHOWN = 10  # words, or pieces of foreign syntax, in such a line


@dataclasses.dataclass(frozen=True)
class Conditioning:
    """A prompt as the transformer takes it: context [1, rows, width] and pooled [1, width], on the host.

    The last `t5_rows` rows of the context are T5's, or zeros in its place, the others CLIP's. A prompt that CLIP reads
    in several chunks has the `empty` prompt's CLIP rows [1, rows, width] at hand, see `contexts`.
    """

    context: torch.Tensor
    pooled: torch.Tensor
    t5_rows: int = 0
    empty: torch.Tensor | None = None


def contexts(positive: Sequence[Conditioning], negative: Sequence[Conditioning]) -> torch.Tensor:
    """The contexts [2 B, rows, width] of B prompts, then of their negative prompts, with equally many rows.

    In a pair, the one with fewer chunks is filled up with chunks of the empty prompt, between CLIP's rows and T5's.
    Raises ValueError for pairs of different lengths, since an image must not depend on its batch; see
    `Pipeline.batch_key`.
    """
    lengths = {max(c.context.shape[1] for c in pair) for pair in zip(positive, negative, strict=True)}
    if len(lengths) > 1:
        raise ValueError(f"prompts of a batch must have equally many chunks; their rows are {sorted(lengths)}")
    both, rows = [*positive, *negative], max(lengths)
    empty = next((c.empty for c in both if c.empty is not None), None)
    found = []
    for c in both:
        clip, t5 = c.context.tensor_split([c.context.shape[1] - c.t5_rows], dim=1)
        missing = rows - c.context.shape[1]
        found.append(torch.cat([clip, *([empty] * (missing // empty.shape[1]) if missing else []), t5], dim=1))
    return torch.cat(found)


def shortened(text: str, most: int = 300) -> str:
    """The text, without its middle where it has more than about `most` characters."""
    return text if len(text) <= most else f"{text[: most // 2]} ... {text[-most // 2 :]}"


def listed(words: Sequence[str]) -> str:
    """The first of some words, and how many more there are."""
    more = f" and {len(words) - MOST_SHOWN:,} more" if len(words) > MOST_SHOWN else ""
    return ", ".join(shortened(word, 60) for word in words[:MOST_SHOWN]) + more


class TextEncoding:
    """The tokenizers, and the encoders that `bring` returns by their names: CLIP-L, CLIP-G and, with `t5_rows`, T5.

    `t5_rows` is the number of T5 tokens per prompt, 0 without T5; `zero_rows` appends as many rows of zeros where T5
    is left out, as diffusers does (256). `clip` has the sizes of CLIP-L, `models` is named in errors. With
    `long_prompts` "chunk", CLIP reads a long prompt in chunks, with "cut" its beginning only.
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
        long_prompts: str = "cut",
    ) -> None:
        self.bring, self.clip, self.context_width = bring, clip, context_width
        self.models, self.device, self.t5_rows, self.zero_rows = models, device, t5_rows, zero_rows
        self.most_chunks = MOST_CHUNKS if long_prompts == "chunk" else 1
        self.clip_tokens = ClipTokenizer(TOKENIZERS)
        self.t5_tokens = T5Tokenizer(TOKENIZERS) if t5_rows else None
        self.counted: dict[str, int] = {}  # chunks of prompts
        self.known: dict[str, bool] = {}  # words

    # --- tokens ---

    def tokens(self, prompt: str) -> dict[str, Tokens]:
        """The prompt's tokens for every encoder; CLIP's are those of all its chunks, one after another."""
        found = {name: self.clip_tokens(prompt, self.clip.rows, FILLERS[name], self.most_chunks) for name in FILLERS}
        if self.t5_tokens:
            found["T5"] = self.t5_tokens(prompt, self.t5_rows)
        return found

    def chunks(self, *prompts: str) -> int:
        """The most chunks that CLIP reads of one of these prompts; 1 where long prompts are cut."""
        if self.most_chunks == 1:
            return 1
        rows = self.clip.rows
        for prompt in prompts:
            if prompt not in self.counted:
                self.counted[prompt] = len(self.clip_tokens(prompt, rows, 0, self.most_chunks).ids) // rows
        return max(self.counted[prompt] for prompt in prompts)

    def unknown_words(self, prompt: str) -> list[str]:
        """The prompt's words that a model with a vocabulary of its own has never seen, each once."""
        if self.clip.known is None:
            return []
        words = list(dict.fromkeys(prompt.split()))
        if new := [word for word in words if word not in self.known]:
            known = set(self.clip.known)
            self.known |= {word: known.issuperset(self.clip_tokens.ids(word)) for word in new}
        return [word for word in words if not self.known[word]]

    def warnings_of(self, prompts: Sequence[str]) -> list[str]:
        """Lines for the user about prompts: unknown words, what an encoder leaves out, and other programs' syntax.

        Each line stands once, and of many, the first do.
        """
        lines: dict[str, None] = {}
        met: dict[str, None] = {}
        for prompt in dict.fromkeys(prompts):
            met |= dict.fromkeys(foreign_syntax(prompt))
            if unknown := self.unknown_words(prompt):
                lines[f"warning: the model does not know: {listed(unknown)}"] = None
            for encoder, tokens in self.tokens(prompt).items():
                if tokens.left_out and encoder != "CLIP-G":  # which reads what CLIP-L reads
                    text = shortened(tokens.left_out)
                    lines[f"warning: {encoder.removesuffix('-L')} leaves out: {text!r}"] = None
        found = list(lines)[:MOST_WARNINGS]
        if len(lines) > MOST_WARNINGS:
            found.append(f"warning: and {len(lines) - MOST_WARNINGS:,} more lines about prompts")
        if met:
            verb = "is" if len(met) == 1 else "are"
            found.append(
                f"note: {listed(list(met))} {verb} read as plain text: "
                "weights of words, and what else other programs read in prompts, are not part of this project"
            )
        return found

    # --- encoders ---

    @torch.inference_mode()
    def encode(self, prompts: Sequence[str], progress: Callable[[], None] = lambda: None) -> dict[str, Conditioning]:
        """Every different prompt's conditioning. An encoder runs over all prompts before the next one is brought in.

        The pooled vector is that of the first chunk. Outputs leave the device at once. `progress` is called after each
        prompt and encoder. Raises ParameterError when an encoder has too few tokens.
        """
        tokens = {prompt: self.tokens(prompt) for prompt in dict.fromkeys(prompts)}
        long = {prompt for prompt, found in tokens.items() if len(found["CLIP-L"].ids) > self.clip.rows}
        outputs: dict[str, dict[str, Any]] = {}
        for name in (*FILLERS, *(["T5"] if self.t5_rows else [])):
            model = self.bring(name)
            outputs[name] = {}
            for prompt, found in tokens.items():
                outputs[name][prompt] = self.output(name, model, found[name].ids)
                progress()
            if long and name != "T5" and "" not in tokens:
                outputs[name][""] = self.output(name, model, self.tokens("")[name].ids)
            del model  # else it stays in memory beside the next one
        clip = [outputs[name] for name in FILLERS]
        empty = joined(*(of[""] for of in clip), None, self.context_width)[0] if long else None
        zeros = torch.zeros(1, self.zero_rows, self.context_width) if self.zero_rows else None
        found = {}
        for prompt in tokens:
            t5 = outputs["T5"].pop(prompt) if self.t5_rows else zeros
            context, pooled = joined(*(of.pop(prompt) for of in clip), t5, self.context_width)
            t5_rows = 0 if t5 is None else t5.shape[1]
            found[prompt] = Conditioning(context, pooled, t5_rows, empty if prompt in long else None)
        return found

    def output(self, name: str, model: Any, ids: list[int]) -> Any:
        """What an encoder makes of a prompt's tokens, on the host: rows of all chunks, and CLIP's pooled vector.

        Raises ParameterError when it has too few tokens.
        """
        if getattr(model, "known", None) is None and max(ids) >= model.config.vocabulary:
            raise ParameterError(
                "models",
                self.models,
                f"the file of {name} has {model.config.vocabulary} tokens; must have all of the tokenizer's, "
                f"up to {max(ids)}",
            )
        if name == "T5":
            return model(torch.tensor([ids], device=self.device)).cpu()
        chunks = []
        for k in range(0, len(ids), self.clip.rows):
            rows, pooled = model(torch.tensor([ids[k : k + self.clip.rows]], device=self.device))
            chunks.append((rows.cpu(), pooled.cpu()))
        return torch.cat([rows for rows, _ in chunks], dim=1), chunks[0][1]
