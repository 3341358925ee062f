"""The parameters of schedulers for a cluster, as a user gives them. Start reading at `SchedulerParameters`."""

import dataclasses
from typing import ClassVar

from common.parameters import Parameters, parameter
from common.run_folder import RESULTS
from edge_sim.schedulers import scheduler_names

POLICIES = RESULTS / "dedgeai" / "policies"


@dataclasses.dataclass(kw_only=True)
class SchedulerParameters(Parameters):
    """Who decides, and from what."""

    GROUP: ClassVar[str] = "scheduler"

    scheduler: str = parameter(
        "lad_ts",
        "method that decides, by name, trace:NAME, trace:FILE, or FILE.py:ClassName for your own",
        more=f"One of {', '.join(scheduler_names())}. trace:NAME is a rule of main_trace.py or its central queue, "
        "trace:FILE what it has fitted or trained.",
        path=True,
    )
    checkpoint: str | None = parameter(
        None,
        "checkpoint of a method that learns; default: it is trained on the profile's servers, once",
        path=True,
    )
    policies: str = parameter(str(POLICIES), "folder of what is trained here", path=True)
    policy_episodes: int = parameter(60, "episodes of that training", unit="episodes", low=1)
    round_tasks: int = parameter(
        10,
        "most tasks of a base station that are scheduled together",
        low=1,
        high=1000,
        more="A checkpoint brings its own.",
    )
    learn: bool = parameter(False, "let the agents go on learning from measured delays")
    backlog: str = parameter(
        "reported",
        "backlogs that the scheduler sees",
        choices=("reported", "profile"),
        more="reported: by the speeds that servers report. profile: by the profile alone, which makes the decisions "
        "those of --simulate with the same.",
    )
    link_rate: float = parameter(
        450.0,
        "link rate v between base stations, as schedulers know it",
        unit="Mbit/s",
        above=0,
        high=1e9,
        more="Simulated transmissions take it, too.",
    )
