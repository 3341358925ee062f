"""Threads of a script beside other work on the same cores: how they wait for each other, and how many there are.

torch and numpy give an operation to several threads and go on when all of them are done. A thread that waits spins, by
the defaults of GNU's OpenMP and of OpenBLAS for milliseconds. Beside busy processes it so keeps a core from the very
thread that it waits for, and small operations take as long as the system's time slices. A thread that sleeps at once
leaves the core to others, but waking it for every small operation takes longer than the operation. One that spins for
some microseconds and then sleeps does well on both. Start reading at `share_cores`.
"""

import os

TYPE_CHECKING = False
if TYPE_CHECKING:  # a script imports this before anything else, and nothing that takes time
    from collections.abc import MutableMapping

WAITING = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")  # how threads wait, in OpenMP and two of its runtimes
BLAS = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS")  # how many OpenBLAS has


SPINS = 1000  # turns of a waiting thread before it sleeps, some ten microseconds; by default millions


def share_cores(environment: "MutableMapping[str, str]") -> None:
    """Let torch's threads soon sleep while they wait, and numpy's products have one; what a user has set stays.

    Libraries read this when they are loaded, so it must come before torch and numpy are imported. Processes that are
    started from here inherit it. OpenBLAS spins whatever is asked of it, and numpy's products are small here.
    """
    if not any(environment.get(name) for name in WAITING):
        environment["OMP_WAIT_POLICY"] = "passive"  # for runtimes other than GNU's, which goes by the next line
        environment["GOMP_SPINCOUNT"] = str(SPINS)
    if not any(environment.get(name) for name in BLAS):
        environment["OPENBLAS_NUM_THREADS"] = "1"


def cores() -> int:
    """How many cores this process may run on, at least 1."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
