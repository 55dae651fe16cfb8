"""The C library's memory allocator, which by default hands large activations back after every layer."""

from __future__ import annotations

import ctypes
import sys
from typing import Any

KEEP_BYTES = 1 << 30
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3


def keep_freed_memory() -> None:
    """Tell glibc to keep up to 1 GiB of freed memory for reuse; nothing elsewhere.

    Each layer or step allocates and frees the same few activations; returning them to the system costs a page fault
    per 4 KB the next time.
    """
    mallopt = _function("mallopt")
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, KEEP_BYTES)
        mallopt(M_TRIM_THRESHOLD, KEEP_BYTES)


def release_freed_memory() -> None:
    """Give freed memory back to the system, so that the process's size is what it uses; nothing without glibc."""
    trim = _function("malloc_trim")
    if trim is not None:
        trim(0)


def _function(name: str) -> Any:
    return getattr(ctypes.CDLL(None), name, None) if sys.platform == "linux" else None
