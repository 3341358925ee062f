"""What goes over HTTP as JSON: the forms of requests and answers, with the limits of a service in their descriptions.

A request may hold only what is used; everything else is refused. Start reading at `request_forms`.
"""

from datetime import datetime
from typing import Annotated, Any, Literal

import pydantic
from fastapi import Header, HTTPException
from fastapi.responses import Response
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, StrictFloat, StrictInt, StrictStr

from common.parameters import LARGEST
from dedgeai.configuration import DedgeParameters
from dedgeai.records import FINAL, LIVE
from dedgeai.run_options import Model

FILTERS = {"unfinished": LIVE, "finished": FINAL} | {state: (state,) for state in (*LIVE, *FINAL)}
RETRY = {"Retry-After": "5"}  # s after which a request that could not be accepted may be sent again
ANSWERS = {  # what any request may be answered with, besides what it is for
    400: "no HTTP request that is answered here, or a body that is not UTF-8",
    413: "too much is sent",
    422: "a value that cannot be used",
    503: "not at present; with a time to wait",
    507: "no room on the disk",
}


def unavailable(message: str, full: bool = False) -> HTTPException:
    """Why something cannot be done at present; `full`: there is no room on the disk."""
    return HTTPException(507 if full else 503, message, headers=RETRY)


def text(words: str, pattern: str | None = None, **lengths: int) -> Any:
    """The type of a text by its pattern and `min_length` and `max_length`; `words` say what it must be."""

    def check(value: Any, rest: pydantic.ValidatorFunctionWrapHandler) -> str:
        try:
            return rest(value)
        except pydantic.ValidationError:
            raise ValueError(f"must be {words}") from None

    limits = pydantic.StringConstraints(pattern=pattern, **lengths)
    return Annotated[StrictStr, limits, pydantic.WrapValidator(check)]


def integer(**limits: int) -> Any:
    """The type of an integer within limits; 5.0 is one, as JSON has it, and neither "5" nor true is."""

    def check(value: Any) -> Any:
        return int(value) if isinstance(value, float) and value.is_integer() else value

    return Annotated[StrictInt, Field(**limits), BeforeValidator(check)]


def written(text: Any) -> Any:
    """An integer of a path or a query, where "1_0", " 1" and "1.0" are none. Raises ValueError."""
    if isinstance(text, str) and not (text.isascii() and text.removeprefix("-").isdigit()):
        raise ValueError("must be an integer")
    return text


STATES = "|".join(FILTERS)
STATE = text(f"one or several of {', '.join(FILTERS)}", f"^({STATES})(,({STATES}))*$")
NAME = text("a text of at most 256 characters", max_length=256)
KEY = text("1 to 255 printable ASCII characters", "^[!-~]([ -~]*[!-~])?$", min_length=1, max_length=255)
Key = Annotated[KEY | None, Header(alias="Idempotency-Key")]
Number = Annotated[int, BeforeValidator(written)]
Seconds = Annotated[float, AfterValidator(lambda seconds: round(seconds, 4))]


def request_forms(config: DedgeParameters, model: Model) -> tuple[type[BaseModel], type[BaseModel]]:
    """What any request for images may ask for, and the body of `POST /api/tasks`, which may ask for more."""
    most, seen = config.max_prompt, r"[^\s\x00-\x1f\x7f-\x9f]"
    shown = text(f"a text of 1 to {most} characters, not all of them blank", seen, min_length=1, max_length=most)
    negative = text(f"a text of at most {most} characters", max_length=most)
    steps_taken, seed_given = integer(ge=1, le=config.max_steps), integer(ge=0, le=LARGEST)
    scale = Annotated[StrictFloat, Field(ge=0, le=30, allow_inf_nan=False)]
    side = integer(ge=16, le=model.largest, multiple_of=16)
    station, choice = integer(ge=0, le=config.num_servers - 1), Literal[tuple(model.choice)]

    class Wishes(BaseModel):
        """What is wanted. Unknown fields are refused."""

        model_config = ConfigDict(extra="forbid")

        prompt: shown = Field(description="what the image shows")
        negative_prompt: negative | None = Field(None, description="what it does not; default the model's")
        steps: steps_taken | None = Field(
            None, description="denoising steps; default the middle of the service's range"
        )
        seed: seed_given | None = Field(None, description="of the first image; each next one has one more")
        cfg_scale: scale | None = Field(None, description="how closely prompts are followed; default the model's")
        user: NAME | None = Field(None, description="who asks, as the asker says")

    class Submission(Wishes):
        """Images to make. Unknown fields are refused."""

        width: side | None = Field(None, description="in pixels; default the model's")
        height: side | None = Field(None, description="in pixels; default the model's")
        images: integer(ge=1, le=config.max_images) = Field(1, description="how many")  # type: ignore[valid-type]
        base_station: station | None = Field(None, description="where they arrive; default each in turn")
        model: choice | None = Field(None, description="which makes them; default the first")

    return Wishes, Submission


