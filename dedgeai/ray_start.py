"""Starting Ray, or joining its cluster. Start reading at `connect`."""

import math
import os
import time

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # else Ray reports to its makers over the network
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
import ray
from ray._private import ray_constants

from common.parameters import ParameterError
from dedgeai.configuration import ServerParameters

RESOURCE = "edge_server"  # a machine that offers it takes as many edge servers
RESOURCE_SECONDS = 5  # s until what a cluster offers must be known
POLL_SECONDS = 0.2  # s between questions what it offers


def connect(config: ServerParameters) -> None:
    """Start a Ray of this machine alone, or join a cluster. Raises ParameterError when there is none, or too small."""
    quiet = {"log_to_driver": False, "logging_level": "ERROR"}
    if config.address is None:
        # Ray listens on every address of the machine, but where it makes no clusters, as on macOS. The variable is
        # for the processes that it starts; this one has read it already.
        os.environ[ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR] = "0"
        ray_constants.ENABLE_RAY_CLUSTER = False
        ray.init(address="local", include_dashboard=False, resources={RESOURCE: config.num_servers}, **quiet)
    else:
        try:
            ray.init(address=config.address, **quiet)
        except (ConnectionError, ValueError, RuntimeError) as error:
            reason = (str(error).splitlines() or ["no answer"])[0]
            raise ParameterError("address", config.address, f"must be of a running Ray cluster ({reason})") from None
    whole = (
        math.ceil(config.num_servers / math.floor(1 / config.gpus_per_server)) if 0 < config.gpus_per_server < 1 else 0
    )
    gpus = whole or config.gpus_per_server * config.num_servers  # a fraction is one of a single GPU
    for name, wanted, flag, value in (
        (RESOURCE, config.num_servers, "num_servers", config.num_servers),
        ("GPU", gpus, "gpus_per_server", config.gpus_per_server),
    ):
        deadline = time.monotonic() + RESOURCE_SECONDS
        while (free := ray.available_resources().get(name, 0)) < wanted and time.monotonic() < deadline:
            time.sleep(POLL_SECONDS)
        if free < wanted:
            ray.shutdown()
            raise ParameterError(
                flag, value, f"needs {wanted:g} of the resource {name}; the Ray cluster has {free:g} that are free"
            )
