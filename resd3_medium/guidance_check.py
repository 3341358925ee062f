"""What is told of parameters that nothing would come of, above all the guidance's. Start at `check_guidance`."""

import dataclasses
import sys
from collections.abc import Iterable
from typing import Any

from common.parameters import ParameterError
from resd3_medium.infer_parameters import InferConfig
from resd3_medium.pipeline import Pipeline, Settings
from resd3_medium.sd3_impls import Guidance, noise_levels


def check_guidance(config: InferConfig, given: dict[str, Any]) -> None:
    """Tell of given parameters whose guidance is off, once `with_model` has filled in the others.

    A negative prompt may stand there for other models, and is warned of. Raises ParameterError for intervals and
    blocks.
    """
    for name in ("slg_layers", "slg_start", "slg_end"):
        if name in given and config.slg_scale == 0:
            raise ParameterError(name, given[name], "must come with --slg_scale above 0, whose part it is")
    for name in ("cfg_start", "cfg_end"):
        if name in given and config.cfg_scale == 1:
            raise ParameterError(name, given[name], "must come with another --cfg_scale than 1, which is no guidance")
    if given.get("negative_prompt") and config.cfg_scale == 1:
        print("warning: the negative prompt is not read: --cfg_scale=1.0 is no guidance", file=sys.stderr)


def warn_of_guidance(pipeline: Pipeline, settings: Iterable[Settings]) -> None:
    """Say where a guidance that is on acts in none of an image's steps, since its interval holds none."""
    for each in dict.fromkeys(settings):
        guidance, levels = Guidance.of(each), noise_levels(each.steps, each.shift, each.exact_end)
        taken = pipeline.levels(each)[:-1]
        ends = {
            "cfg": guidance.cfg_scale != 1 and not any(guidance.classifier_free(sigma) for sigma in taken),
            "slg": guidance.slg_scale > 0 and not any(guidance.skip_layer(sigma, levels) for sigma in taken),
        }
        for name in (name for name, idle in ends.items() if idle):
            interval = " and ".join(f"--{name}_{end}={getattr(each, f'{name}_{end}')}" for end in ("start", "end"))
            print(
                f"warning: --{name}_scale={getattr(each, f'{name}_scale')} acts in none of {len(taken)} steps: "
                f"no step lies between {interval}",
                file=sys.stderr,
            )


def warn_of_idle(pipeline: Pipeline, config: InferConfig, settings: Iterable[Settings]) -> None:
    """Say which parameters of T5 and of previews do nothing with these models and in so few steps."""
    default = {field.name: field.default for field in dataclasses.fields(InferConfig)}
    most = max(pipeline.steps(each) for each in settings)
    idle = {
        "t5_tokens": config.t5_tokens != default["t5_tokens"] and not pipeline.t5_rows and "T5 is not used",
        "zero_rows": config.zero_rows and pipeline.t5_rows and "T5 is used, and they would stand in its place",
        "preview": config.preview > most and f"no image takes more than {most} steps",
    }
    for name, reason in idle.items():
        if reason:
            print(f"warning: --{name}={getattr(config, name)} does nothing: {reason}", file=sys.stderr)
