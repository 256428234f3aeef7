"""How memory of this process is kept, by the C library, and looked through, by the interpreter: settings made once at the start."""

from __future__ import annotations

import ctypes
import gc
from typing import Final

_M_TRIM_THRESHOLD: Final = -1
_M_MMAP_THRESHOLD: Final = -3

_MAPPED_FROM_BYTES: Final = 32 << 20  # the most that every glibc takes; frames and ranges are smaller
_KEPT_FREE_BYTES: Final = 64 << 20


def keep_freed_memory() -> bool:
    """Lets large buffers that were freed be used again in place of going back to the system. True where that was set: glibc only.

    By default glibc's bounds follow the largest buffer freed so far: larger ones are mapped anew, and the heap is trimmed as soon as twice
    that is free. So received frames and ranges read are, again and again, memory touched for the first time, with a fault for each
    page; where a virtual machine gives its free pages back, one in the host too. Measured while pulling one file of 1 GiB: a third of
    the faults, 0.1 to 0.2 CPU s/GB less; a thousand of 1 MiB: three quarters of the faults, no sure difference in CPU.
    Up to 64 MiB that were in use once may stay with the process. To be called before threads are started.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    return bool(mallopt(_M_MMAP_THRESHOLD, _MAPPED_FROM_BYTES)) and bool(mallopt(_M_TRIM_THRESHOLD, _KEPT_FREE_BYTES))


def spare_collections() -> None:
    """Takes all objects that are there now out of the garbage collector's sight. To be called once, when everything is loaded and before
    there is work: it takes as long as the longest collection that it saves.

    A collection of the oldest generation looks through every object, and nothing else runs meanwhile. Modules, classes and generated
    messages are no garbage, ever: while an index was committed in groups of 5,000 such collections took up to 58 ms of CPU, and 24 without
    them (`python -m bench.stalls`). What dies by its last reference still goes at once.
    """
    gc.collect()
    gc.freeze()
