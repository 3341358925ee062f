"""The parameters that images are made by, and where those that are not given come from.

A parameter that the command line leaves out comes from the image of --from_image (`with_stored`), then from the model's
own file, then from the released model's defaults (`with_model`). Start reading at `InferConfig`.
"""

import dataclasses
import math
import sys
from pathlib import Path
from typing import Any, ClassVar

from common.device import DEVICE_CHOICES
from common.parameters import ParameterError, Parameters, convert, parameter
from common.run_folder import RESULTS
from resd3_medium.dtypes import DTYPES
from resd3_medium.finding import find_weights, models_folder, passed_over
from resd3_medium.folders import POCKET
from resd3_medium.initial_image import cropped, file_sha256, image_size, size_from_image
from resd3_medium.parameters_text import short
from resd3_medium.png import Stored, read_stored
from resd3_medium.sd3_impls import SAMPLERS, parse_layers
from resd3_medium.tasks import parse_seed, parse_steps

# Parameters whose defaults depend on the model. Those of SD3 medium are the published refined version's, the others
# those of Stability AI's own inference code.
NAMES = ("steps", "width", "height", "cfg_scale", "shift", "sampler")
DEFAULTS = {
    "SD3 medium": dict(zip(NAMES, ("10-19", 512, 512, 5.0, 3.0, "euler"), strict=True)),
    "SD3.5 medium": dict(zip(NAMES, ("50", 1024, 1024, 5.0, 3.0, "dpmpp_2m"), strict=True)),
    "SD3.5 large": dict(zip(NAMES, ("40", 1024, 1024, 4.5, 3.0, "dpmpp_2m"), strict=True)),
    "SD3.5 large turbo": dict(zip(NAMES, ("4", 1024, 1024, 1.0, 3.0, "euler"), strict=True)),
}
# What else decides about the pixels.
IMAGE_PARAMETERS = ("t5", "dtype", "t5_tokens", "zero_rows", "tile", "long_prompts")


@dataclasses.dataclass(kw_only=True)
class PromptParameters(Parameters):
    """What the images show, and how many there are."""

    GROUP: ClassVar[str] = "prompt"

    prompt: tuple[str, ...] = parameter((), "what the image shows")
    prompts: str | None = parameter(None, "file with a prompt on each line", path=True)
    num_tasks: int | None = parameter(
        None, "images to make; default one for each prompt, or one caption of the dataset", low=1, high=1_000_000
    )
    negative_prompt: str = parameter("", "what the image must not show", empty=True)
    long_prompts: str = parameter(
        "cut",
        "prompts of more than 75 tokens. cut: the rest is left out, and shown; chunk: CLIP reads 75 tokens at a time",
        choices=("cut", "chunk"),
    )

    def check(self) -> None:
        """Raises ParameterError when both kinds of prompts are given."""
        super().check()
        if self.prompt and self.prompts:
            raise ParameterError("prompts", self.prompts, "must not be combined with --prompt")


@dataclasses.dataclass(kw_only=True)
class ImageParameters(Parameters):
    """How an image is drawn."""

    GROUP: ClassVar[str] = "image"

    steps: str | None = parameter(
        None,
        "denoising steps, or a range that each image draws from; default 10-19, SD3.5 50, 40 or 4, pocket model 20",
        unit="steps",
    )
    width: int | None = parameter(
        None, "width of the image, a multiple of 16; default 512, SD3.5 1024, pocket model 64", unit="pixels", low=16
    )
    height: int | None = parameter(
        None, "height of the image, a multiple of 16; default 512, SD3.5 1024, pocket model 64", unit="pixels", low=16
    )
    cfg_scale: float | None = parameter(
        None,
        "scale of the classifier-free guidance, 1 is without; default 5, SD3.5 large 4.5, turbo 1, pocket model 3",
        low=0,
        high=100,
    )
    shift: float | None = parameter(
        None, "shift of the noise levels towards 1; default 3, pocket model 1", low=0.01, high=100
    )
    cfg_start: float = parameter(
        1.0,
        "noise level from which the guidance acts, 1 is pure noise; above it, steps take one pass instead of two",
        low=0,
        high=1,
    )
    cfg_end: float = parameter(0.0, "noise level down to which the guidance acts", low=0, high=1)
    slg_scale: float = parameter(
        0.0, "scale of the skip-layer guidance, 0 is without; 2.5 suits SD3.5 medium", low=0, high=100
    )
    slg_layers: str = parameter("7,8,9", "blocks that skip-layer guidance leaves out, from 0, separated by commas")
    slg_start: float = parameter(0.01, "share of the steps after which skip-layer guidance begins", low=0, high=1)
    slg_end: float = parameter(0.2, "share of the steps before which skip-layer guidance ends", low=0, high=1)
    seed: str = parameter("0", "seed of the first image, 0 to 2^63, or random; image i has seed + i")
    sampler: str | None = parameter(
        None,
        "how steps are taken; dpmpp_2m needs fewer of them; default euler, SD3.5 medium and large dpmpp_2m",
        choices=tuple(SAMPLERS),
    )
    exact_end: bool = parameter(False, "shift the last noise level once; the published code shifts it twice")
    init_image: str | None = parameter(None, "image to start from", path=True)
    fit: str | None = parameter(
        None,
        "how an initial image of other proportions is fitted. crop: its middle; pad: white is added; default crop",
        choices=("crop", "pad", "stretch"),
    )
    denoise: float = parameter(0.6, "how much of an initial image is made anew", above=0, high=1)
    from_image: str | None = parameter(
        None,
        "make the image of this PNG, JPEG or WebP again; parameters given besides go first; give --models again",
        path=True,
    )

    def check(self) -> None:
        """Raises ParameterError for steps that are none, sizes that are no multiple of 16, and empty intervals."""
        super().check()
        if self.steps is not None:
            parse_steps(self.steps)
        parse_seed(self.seed)
        parse_layers(self.slg_layers)
        if self.cfg_start < self.cfg_end:
            words = f"must be at least --cfg_end={self.cfg_end}: noise goes from 1 down to 0"
            raise ParameterError("cfg_start", self.cfg_start, words)
        if self.slg_start > self.slg_end:
            raise ParameterError("slg_start", self.slg_start, f"must be at most --slg_end={self.slg_end}")
        for name in ("width", "height"):
            if (getattr(self, name) or 0) % 16:
                raise ParameterError(name, getattr(self, name), "must be a multiple of 16")


