"""The pipeline of a run's parameters, once it is known that all files are there and the sizes fit."""

from pathlib import Path

from common.device import choose_device
from common.parameters import ParameterError
from resd3_medium.dtypes import choose_dtype
from resd3_medium.infer_parameters import InferConfig
from resd3_medium.pipeline import Pipeline
from resd3_medium.weights import missing_files


def open_pipeline(config: InferConfig) -> Pipeline:
    """The pipeline of parameters that `with_model` has filled in.

    Raises ParameterError for a device that is not there, files that are missing, and sizes that do not fit.
    """
    models, device = Path(config.models), choose_device(config.device)
    t5 = config.t5 == "on" or (config.t5 == "auto" and not missing_files(models, ["T5"]))
    wanted = ["CLIP-L", "CLIP-G", "MMDiT", "VAE", *(["T5"] if t5 else [])]
    if missing := missing_files(models, wanted):
        raise ParameterError(
            "models", models, f"{', '.join(missing)} missing; get the files with python scripts/download_models.py"
        )
    pipeline = Pipeline(
        models,
        device,
        choose_dtype(config.dtype, device),
        config.offload,
        t5_rows=config.t5_tokens if t5 else 0,
        zero_rows=config.zero_rows,
        long_prompts=config.long_prompts,
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
