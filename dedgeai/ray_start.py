"""Starting Ray or joining its cluster, noticing the death of its processes, and the certain end of what uses it.

Start reading at `RayLink.connect`.
"""

import contextlib
import math
import os
import secrets
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
os.environ.setdefault("RAY_event_stats_print_interval_ms", "86400000")  # else its logs grow by 100 MB a day
import ray
from ray._private import ray_constants
from ray._private.services import canonicalize_bootstrap_address
from ray._raylet import AuthenticationTokenLoader, Config, GcsClient
from ray.exceptions import AuthenticationError

from common.parameters import ParameterError
from dedgeai.configuration import ServerParameters
from dedgeai.ray_host import sweep

HOST = "import sys; sys.path.insert(0, sys.argv[1]); from dedgeai.ray_host import main; main(sys.argv[2])"
RESOURCE = "edge_server"  # a machine that offers it takes as many edge servers
RESOURCE_SECONDS = 5  # s until what a cluster offers must be known
POLL_SECONDS = 0.2  # s between questions what it offers
ANSWER_SECONDS = 2.0  # s within which one of Ray's processes must take a connection
PATIENCE = 3  # refused connections, a second apart, after which a process of a cluster counts as dead
END_SECONDS = 12.0  # s until Ray must have ended, more than its host takes at most


class RayLink:
    """A Ray of this machine alone, or a cluster that is joined. Whatever state that is in, `close` and `leave` end.

    `tidy` is called when they have ended a Ray of this machine.
    """

    def __init__(self, config: ServerParameters, tidy: Callable[[], Any] = lambda: None) -> None:
        self.config, self.tidy = config, tidy
        self.host: subprocess.Popen[str] | None = None
        self.ending = threading.Lock()
        self.stderr = os.dup(2)

    # --- beginning ---

    def connect(self) -> None:
        """Start a Ray of this machine alone, or join a cluster. Raises ParameterError when there is none, or too small.

        For another thread than the main one, where signals shall be answered meanwhile. Afterwards Ray has a handler
        of SIGTERM. What its libraries write on standard error is lost.
        """
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        ray._private.worker._worker_logs_enabled = False
        try:
            address = self.config.address or self.start()
            try:
                if self.config.address:
                    address = found(address)
                about = ray.init(address=address, log_to_driver=False, logging_level="ERROR").address_info
            except AuthenticationError:
                words = "must be of a Ray cluster with the same token (see RAY_AUTH_MODE and RAY_AUTH_TOKEN)"
                raise ParameterError("address", address, words) from None
            except (OSError, ValueError, RuntimeError) as error:
                reason = (str(error).splitlines() or ["no answer"])[0]
                raise ParameterError("address", address, f"must be of a running Ray cluster ({reason})") from None
            self.sockets = {"raylet": about["raylet_socket_name"], "gcs_server": about["gcs_address"]}
            self.check_resources()
        finally:
            os.dup2(self.stderr, 2)

    def start(self) -> str:
        """Have a host start Ray; returns its address. Raises ParameterError."""
        # Ray listens on every address of the machine, but where it makes no clusters, as on macOS; and it obeys
        # everybody who can reach it, but for a token. The variables are for its processes; this one has read them.
        secret = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
        os.environ.update({ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR: "0"} | secret)
        ray_constants.ENABLE_RAY_CLUSTER = False
        Config.initialize("")
        AuthenticationTokenLoader.instance().reset_cache()
        command = [sys.executable, "-c", HOST, str(Path(__file__).resolve().parents[1]), str(self.config.num_servers)]
        self.host = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            start_new_session=True,
        )
        assert self.host.stdout is not None
        words = self.host.stdout.readline().strip()
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
                try:
                    with reached(place) as probe, contextlib.suppress(TimeoutError):
                        probe.recv(1)  # it says nothing, but its death ends this at once
                    failed = 0
                except OSError:
                    failed += 1
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
            os.write(self.stderr, f"error: {words}\n".encode())
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # what Ray says when it goes
        self.end_host()
        os._exit(code)

    def end_host(self) -> None:
        """End a Ray of this machine, wait until nothing is left of it, and tidy up."""
        if self.host is not None:
            try:
                self.host.communicate(timeout=END_SECONDS)  # closes its standard input
            except (OSError, ValueError, subprocess.TimeoutExpired):
                self.host.kill()
            if self.host.wait():  # it was killed
                sweep()
        self.tidy()


def found(address: str) -> str:
    """The address of a cluster that answers: this one, or for auto that of this machine.

    Ray itself would try for a minute where nothing answers, and for ever where it has another token. Raises OSError,
    ValueError, RuntimeError and AuthenticationError.
    """
    address = canonicalize_bootstrap_address(address) or address
    reached(address).close()
    GcsClient(address=address)
    return address


def reached(place: str) -> socket.socket:
    """A connection to a Unix socket, or to host:port. Raises OSError."""
    if "/" not in place:
        host, port = place.rsplit(":", 1)
        return socket.create_connection((host.strip("[]"), int(port)), ANSWER_SECONDS)
    probe = socket.socket(socket.AF_UNIX)
    probe.settimeout(ANSWER_SECONDS)
    probe.connect(place)
    return probe