@dataclasses.dataclass(kw_only=True)
class ModelParameters(Parameters):
    """Which models are used, and how they run."""

    GROUP: ClassVar[str] = "model"

    models: str | None = parameter(
        None,
        "folder of the model files, or one file; default models, or models/pocket while no model lies in models",
        path=True,
    )
    weights: str = parameter(
        "stored",
        "how large matrices are kept in memory. stored: as in the file; full: at --dtype; int8, fp8: 8 bits",
        choices=("stored", "full", "int8", "fp8"),
    )
    lora: tuple[str, ...] = parameter(
        (), "LoRA file to add, as FILE or FILE:strength; without it, strength is 1", path=True
    )
    device: str = parameter("auto", "where the models run", choices=DEVICE_CHOICES)
    dtype: str = parameter(
        "auto", "precision of the computation; auto: float16, on the CPU float32", choices=("auto", *DTYPES)
    )
    offload: str = parameter(
        "none",
        "memory level. none: all models stay on the device; model: they take turns; block: so do layers",
        choices=("none", "model", "block"),
        more="With block, the layers of encoders and transformer come in one by one.",
    )
    t5: str = parameter("auto", "use the T5 encoder; auto: if its file is there", choices=("auto", "on", "off"))
    t5_tokens: int = parameter(77, "tokens of a prompt that T5 reads", low=2, high=512)
    zero_rows: int = parameter(
        0, "rows of zeros that stand for T5 where it is left out; diffusers has 256", low=0, high=512
    )
    tile: int = parameter(
        1536,
        "images whose longer side exceeds this are decoded in tiles of this size, which is not exact; 0: never",
        low=0,
    )

    def check(self) -> None:
        """Raises ParameterError for tiles that are too small."""
        super().check()
        if self.tile and self.tile < 256:
            raise ParameterError("tile", self.tile, "must be 0 or at least 256")


@dataclasses.dataclass(kw_only=True)
class OutputParameters(Parameters):
    """How a run goes about its images."""

    GROUP: ClassVar[str] = "run"

    batch_size: int = parameter(1, "images that are denoised together, if they have as many steps", low=1, high=1024)
    out: str = parameter(str(RESULTS / "images"), "folder of the images", path=True)
    resume: str | None = parameter(None, "folder of a run whose missing images are made", path=True)
    preview: int = parameter(0, "steps between previews of the image, in preview.png; 0: none", unit="steps", low=0)
    metadata: str = parameter(
        "full",
        "text chunks of the PNG. full: every setting; plain: the line that other programs read; off: none",
        choices=("full", "plain", "off"),
    )


@dataclasses.dataclass(kw_only=True)
class InferConfig(OutputParameters, ModelParameters, ImageParameters, PromptParameters):
    """Every parameter of refine_sd3_infer.py; the last base's come first."""


