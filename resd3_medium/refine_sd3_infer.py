"""Text (and image) to image with Stable Diffusion 3 Medium, in little memory.

Reads the released safetensors from --models and writes PNGs and tasks.csv into --out. Without them, a small model that
comes with the project makes emoji. Without a prompt, captions of the dataset are drawn. Examples:
python resd3_medium/refine_sd3_infer.py --prompt "a red bicycle leaning on a blue door" --steps 28
python resd3_medium/refine_sd3_infer.py --num_tasks 10 --steps 10-19 --offload block
"""

import dataclasses
import sys
import time
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from common.command_line import command_line
from common.parameters import LARGEST, ParameterError, Parameters, convert, parameter
from common.run_folder import RESULTS, claimed, peak_mebibytes, peak_memory, writable
from resd3_medium.pipeline import Pipeline, Settings, batches, load_image
from resd3_medium.sd3_impls import SAMPLERS
from resd3_medium.tasks import (
    Measured,
    Task,
    check_table,
    choose_prompts,
    draw_tasks,
    list_task,
    parse_steps,
    read_task,
    save_image,
)
from resd3_medium.weights import PARTS, WeightsFile, missing_files

MODELS = Path(__file__).resolve().parents[1] / "models"
POCKET = MODELS / "pocket"  # a small model that comes with the project
# Parameters whose defaults a model's file may give, and what they are without.
RELEASED = {"steps": "10-19", "width": 512, "height": 512, "cfg_scale": 5.0, "shift": 3.0}
IMAGE_PARAMETERS = ("t5", "dtype", "t5_tokens", "zero_rows", "tile")  # what else decides about the pixels
DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}


@dataclasses.dataclass(kw_only=True)
class InferConfig(Parameters):
    """Every parameter of refine_sd3_infer.py."""

    prompt: tuple[str, ...] = parameter((), "what the image shows")
    prompts: str | None = parameter(None, "file with a prompt on each line")
    num_tasks: int | None = parameter(
        None, "images to make; default one for each prompt, or one caption of the dataset", low=1, high=1_000_000
    )
    negative_prompt: str = parameter("", "what the image must not show", empty=True)
    steps: str | None = parameter(
        None,
        "denoising steps, or a range that each task draws its number from; default 10-19, pocket model 20",
        unit="steps",
    )
    width: int | None = parameter(
        None, "width of the image, a multiple of 16; default 512, pocket model 64", unit="pixels", low=16
    )
    height: int | None = parameter(
        None, "height of the image, a multiple of 16; default 512, pocket model 64", unit="pixels", low=16
    )
    cfg_scale: float | None = parameter(
        None, "scale of the classifier-free guidance, 1 is without; default 5, pocket model 3", low=0, high=100
    )
    shift: float | None = parameter(
        None, "shift of the noise levels towards 1; default 3, pocket model 1", low=0.01, high=100
    )
    seed: int = parameter(0, "seed of the first image; image i has seed + i", low=0)
    sampler: str = parameter("euler", "sampler; dpmpp_2m needs fewer steps", choices=tuple(SAMPLERS))
    exact_end: bool = parameter(False, "do not shift the last noise level twice, as the published code does")
    init_image: str | None = parameter(None, "image to start from")
    denoise: float = parameter(0.6, "how much of an initial image is made anew", above=0, high=1)
    from_image: str | None = parameter(None, "make the image of this PNG again, but for parameters given besides")
    batch_size: int = parameter(1, "images that are denoised together, if they have as many steps", low=1, high=1024)
    models: str | None = parameter(
        None, "folder of the model files; default models, or models/pocket while no model file lies in models"
    )
    device: str = parameter("auto", "where the models run", choices=("auto", "cuda", "mps", "cpu"))
    dtype: str = parameter("auto", "dtype of the weights; auto: float16, on the CPU float32", choices=("auto", *DTYPES))
    offload: str = parameter(
        "none",
        "memory level. none: all models stay on the device; model: they take turns; block: layers come in one by one",
        choices=("none", "model", "block"),
    )
    t5: str = parameter("auto", "use the T5 encoder; auto: if its file is there", choices=("auto", "on", "off"))
    t5_tokens: int = parameter(77, "tokens of a prompt that T5 reads", low=2, high=512)
    zero_rows: int = parameter(
        0, "rows of zeros that stand for T5 where it is left out; diffusers has 256", low=0, high=512
    )
    tile: int = parameter(
        1536, "images with a longer side are decoded in tiles of this size, which is not exact; 0: never", low=0
    )
    out: str = parameter(str(RESULTS / "images"), "folder of the images")

    def check(self) -> None:
        super().check()
        if self.steps is not None:
            parse_steps(self.steps)
        for name in ("width", "height"):
            if (getattr(self, name) or 0) % 16:
                raise ParameterError(name, getattr(self, name), "must be a multiple of 16")
        if self.prompt and self.prompts:
            raise ParameterError("prompts", self.prompts, "must not be combined with --prompt")
        if self.tile and self.tile < 256:
            raise ParameterError("tile", self.tile, "must be 0 or at least 256")


