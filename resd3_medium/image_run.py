"""How the images of a run are made: prompts are encoded a few at a time, then denoised, decoded and saved by batches.

Ctrl-C lets the batch in work come to its end. Start reading at `ImageRun.run`.
"""

import contextlib
import dataclasses
import itertools
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence, Set
from typing import Any

import torch

from common.interruption import Interruption
from common.progress import Progress
from common.run_folder import peak_mebibytes
from resd3_medium.image_folder import PREVIEW, ImageFolder
from resd3_medium.image_record import Record
from resd3_medium.infer_parameters import IMAGE_PARAMETERS, InferConfig
from resd3_medium.pipeline import Pipeline, batches
from resd3_medium.png import png_bytes
from resd3_medium.preview import Factors, check_place, preview_factors, save_preview
from resd3_medium.tasks import ImageTask, Measured
from resd3_medium.text import Conditioning
from resd3_medium.vae import LatentFormat

ENCODED = 64  # prompts that are encoded together, before their images are made
KEPT = 256 * 2**20  # bytes of their contexts; one batch may have more of both


class Finishing(Interruption):
    """An Interruption that says, at the first signal, what is still finished."""

    def __init__(self, work: str) -> None:
        self.work = work

    def ask(self, number: int, *_: Any) -> None:
        """What the first signal calls."""
        super().ask(number)
        with contextlib.suppress(OSError):  # straight to the file: a progress bar may be about to write, too
            os.write(2, f"\nfinishing {self.work}; press Ctrl-C again to stop at once\n".encode())


def peak(device: torch.device) -> float:
    """Peak memory in MiB: the device's on CUDA, else the process's."""
    return torch.cuda.max_memory_allocated(device) / 2**20 if device.type == "cuda" else peak_mebibytes()


def factors_of(pipeline: Pipeline) -> Factors:
    """What turns the pipeline's latents into previews. Raises ParameterError when there is nothing."""
    weights = pipeline.weights["VAE"]
    latents = LatentFormat(weights.extras.latent_scale, weights.extras.latent_shift)
    return preview_factors(pipeline.config.channels, latents, weights.file.path.parent)


