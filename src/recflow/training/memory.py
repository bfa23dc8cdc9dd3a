"""Memory that training freed -> the system."""

import ctypes
import sys


def give_back_freed() -> None:
    """Hand freed pages back, also those between others in use, where the C library can (glibc); else do nothing.

    Batches of ever other shapes leave a heap full of holes that later, larger pieces don't fit into.
    """
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)
