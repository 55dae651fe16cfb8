"""Lists of names, short enough for one line of a message."""

from __future__ import annotations

from collections.abc import Iterable

_SHOWN = 5


def some(names: Iterable[str]) -> str:
    """Return the first few names, and how many more there are."""
    listed = list(names)
    more = f" and {len(listed) - _SHOWN:,} more" if len(listed) > _SHOWN else ""
    return ", ".join(listed[:_SHOWN]) + more
