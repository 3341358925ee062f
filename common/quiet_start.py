"""Ctrl-C while a script imports what it needs, which takes seconds: one line and exit code 130, and no traceback.

Every script imports this before anything else. It changes nothing where a script is imported by others. `command_line`
takes over from it, and says when the script has `ended`. SIGTERM ends a process without a traceback by itself.
"""

import os
import signal
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:  # else nothing that takes time to import, since Ctrl-C may come meanwhile
    from types import FrameType
    from typing import NoReturn


def leave(number: int, frame: "FrameType | None") -> "NoReturn":
    """End the process at once. No exception is raised, since packages that are being imported could take it up."""
    os.write(2, b"error: interrupted\n")
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
    """Let neither Ctrl-C nor SIGTERM trouble what Python and its packages still do after a script has come to its end.

    Else they would print tracebacks, or the exit code would be another. In other programs this changes nothing.
    """
    import threading

    if script_starts() and threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)


if script_starts() and signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # else it is ignored, by nohup
    signal.signal(signal.SIGINT, leave)
