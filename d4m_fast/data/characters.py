"""Characters that show nothing, or show text in another order than it is stored in."""

from __future__ import annotations

import unicodedata

_REFUSED_CATEGORIES = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})
# Persian, the Indic scripts and emoji are not spelled right without the two joiners; the others are Arabic, Syriac and
# Kaithi number signs, which are visible.
_NEEDED_FORMAT_CHARACTERS = frozenset("\u200c\u200d\u0600\u0601\u0602\u0603\u0604\u0605\u06dd\u070f\u08e2\U000110bd")
# Letters and marks by category, yet blank: grapheme joiner, Hangul fillers, Braille blank.
_BLANK_CHARACTERS = frozenset("\u034f\u115f\u1160\u2800\u3164\uffa0")


def invisible_character(text: str) -> str | None:
    """The first control, bidirectional or invisible character as "U+202E (RIGHT-TO-LEFT OVERRIDE)"; None if none is.

    The joiners U+200C and U+200D are let through: some scripts are not spelled right without them.
    """
    if text.isascii() and text.isprintable():
        return None
    return next((_name(character) for character in text if _is_invisible(character)), None)


def _is_invisible(character: str) -> bool:
    if character in _NEEDED_FORMAT_CHARACTERS:
        return False
    return character in _BLANK_CHARACTERS or unicodedata.category(character) in _REFUSED_CATEGORIES


def _name(character: str) -> str:
    if unicodedata.category(character) == "Cs":  # how Python holds a byte that is not UTF-8
        return f"U+{ord(character):04X} (not UTF-8)"
    return f"U+{ord(character):04X} ({unicodedata.name(character, 'control character')})"
