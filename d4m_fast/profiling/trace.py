"""Events as a Chrome trace, which Perfetto and chrome://tracing open.

The JSON object format of the "Trace Event Format": complete events ("X") with microseconds, and a name for each thread.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from d4m_fast.flow.stopwatch import Event

PROCESS = 1


def chrome_trace(events: Sequence[Event]) -> dict[str, Any]:
    """The trace; time starts at the first event."""
    threads = {name: number for number, name in enumerate(dict.fromkeys(e.thread for e in events), 1)}
    zero = min((e.start for e in events), default=0.0)
    names = [_named("process_name", 0, "d4m-fast")] + [_named("thread_name", i, name) for name, i in threads.items()]
    return {"displayTimeUnit": "ms", "traceEvents": names + [_complete(e, threads[e.thread], zero) for e in events]}


def _named(kind: str, thread: int, name: str) -> dict[str, Any]:
    return {"ph": "M", "name": kind, "pid": PROCESS, "tid": thread, "args": {"name": name}}


def _complete(event: Event, thread: int, zero: float) -> dict[str, Any]:
    return {
        "ph": "X",
        "name": f"wait: {event.stage}" if event.waiting else event.stage,
        "cat": "wait" if event.waiting else "stage",
        "ts": 1e6 * (event.start - zero),
        "dur": 1e6 * event.seconds,
        "pid": PROCESS,
        "tid": thread,
    }
