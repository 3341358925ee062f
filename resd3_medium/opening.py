"""The pipeline of a run's parameters, once it is known that all files are there and the sizes fit."""

from pathlib import Path

from common.device import choose_device
from common.parameters import ParameterError
from resd3_medium.dtypes import choose_dtype
from resd3_medium.finding import add_loras, find_weights
from resd3_medium.infer_parameters import InferConfig
from resd3_medium.pipeline import Pipeline
from resd3_medium.sd3_impls import parse_layers


def open_pipeline(config: InferConfig) -> Pipeline:
    """The pipeline of parameters that `with_model` has filled in.

    Raises ParameterError for a device that is not there, files that are missing, and sizes and blocks that do not fit.
    """
    device = choose_device(config.device)
    weights = find_weights(Path(config.models), config.t5)
    add_loras(weights, config.lora)
    pipeline = Pipeline(
        weights,
        device,
        choose_dtype(config.dtype, device),
        config.offload,
        t5_rows=config.t5_tokens if "T5" in weights else 0,
        zero_rows=config.zero_rows,
        keep=config.weights,
        long_prompts=config.long_prompts,
    )
    check_size(pipeline, config.width, config.height)
    last = pipeline.config.depth - 1
    if config.slg_scale and max(parse_layers(config.slg_layers)) > last:
        words = f"must be numbers of blocks from 0 to {last}, separated by commas"
        raise ParameterError("slg_layers", config.slg_layers, words)
    pipeline.tile = config.tile // pipeline.factor  # which leaves smaller images as they are
    return pipeline


def check_size(pipeline: Pipeline, width: int, height: int) -> None:
    """Raise ParameterError unless the pipeline's models can make images of so many pixels."""
    unit = pipeline.config.patch * pipeline.factor  # pixels along a patch's side, 16 in the released model
    largest = pipeline.config.grid * unit
    for name, value in (("width", width), ("height", height)):
        if value % unit:
            raise ParameterError(name, value, f"must be a multiple of {unit}, the model's patch")
        if value > largest:
            raise ParameterError(name, value, f"must be at most {largest}, the model's largest")
