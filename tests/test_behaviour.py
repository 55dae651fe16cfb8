"""A change of the code's form changes no byte of what a run, an export and an evaluation make.

To change them on purpose: `python tools/behaviour.py > tests/behaviour.json`, and a line in CHANGELOG.md.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from driving import ROOT, load_tool


@pytest.mark.slow
def test_the_same_bytes_as_on_record(tmp_path: Path) -> None:
    recorded = json.loads((ROOT / "tests" / "behaviour.json").read_text(encoding="utf-8"))
    tool = load_tool("behaviour")
    here = tool.surroundings()
    if here != {key: recorded[key] for key in here}:
        pytest.skip(f"tests/behaviour.json is of another processor or other libraries: {recorded['processor']}")
    assert tool.behaviour(ROOT, tmp_path) == recorded["sha256"]
