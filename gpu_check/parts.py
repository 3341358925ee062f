"""The parts of a check of a GPU, in the order of their importance, and how the time is shared among them.

Start reading at `PARTS`.
"""

import dataclasses
from collections.abc import Sequence


@dataclasses.dataclass(frozen=True)
class Part:
    """A part of the check: what it shows, its share of the time, and the function that measures it.

    `place` names the function as module:function; it takes `Conditions` and `Results`.
    """

    what: str
    share: float
    place: str


PARTS = {
    "tests": Part("equal numbers on CPU and GPU: tests marked cuda", 1.6, "gpu_check.parity:measure"),
    "training": Part("LAD-TS training by number of seeds", 1.3, "gpu_check.training:measure"),
    "step": Part("a step of SD3 medium's transformer, random weights", 0.9, "gpu_check.sd3_step:measure"),
    "levels": Part("memory and time of SD3 medium by memory level", 2.9, "gpu_check.sd3_levels:measure"),
    "overlap": Part("copies hidden under compute at the level block", 0.6, "gpu_check.overlap:measure"),
    "edge": Part("the edge system, two servers on one GPU", 1.2, "gpu_check.edge:measure"),
    "pocket": Part("two minutes of the pocket model's training", 3.2, "gpu_check.pocket_training:measure"),
}


def limit(name: str, names: Sequence[str], seconds: float) -> float:
    """The time limit in s of a part, of the `seconds` that are left for it and those after it in `names`.

    What a part leaves of its time, the later ones share.
    """
    following = names[names.index(name) :]
    return seconds * PARTS[name].share / sum(PARTS[other].share for other in following)
