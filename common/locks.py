"""Locks on folders: one process at a time, whatever the file system knows.

A lock goes with its process, even at SIGKILL. On network file systems, whose locks may hold for one machine only, and
where the file system has none, a lock file says who works in the folder. Start reading at `lock`.
"""

import contextlib
import errno
import fcntl
import os
import socket
import time
from collections.abc import Callable
from pathlib import Path

LOCK = ".lock"  # the file that stands for a lock where there is none
TURN = ".partial"  # behind its name: of a file of who is removing a dead process's, which takes no time
LONGEST_TURN = 60  # s
MOUNTS = Path("/proc/self/mountinfo")  # where Linux tells what kind of file system lies where
NETWORK = {
    "nfs",
    "nfs4",
    "cifs",
    "smb3",
    "lustre",
    "gpfs",
    "beegfs",
    "ceph",
    "glusterfs",
    "afs",
    "9p",
    "orangefs",
    "pvfs2",
}
BUSY = (errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES)


class BusyError(Exception):
    """Another process works in the folder."""


def lock(folder: Path) -> Callable[[], None]:
    """Lock a folder for this process; returns what gives it back. Raises BusyError when it is another's."""
    if on_network(folder):
        return lock_file(folder / LOCK)
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(handle)
        if error.errno in BUSY:
            raise BusyError(str(folder)) from None
        return lock_file(folder / LOCK)  # ENOSYS, ENOTSUP, ENOLCK: the file system does not know such locks
    return lambda: os.close(handle)


def on_network(folder: Path) -> bool:
    """Whether a folder lies on a network file system, as far as this machine tells."""
    whole, kind, longest = folder.resolve(), "", -1
    try:
        for line in MOUNTS.read_text(errors="replace").splitlines():
            before, _, after = line.partition(" - ")
            place = Path(before.split()[4].replace("\\040", " "))
            if whole.is_relative_to(place) and len(place.parts) >= longest:
                kind, longest = after.split()[0], len(place.parts)
    except (OSError, IndexError):  # no Linux
        return False
    return kind in NETWORK or kind.startswith("fuse.ssh")


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
            take_away(path)
    raise BusyError(str(path.parent))


def take_away(path: Path) -> None:
    """Remove the lock file of a dead process, unless it has become another's by now; one process at a time."""
    turn = path.with_name(path.name + TURN)
    try:
        turn.touch(exist_ok=False)
    except FileExistsError:
        with contextlib.suppress(FileNotFoundError):
            if time.time() - turn.stat().st_mtime > LONGEST_TURN:  # of a process that was killed
                turn.unlink()
        return
    try:
        if not held(path):
            path.unlink(missing_ok=True)
    finally:
        turn.unlink(missing_ok=True)


def held(path: Path) -> bool:
    """Whether the process that a lock file names may still run; those of other machines may."""
    try:
        host, process = path.read_text().split()
        return host != socket.gethostname() or alive(int(process))
    except FileNotFoundError:
        return False
    except (OSError, ValueError):  # a file that is being written
        return True


def alive(process: int) -> bool:
    """Whether there is a process of that number on this machine."""
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:  # another user's
        return True
    return True
