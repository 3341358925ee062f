"""Starting Ray or joining its cluster, noticing the death of its processes, and the certain end of what uses it.

Start reading at `RayLink.connect`.
"""

import contextlib
import math
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # else Ray reports to its makers over the network
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
os.environ.setdefault("RAY_task_events_report_interval_ms", "0")  # else its GCS keeps every call, for a dashboard
import ray
from ray._private import ray_constants

from common.parameters import ParameterError
from dedgeai.configuration import ServerParameters

HOST = "import sys; sys.path.insert(0, sys.argv[1]); from dedgeai.ray_host import main; main(sys.argv[2])"
RESOURCE = "edge_server"  # a machine that offers it takes as many edge servers
RESOURCE_SECONDS = 5  # s until what a cluster offers must be known
POLL_SECONDS = 0.2  # s between questions what it offers
ANSWER_SECONDS = 2.0  # s within which one of Ray's processes must take a connection
PATIENCE = 3  # refused connections, a second apart, after which a process of a cluster counts as dead
END_SECONDS = 5.0  # s until Ray must have ended


class RayLink:
    """A Ray of this machine alone, or a cluster that is joined. Whatever state that is in, `close` and `leave` end.

    `tidy` is called when they have ended a Ray of this machine.
    """

    def __init__(self, config: ServerParameters, tidy: Callable[[], Any] = lambda: None) -> None:
        self.config, self.tidy = config, tidy
        self.host: subprocess.Popen[str] | None = None
        self.ending = threading.Lock()

    # --- beginning ---

    def connect(self) -> None:
        """Start a Ray of this machine alone, or join a cluster. Raises ParameterError when there is none, or too small.

        For another thread than the main one, where signals shall be answered meanwhile: Ray takes SIGTERM over there.
        """
        config = self.config
        address = config.address or self.start()
        try:
            place = address.rsplit(":", 1)
            if len(place) == 2 and "//" not in address:  # Ray would try for a minute
                socket.create_connection((place[0].strip("[]"), place[1]), ANSWER_SECONDS).close()
            context = ray.init(address=address, log_to_driver=False, logging_level="ERROR")
        except (OSError, ValueError, RuntimeError) as error:
            reason = (str(error).splitlines() or ["no answer"])[0]
            raise ParameterError("address", address, f"must be of a running Ray cluster ({reason})") from None
        self.sockets = {
            "raylet": context.address_info["raylet_socket_name"],
            "gcs_server": context.address_info["gcs_address"],
        }
        self.check_resources()

    def start(self) -> str:
        """Have a host start Ray; returns its address. Raises ParameterError."""
        # Ray listens on every address of the machine, but where it makes no clusters, as on macOS. The variable is
        # for the processes that it starts; this one has read it already.
        os.environ[ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR] = "0"
        ray_constants.ENABLE_RAY_CLUSTER = False
        command = [sys.executable, "-c", HOST, str(Path(__file__).resolve().parents[1]), str(self.config.num_servers)]
        self.host = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            start_new_session=True,
        )
        words = (self.host.stdout.readline() if self.host.stdout else "").strip()
        if not words or words.startswith("error"):
            raise ParameterError(None, None, f"Ray could not start on this machine ({words[6:] or 'no answer'})")
        return words

    def check_resources(self) -> None:
        """Raises ParameterError when the cluster has too little for the edge servers."""
        servers, share = self.config.num_servers, self.config.gpus_per_server
        gpus = math.ceil(servers / math.floor(1 / share)) if 0 < share < 1 else share * servers  # a fraction is of one
        for name, wanted, flag, value in (
            (RESOURCE, servers, "num_servers", servers),
            ("GPU", gpus, "gpus_per_server", share),
        ):
            deadline = time.monotonic() + RESOURCE_SECONDS
            while (free := ray.available_resources().get(name, 0)) < wanted and time.monotonic() < deadline:
                time.sleep(POLL_SECONDS)
            if free < wanted:
                raise ParameterError(
                    flag, value, f"needs {wanted:g} of the resource {name}; the Ray cluster has {free:g} that are free"
                )

    # --- death ---

    def watch(self, died: Callable[[str], Any]) -> None:
        """From now on call `died`, in another thread, with the name of that of Ray's processes that is dead."""

        def follow(name: str, place: str) -> None:
            failed = 0
            while failed < (PATIENCE if self.config.address else 1):
                failed = 0 if answers(place) else failed + 1
                time.sleep(1.0)
            died(name)

        for one in self.sockets.items():
            threading.Thread(target=follow, args=one, daemon=True).start()

    # --- end ---

    def close(self) -> None:
        """End the connection, and a Ray of this machine with its folder."""
        if self.ending.acquire(blocking=False):
            last = threading.Thread(target=ray.shutdown, daemon=True)
            last.start()
            last.join(END_SECONDS)
            self.end_host()

    def leave(self, words: str, code: int) -> None:
        """End this process at once, with a line and an exit code, from any thread and in any state."""
        if not self.ending.acquire(blocking=False):
            return  # it is ending
        with contextlib.suppress(OSError):
            os.write(2, f"error: {words}\n".encode())
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # what Ray says when it goes
        self.end_host()
        os._exit(code)

    def end_host(self) -> None:
        """End a Ray of this machine, wait until nothing is left of it, and tidy up."""
        if self.host is not None and self.host.stdin is not None:
            try:
                self.host.stdin.close()
                self.host.wait(END_SECONDS)
            except (OSError, subprocess.TimeoutExpired):
                self.host.kill()
        self.tidy()


def answers(place: str) -> bool:
    """Whether a process takes connections at a Unix socket, or at host:port; waits a little for its death."""
    try:
        if place.startswith("/"):
            probe = socket.socket(socket.AF_UNIX)
            probe.settimeout(ANSWER_SECONDS)
            probe.connect(place)
        else:
            host, port = place.rsplit(":", 1)
            probe = socket.create_connection((host.strip("[]"), int(port)), ANSWER_SECONDS)
        with probe, contextlib.suppress(OSError):
            probe.recv(1)
    except OSError:
        return False
    return True
