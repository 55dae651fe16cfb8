"""Words of messages: lists short enough for one line, and what a misspelt name may have meant."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

_MOST_NAMES = 5


def some(names: Iterable[str]) -> str:
    """Return the first few names, and how many more there are."""
    listed = list(names)
    more = f" and {len(listed) - _MOST_NAMES:,} more" if len(listed) > _MOST_NAMES else ""
    return ", ".join(listed[:_MOST_NAMES]) + more


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message; some libraries go on for pages."""
    return str(error).partition("\n")[0]


def did_you_mean(name: str, candidates: Iterable[str]) -> str:
    """Return a sentence to put behind one that has no full stop, in Click's words; empty where no name is near."""
    near = difflib.get_close_matches(name, candidates, n=1)
    return f". Did you mean {near[0]!r}?" if near else ""
