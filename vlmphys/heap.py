"""The C library's heap, kept warm: on a CPU a training step asks for the same large blocks again and again."""

from __future__ import annotations

import ctypes
import os
import platform

# Numbers of malloc.h (glibc), and the largest value that its mallopt takes.
TRIM_THRESHOLD, MMAP_THRESHOLD, LARGEST = -1, -3, 2**31 - 1


def keep_freed_memory() -> bool:
    """From here on glibc keeps freed blocks of up to 2 GiB for the next request, rather than return each large one to the kernel at once,
    which then clears and maps it anew: several thousand page faults in a step of the tiny model. Whether it was set.

    It is not where MALLOC_TRIM_THRESHOLD_ or MALLOC_MMAP_THRESHOLD_ stands in the environment, or the C library is another one.
    """
    if "MALLOC_TRIM_THRESHOLD_" in os.environ or "MALLOC_MMAP_THRESHOLD_" in os.environ or platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return bool(mallopt(TRIM_THRESHOLD, LARGEST)) and bool(mallopt(MMAP_THRESHOLD, LARGEST))
