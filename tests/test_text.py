"""Prompts: long ones in chunks, what is told about them, and syntax of other programs."""

import time
from pathlib import Path

import pytest
import reference_sd3 as reference
import torch

from common.parameters import ParameterError
from resd3_medium.folders import POCKET
from resd3_medium.foreign_syntax import foreign_syntax
from resd3_medium.pipeline import Pipeline, Settings, batches
from resd3_medium.prompt_tokens import END, START
from resd3_medium.text import MOST_CHUNKS, MOST_WARNINGS, Conditioning, contexts

CPU, EXACT = torch.device("cpu"), torch.float32
LONG = "a red bicycle leans against a blue door, " * 20 + "it's snowing"


@pytest.fixture(scope="module")
def chunked(models) -> Pipeline:
    return Pipeline(models, CPU, EXACT, t5_rows=20, long_prompts="chunk")


def words_of(pipeline: Pipeline, prompt: str) -> list[str]:
    """The text of every chunk, by transformers."""
    rows, tokenizer = pipeline.clip.rows, reference.clip_tokenizer("!")
    ids = pipeline.tokens(prompt)["CLIP-G"].ids
    chunks = [ids[k : k + rows] for k in range(0, len(ids), rows)]
    assert all(len(chunk) == rows and chunk[0] == START for chunk in chunks)
    return [tokenizer.decode(chunk[1 : chunk.index(END)]) for chunk in chunks]


@torch.inference_mode()
def test_chunks_are_read_as_prompts_of_their_own(models, chunked):
    """transformers reads each chunk's text alone; the pooled vector is the first one's, and T5's rows come last."""
    found = chunked.encode([LONG])[LONG]
    texts = words_of(chunked, LONG)
    assert (
        len(texts) == 3
        and " ".join(texts).split()
        == reference.clip_tokenizer("!")
        .decode(reference.clip_tokenizer("!")(LONG, add_special_tokens=False)["input_ids"])
        .split()
    )
    rows, pooled = [], []
    for filler, file, activation in (("<|endoftext|>", "clip_l", "quick_gelu"), ("!", "clip_g", "gelu")):
        ids = reference.clip_tokenizer(filler)(texts, padding="max_length", max_length=77, return_tensors="pt")
        theirs = reference.clip(models / f"{file}.safetensors", activation)(ids["input_ids"], output_hidden_states=True)
        rows.append(theirs.hidden_states[-2].flatten(0, 1))
        pooled.append(theirs.text_embeds[:1])
    expected = torch.cat(rows, dim=1)
    assert found.context.shape == (1, 3 * 77 + 20, 256) and found.t5_rows == 20
    torch.testing.assert_close(found.context[0, : 3 * 77, :192], expected, rtol=0, atol=1e-4)
    assert not found.context[0, : 3 * 77, 192:].any()
    torch.testing.assert_close(found.pooled, torch.cat(pooled, dim=1), rtol=0, atol=1e-4)
    cut = Pipeline(models, CPU, EXACT, t5_rows=20).encode([LONG])[LONG]
    assert torch.equal(found.context[:, 3 * 77 :], cut.context[:, 77:])
    ids = reference.clip_tokenizer("!")(["", LONG], padding="max_length", max_length=77, truncation=True)["input_ids"]
    assert chunked.tokens("")["CLIP-G"].ids == ids[0]


@pytest.mark.parametrize("t5_rows", [0, 20])
def test_prompts_that_fit_are_the_same_in_both_modes(models, t5_rows):
    """Bit for bit, up to the last token that fits."""
    prompts = ["", "a boat", "word " * 75]
    cut, chunk = (
        Pipeline(models, CPU, EXACT, t5_rows=t5_rows, zero_rows=3, long_prompts=mode).encode([*prompts, *more])
        for mode, more in (("cut", []), ("chunk", [LONG]))
    )
    assert all(torch.equal(cut[p].context, chunk[p].context) for p in prompts)
    assert all(torch.equal(cut[p].pooled, chunk[p].pooled) for p in prompts)
    assert chunk[LONG].context.shape[1] == 3 * 77 + (t5_rows or 3)


@pytest.mark.parametrize(
    ("prompt", "lengths"),
    [
        ("word " * 76, [75, 1]),
        ("word " * 73 + "unbelievably-long-word end", [73, 6]),  # the whole word goes on
        ("x," + "zxqv," * 30, [72, 75, 5]),  # one word, longer than a chunk: split between its parts
        ("zx" * 100, [75, 75, 49]),  # one part, longer than a chunk
        ("word " * 74 + "don't", [74, 2]),
        ("🙂" * 80, [75, 5]),
        ("word\n" * 80, [75, 5]),
    ],
)
def test_chunks_end_between_words(chunked, prompt, lengths):
    rows, ids = chunked.clip.rows, chunked.tokens(prompt)["CLIP-L"].ids
    found = [ids[k : k + rows].index(END) - 1 for k in range(0, len(ids), rows)]
    assert found == lengths
    assert [i for i in ids if i not in (START, END)] == reference.clip_tokenizer("!")(prompt, add_special_tokens=False)[
        "input_ids"
    ]


