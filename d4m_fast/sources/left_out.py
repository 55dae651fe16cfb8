"""Say what of a set was not taken, counted by reason, in one line for each kind."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Collection

from d4m_fast.sources.formats import WITHOUT_DECODER
from d4m_fast.wording import some

_MOST_REASONS = 8  # in the line of what is left out
_SHORT_SUFFIX = re.compile(r"\.[a-z0-9_+-]{1,12}")


def reason_of(name: str) -> str:
    """Return why a file is not taken, by its name, to be put behind a number."""
    suffix = os.path.splitext(name)[1].lower()
    if suffix in WITHOUT_DECODER:
        return f" {suffix} (no decoder for {WITHOUT_DECODER[suffix]} in Pillow)"
    if name.startswith("."):
        return " hidden"
    return f" {suffix}" if _SHORT_SUFFIX.fullmatch(suffix) else " without extension"


def lines_of(counts: Counter[str], skipped_folders: Collection[str]) -> list[str]:
    """Return lines about files left out and folders skipped; none where there are none."""
    lines = []
    if counts:
        by_count = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
        reasons = ", ".join(f"{count:,}{reason}" for reason, count in by_count[:_MOST_REASONS])
        unlisted = sum(count for _, count in by_count[_MOST_REASONS:])
        more = f" and {unlisted:,} of {len(by_count) - _MOST_REASONS:,} other kinds" if unlisted else ""
        lines.append(f"left out: {reasons}{more}")
    if skipped_folders:
        lines.append(f"skipped folders: {some(sorted(skipped_folders))}")
    return lines