class Selection(BaseModel):
    """Which tasks are listed."""

    model_config = ConfigDict(extra="forbid")

    state: list[STATE] = Field([], description="any of these, with commas or repeated; default all")
    before: Annotated[int, Field(ge=0), BeforeValidator(written)] | None = Field(None, description="smaller numbers")
    limit: Annotated[int, Field(ge=1, le=500), BeforeValidator(written)] = 50


class Form(BaseModel):
    """What an answer holds."""

    def answer(self, status: int = 200, headers: dict[str, str] | None = None) -> Response:
        """The answer that holds this."""
        return Response(self.model_dump_json(), status, headers, "application/json")


class Status(Form):
    """What is known of a task."""

    task: int
    state: str = Field(description="waiting, queued, running, done, failed, cancelled; removed in the answer to that")
    prompt: str
    negative_prompt: str
    steps: int
    step: int = Field(description="denoising steps done")
    seed: int
    width: int
    height: int
    cfg_scale: float
    model: str
    base_station: int
    user: str
    request: int = Field(description="number of the first task of its request")
    edge_server: int | None = Field(description="which has it, or has done it")
    ahead: int | None = Field(description="tasks before it at its server, while it has one")
    estimated_s: Seconds | None = Field(description="seconds until it is done, while it is unfinished")
    cancelling: bool = Field(description="it ends at its next step, or once there is room to say so")
    accepted_at: datetime
    finished_at: datetime | None
    queueing_s: Seconds | None = Field(description="seconds from its acceptance until a server began with it")
    delay_s: Seconds | None = Field(description="seconds from its acceptance to its end")
    image: str | None = Field(description="path of its image, once it is done and while it is kept")
    error: str | None


class Accepted(Status):
    """The first task of a request, and the numbers of all."""

    tasks: list[int]


class TaskPage(Form):
    """Tasks, the newest first. `next` is the `before` of the page that follows; null when this is the last."""

    tasks: list[Status]
    next: int | None


class ServerStatus(Form):
    """An edge server as the dispatcher sees it."""

    edge_server: int
    up: bool
    machine: str
    tasks: int = Field(description="tasks that it has, the running ones included")
    backlog_s: Seconds
    backlog_gcycles: float
    seconds_per_step: float = Field(description="as it last reported")
    profile_seconds_per_step: float
    restarts: int
    models: list[str] = Field(description="those of the catalogue that it holds, the last used one last")
    loads: int = Field(description="of models, so far")
    loading_s: Seconds = Field(description="seconds that these took together")


class ClusterStatus(Form):
    """All servers, and counts of tasks."""

    scheduler: str
    servers: list[ServerStatus]
    unfinished: int
    done: int
    failed: int
    cancelled: int
    trouble: str = Field(description="why nothing can be written at present; empty otherwise")


class ModelStatus(Form):
    """What makes the images, what it takes where a request says nothing, and what may be asked of it."""

    id: str
    name: str
    width: int
    height: int
    default_steps: int
    cfg_scale: float
    negative_prompt: str
    limits: dict[str, int] = Field(description="max_prompt, max_steps, max_images, max_side in pixels, max_queued")
    examples: list[str] = Field(description="prompts that it can draw")
    words: str = Field(description="what it can draw")
    models: dict[str, float | None] = Field(
        description="that tasks may name, with their sizes in MB; the default first"
    )


class Health(Form):
    """That all is well."""

    status: Literal["ok"] = "ok"


class Problem(Form):
    """Why a request was refused."""

    detail: str
