"""docs/data.md says what the tests of label files and layouts say."""

from __future__ import annotations

import importlib.util

from dataset_layouts import LAYOUTS
from driving import ROOT
from label_forms import ACCEPTED, REFUSED


def test_the_page_is_rendered_from_the_rows() -> None:
    spec = importlib.util.spec_from_file_location("render_data_page", ROOT / "tools" / "render_data_page.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert (ROOT / "docs" / "data.md").read_text(encoding="utf-8") == module.render()


def test_there_are_as_many_rows_as_promised() -> None:
    assert len({form.name for form in (*ACCEPTED, *REFUSED)}) >= 25
    assert len({layout.name for layout in LAYOUTS}) >= 20
