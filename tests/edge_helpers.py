"""What the tests of the edge system share."""

from pathlib import Path

from dedgeai.dispatcher import ClusterScheduler
from dedgeai.schedulers import SchedulerOptions, make_scheduler, method_of
from dedgeai.server_profile import Profile


def ready(scheduler: str, profile: Profile, folder: Path, checkpoint: Path | None = None) -> ClusterScheduler:
    """A scheduler for rounds of at most 4 tasks at each base station; one that learns is trained for 2 episodes."""
    method = method_of(scheduler)
    options = SchedulerOptions(scheduler, method, checkpoint, folder, 2, 4, (10, 19), 0.001, 450.0, 0)
    return make_scheduler(options, profile)
