"""Text (and image) to image with Stable Diffusion 3 and 3.5, in little memory.

Reads weights, as released or as others pack them, from --models and writes PNGs and tasks.csv into --out. Without them,
a small model that comes with the project makes emoji. Without a prompt, captions of the dataset are drawn. Examples:
python resd3_medium/refine_sd3_infer.py --prompt "a red bicycle leaning on a blue door" --steps 28
python resd3_medium/refine_sd3_infer.py --num_tasks 10 --steps 10-19 --offload block
python resd3_medium/refine_sd3_infer.py --resume results/images
"""

import common.quiet_start  # noqa: F401

import dataclasses
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from common.command_line import command_line
from common.parameters import ParameterError
from common.run_folder import claimed, peak_memory
from resd3_medium.guidance_check import check_guidance, warn_of_guidance, warn_of_idle
from resd3_medium.image_folder import ImageFolder, image_names, no_empty_folder
from resd3_medium.image_record import Record, check_config, read_record, recorded, warn_of_unfinished, warn_of_weights
from resd3_medium.image_run import ImageRun
from resd3_medium.infer_parameters import InferConfig, with_model, with_stored
from resd3_medium.initial_image import load_image
from resd3_medium.opening import open_pipeline
from resd3_medium.pipeline import Settings
from resd3_medium.tasks import LARGEST_SEED, ImageTask, choose_prompts, draw_tasks, parse_seed, parse_steps


def note(line: str) -> None:
    """Tell the user what happens to a file of theirs."""
    print(f"note: {line}", file=sys.stderr)


def new_run(config: InferConfig, given: dict[str, Any]) -> tuple[InferConfig, list[str]]:
    """All parameters of a new run, the seed drawn where it is random, and the prompt of each image.

    Raises ParameterError for what can be known to be a mistake before anything is loaded.
    """
    if config.from_image:
        config = with_stored(config, given)
    config = with_model(config)
    check_guidance(config, given)
    seed = parse_seed(config.seed)
    if config.init_image:
        load_image(config.init_image, 16, 16, tell=note)
    elif idle := [name for name in ("denoise", "fit") if name in given]:
        raise ParameterError(idle[0], given[idle[0]], "must come with --init_image, whose part it is")
    prompts = choose_prompts(config.prompt, config.prompts, config.num_tasks, seed)
    if seed + len(prompts) - 1 > LARGEST_SEED:
        raise ParameterError("seed", seed, f"must be at most 2^63 for the last of the {len(prompts)} images")
    return dataclasses.replace(config, seed=str(seed)), prompts


def task_list(config: InferConfig, prompts: Sequence[str]) -> list[ImageTask]:
    """A task for each prompt; the same parameters and prompts give the same list."""
    own = {"steps": 1, "fit": config.fit or "crop"} | ({} if config.init_image else {"denoise": 1.0})
    shared = {f.name: getattr(config, f.name) for f in dataclasses.fields(Settings)}
    settings = Settings(**shared | own)
    return draw_tasks(prompts, config.negative_prompt, parse_seed(config.seed), parse_steps(config.steps), settings)


def make_images(config: InferConfig, tasks: Sequence[ImageTask], images: ImageFolder, record: Record | None) -> None:
    """Load the models and make the images: of a new run all, of one with a record those that are missing.

    Exits with 128 + a signal's number when that ended it after a batch, with 1 when an image is gone. Raises
    ParameterError.
    """
    names = image_names(tasks, record.first if record else images.next_number())
    missing = {i for i, name in enumerate(names) if not record or not images.whole(name)}
    if record:
        for i in sorted(set(range(len(tasks))) - missing):  # a killed run may not have come to list its last ones
            images.list(names[i], tasks[i], None, record.cells())
        print(f"{len(missing)} of {len(tasks)} images are missing in {images.folder}")
        if not missing:
            return
        record.check_image(config)
        config = with_model(config)
    pipeline = open_pipeline(config)
    print("\n".join(pipeline.weights.lines(config.weights)))
    warn_of_guidance(pipeline, [task.settings for task in tasks])
    warn_of_idle(pipeline, config, [task.settings for task in tasks])
    if record:
        record.check_weights(config, pipeline.weights)
    else:
        warn_of_unfinished(images)
        prompts = [task.prompt for task in tasks]
        record = Record.of(prompts, images.next_number(), pipeline.weights, config.weights, config.init_image)
        if config.from_image:
            warn_of_weights(config.from_image, record)
    start = time.perf_counter()
    run = ImageRun(pipeline, config, tasks, names, images, record)
    with recorded(images.folder, run.config, record, names):
        code = run.run(missing)
    average, took = (time.perf_counter() - start) / len(run.took), run.took
    text, denoise, decode = (sum(getattr(t, name) for t in took) / len(took) for name in ("text", "denoise", "decode"))
    print(f"{len(took)} images and tasks.csv in {images.folder}")
    print(f"average generation time {average:.2f} s (text {text:.2f}, denoise {denoise:.2f}, decode {decode:.2f})")
    print(f"peak memory {peak_memory(pipeline.device)}")
    if left := sum(not images.whole(name) for name in names):
        print(f"{left} of {len(tasks)} images are missing; go on with --resume {shlex.quote(str(images.folder))}")
        sys.exit(code or 1)


def main(config: InferConfig, given: dict[str, Any]) -> None:
    """A new run, or one that goes on: its tasks, its folder, then models and images. Raises ParameterError."""
    if not config.resume:
        config, prompts = new_run(config, given)
        tasks, place = task_list(config, prompts), Path(config.out)
        with no_empty_folder(place), claimed(place) as folder:
            check_config(folder)
            make_images(config, tasks, ImageFolder(folder), None)
        return
    place = Path(config.resume)
    if not (place / "config.json").is_file():
        raise ParameterError("resume", place, "must be a folder of images, with a config.json")
    with claimed(place, "resume") as folder:
        config, record = read_record(config, given)
        make_images(config, task_list(config, record.prompts), ImageFolder(folder, "resume"), record)


if __name__ == "__main__":
    command_line(InferConfig, main, __doc__)
