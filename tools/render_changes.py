"""docs/state.md from docs/state/: an introduction, and the counts of the seeded changes.

D4M_CHANGES=docs/state/changes.json pytest -m slow tests/test_changes.py
python tools/render_changes.py
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

DOCS = Path(__file__).resolve().parent.parent / "docs"
OUTCOMES = ("found by verify", "refused by a re-run", "same images")
FOLLOWED = ("after verify --repair", "a new run, without verify")


def render(folder: Path) -> str:
    """The page, from `intro.md` and `changes.json` in a folder."""
    counts: Counter[tuple[str, str]] = Counter()
    for row in json.loads((folder / "changes.json").read_text()):
        counts[row["file"], row["outcome"]] += row["n"]
    kinds = sorted({kind for kind, _ in counts} - {*FOLLOWED})
    total = sum(counts[kind, outcome] for kind in kinds for outcome in OUTCOMES)
    rows = [(kind, *(str(counts[kind, outcome]) for outcome in OUTCOMES)) for kind in kinds]
    followed = [
        f"{name}: {counts[name, 'same images']} the same images, {counts[name, 'refused']} refused in one line"
        for name in FOLLOWED
    ]
    return "\n".join(
        [
            (folder / "intro.md").read_text(encoding="utf-8"),
            f"## {total:,} changes",
            "",
            "A finished run of three groups, an evaluation's report, its latents and the ONNX networks it ran on; one"
            " change at a time (a bit, a byte, a digit, a truncation, two records swapped, the file deleted), seeded;"
            " then `verify`, and where it finds nothing the same command again and a new run from the same artifacts"
            " (`pytest -m slow tests/test_changes.py`). None was silent, none a traceback.",
            "",
            *_table(("changed", *OUTCOMES), rows),
            "",
            f"Of every twentieth, more: {'; '.join(followed)}.",
            "",
        ]
    )


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> list[str]:
    return [f"| {' | '.join(cells)} |" for cells in (head, ("---",) * len(head), *rows)]


if __name__ == "__main__":
    (DOCS / "state.md").write_text(render(DOCS / "state"), encoding="utf-8")
