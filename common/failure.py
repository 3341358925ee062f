"""How a script ends with a mistake."""

import sys
from typing import NoReturn


def fail(message: str, code: int) -> NoReturn:
    """End the process with one line on standard error."""
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(code)