def test_no_word_is_split_that_fits_a_chunk(chunked):
    generator, tokenizer = torch.Generator().manual_seed(0), reference.clip_tokenizer("!")
    for _ in range(5):
        letters = torch.randint(0, 40, (900,), generator=generator).tolist()
        prompt = "".join("abcdefghijklmnopqrstuvwxyz,.;'é🙂 \n      "[i] for i in letters)
        chunks, places = words_of(chunked, prompt), prompt.split()
        normal = [tokenizer.decode(tokenizer(word, add_special_tokens=False)["input_ids"]) for word in places]
        boundaries = {" ".join(normal[:n]).replace(" ", "") for n in range(len(normal) + 1)}
        assert len(chunks) > 2
        for n in range(1, len(chunks) + 1):
            assert "".join(chunks[:n]).replace(" ", "") in boundaries


def test_a_pair_is_filled_up_with_the_empty_prompt(chunked):
    texts = chunked.encode([LONG, "no boat"])
    empty = chunked.encode([""])[""].context[:, :77]
    both = contexts([texts[LONG]], [texts["no boat"]])
    short = texts["no boat"].context
    assert torch.equal(both[:1], texts[LONG].context)
    assert torch.equal(both[1:], torch.cat([short[:, :77], empty, empty, short[:, 77:]], dim=1))
    assert torch.equal(contexts([texts["no boat"]], [texts[LONG]]), both.flip(0))
    with pytest.raises(ValueError, match="equally many chunks"):
        contexts([texts[LONG], texts["no boat"]], [texts["no boat"]] * 2)
    plain = [Conditioning(torch.randn(1, 5, 4), torch.randn(1, 4)) for _ in range(2)]
    assert torch.equal(contexts(plain[:1], plain[1:]), torch.cat([c.context for c in plain]))


@pytest.mark.parametrize("cfg_scale", [1.0, 5.0])
def test_an_image_with_a_long_prompt_does_not_depend_on_its_batch(chunked, cfg_scale):
    tasks = [("a boat", ""), (LONG, ""), ("a dog", LONG), ("a cat", ""), (LONG, "no boat")]
    settings = Settings(steps=2, width=32, height=32, cfg_scale=cfg_scale)
    texts = chunked.encode([text for task in tasks for text in task])

    def make(group: list[int]) -> list[torch.Tensor]:
        positive, negative = ([texts[tasks[i][k]] for i in group] for k in (0, 1))
        return list(chunked.denoise(positive, negative, group, settings))

    groups = list(batches([chunked.batch_key(*task, settings) for task in tasks], 3))
    assert groups == ([[0, 3], [1, 2, 4]] if cfg_scale == 5 else [[0, 2, 3], [1, 4]])
    for group in groups:
        for i, latent in zip(group, make(group), strict=True):
            torch.testing.assert_close(latent, make([i])[0], rtol=0, atol=1e-4)
    latent = make([1])[0]
    cut = Pipeline(chunked.weights, CPU, EXACT, t5_rows=20)
    short = cut.encode([LONG, ""])
    assert (latent - cut.denoise([short[LONG]], [short[""]], [1], settings)[0]).abs().max() > 1e-3


def test_the_negative_prompt_does_not_matter_without_guidance(chunked):
    texts = chunked.encode(["a boat", "", LONG])
    settings = Settings(steps=1, width=32, height=32, cfg_scale=1.0)
    first, second = (chunked.denoise([texts["a boat"]], [texts[n]], [0], settings) for n in ("", LONG))
    assert torch.equal(first, second)


def test_small_models_have_chunks_of_their_own_length():
    pipeline = Pipeline(POCKET, CPU, EXACT, long_prompts="chunk")
    rows, prompt = pipeline.clip.rows, "dog face on a blue background with a red apple and a rocket " * 3
    texts = pipeline.encode([prompt, ""])
    chunks = words_of(pipeline, prompt)
    assert len(chunks) == pipeline.text.chunks(prompt, "") > 1
    assert texts[prompt].context.shape[1] == rows * len(chunks)
    for k, chunk in enumerate(chunks):
        part = texts[prompt].context[:, k * rows : (k + 1) * rows]
        assert torch.equal(part, pipeline.encode([chunk])[chunk].context)
    assert len(pipeline.decode(pipeline.denoise([texts[prompt]], [texts[""]], [0], Settings(1, 32, 32)))) == 1