def choose_device(config: InferConfig) -> torch.device:
    """The device of --device. Raises ParameterError when there is none."""
    present = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    name = next(n for n in present if present[n]) if config.device == "auto" else config.device
    if not present[name]:
        raise ParameterError("device", name, f"must be a device of this machine, which has no {name}")
    return torch.device(name)


def choose_dtype(config: InferConfig, device: torch.device) -> torch.dtype:
    if config.dtype == "auto":
        return torch.float32 if device.type == "cpu" else torch.float16
    return DTYPES[config.dtype]


def with_stored(config: InferConfig, given: dict[str, Any]) -> InferConfig:
    """The parameters of the image --from_image, where the command line does not give others."""
    task, more = read_task(config.from_image)
    stored = dataclasses.asdict(task.settings) | {name: more[name] for name in IMAGE_PARAMETERS if name in more}
    stored |= {"prompt": [task.prompt], "negative_prompt": task.negative_prompt, "seed": task.seed}
    stored["steps"] = str(task.settings.steps)
    if task.settings.init_image is None:
        del stored["denoise"]
    if config.prompts:
        del stored["prompt"]
    checked = {name: convert(InferConfig, name, value) for name, value in stored.items()}
    merged = dataclasses.replace(config, **{name: value for name, value in checked.items() if name not in given})
    merged.check()
    return merged


def with_model(config: InferConfig) -> InferConfig:
    """The parameters with the folder of the models, and with the defaults of the model that lies there.

    A small model may say what suits it, and what it is, in the metadata of its transformer's file.
    """
    names = [part.file for part in PARTS.values()]
    models = Path(config.models or MODELS)
    if config.models is None and not any((models / name).is_file() for name in names):
        models = POCKET
    own, file = dict(RELEASED), models / PARTS["MMDiT"].file
    if file.is_file():
        extras = WeightsFile(file).extras
        if unknown := extras.defaults.keys() - own.keys():
            raise ParameterError("models", models, f"{file.name} must not have a default for {min(unknown)}")
        own |= {name: convert(InferConfig, name, value) for name, value in extras.defaults.items()}
        if extras.note:
            print(extras.note)
    missing = {name: value for name, value in own.items() if getattr(config, name) is None}
    return dataclasses.replace(config, models=str(models), **missing)


