"""Text (and image) to image with Stable Diffusion 3 Medium, in little memory.

Reads the released safetensors from --models and writes PNGs and tasks.csv into --out. Without them, a small model that
comes with the project makes emoji. Without a prompt, captions of the dataset are drawn. Examples:
python resd3_medium/refine_sd3_infer.py --prompt "a red bicycle leaning on a blue door" --steps 28
python resd3_medium/refine_sd3_infer.py --num_tasks 10 --steps 10-19 --offload block
"""

import common.quiet_start  # noqa: F401

import dataclasses
import sys
import time
from pathlib import Path
from typing import Any

import torch

from common.command_line import command_line
from common.parameters import ParameterError
from common.progress import Progress
from common.run_folder import claimed, peak_mebibytes, peak_memory
from resd3_medium.guidance_check import check_guidance, warn_of_guidance
from resd3_medium.image_folder import check_table, list_task, save_image
from resd3_medium.infer_parameters import IMAGE_PARAMETERS, InferConfig, with_model, with_stored
from resd3_medium.initial_image import load_image
from resd3_medium.opening import open_pipeline
from resd3_medium.pipeline import Pipeline, Settings, batches
from resd3_medium.tasks import (
    LARGEST_SEED,
    ImageTask,
    Measured,
    choose_prompts,
    draw_tasks,
    parse_seed,
    parse_steps,
)


def warn_of_prompts(pipeline: Pipeline, prompts: list[str]) -> None:
    """Say which words a small model has never seen, and which end of a prompt an encoder does not read."""
    for prompt in dict.fromkeys(prompts):
        if unknown := pipeline.unknown_words(prompt):
            print(f"warning: the model does not know: {', '.join(dict.fromkeys(unknown))}", file=sys.stderr)
        for encoder, tokens in pipeline.tokens(prompt).items():
            if tokens.left_out and encoder != "CLIP-G":  # which reads what CLIP-L reads
                print(f"warning: {encoder.removesuffix('-L')} leaves out: {tokens.left_out!r}", file=sys.stderr)


def run(pipeline: Pipeline, tasks: list[ImageTask], config: InferConfig, out: Path) -> list[Measured]:
    """Make the images of all tasks, batch by batch, and save each at once. Returns what each took, in s and MiB.

    Raises ParameterError when a value is no longer finite.
    """
    start = time.perf_counter()
    prompts = [text for task in tasks for text in (task.prompt, task.negative_prompt)]
    warn_of_prompts(pipeline, prompts)
    warn_of_guidance(pipeline, [task.settings for task in tasks])
    texts = pipeline.encode(prompts)
    text_seconds = (time.perf_counter() - start) / len(tasks)
    more = {name: getattr(config, name) for name in IMAGE_PARAMETERS}
    more |= {name: getattr(config, name) for name in ("models", "offload", "batch_size")}  # for the record
    more |= {
        "device": str(pipeline.device),
        "t5": "on" if pipeline.t5_rows else "off",
        "dtype": str(pipeline.dtype).removeprefix("torch."),
    }
    took = []
    for batch in batches([task.settings for task in tasks], config.batch_size):
        group = [tasks[i] for i in batch]
        numbers = ", ".join(str(i + 1) for i in batch[:4]) + (" .." if len(batch) > 4 else "")
        start = time.perf_counter()
        with Progress(
            total=pipeline.steps(group[0].settings), unit="step", desc=f"image {numbers} of {len(tasks)}"
        ) as bar:
            latents = pipeline.denoise(
                [texts[task.prompt] for task in group],
                [texts[task.negative_prompt] for task in group],
                [task.seed for task in group],
                group[0].settings,
                bar.update,
            )
        denoised = time.perf_counter()
        images = pipeline.decode(latents)
        decoded = time.perf_counter()
        for task, image in zip(group, images, strict=True):
            seconds = (text_seconds, (denoised - start) / len(group), (decoded - denoised) / len(group))
            took.append(Measured(*seconds, peak(pipeline.device)))
            list_task(out, save_image(image, out, task, more), task, took[-1])
    return took


def peak(device: torch.device) -> float:
    """Peak memory in MiB: the device's on CUDA, else the process's."""
    return torch.cuda.max_memory_allocated(device) / 2**20 if device.type == "cuda" else peak_mebibytes()


def main(config: InferConfig, given: dict[str, Any]) -> None:
    """Parameters, tasks, pipeline, images, and what they took on average. Raises ParameterError."""
    if config.from_image:
        config = with_stored(config, given)
    config = with_model(config)
    check_guidance(config, given)
    seed = parse_seed(config.seed)
    prompts = choose_prompts(config.prompt, config.prompts, config.num_tasks, seed)
    more = {"steps": 1, "fit": config.fit or "crop"}
    settings = Settings(
        **{f.name: getattr(config, f.name) for f in dataclasses.fields(Settings) if f.name not in more}, **more
    )
    if config.init_image:
        load_image(config.init_image, 16, 16)  # refuse what cannot be read before anything is loaded
    elif "denoise" in given:
        raise ParameterError("denoise", config.denoise, "must come with --init_image, whose part it is")
    else:
        settings = dataclasses.replace(settings, denoise=1.0)
    if seed + len(prompts) - 1 > LARGEST_SEED:
        raise ParameterError("seed", seed, f"must be at most 2^63 for the last of the {len(prompts)} images")
    tasks = draw_tasks(prompts, config.negative_prompt, seed, parse_steps(config.steps), settings)
    check_table(Path(config.out))
    pipeline = open_pipeline(config)
    start = time.perf_counter()
    with claimed(Path(config.out)) as out:
        took = run(pipeline, tasks, config, out)
    average = (time.perf_counter() - start) / len(took)
    text, denoise, decode = (sum(getattr(t, name) for t in took) / len(took) for name in ("text", "denoise", "decode"))
    print(f"{len(took)} images and tasks.csv in {out}")
    print(f"average generation time {average:.2f} s (text {text:.2f}, denoise {denoise:.2f}, decode {decode:.2f})")
    print(f"peak memory {peak_memory(pipeline.device)}")


if __name__ == "__main__":
    command_line(InferConfig, main, __doc__)