def with_stored(config: InferConfig, given: dict[str, Any]) -> InferConfig:
    """The parameters of the image --from_image, where the command line does not give others.

    What another program's image says and is not used, and an initial image other than the recorded one, are told.
    Raises ParameterError when it does not say how it was made, what it says is not allowed, or its initial image is
    not found.
    """
    stored = read_stored(config.from_image)
    values, told = dict(stored.parameters), list(stored.told)
    if stored.ours:
        values |= {name: stored.more[name] for name in IMAGE_PARAMETERS if name in stored.more}
        if kept := kept_at(stored.more.get("weights")):
            values["weights"] = kept
        values["init_image"] = initial_image(config, given, stored)
        if stored.parameters.get("init_image") is None:
            values.pop("denoise", None)
    elif "denoise" in values and not config.init_image:
        told.append(f"not used: its Denoising strength, {values.pop('denoise')}, without --init_image")
    values |= {
        name: [values[name]] if name == "prompt" else str(values[name])
        for name in ("prompt", "steps", "seed")
        if name in values
    }
    checked = {}
    for name, value in values.items():
        if name in given or (name == "prompt" and config.prompts):
            continue
        try:
            checked[name] = convert(InferConfig, name, value)
            InferConfig(**{name: checked[name]}).check()
        except ParameterError as error:
            words = f"its {name}, {short(str(value))}, {error.reason}"
            if stored.ours or name in ("width", "height"):
                raise ParameterError(
                    "from_image", config.from_image, f"{words}; another is taken from --{name}"
                ) from None
            checked.pop(name, None)
            told.append(f"not used: {words}")
    for line in told:
        print(f"{config.from_image}: {line}", file=sys.stderr)
    merged = dataclasses.replace(config, **checked)
    merged.check()
    return merged


def kept_at(weights: Any) -> str:
    """What --weights was for an image, by its record of them; empty where nothing was rounded."""
    parts = weights.values() if isinstance(weights, dict) else ()
    return next((str(part["kept"]) for part in parts if isinstance(part, dict) and "kept" in part), "")


def initial_image(config: InferConfig, given: dict[str, Any], stored: Stored) -> str | None:
    """The initial image of an image of this project: the given one, or the recorded one, which lies at hand.

    Raises ParameterError when it has to be given.
    """
    recorded, digest = stored.parameters.get("init_image"), stored.more.get("init_image_sha256")
    if config.init_image:
        if recorded and digest and file_sha256(config.init_image) != digest:
            print(f"warning: --init_image is not the image that {config.from_image} was made from", file=sys.stderr)
        return config.init_image
    if not recorded:
        return None
    name = Path(str(recorded)).name
    for place in (Path(name), Path(config.from_image).expanduser().parent / name):
        if digest and place.is_file() and file_sha256(str(place)) == digest:
            print(f"initial image {place}")
            return str(place)
    raise ParameterError("init_image", None, f"must be given, since {config.from_image} was made from {short(name)}")


def with_model(config: InferConfig) -> InferConfig:
    """The parameters with the place of the models, and with the defaults of the model that lies there.

    A small model may say what suits it, and what it is, in the metadata of its transformer's file; the latter is
    printed. Raises ParameterError when a model is missing or damaged, or its defaults are not allowed.
    """
    models = models_folder(config.models)
    if config.models is None and models == POCKET:
        for line in passed_over():
            print(f"note: {line}", file=sys.stderr)
    weights = find_weights(models, config.t5)
    mmdit = weights["MMDiT"].config
    own, extras = dict(DEFAULTS[weights.kind]), weights["MMDiT"].extras
    if unknown := extras.defaults.keys() - own.keys():
        raise weights["MMDiT"].file.error(f"must not have a default for {min(unknown)}")
    own |= {name: convert(InferConfig, name, value) for name, value in extras.defaults.items()}
    if extras.note:
        print(extras.note)
    missing = {name: value for name, value in own.items() if getattr(config, name) is None}
    if config.init_image:
        side, unit = math.isqrt(own["width"] * own["height"]), mmdit.patch * weights["VAE"].config.factor
        missing |= by_initial_image(config, side, unit * mmdit.grid)
    return dataclasses.replace(config, models=str(models), **missing)


def by_initial_image(config: InferConfig, side: int, largest: int) -> dict[str, Any]:
    """Width, height and fit by the initial image, where they are not given; `side` and `largest` as `size_from_image`.

    A line tells the size, and one what is cropped. Raises ParameterError when the image cannot be read.
    """
    size = image_size(config.init_image)
    width, height = size_from_image(size, config.width, config.height, side, 16, largest)
    if (width, height) != (config.width, config.height):
        print(f"size {width}x{height}, by the initial image's {size[0]}x{size[1]}")
    if config.fit is None and (line := cropped(size, width, height)):
        print(line)
    return {"width": width, "height": height, "fit": config.fit or "crop"}
