"""How the simulator's functions are compiled."""

from pathlib import Path

from common.compiled import compiler

# They stand in the code of their callers, since passing on tuples of a hundred arrays would take most of the time.
compiled = compiler(Path(__file__).resolve().parent, forceinline=True)
