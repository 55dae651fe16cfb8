"""Every threat on docs/security.md names tests that are there."""

from __future__ import annotations

import re

from driving import ROOT

PAGE = ROOT / "docs" / "security.md"
NAME = re.compile(r"`(?:(?P<file>tests/[\w/]+[.]py)::)?(?P<test>test_\w+)`")


def named_tests() -> list[tuple[str, str, str]]:
    """File, test and line of the page; a test without a file is of the file before it."""
    named, file = list[tuple[str, str, str]](), ""
    for line in PAGE.read_text(encoding="utf-8").splitlines():
        for match in NAME.finditer(line):
            file = file if match["file"] is None else match["file"]
            named.append((file, match["test"], line))
    return named


def test_each_is_there() -> None:
    assert len(named_tests()) > 30
    for file, test, line in named_tests():
        assert f"\ndef {test}(" in (ROOT / file).read_text(encoding="utf-8"), line


def test_each_threat_has_one() -> None:
    rows = [line for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("| ")]
    threats = [row for row in rows if not row.startswith("| threat |")]
    assert threats
    for row in threats:
        assert NAME.search(row), row
