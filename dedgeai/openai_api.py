"""OpenAI's Images API: their clients make pictures here, unchanged but for the address.

Start reading at `add_openai`.
"""

import asyncio
import base64
import hmac
import re
import secrets
import time
from collections.abc import Iterable
from typing import Any, ClassVar, Literal
from urllib.parse import parse_qs, urlencode

from fastapi import FastAPI, HTTPException, Request
from fastapi.responses import Response
from pydantic import BaseModel, Field

from dedgeai.forms import NAME, Form, Key, integer, text, unavailable
from dedgeai.records import DONE, FAILED
from dedgeai.service import Service
from dedgeai.store import Store

LINK_SECONDS = 3600  # s for which an image's URL holds
IMAGE_PATH = re.compile(r"/api/tasks/([0-9]{1,18})/image")


class OpenAIModel(Form):
    """A model."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "dedgeai"


class OpenAIModels(Form):
    """All models."""

    object: Literal["list"] = "list"
    data: list[OpenAIModel]


class OpenAIImage(Form):
    """An image, as base64 of its PNG file or as a URL that holds for an hour and needs no token."""

    b64_json: str | None = None
    url: str | None = None
    revised_prompt: str | None = None


class OpenAIImages(Form):
    """The images of a request. `created` is in s since 1970."""

    created: int
    data: list[OpenAIImage]


class OpenAIProblem(Form):
    """A refusal: its `message`, `type`, `param` and `code`."""

    error: dict[str, str | None]


class UnknownModel(HTTPException):
    """Another model than there is was asked for."""

    code = "model_not_found"


STATUSES = (404, 409, 410, 500)  # of refusals, besides those that any path may have
PROBLEM = {"model": OpenAIProblem, "description": "why it was refused, in words"}


class Links:
    """URLs of images that need no token, signed with a secret of the service's own."""

    def __init__(self, store: Store) -> None:
        if store.setting("link_secret") is None:
            store.set("link_secret", secrets.token_hex(32))
        self.secret = (store.setting("link_secret") or "").encode()

    def signature(self, task: int, expires: int) -> str:
        """What shows that this service gave out the URL of a task's image until a wall time in s."""
        return hmac.new(self.secret, f"{task} {expires}".encode(), "sha256").hexdigest()

    def url(self, request: Request, task: int) -> str:
        """The URL of a task's image, at the address that the request was sent to."""
        expires = int(time.time()) + LINK_SECONDS
        query = urlencode({"expires": expires, "signature": self.signature(task, expires)})
        return f"{str(request.base_url).rstrip('/')}/api/tasks/{task}/image?{query}"

    def allow(self, scope: dict[str, Any]) -> bool:
        """Whether a request is for an image, by a URL that was given out and still holds."""
        path, query = IMAGE_PATH.fullmatch(scope["bare"]), parse_qs(scope["query_string"].decode("latin-1"))
        expires, signature = query.get("expires", [""])[0], query.get("signature", [""])[0]
        if path is None or scope["method"] not in ("GET", "HEAD") or not re.fullmatch("[0-9]{1,18}", expires):
            return False
        right = self.signature(int(path[1]), int(expires))
        return hmac.compare_digest(right.encode(), signature.encode()) and time.time() < int(expires)


def generation_form(service: Service, wishes: type[BaseModel]) -> type[BaseModel]:
    """The body of a request for images, with the service's limits."""
    sides = "|".join(str(side) for side in range(16, service.model.largest + 1, 16))
    pattern = f"^(auto|({sides})x({sides}))$"
    size_text = text(f"auto, or as in 64x32: multiples of 16 up to {service.model.largest}", pattern)

    class Generation(wishes):  # type: ignore[misc, valid-type]
        """Images to make. Unknown fields are refused."""

        base_station: ClassVar[None] = None

        model: NAME | None = None
        n: integer(ge=1, le=service.config.max_images) | None = Field(None, description="how many")
        size: size_text | None = Field(None, description="width x height in pixels, or auto: the model's")
        response_format: Literal["url", "b64_json"] | None = Field(None, description="default url")
        quality: Literal["auto", "standard"] | None = None
        output_format: Literal["png"] | None = None
        # what clients send though it asks for nothing
        background: Literal["auto", "opaque"] | None = None
        moderation: Literal["auto", "low"] | None = None
        output_compression: Literal[100] | None = None
        partial_images: Literal[0] | None = None
        stream: Literal[False] | None = None

        @property
        def images(self) -> int:
            """How many."""
            return self.n or 1

        @property
        def width(self) -> int | None:
            """In pixels; None: the model's."""
            return None if self.size in (None, "auto") else int(self.size.split("x")[0])

        @property
        def height(self) -> int | None:
            """In pixels; None: the model's."""
            return None if self.size in (None, "auto") else int(self.size.split("x")[1])

    return Generation


def add_openai(app: FastAPI, service: Service, wishes: type[BaseModel], links: Links, answers: Iterable[int]) -> None:
    """The paths below /v1. `answers` are the statuses of refusals that any path may have."""
    generation, began = generation_form(service, wishes), int(time.time())
    ours = {name: OpenAIModel(id=name, created=began) for name in service.model.choice}
    shared: dict[str, Any] = {"tags": ["OpenAI"], "responses": {status: PROBLEM for status in (*answers, *STATUSES)}}

    def check_model(wanted: str | None) -> None:
        if wanted is not None and wanted not in ours:
            raise UnknownModel(404, f"there is no such model; there is {', '.join(ours)}")

    @app.get("/v1/models", response_model=OpenAIModels, **shared)
    async def models() -> Response:
        """The models, the default one first."""
        return OpenAIModels(data=[*ours.values()]).answer()

    @app.get("/v1/models/{model:path}", response_model=OpenAIModel, **shared)
    async def model(model: str) -> Response:
        """A model."""
        check_model(model)
        return ours[model].answer()

    @app.post("/v1/images/generations", response_model=OpenAIImages, **shared)
    async def generate(order: generation, request: Request, key: Key = None) -> Response:  # type: ignore[valid-type]
        """Make images, and answer when they are there. Who goes away meanwhile ends their tasks, unless the request
        has an Idempotency-Key: then it can be sent again, and gets the same images."""
        check_model(order.model)
        records, _ = await service.accept(order, key)
        numbers = [record.task.number for record in records]
        if not await waited(service, request, numbers):
            if key is None:
                await asyncio.gather(*(service.system.cancel(n) for n in numbers if n in service.system.records))
            raise unavailable("the service stops")
        images = []
        for number in numbers:
            record = service.system.find(number)
            if record is None or record.state != DONE:
                failed = record is not None and record.state == FAILED
                words = record.error if failed else "it was cancelled or removed"
                raise HTTPException(500 if failed else 410, f"task {number} has no image: {words}")
            if order.response_format == "b64_json":
                images.append(OpenAIImage(b64_json=base64.b64encode(await service.image_of(record)).decode()))
            else:
                images.append(OpenAIImage(url=links.url(request, number)))
        return OpenAIImages(created=int(time.time()), data=images).answer()


async def waited(service: Service, request: Request, numbers: list[int]) -> bool:
    """Wait for the end of tasks. False when the asker went away before, or the service stops."""

    async def left() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    works = [
        asyncio.ensure_future(work) for work in (service.system.finished(numbers), left(), service.stopping.wait())
    ]
    try:
        await asyncio.wait(works, return_when=asyncio.FIRST_COMPLETED)
        return works[0].done() and works[0].result() is None
    finally:
        for work in works:
            work.cancel()
