"""One part of a check in a process of its own, as `processes.run_part` starts it: its name, function and conditions.

Start reading at `main`.
"""

import importlib
import sys
from pathlib import Path

from common.command_line import out_of_memory
from common.interruption import exit_code, terminable
from gpu_check.processes import SKIPPED
from gpu_check.results import Conditions, Results, SkipError, absent


def main(name: str, place: str, text: str) -> int:
    """Measure, and return the exit code. What ends it otherwise stands in the last line of its output."""
    given = Conditions.from_json(text)
    module, _, function = place.partition(":")
    try:
        with terminable():
            results = Results(Path(given.folder), name)
            getattr(importlib.import_module(module), function)(given, results)
            results.finish()
    except SkipError as reason:
        print(reason, flush=True)
        return SKIPPED
    except ModuleNotFoundError as error:
        if (package := absent(error)) is None:
            raise
        print(f"needs {package}, which is not installed", flush=True)
        return SKIPPED
    except KeyboardInterrupt as error:  # SIGTERM: the time is over, or all shall stop
        return exit_code(error)
    except (MemoryError, RuntimeError) as error:
        if not out_of_memory(error):
            raise
        print(f"needs more memory than there is ({' '.join(str(error).split())[:200]})", flush=True)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:4]))
