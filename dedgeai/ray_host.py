"""Ray's processes of a start on this machine alone, and their folder, in a process apart that sees to their end.

The host has a session of its own, so that what a terminal or a signal to a whole group ends is never Ray. When the
process that started it closes its standard input, or ends in whatever way, the host kills all of Ray's processes and
removes their folder. What a host that was killed has left, the next one removes. Start reading at `main`.
"""

import contextlib
import ctypes
import os
import shutil
import signal
import stat
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import NoReturn

import psutil
from ray._private.node import Node
from ray._private.parameter import RayParams

from common.locks import BusyError, lock

NAME = "dedgeai-"  # how the folders' names begin
LONGEST = 20  # characters of the folder above, because paths of Unix sockets may have about 104
BECOME_SUBREAPER = 36
STUCK_SECONDS = 3  # s in which the main thread must have ended everything
ROUNDS = 50  # of killing, until processes that cannot be killed are given up


def main(servers: str) -> None:
    """Start Ray for so many edge servers, say where it is, and wait for the end."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(BECOME_SUBREAPER, 1)  # what loses its parent becomes this one's, and can be waited for
    sweep()
    folder = own_folder()
    signal.signal(signal.SIGUSR1, lambda *_: sys.exit())
    try:
        threading.Thread(target=follow, args=(folder,), daemon=True).start()
        start(int(servers), folder)
        threading.Event().wait()  # Ray's processes end with this thread
    finally:  # nothing is started here any more, so that what is cleared stays so
        end(folder)


def start(servers: int, folder: Path) -> None:
    """Start Ray, and print its address, or the word error and why not."""
    try:
        node = Node(
            RayParams(
                resources={"edge_server": servers},
                temp_dir=str(folder),
                include_dashboard=False,
                include_log_monitor=False,
                no_monitor=True,
                dashboard_port=None,
                dashboard_agent_listen_port=0,
            ),
            head=True,
            shutdown_at_exit=False,
        )
        print(node.gcs_address, flush=True)
    except Exception as problem:  # Ray raises many kinds
        print(f"error {type(problem).__name__}: {problem}".splitlines()[0], flush=True)


def follow(folder: Path) -> None:
    """When the process that started this one ends, have the main thread end everything, wherever it is."""
    sys.stdin.buffer.read()
    signal.pthread_kill(threading.main_thread().ident, signal.SIGUSR1)
    time.sleep(STUCK_SECONDS)  # it is stuck in Ray's start
    end(folder)


def end(folder: Path) -> NoReturn:
    """Clear everything, and end this process."""
    clear(folder, own=True)
    os._exit(0)


def above() -> Path:
    """Where the folders of all hosts of this machine lie."""
    usual = Path(tempfile.gettempdir())
    return usual if len(str(usual)) <= LONGEST else Path("/tmp")


def own_folder() -> Path:
    """A new folder that this process holds as long as it lives."""
    while True:
        folder = Path(tempfile.mkdtemp(prefix=NAME, dir=above()))
        with contextlib.suppress(BusyError, OSError):  # another start is about to sweep it
            lock(folder)
            if folder.exists():
                return folder


def sweep() -> None:
    """Clear the folders of hosts that are no more; those of other users and of running hosts are not touched."""
    for folder in above().glob(f"{NAME}*"):
        with contextlib.suppress(BusyError, OSError):
            about = folder.lstat()
            if stat.S_ISDIR(about.st_mode) and about.st_uid == os.getuid():
                release = lock(folder)
                clear(folder)
                release()


def clear(folder: Path, own: bool = False) -> None:
    """Kill Ray's processes of a folder, and with `own` all that this process has started; remove the folder."""
    for _ in range(ROUNDS):
        found = {process for process in psutil.process_iter() if works_in(process, folder)}
        if own:  # one that has just been forked has no command of its own yet
            found |= set(psutil.Process().children(recursive=True))
        if not found:
            break
        for process in found:
            with contextlib.suppress(psutil.Error):
                process.kill()
        psutil.wait_procs(found, timeout=0.2)
    shutil.rmtree(folder, ignore_errors=True)


def works_in(process: psutil.Process, folder: Path) -> bool:
    """Whether a process is one of Ray's in this folder, by its command or by its log files, where Ray changed that."""
    with contextlib.suppress(psutil.Error):
        command = " ".join(process.cmdline())
        if command.startswith("ray::"):
            return any(file.path.startswith(f"{folder}/") for file in process.open_files())
        return "/ray/" in command and f"{folder}/" in command
    return False