class ImageRun:
    """The tasks of a run, their files in `images`, by `names`, and the pipeline that makes them.

    `config` has t5 and dtype as they are used, `record` tells weights and initial image. `took` is what each image took
    that was made, in s and MiB.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        config: InferConfig,
        tasks: Sequence[ImageTask],
        names: Sequence[str],
        images: ImageFolder,
        record: Record,
    ) -> None:
        self.pipeline, self.images, self.models = pipeline, images, record.cells()
        self.tasks, self.names = tasks, names
        self.texts: dict[str, Conditioning] = {}
        self.took: list[Measured] = []
        self.config = dataclasses.replace(
            config, t5="on" if pipeline.t5_rows else "off", dtype=str(pipeline.dtype).removeprefix("torch.")
        )
        self.factors = factors_of(pipeline) if config.preview else None
        if config.preview:
            check_place(images.folder / PREVIEW)
        self.more = {name: getattr(self.config, name) for name in IMAGE_PARAMETERS}
        self.more |= {name: getattr(config, name) for name in ("models", "offload", "batch_size")}  # for the record
        self.more |= {"device": str(pipeline.device), "weights": record.weights}
        self.more |= {name: value for name in ("lora", "init_image_sha256") if (value := getattr(record, name))}

    def run(self, missing: Set[int]) -> int:
        """Make the images of these tasks. Returns 0, or the exit code of the signal that ended it after a batch.

        Raises ParameterError when a value is no longer finite.
        """
        for line in self.pipeline.text.warnings_of([text for i in sorted(missing) for text in self.prompts(i)]):
            print(line, file=sys.stderr)
        for chunk in self.chunks(missing):
            start = time.perf_counter()
            self.encode(chunk)
            text_seconds = (time.perf_counter() - start) / sum(len(batch) for batch in chunk)
            for batch in chunk:
                wanted = [i for i in batch if i in missing]
                with Finishing(self.words(wanted)) as interruption:
                    self.make(batch, wanted, text_seconds)
                if interruption.asked:
                    return interruption.code
        return 0

    def words(self, batch: Sequence[int]) -> str:
        """A batch as a user counts: image 3, or images 1, 2, 3, 4 .."""
        numbers = ", ".join(str(i + 1) for i in batch[:4]) + (" .." if len(batch) > 4 else "")
        return f"image{'s' if len(batch) > 1 else ''} {numbers}"

    # --- texts ---

    def prompts(self, i: int) -> tuple[str, str]:
        """Both prompts of a task."""
        return self.tasks[i].prompt, self.tasks[i].negative_prompt

    def size(self, prompt: str) -> int:
        """The bytes of a prompt's context."""
        text = self.pipeline.text
        return 4 * text.context_width * (text.clip.rows * text.chunks(prompt) + (text.t5_rows or text.zero_rows))

    def chunks(self, missing: Set[int]) -> Iterator[list[list[int]]]:
        """Batches whose prompts are encoded together: a few, so that memory does not grow with a run's length.

        A batch in which one image is missing is made whole again, since its size may decide about the last bit.
        """
        chunk: list[list[int]] = []
        texts: set[str] = set()
        keys = [self.pipeline.batch_key(*self.prompts(i), task.settings) for i, task in enumerate(self.tasks)]
        for batch in batches(keys, self.config.batch_size):
            if missing.isdisjoint(batch):
                continue
            own = {text for i in batch for text in self.prompts(i)}
            together = texts | own
            if chunk and (len(together) > ENCODED or sum(map(self.size, together)) > KEPT):
                yield chunk
                chunk, together = [], own
            chunk.append(batch)
            texts = together
        if chunk:
            yield chunk

    def encode(self, chunk: Sequence[Sequence[int]]) -> None:
        """Have the conditionings of a chunk's prompts in `texts`, and no others."""
        wanted = list(dict.fromkeys(text for batch in chunk for i in batch for text in self.prompts(i)))
        self.texts = {text: self.texts[text] for text in wanted if text in self.texts}
        new = [text for text in wanted if text not in self.texts]
        if new:
            total = len(new) * (3 if self.pipeline.t5_rows else 2)
            with Progress(total=total, unit="text", desc="prompts", leave=False) as bar:
                self.texts |= self.pipeline.encode(new, bar.update)

    # --- images ---

    def make(self, batch: Sequence[int], wanted: Sequence[int], text_seconds: float) -> None:
        """Make the images of a batch; save and list the wanted ones."""
        group, start = [self.tasks[i] for i in batch], time.perf_counter()
        total, desc = self.pipeline.steps(group[0].settings), f"{self.words(wanted)} of {len(self.tasks)}"
        with Progress(total=total, unit="step", desc=desc) as bar:
            latents = self.pipeline.denoise(
                [self.texts[task.prompt] for task in group],
                [self.texts[task.negative_prompt] for task in group],
                [task.seed for task in group],
                group[0].settings,
                bar.update,
                self.watcher(),
            )
        denoised = time.perf_counter()
        made = self.pipeline.decode(latents[[batch.index(i) for i in wanted]])
        decoded = time.perf_counter()
        for i, image in zip(wanted, made, strict=True):
            seconds = (text_seconds, (denoised - start) / len(batch), (decoded - denoised) / len(wanted))
            self.took.append(Measured(*seconds, peak(self.pipeline.device)))
            content = png_bytes(image, self.tasks[i], self.more, self.config.metadata)
            self.images.save(self.names[i], content)
            self.images.list(self.names[i], self.tasks[i], self.took[-1], self.models)

    def watcher(self) -> Callable[[torch.Tensor], None] | None:
        """What shows the images of a batch every few steps of theirs, in PREVIEW; None without previews."""
        if self.factors is None:
            return None
        steps, size = itertools.count(1), (self.config.width, self.config.height)

        def watch(data: torch.Tensor) -> None:
            if next(steps) % self.config.preview == 0:
                save_preview(self.images.folder / PREVIEW, data, self.factors, size)

        return watch
