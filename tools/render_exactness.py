"""docs/exactness.md from docs/exactness/: an introduction, and what the tests of exactness found.

D4M_EXACTNESS=docs/exactness pytest -m "slow or not slow" tests/engine/test_zoo.py tests/engine/test_scheduler_matrix.py
python tools/render_exactness.py
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

DOCS = Path(__file__).resolve().parent.parent / "docs"
OUTCOMES = ("table", "stepped", "refused, and diffusers fails", "refused, though diffusers runs")


def render(folder: Path) -> str:
    """The page, from `intro.md`, `schedulers.json` and `models.json` in a folder."""
    schedulers: dict[str, Any] = json.loads((folder / "schedulers.json").read_text())
    models: dict[str, Any] = json.loads((folder / "models.json").read_text())
    equal = {name: row for name, row in models.items() if row["outcome"] == "equal"}
    refused = {name: row for name, row in models.items() if row["outcome"] != "equal"}
    return "\n".join(
        [
            (folder / "intro.md").read_text(encoding="utf-8"),
            f"## Models: {len(equal)} equal, {len(refused)} refused",
            "\nRandom weights, made from configs (`tests/engine/test_zoo.py`); 10 steps at strength 0.7 and guidance 8"
            " unless the model is made for fewer. Largest difference of a pixel, and what computed ours:\n",
            *table(("model", "largest difference", "UNet", "schedule"), map(equal_row, equal.items())),
            "",
            *table(("model", "refused with"), ((name, f"`{row['outcome']}`") for name, row in refused.items())),
            "",
            *schedulers_part(schedulers),
            "",
        ]
    )


def equal_row(item: tuple[str, dict[str, Any]]) -> Sequence[str]:
    name, row = item
    return name, f"{row['difference']:.1e}", row["unet"], row["schedule"]


def schedulers_part(schedulers: dict[str, Any]) -> list[str]:
    counts = Counter[str]()
    for row in schedulers.values():
        counts.update(row["outcomes"])
    running = {name: row for name, row in schedulers.items() if {"table", "stepped"} & set(row["outcomes"])}
    furthest = max(row["furthest"] for row in schedulers.values())
    others = ", ".join(name for name in schedulers if name not in running)
    return [
        f"## Schedulers: {sum(counts.values()):,} cells, {counts['table'] + counts['stepped']:,} equal,"
        f" {counts[OUTCOMES[2]] + counts[OUTCOMES[3]]:,} refused",
        "",
        f"Every scheduler class of diffusers ({len(schedulers)}), its prediction types, each of its boolean options,"
        " other options one at a time, strengths 0.3, 0.7 and 1, and 1, 4, 20 and 50 steps"
        " (`pytest -m slow tests/engine/test_scheduler_matrix.py`). "
        f"{counts['table']:,} cells are equal by table and {counts['stepped']:,} stepped, at most {furthest:.1e} from"
        f" diffusers; {counts[OUTCOMES[2]]:,} are refused where diffusers' pipeline fails or returns NaN, and"
        f" {counts[OUTCOMES[3]]:,} where it runs.",
        "",
        *table(("class", *OUTCOMES, "largest difference"), map(scheduler_row, running.items())),
        "",
        f"Refused in every cell, because diffusers' image-to-image pipeline cannot run them: {others}.",
    ]


def scheduler_row(item: tuple[str, dict[str, Any]]) -> Sequence[str]:
    name, row = item
    return name, *(str(row["outcomes"].get(outcome, 0)) for outcome in OUTCOMES), f"{row['furthest']:.1e}"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """A Markdown table."""
    return ["| " + " | ".join(line) + " |" for line in (head, ["---"] * len(head), *rows)]


if __name__ == "__main__":
    (DOCS / "exactness.md").write_text(render(DOCS / "exactness"), encoding="utf-8")
