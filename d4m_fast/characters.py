"""Find characters that show nothing, or that reorder the text they stand in: one list for names and lines."""

from __future__ import annotations

import unicodedata

# Controls, formats, lone surrogates, private use, characters that this Python's Unicode lacks, separators of lines.
_UNSEEN_CATEGORIES = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})
# Persian, the Indic scripts and emoji are not spelled right without the two joiners and the emoji selector; the others
# are Arabic, Syriac and Kaithi number signs, which are visible.
_SPELLING = frozenset("\u200c\u200d\ufe0f\u0600\u0601\u0602\u0603\u0604\u0605\u06dd\u070f\u08e2\U000110bd\U000110cd")
# Letters, marks and signs by category, yet blank: grapheme joiner, Hangul fillers, Khmer inherent vowels, Mongolian and
# other variation selectors, Braille blank, Khitan filler, musical null notehead, Egyptian blanks.
_BLANK = frozenset(
    "\u034f\u115f\u1160\u17b4\u17b5\u180b\u180c\u180d\u180f\u2800\u3164\uffa0\U00013441\U00013442\U00016fe4\U0001d159"
).union(map(chr, range(0xFE00, 0xFE0F)), map(chr, range(0xE0100, 0xE01F0)))
_NAMELESS = {
    "Cs": "not UTF-8",  # how Python holds a byte that is not UTF-8
    "Co": "for private use",
    "Cn": f"no character of Unicode {unicodedata.unidata_version}",
}


def invisible_character(text: str) -> str | None:
    """Return the first control, bidirectional or invisible character as "U+202E (RIGHT-TO-LEFT OVERRIDE)", or None.

    The joiners U+200C and U+200D are let through: some scripts are not spelled right without them.
    """
    if text.isascii() and text.isprintable():  # nearly every text, and quick to tell
        return None
    for character in text:
        if is_unseen(character):
            description = _NAMELESS.get(unicodedata.category(character), "control character")
            return f"U+{ord(character):04X} ({unicodedata.name(character, description)})"
    return None


def is_unseen(character: str) -> bool:
    """Return whether a character shows nothing, or changes how others show."""
    if character in _SPELLING:
        return False
    return character in _BLANK or unicodedata.category(character) in _UNSEEN_CATEGORIES