def open_pipeline(config: InferConfig) -> Pipeline:
    """The pipeline of the parameters. Raises ParameterError for files that are missing and sizes that do not fit."""
    models, device = Path(config.models), choose_device(config)
    t5 = config.t5 == "on" or (config.t5 == "auto" and not missing_files(models, ["T5"]))
    wanted = ["CLIP-L", "CLIP-G", "MMDiT", "VAE", *(["T5"] if t5 else [])]
    if missing := missing_files(models, wanted):
        raise ParameterError(
            "models", models, f"{', '.join(missing)} missing; get the files with python scripts/download_models.py"
        )
    pipeline = Pipeline(
        models,
        device,
        choose_dtype(config, device),
        config.offload,
        t5_rows=config.t5_tokens if t5 else 0,
        zero_rows=config.zero_rows,
    )
    unit = pipeline.config.patch * pipeline.factor  # pixels along a patch's side, 16 in the released model
    largest = pipeline.config.grid * unit
    for name in ("width", "height"):
        if getattr(config, name) % unit:
            raise ParameterError(name, getattr(config, name), f"must be a multiple of {unit}, the model's patch")
        if getattr(config, name) > largest:
            raise ParameterError(name, getattr(config, name), f"must be at most {largest}, the model's largest")
    if config.tile and max(config.width, config.height) > config.tile:
        pipeline.tile = config.tile // pipeline.factor
    return pipeline


def warn_of_prompts(pipeline: Pipeline, prompts: list[str]) -> None:
    """Say which words a small model has never seen, and which end of a prompt an encoder does not read."""
    for prompt in dict.fromkeys(prompts):
        if unknown := pipeline.unknown_words(prompt):
            print(f"warning: the model does not know: {', '.join(dict.fromkeys(unknown))}", file=sys.stderr)
        for encoder, tokens in pipeline.tokens(prompt).items():
            if tokens.left_out and encoder != "CLIP-G":  # which reads what CLIP-L reads
                print(f"warning: {encoder.removesuffix('-L')} leaves out: {tokens.left_out!r}", file=sys.stderr)


def run(pipeline: Pipeline, tasks: list[Task], config: InferConfig, out: Path) -> list[Measured]:
    """Make the images of all tasks, batch by batch, and save each at once. Returns what each took."""
    start = time.perf_counter()
    prompts = [text for task in tasks for text in (task.prompt, task.negative_prompt)]
    warn_of_prompts(pipeline, prompts)
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
        with tqdm(total=pipeline.steps(group[0].settings), unit="step", desc=f"image {numbers} of {len(tasks)}") as bar:
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
    if config.from_image:
        config = with_stored(config, given)
    config = with_model(config)
    prompts = choose_prompts(config.prompt, config.prompts, config.num_tasks, config.seed)
    settings = Settings(
        **{f.name: getattr(config, f.name) for f in dataclasses.fields(Settings) if f.name != "steps"}, steps=1
    )
    if config.init_image:
        load_image(config.init_image, 16, 16)  # refuse what cannot be read before anything is loaded
    elif "denoise" in given:
        raise ParameterError("denoise", config.denoise, "must come with --init_image, whose part it is")
    else:
        settings = dataclasses.replace(settings, denoise=1.0)
    if config.seed + len(prompts) - 1 > LARGEST:
        raise ParameterError(
            "seed", config.seed, f"must be at most {LARGEST} for the last of the {len(prompts)} images"
        )
    tasks = draw_tasks(prompts, config.negative_prompt, config.seed, parse_steps(config.steps), settings)
    check_table(Path(config.out))
    pipeline = open_pipeline(config)
    out = writable(Path(config.out))
    start = time.perf_counter()
    with claimed(out):
        took = run(pipeline, tasks, config, out)
    average = (time.perf_counter() - start) / len(took)
    text, denoise, decode = (sum(getattr(t, name) for t in took) / len(took) for name in ("text", "denoise", "decode"))
    print(f"{len(took)} images and tasks.csv in {out}")
    print(f"average generation time {average:.2f} s (text {text:.2f}, denoise {denoise:.2f}, decode {decode:.2f})")
    print(f"peak memory {peak_memory(pipeline.device)}")


if __name__ == "__main__":
    command_line(InferConfig, main, __doc__)
