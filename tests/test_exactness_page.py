"""docs/exactness.md says what the tests found, of the models and schedulers that there are."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from driving import ROOT, load_tool
from engine.test_scheduler_matrix import SCHEDULERS
from engine.test_zoo import EQUALS, REFUSED

FOLDER = ROOT / "docs" / "exactness"


@pytest.fixture(scope="module")
def renderer() -> ModuleType:
    return load_tool("render_exactness")


def rows(table: str) -> dict[str, Any]:
    value: dict[str, Any] = json.loads((FOLDER / f"{table}.json").read_text())
    return value


def test_the_page_is_what_the_files_say(renderer: ModuleType) -> None:
    assert (ROOT / "docs" / "exactness.md").read_text(encoding="utf-8") == renderer.render(FOLDER)


def test_the_files_have_the_models_of_the_tests() -> None:
    models = rows("models")
    assert {name for name, row in models.items() if row["outcome"] == "equal"} == set(EQUALS)
    assert {name for name, row in models.items() if row["outcome"] != "equal"} == set(REFUSED)
    assert set(rows("schedulers")) == set(SCHEDULERS)


def test_another_file_is_another_page(renderer: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "intro.md").write_text("# Equal")
    for table in ("models", "schedulers"):
        (tmp_path / f"{table}.json").write_text((FOLDER / f"{table}.json").read_text().replace("equal", "refused"))
    assert renderer.render(tmp_path) != renderer.render(FOLDER)
