"""Lists of names, short enough for one line of a message."""

from __future__ import annotations

from collections.abc import Iterable

_SHOWN = 5


def some(names: Iterable[str]) -> str:
    """The first few names, for a message."""
    listed = list(names)
    rest = f" and {len(listed) - _SHOWN:,} more" if len(listed) > _SHOWN else ""
    return ", ".join(listed[:_SHOWN]) + rest
