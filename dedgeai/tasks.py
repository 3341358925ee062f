"""What travels between driver and edge servers: tasks, and what a batch of them became.

Nothing here needs torch, so that an edge server that only waits for the profile's time starts at once. Start reading at
`Task`.
"""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Task:
    """One image to make, as it arrived at a base station.

    `request` is the number of the first task that was asked for together with it, if there are several. `scale` is what
    one of its steps takes over a step for an image of the run's size.
    """

    number: int
    prompt: str
    steps: int
    seed: int
    width: int
    height: int
    base_station: int
    negative_prompt: str | None = None  # None, here and below: the model's
    cfg_scale: float | None = None
    request: int | None = None
    user: str = ""
    scale: float = 1.0
    model: str = ""  # of the catalogue; empty: the default

    @property
    def work(self) -> float:
        """Its denoising steps, counted as steps for images of the run's size."""
        return self.steps * self.scale

    @property
    def kind(self) -> tuple[object, ...]:
        """What tasks that are denoised together have alike."""
        return self.steps, self.width, self.height, self.cfg_scale, self.model


@dataclasses.dataclass(frozen=True)
class Made:
    """What a batch became: a PNG file's bytes for each task, None where it was cancelled; and the seconds of each.

    `loading` are the seconds, part of all tasks' together, that their model took to load; `resident` are the models
    that the server then holds, the last used one last.
    """

    images: list[bytes | None]
    seconds: float
    loading: float = 0.0
    resident: list[str] = dataclasses.field(default_factory=list)
