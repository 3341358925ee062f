"""The `parameters` text of a picture, as the large user interfaces write and read it.

First the prompt, then a line `Negative prompt: ..`, then one line `Steps: 28, Sampler: Euler, CFG scale: 5, ..`. Start
reading at `parameters_text`.
"""

import json
import re
from pathlib import PurePath
from typing import Any

from resd3_medium.tasks import LARGEST_SEED, ImageTask

NEGATIVE = "Negative prompt:"
SAMPLER_NAMES = {"euler": "Euler", "dpmpp_2m": "DPM++ 2M"}
# Noise levels of others, which older versions write behind the sampler.
SCHEDULES = ("karras", "exponential", "polyexponential", "sgm uniform", "uniform", "simple", "normal", "beta")
LARGEST_TEXT = 2**20  # characters that are read
# Bounded repetitions, so that reading takes a time in proportion to the text, whatever it holds.
PAIR = re.compile(r'([A-Za-z][\w \-/]{0,60}): {0,4}("(?:\\.|[^\\"])*"|[^,]*)(?:,|$)')
TAG = re.compile(r"<(?:lora|lyco|hypernet):[^<>\n]{1,200}>")
LARGEST_DIGITS = 20  # of a number that is read


def parameters_text(task: ImageTask, more: dict[str, Any]) -> str:
    """The text of a task; `more` may hold `weights` and `lora`, as png.py describes them."""
    s = task.settings
    pairs = {
        "Steps": s.steps,
        "Sampler": SAMPLER_NAMES.get(s.sampler, s.sampler),
        "CFG scale": number(s.cfg_scale),
        "Seed": task.seed,
        "Size": f"{s.width}x{s.height}",
    }
    if model := more.get("weights", {}).get("MMDiT"):
        pairs |= {"Model hash": str(model.get("sha256", ""))[:10], "Model": PurePath(str(model.get("file", ""))).stem}
    if s.init_image is not None:
        pairs["Denoising strength"] = number(s.denoise)
    pairs["Shift"] = number(s.shift)
    if loras := more.get("lora"):
        names = [PurePath(str(lora["file"])).stem for lora in loras]
        hashes = [str(lora.get("sha256", ""))[:10] for lora in loras]
        strengths = [number(lora.get("strength", 1)) for lora in loras]
        for key, values in (("Lora hashes", hashes), ("Lora strengths", strengths)):
            pairs[key] = ", ".join(f"{name}: {value}" for name, value in zip(names, values, strict=True))
    lines = [task.prompt]
    # The last line of the kind begins the negative prompt, so a prompt with such a line needs one behind it.
    if task.negative_prompt or any(line.startswith(NEGATIVE) for line in task.prompt.split("\n")):
        lines.append(f"{NEGATIVE} {task.negative_prompt}")
    lines.append(", ".join(f"{key}: {quoted(str(value))}" for key, value in pairs.items() if value != ""))
    return "\n".join(lines)


def number(value: float) -> str:
    """A number as these texts have it: 5 for 5.0."""
    return str(int(value)) if value == int(value) else repr(value)


def quoted(text: str) -> str:
    """A value, as a JSON text where it would be taken for more than one."""
    return json.dumps(text, ensure_ascii=False) if re.search(r'[,:"\n\\]', text) else text


def read_parameters(text: str) -> tuple[dict[str, Any], list[str]]:
    """What a text says in terms of this project's parameters, and a line for each thing in it that is not used.

    Raises ValueError when it has no line of settings.
    """
    if len(text) > LARGEST_TEXT:
        raise ValueError(f"its parameters are longer than {LARGEST_TEXT} characters")
    *lines, last = text.replace("\r\n", "\n").rstrip().split("\n")
    pairs = dict(PAIR.findall(last))
    if "Steps" not in pairs and len(pairs) < 3:
        raise ValueError("its parameters have no line such as Steps: 28, Sampler: Euler, Seed: 1")
    starts = [i for i, line in enumerate(lines) if line.startswith(NEGATIVE)]
    start = starts[-1] if starts else len(lines)
    prompt = "\n".join(lines[:start])
    negative = "\n".join(lines[start:]).removeprefix(NEGATIVE).removeprefix(" ")
    told = []
    if tags := TAG.findall(prompt):
        told.append(f"not used: {short(', '.join(tags))} in its prompt; --lora FILE:strength adds a LoRA")
        prompt = TAG.sub("", prompt).strip()
    found: dict[str, Any] = {"prompt": prompt, "negative_prompt": negative}
    unused = []
    for key, value in pairs.items():
        value = unquoted(value)
        read = READERS.get(key)
        if read is None:
            unused.append(key)
        elif (values := read(value)) is not None:
            found |= values
        else:
            told.append(f"not used: its {key}, {short(value)}, which is not known here")
    if "sampler" in found and pairs["Sampler"].strip().lower() not in known_samplers():
        told.append(f"not used: the noise levels of its sampler, {short(pairs['Sampler'].strip())}; the sampler is")
    if unused:
        told.append(f"not used: its {short(', '.join(unused))}")
    return found, told


def short(text: str) -> str:
    """A text of others in one line of a bounded length."""
    text = " ".join(text.split())
    return text if len(text) <= 200 else text[:200] + " .."


def unquoted(value: str) -> str:
    """A value without its quotes, where it is a JSON text."""
    value = value.strip()
    if value.startswith('"'):
        try:
            value = str(json.loads(value, strict=False))
        except ValueError:
            return value
    return value


def known_samplers() -> dict[str, str]:
    """Samplers by their names here and elsewhere, in lower case."""
    return {name: name for name in SAMPLER_NAMES} | {other.lower(): name for name, other in SAMPLER_NAMES.items()}


def read_sampler(text: str) -> dict[str, Any] | None:
    """The sampler of a name, with or without noise levels behind it; None for one that is not known."""
    known, name = known_samplers(), text.lower()
    for schedule in SCHEDULES:
        name = name.removesuffix(f" {schedule}")
    return {"sampler": known[name]} if name in known else None


def read_size(text: str) -> dict[str, Any] | None:
    """Width and height of a text such as 512x768."""
    match = re.fullmatch(r"(\d{1,6}) ?x ?(\d{1,6})", text)
    return {"width": int(match[1]), "height": int(match[2])} if match else None


def read_whole(name: str, highest: int, text: str) -> dict[str, Any] | None:
    """A whole number from 0 to the highest that is allowed."""
    is_number = re.fullmatch(rf"[0-9]{{1,{LARGEST_DIGITS}}}", text)
    return {name: int(text)} if is_number and int(text) <= highest else None


def read_float(name: str, text: str) -> dict[str, Any] | None:
    """A number that is finite and not negative."""
    is_number = re.fullmatch(rf"[0-9]{{1,{LARGEST_DIGITS}}}(\.[0-9]{{0,{LARGEST_DIGITS}}})?", text)
    return {name: float(text)} if is_number else None


READERS = {
    "Steps": lambda text: read_whole("steps", 1000, text),
    "Sampler": read_sampler,
    "CFG scale": lambda text: read_float("cfg_scale", text),
    "Seed": lambda text: read_whole("seed", LARGEST_SEED, text),
    "Size": read_size,
    "Denoising strength": lambda text: read_float("denoise", text),
    "Shift": lambda text: read_float("shift", text),
}
