"""The generator of a real edge server: Stable Diffusion 3 through resd3_medium, or the pocket model.

Imported by edge servers only when they compute, because torch takes seconds to load. Start reading at `Generator.make`.
"""

import asyncio
import dataclasses
from typing import Any

import torch

from common.parameters import resolve
from dedgeai.tasks import Task
from resd3_medium.infer_parameters import IMAGE_PARAMETERS, InferConfig, with_model
from resd3_medium.opening import open_pipeline
from resd3_medium.pipeline import Settings
from resd3_medium.png import png_bytes
from resd3_medium.tasks import ImageTask


@dataclasses.dataclass(frozen=True)
class RealOptions:
    """Parameters of refine_sd3_infer.py that an edge server takes, and its CPU threads."""

    config: InferConfig
    threads: int

    def open(self, server: int) -> "Generator":
        """The generator of the server with this number. Raises ParameterError when its files or sizes do not fit."""
        return Generator(self)


def inference_config(**given: Any) -> InferConfig:
    """Parameters with the model's folder and defaults filled in. Raises ParameterError for bad files and sizes."""
    return with_model(resolve(InferConfig, given))


class Generator:
    """One pipeline, loaded once. Tasks are computed in a thread, so that the server goes on answering."""

    def __init__(self, options: RealOptions) -> None:
        torch.set_num_threads(options.threads)
        self.config = options.config
        self.pipeline = open_pipeline(self.config)

    async def run(self, tasks: list[Task], at_once: bool) -> list[bytes]:
        """PNG files of tasks that have the same steps and size."""
        return await asyncio.to_thread(self.make, tasks)

    def make(self, tasks: list[Task]) -> list[bytes]:
        """PNG files of tasks that have the same steps and size. Each carries its settings, as resd3_medium's do."""
        config, first = self.config, tasks[0]
        settings = Settings(
            steps=first.steps,
            width=first.width,
            height=first.height,
            cfg_scale=config.cfg_scale,
            shift=config.shift,
            sampler=config.sampler,
        )
        texts = self.pipeline.encode([text for task in tasks for text in (task.prompt, config.negative_prompt)])
        latents = self.pipeline.denoise(
            [texts[task.prompt] for task in tasks],
            [texts[config.negative_prompt] for _ in tasks],
            [task.seed for task in tasks],
            settings,
        )
        more = {name: getattr(config, name) for name in IMAGE_PARAMETERS}
        more |= {
            "t5": "on" if self.pipeline.t5_rows else "off",
            "dtype": str(self.pipeline.dtype).removeprefix("torch."),
        }
        made = self.pipeline.decode(latents)
        described = [ImageTask(task.prompt, config.negative_prompt, task.seed, settings) for task in tasks]
        return [png_bytes(image, task, more) for image, task in zip(made, described, strict=True)]
