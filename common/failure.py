"""How a script ends with a mistake."""

import sys
from contextlib import suppress
from typing import NoReturn


def fail(message: str, code: int) -> NoReturn:
    """End the process with one line on standard error, if that is still open."""
    with suppress(OSError):
        print(f"error: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(code)
