"""README.md, CONTRIBUTING.md and docs/: links that lead somewhere, pages that answer a question, one version."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from driving import ROOT

from d4m_fast import __version__

DOCS = ROOT / "docs"
PAGES = sorted(DOCS.glob("*.md"))
LINKING = (*(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")), *PAGES)
LINK = re.compile(r"\]\(([^)\s]+)\)")
MOST_WORDS = 1200


def dead_links(page: Path, text: str) -> list[str]:
    """Relative links of a page that lead nowhere."""
    relative = [link for link in LINK.findall(text) if not re.match(r"[a-z]+:|#", link)]
    targets = {link: Path(page.parent, link.partition("#")[0]).resolve() for link in relative}
    return [link for link, target in targets.items() if not target.exists()]


@pytest.mark.parametrize("page", LINKING, ids=lambda page: str(page.relative_to(ROOT)))
def test_relative_links_lead_somewhere(page: Path) -> None:
    assert dead_links(page, page.read_text(encoding="utf-8")) == []


def test_a_dead_link_is_found() -> None:
    text = "[a](plan.md) [b](nowhere.md) ![c](../docs/none.png) [d](https://example.org) [e](plan.md#x) [f](#x)"
    assert dead_links(DOCS / "d4m.md", text) == ["nowhere.md", "../docs/none.png"]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_page_begins_with_its_question_and_the_readme_has_it(page: Path) -> None:
    first = page.read_text(encoding="utf-8").splitlines()[0]
    assert re.fullmatch(r"# [A-Z].*\?", first), first
    assert f"](docs/{page.name})" in (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").split()) <= MOST_WORDS


@pytest.mark.parametrize(("file", "said"), [("CITATION.cff", "version: {}\n"), ("CHANGELOG.md", "({})\n")])
def test_the_version_is_that_of_the_package(file: str, said: str) -> None:
    assert said.format(__version__) in (ROOT / file).read_text(encoding="utf-8")
