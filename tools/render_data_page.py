"""docs/data.md from docs/data/intro.md and the rows of tests/label_forms.py and tests/dataset_layouts.py.

python tools/render_data_page.py
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from dataset_layouts import LAYOUTS, Layout  # noqa: E402
from label_forms import ACCEPTED, REFUSED, LabelForm  # noqa: E402

INTRO = ROOT / "docs" / "data" / "intro.md"


def render() -> str:
    """The page."""
    opened = [layout for layout in LAYOUTS if not layout.refusal]
    refused = [layout for layout in LAYOUTS if layout.refusal]
    return "\n".join(
        [
            INTRO.read_text(encoding="utf-8"),
            f"## Label files: {len(ACCEPTED)} forms that are read",
            "",
            *table(("form", "its first line", "prompt of the first class"), map(_accepted_row, ACCEPTED)),
            "",
            f"## Label files: {len(REFUSED)} forms that are refused, exit code 1",
            "",
            *table(("form", "its first line", "said"), map(_refused_row, REFUSED)),
            "",
            f"## Layouts: {len(opened)} that are opened",
            "",
            *table(("layout", "some files", "first classes", "said of the rest"), map(_opened_row, opened)),
            "",
            f"## Layouts: {len(refused)} that are refused, exit code 1",
            "",
            *table(("layout", "some files", "said"), map(_unopened_row, refused)),
            "",
        ]
    )


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """A Markdown table."""
    return ["| " + " | ".join(line) + " |" for line in (head, ["---"] * len(head), *rows)]


def _accepted_row(form: LabelForm) -> Sequence[str]:
    return form.name, _code(form.shown), f"{form.folders[0]}: {form.outcome[0]}"


def _refused_row(form: LabelForm) -> Sequence[str]:
    return form.name, _code(form.shown), str(form.outcome).replace("\\", "").replace(".*", " ... ")


def _opened_row(layout: Layout) -> Sequence[str]:
    pairs = zip(layout.folders, layout.prompts, strict=True)
    classes = "; ".join(f"{folder}: {prompt}" for folder, prompt in list(pairs)[:2])
    split = f" (split {layout.split})" if layout.split != "train" else ""
    return layout.name + split, _files(layout), classes, ", ".join(layout.notes)


def _unopened_row(layout: Layout) -> Sequence[str]:
    return layout.name, _files(layout), layout.refusal.replace("{root}", "ROOT")


def _files(layout: Layout) -> str:
    return ", ".join(map(_code, layout.paths[:3]))


def _code(text: str) -> str:
    printable = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    return f"`{printable}`"


if __name__ == "__main__":
    (ROOT / "docs" / "data.md").write_text(render(), encoding="utf-8")
