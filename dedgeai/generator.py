"""The generator of a real edge server: Stable Diffusion 3 through resd3_medium, or the pocket model.

Imported by edge servers only when they compute, because torch takes seconds to load. Start reading at `Generator.make`.
"""

import asyncio
from typing import Any

import torch

from common.parameters import resolve
from dedgeai.edge_server import Batch, Compute, EarlyEndError
from dedgeai.tasks import Task
from resd3_medium.infer_parameters import IMAGE_PARAMETERS, InferConfig, with_model
from resd3_medium.lora import parse_lora
from resd3_medium.opening import check_size, open_pipeline
from resd3_medium.pipeline import Settings
from resd3_medium.png import png_bytes
from resd3_medium.tasks import ImageTask


def inference_config(**given: Any) -> InferConfig:
    """Parameters with the model's folder and defaults filled in. Raises ParameterError for bad files and sizes."""
    return with_model(resolve(InferConfig, given))


class Generator(Compute):
    """One pipeline, loaded once. Tasks are computed in a thread, so that the server goes on answering.

    `config` are parameters of refine_sd3_infer.py, `threads` the CPU's, `model` its name in a catalogue. Raises
    ParameterError when files or sizes do not fit.
    """

    def __init__(self, config: InferConfig, threads: int, server: int, model: str = "") -> None:
        torch.set_num_threads(threads)
        self.config, self.pipeline = config, open_pipeline(config)
        self.done = 0  # denoising steps of the batch
        self.more = {name: getattr(self.config, name) for name in IMAGE_PARAMETERS}
        self.more |= {"t5": "on" if self.pipeline.t5_rows else "off"}
        self.more |= {"dtype": str(self.pipeline.dtype).removeprefix("torch.")}
        self.more |= {"model": model} if model else {}
        if loras := [parse_lora(text) for text in config.lora]:
            self.more["lora"] = [{"file": path.name, "strength": strength} for path, strength in loras]

    async def run(self, batch: Batch, at_once: bool) -> list[bytes]:
        """PNG files of a batch. Raises EarlyEndError after the step in which all of it was cancelled."""
        self.done = 0
        return await asyncio.to_thread(self.make, batch)

    def step(self) -> int:
        """Denoising steps of the batch that are done."""
        return self.done

    def make(self, batch: Batch) -> list[bytes]:
        """PNG files of a batch, each with its settings, as resd3_medium's have them.

        Raises EarlyEndError, and ParameterError for a size that the model cannot make.
        """

        def step_done() -> None:
            self.done += 1
            if batch.over.is_set():
                raise EarlyEndError

        tasks = [self.described(task) for task in batch.tasks]
        settings = tasks[0].settings
        check_size(self.pipeline, settings.width, settings.height)
        texts = self.pipeline.encode([text for task in tasks for text in (task.prompt, task.negative_prompt)])
        latents = self.pipeline.denoise(
            [texts[task.prompt] for task in tasks],
            [texts[task.negative_prompt] for task in tasks],
            [task.seed for task in tasks],
            settings,
            step_done,
        )
        made = self.pipeline.decode(latents)
        return [png_bytes(image, task, self.more) for image, task in zip(made, tasks, strict=True)]

    def described(self, task: Task) -> ImageTask:
        """What a task asks for, with what it leaves out filled in."""
        config = self.config
        settings = Settings(
            steps=task.steps,
            width=task.width,
            height=task.height,
            cfg_scale=config.cfg_scale if task.cfg_scale is None else task.cfg_scale,
            shift=config.shift,
            sampler=config.sampler,
        )
        negative_prompt = config.negative_prompt if task.negative_prompt is None else task.negative_prompt
        return ImageTask(task.prompt, negative_prompt, task.seed, settings)
