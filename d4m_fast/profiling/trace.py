"""Events as a Chrome trace, which Perfetto and chrome://tracing open.

The JSON object format of the "Trace Event Format": complete events ("X") with microseconds, and a name for each thread.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from d4m_fast.flow.stopwatch import Event

PROCESS = 1  # any number: all events are of one process


def chrome_trace(events: Sequence[Event]) -> dict[str, Any]:
    """Return the trace; time starts at the first event."""
    zero = min((event.start for event in events), default=0.0)
    threads: dict[str, int] = {}
    complete_events = []
    for event in events:
        thread = threads.setdefault(event.thread, len(threads) + 1)
        complete_events.append(
            {
                "ph": "X",
                "name": f"wait: {event.stage}" if event.waiting else event.stage,
                "cat": "wait" if event.waiting else "stage",
                "ts": 1e6 * (event.start - zero),
                "dur": 1e6 * event.seconds,
                "pid": PROCESS,
                "tid": thread,
            }
        )
    names = [_name_event("process_name", 0, "d4m-fast")]
    names += [_name_event("thread_name", number, name) for name, number in threads.items()]
    return {"displayTimeUnit": "ms", "traceEvents": names + complete_events}


def _name_event(kind: str, thread: int, name: str) -> dict[str, Any]:
    return {"ph": "M", "name": kind, "pid": PROCESS, "tid": thread, "args": {"name": name}}
