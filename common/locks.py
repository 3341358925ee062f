"""Locks on folders: one process at a time, whatever the file system knows.

A lock goes with its process, even at SIGKILL. Where the file system has no such locks, as some network file systems, a
lock file says who works in the folder. Start reading at `lock`.
"""

import errno
import fcntl
import os
import socket
from collections.abc import Callable
from pathlib import Path

LOCK = ".lock"  # the file that stands for a lock where there is none
BUSY = (errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES)


class BusyError(Exception):
    """Another process works in the folder."""


def lock(folder: Path) -> Callable[[], None]:
    """Lock a folder for this process; returns what gives it back. Raises BusyError when it is another's."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(handle)
        if error.errno in BUSY:
            raise BusyError(str(folder)) from None
        return lock_file(folder / LOCK)  # ENOSYS, ENOTSUP, ENOLCK: the file system does not know such locks
    return lambda: os.close(handle)


def lock_file(path: Path) -> Callable[[], None]:
    """A lock by a file that exists while it is held; one of a dead process of this machine counts nothing."""
    for _ in range(2):
        try:
            with path.open("x") as file:
                file.write(f"{socket.gethostname()} {os.getpid()}")
            return lambda: path.unlink(missing_ok=True)
        except FileExistsError:
            if held(path):
                break
            path.unlink(missing_ok=True)
    raise BusyError(str(path.parent))


def held(path: Path) -> bool:
    """Whether the process that a lock file names may still run; those of other machines may."""
    try:
        host, process = path.read_text().split()
        if host != socket.gethostname():
            return True
        os.kill(int(process), 0)
    except (ProcessLookupError, FileNotFoundError):
        return False
    except (OSError, ValueError):  # another user's process, or a file that is being written
        return True
    return True
