"""The generator of a real edge server: what a task asks for is what its image shows and says, and it can be stopped."""

import asyncio
import functools
import io
import json
from pathlib import Path

import numpy as np
import pytest
from helpers import run_here
from PIL import Image

from dedgeai.edge_server import Batch, EdgeServer
from dedgeai.generator import Generator, inference_config
from dedgeai.tasks import Task
from resd3_medium import refine_sd3_infer
from resd3_medium.folders import POCKET


def opened(content: bytes | None) -> tuple[np.ndarray, dict]:
    """Pixels of a PNG, and what it says of itself."""
    with Image.open(io.BytesIO(content)) as image:
        said = json.loads(image.text["dedgeai"])
        return np.asarray(image), {name: said[name] for name in ("prompt", "negative_prompt", "seed")} | said[
            "settings"
        ]


@pytest.fixture(scope="module")
def server() -> EdgeServer:
    return EdgeServer(0, functools.partial(Generator, inference_config(models=str(POCKET), width=64, height=64), 1))


def test_an_image_is_that_of_the_script_and_says_what_it_was_made_of(server, tmp_path):
    plain = Task(0, "a red apple", 4, 7, 64, 64, 0)
    own = Task(1, "a red apple", 4, 7, 32, 48, 0, negative_prompt="a green apple", cfg_scale=1.5)

    async def made(*tasks: Task) -> list[bytes | None]:
        await server.hello()
        return (await server.run(list(tasks))).images

    flags = ["--prompt", plain.prompt, "--steps", 4, "--seed", 7, "--models", POCKET]
    more = ["--width", 32, "--height", 48, "--negative_prompt", "a green apple", "--cfg_scale", 1.5]
    for task, flags_of_it in ((plain, flags), (own, [*flags, *more])):
        run_here(refine_sd3_infer, *flags_of_it, "--out", tmp_path / str(task.number))
        (image,) = asyncio.run(made(task))
        pixels, said = opened(image)
        (path,) = sorted(Path(tmp_path / str(task.number)).rglob("*.png"))
        expected, theirs = opened(path.read_bytes())
        assert (pixels == expected).all() and said == theirs
    assert (said["negative_prompt"], said["cfg_scale"], said["width"], said["height"]) == ("a green apple", 1.5, 32, 48)


def test_a_batch_is_counted_in_steps_and_ends_when_all_of_it_is_cancelled(server):
    tasks = [Task(k, "a red apple", 200, k, 64, 64, 0) for k in range(3)]

    async def story() -> None:
        await server.hello()
        seen = []
        work = asyncio.ensure_future(server.run(tasks))
        while not work.done():
            seen.append((await server.steps()).get(0, 0))
            if 5 <= seen[-1] < 200:
                await server.cancel([0, 2])
            if seen[-1] >= 10:
                await server.cancel([1])
            await asyncio.sleep(0.002)
        assert seen == sorted(seen) and 10 <= seen[-1] < 200 and (await work).images == [None] * 3
        short = [Task(9, "a red apple", 2, 0, 64, 64, 0), Task(10, "a red apple", 2, 1, 64, 64, 0)]
        await server.cancel([9])  # before it comes
        images = (await server.run(short)).images
        assert images[0] is None and opened(images[1])[1]["seed"] == 1

    asyncio.run(story())


@pytest.mark.parametrize(
    ("size", "words"),
    [((40, 64), "width=40: must be a multiple of 16"), ((64, 4096), "height=4096: must be at most")],
)
def test_a_size_that_the_model_cannot_make_is_said_and_the_server_goes_on(server, size, words):
    async def story() -> None:
        await server.hello()
        with pytest.raises(RuntimeError, match=words) as failed:
            await server.run([Task(0, "a red apple", 2, 0, *size, 0)])
        assert "\n" not in str(failed.value)
        assert (await server.run([Task(1, "a red apple", 2, 0, 64, 64, 0)])).images[0]

    asyncio.run(story())


def test_no_memory_is_said_and_the_server_goes_on(server, monkeypatch):
    def make(batch: Batch) -> list[bytes]:
        raise MemoryError

    async def story() -> None:
        await server.hello()
        with monkeypatch.context() as patch:
            patch.setattr(server.compute, "make", make)
            with pytest.raises(RuntimeError, match="MemoryError"):
                await server.run([Task(0, "a", 2, 0, 64, 64, 0)])
        assert (await server.run([Task(1, "a", 2, 0, 64, 64, 0)])).images[0]

    asyncio.run(story())
