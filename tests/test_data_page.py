"""docs/data.md says what the tests of label files and layouts say."""

from __future__ import annotations

from dataset_layouts import LAYOUTS
from driving import ROOT, load_tool
from label_forms import ACCEPTED, REFUSED


def test_the_page_is_rendered_from_the_rows() -> None:
    assert (ROOT / "docs" / "data.md").read_text(encoding="utf-8") == load_tool("render_data_page").render()


def test_there_are_as_many_rows_as_promised() -> None:
    assert len({form.name for form in (*ACCEPTED, *REFUSED)}) >= 25
    assert len({layout.name for layout in LAYOUTS}) >= 20
