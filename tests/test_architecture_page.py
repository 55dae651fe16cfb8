"""The page of the architecture names files that are there, and every room of the package."""

from __future__ import annotations

import re

from driving import ROOT

PACKAGE = ROOT / "d4m_fast"
PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")


def test_every_file_it_names_is_there() -> None:
    named = re.findall(r"`([a-z0-9_/]+\.(?:py|md))`", PAGE)
    missing = [name for name in named if not any((folder / name).is_file() for folder in (PACKAGE, ROOT))]
    assert len(named) > 20
    assert missing == []


def test_every_room_is_in_the_picture() -> None:
    picture = PAGE.split("```")[1]
    rooms = [path.parent.name for path in PACKAGE.glob("*/__init__.py")]
    modules = [path.stem for path in PACKAGE.glob("*.py") if not path.stem.startswith("__")]
    assert [name for name in rooms if f"{name}/" not in picture and name != "config"] == []
    assert [name for name in modules if not re.search(rf"\b{name}\b", picture)] == []
