"""Signals while a script imports what it needs, which takes seconds: one line and exit code 130, and no traceback.

Every script imports this before anything else. It changes nothing where a script is imported by others. `command_line`
takes over from it, and says when the script has `ended`. What libraries must know of threads before they are imported,
threads.py tells them from here. Start reading at `leave`.
"""

import os
import signal
import sys

from common.threads import share_cores

TYPE_CHECKING = False
if TYPE_CHECKING:  # else nothing that takes time to import, since Ctrl-C may come meanwhile
    from types import FrameType
    from typing import NoReturn


WORDS: dict[int, str] = {  # what end a script
    signal.SIGINT: "interrupted",
    signal.SIGTERM: "terminated",
    signal.SIGHUP: "hung up",
}


def leave(number: int, frame: "FrameType | None") -> "NoReturn":
    """End the process at once. No exception is raised, since packages that are being imported could take it up."""
    try:
        os.write(2, f"error: {WORDS[number]}\n".encode())
    finally:  # where the terminal is gone, too
        os._exit(128 + number)


def script_starts() -> bool:
    """Whether the program is a file in one of the project's folders, in its main process."""
    file = getattr(sys.modules["__main__"], "__file__", None)
    folder = os.path.dirname(os.path.realpath(file or ""))  # noqa: PTH120  pathlib takes long to import
    return file is not None and os.path.dirname(folder) == project()  # noqa: PTH120


def project() -> str:
    """The project's folder."""
    return os.path.dirname(os.path.dirname(os.path.realpath(__file__)))  # noqa: PTH120


def started() -> None:
    """Let Ctrl-C raise KeyboardInterrupt again."""
    if signal.getsignal(signal.SIGINT) is leave:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def ended() -> None:
    """Let no signal of WORDS trouble what Python and its packages still do after a script has come to its end.

    Else they would print tracebacks, or the exit code would be another. In other programs this changes nothing.
    """
    import threading

    if script_starts() and threading.current_thread() is threading.main_thread():
        for number in WORDS:
            signal.signal(number, signal.SIG_IGN)


if script_starts():
    share_cores(os.environ)
    for number in WORDS:
        if signal.getsignal(number) in (signal.default_int_handler, signal.SIG_DFL):  # else it is ignored, as by nohup
            signal.signal(number, leave)
