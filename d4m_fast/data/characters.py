"""What a name must not have in it: characters that nobody sees."""

from __future__ import annotations

import unicodedata

from d4m_fast.unseen import is_unseen

_NAMELESS = {
    "Cs": "not UTF-8",  # how Python holds a byte that is not UTF-8
    "Co": "for private use",
    "Cn": f"no character of Unicode {unicodedata.unidata_version}",
}


def invisible_character(text: str) -> str | None:
    """The first control, bidirectional or invisible character as "U+202E (RIGHT-TO-LEFT OVERRIDE)"; None if none is.

    The joiners U+200C and U+200D are let through: some scripts are not spelled right without them.
    """
    if text.isascii() and text.isprintable():
        return None
    return next((_name(character) for character in text if is_unseen(character)), None)


def _name(character: str) -> str:
    nameless = _NAMELESS.get(unicodedata.category(character), "control character")
    return f"U+{ord(character):04X} ({unicodedata.name(character, nameless)})"
