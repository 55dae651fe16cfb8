"""docs/images.md from docs/images/: the rules, and what the test of variants measured.

D4M_EXACTNESS=docs/images pytest tests/sources/test_image_variants.py
python tools/render_images.py
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

DOCS = Path(__file__).resolve().parent.parent / "docs"
HEAD = ("variant", "from the picture stored", "from Pillow", "from torchvision", "why")


def render(folder: Path) -> str:
    """The page, from `intro.md` and `variants.json` in a folder."""
    variants: dict[str, dict[str, Any]] = json.loads((folder / "variants.json").read_text(encoding="utf-8"))
    others = [row["torchvision"] for row in variants.values() if row["torchvision"] != "not read"]
    equal = sum(row["pillow"] == 0 for row in variants.values())
    return "\n".join(
        [
            (folder / "intro.md").read_text(encoding="utf-8"),
            f"## {len(variants)} variants beside Pillow and torchvision",
            "",
            f"Largest difference of any of the 8-bit values; {equal} variants are equal to Pillow's, and"
            f" {others.count(0)} of the {len(others)} that torchvision reads are equal to its own. A dash: the file"
            " does not keep the picture exactly.",
            "",
            *(_line(cells) for cells in (HEAD, ["---"] * len(HEAD))),
            *(_line(_cells(name, row)) for name, row in variants.items()),
            "",
        ]
    )


def _cells(name: str, row: dict[str, Any]) -> Sequence[str]:
    stored = "-" if row["truth"] is None else str(row["truth"])
    return name, stored, str(row["pillow"]), str(row["torchvision"]), row["note"]


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


if __name__ == "__main__":
    (DOCS / "images.md").write_text(render(DOCS / "images"), encoding="utf-8")
