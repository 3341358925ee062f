"""How the simulator's functions are compiled."""

import functools

from numba import njit

# They get tuples of arrays that their caller keeps, and make none: counting references would take most of their time.
compiled = functools.partial(njit, nogil=True, _nrt=False, error_model="numpy")
