"""The C library's memory allocator, which by default hands large activations back after every layer."""

from __future__ import annotations

import ctypes
import sys

KEEP_BYTES = 1 << 30
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3


def keep_freed_memory() -> None:
    """Tell glibc to keep up to 1 GiB of freed memory for reuse; nothing elsewhere.

    Each layer or step allocates and frees the same few activations; returning them to the system costs a page fault
    per 4 KB the next time.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, KEEP_BYTES)
        mallopt(M_TRIM_THRESHOLD, KEEP_BYTES)
