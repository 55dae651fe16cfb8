"""Separators between the key of a class and its prompt."""

from __future__ import annotations

import re
from collections.abc import Sequence

# A dash is one only between blanks: n02119789-fox and "T-shirt" are single words.
_MARKS = r"=>|->|\u2192|::?=?|[;=,|\uff1a]|(?<=\s)[-\u2013\u2014](?=\s)"
_BETWEEN = rf"(?:\s*(?:{_MARKS})\s*|\s+)"
_SEPARATOR = re.compile(_BETWEEN)
WNID_KEY = re.compile(rf"\s*(?P<key>n[0-9]{{8}})(?P<separator>{_BETWEEN})(?=\S)(?P<prompt>.*)", re.DOTALL)
NUMBER_KEY = re.compile(rf"\s*(?P<key>[0-9]{{1,9}})(?P<separator>\s*[.)]\s*|{_BETWEEN})(?=\S)(?P<prompt>.*)", re.DOTALL)


def separators(text: str) -> Sequence[re.Match[str]]:
    """Return the places where a key may end, the last first, so that the longest key is tried first."""
    return list(_SEPARATOR.finditer(text))[::-1]


def is_marked(separator: str) -> bool:
    """Return whether it is a separator that sentences hardly have after their first word, unlike blanks and commas."""
    return separator.strip(" ,") != "" or separator == "\t"