def test_progress_is_told_for_every_prompt_and_encoder(chunked):
    calls = []
    chunked.encode([LONG, "a boat", LONG], lambda: calls.append(1))
    assert len(calls) == 2 * 3


@pytest.mark.parametrize("mode", ["cut", "chunk"])
def test_a_very_long_prompt_is_read_in_no_time(models, mode):
    pipeline = Pipeline(models, CPU, EXACT, "model", t5_rows=77, long_prompts=mode)
    for unit in ("word ", "東京", "[a:(("):
        prompt = (unit * 140_000)[:140_000]
        start = time.process_time()
        lines = pipeline.text.warnings_of([prompt])
        most = pipeline.text.chunks(prompt)
        assert time.process_time() - start < 8
        assert most == (1 if mode == "cut" else MOST_CHUNKS)
        assert lines[0].startswith("warning: CLIP leaves out: ") and all(len(line) < 1000 for line in lines)


def test_warnings_are_few_and_stand_once():
    pipeline = Pipeline(POCKET, CPU, EXACT, "model")
    known = ["dog face", "a photo of a rocket"]
    assert pipeline.text.warnings_of(known) == []
    assert pipeline.text.warnings_of(["zyxw dog", "zyxw  dog", "(dog:1.3) zyxw"]) == [
        "warning: the model does not know: zyxw",
        "warning: the model does not know: (dog:1.3), zyxw",
        "note: (dog:1.3) is read as plain text: weights of words, and what else other programs read in prompts, are "
        "not part of this project",
    ]
    lines = pipeline.text.warnings_of([f"[dog] zyxw{i}" for i in range(3000)])
    assert len(lines) == MOST_WARNINGS + 2
    assert lines[-2].startswith("warning: and 2,990 more") and lines[-1].startswith("note: [dog] is read")


@pytest.mark.parametrize(
    ("prompt", "found"),
    [
        ("a (red:1.3) car", ["(red:1.3)"]),
        ("(big red car :1.25), (sd3:.9), ((blue:1))", ["(big red car :1.25)", "(sd3:.9)", "((blue:1))"]),
        ("((word)) and (((word)))", ["((word))", "(((word)))"]),
        ("[word], [[word]], [cat:dog:0.5], [a|b]", ["[word]", "[[word]]", "[cat:dog:0.5]", "[a|b]"]),
        ("<lora:name:0.8> <hypernet:x>", ["<lora:name:0.8>", "<hypernet:x>"]),
        ("a cat BREAK a dog, BREAK, a cow", ["BREAK"]),
        ("a cat\nAND a dog", ["AND"]),
        ("{red|blue} __animal__ {{word}}", ["{red|blue}", "__animal__", "{{word}}"]),
        ("embedding:easynegative.", ["embedding:easynegative."]),
        ("(word)++ (word)1.5 cat::2 --ar 16:9", ["(word)++", "(word)1.5", "cat::2", "--ar 16:9"]),
        (r"a name \(series\)", [r"\(series\)"]),
    ],
)
def test_syntax_of_other_programs_is_found(prompt, found):
    assert foreign_syntax(prompt) == found
    assert foreign_syntax(prompt + " " + prompt) == found


@pytest.mark.parametrize(
    "prompt",
    [
        "a cat (black)",
        "a (very (very) old) man, (b) and (c)",
        "a screen (16:9) at (10:30), (1920:1080), (f/1.8:2), (Matthew 5:12), (scale 1:2.5)",
        "a smile :) or (a cat :3) <3 ;-)",
        "PEACE AND LOVE on a wall, COFFEE BREAK, SALT AND PEPPER",
        "footnote [1], word[s], {a}, <https://example.org>, C++ (code), a - b -- c",
        "the word embedding: a picture; snake_case_name; std::vector; 35mm, f/1.4",
    ],
)
def test_prose_is_not_taken_for_it(prompt):
    assert foreign_syntax(prompt) == []


def test_no_prompt_of_the_data_set_is_taken_for_it():
    folder = Path(__file__).resolve().parents[1] / "dataset"
    prompts = (folder / "prompts.txt").read_text().splitlines()
    assert len(prompts) > 100 and not [found for prompt in prompts for found in foreign_syntax(prompt)]


def test_a_tokenizer_larger_than_the_table_is_told_in_chunks_too(chunked):
    class Small:
        config = type("Sizes", (), {"vocabulary": 400})

    with pytest.raises(ParameterError, match="the file of CLIP-L has 400 tokens"):
        chunked.text.output("CLIP-L", Small(), chunked.tokens(LONG)["CLIP-L"].ids)
