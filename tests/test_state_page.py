"""docs/state.md says what the seeded changes gave."""

from __future__ import annotations

import json
from collections import Counter

from driving import ROOT, load_tool

FOLDER = ROOT / "docs" / "state"


def test_the_page_is_what_the_counts_say() -> None:
    assert (ROOT / "docs" / "state.md").read_text(encoding="utf-8") == load_tool("render_changes").render(FOLDER)


def test_all_2000_are_counted_and_none_was_silent() -> None:
    counts: Counter[str] = Counter()
    for row in json.loads((FOLDER / "changes.json").read_text()):
        followed = row["file"] in ("after verify --repair", "a new run, without verify")
        counts["followed" if followed else row["outcome"]] += row["n"]
    assert counts.keys() == {"found by verify", "refused by a re-run", "same images", "followed"}
    assert counts.total() - counts["followed"] == 2000
