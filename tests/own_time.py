"""A clock for tests with a limit of seconds, which neighbours on the same processor cannot make fail."""

from __future__ import annotations

import time
from pathlib import Path


def own_seconds() -> float:
    """Seconds that pass while this thread runs or waits for something, not while it waits for a processor.

    Where Linux does not tell the latter (docs.kernel.org/scheduler/sched-stats.html), all seconds.
    """
    try:
        queued = int(Path("/proc/thread-self/schedstat").read_text().split()[1])  # nanoseconds
    except OSError:
        queued = 0
    return time.monotonic() - queued / 1e9
