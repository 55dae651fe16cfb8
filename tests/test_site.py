"""The site of the pages: built strictly, complete, and with nothing from elsewhere."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import pytest
from driving import ROOT, environment

from d4m_fast.cli import cli

pytest.importorskip("mkdocs")
pytest.importorskip("material")
ENVIRONMENT = {"NO_MKDOCS_2_WARNING": "1"}


def build(config: Path, site: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "-f", str(config), "-d", str(site)]
    return subprocess.run(command, env={**environment(), **ENVIRONMENT}, capture_output=True, text=True)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    ran = build(ROOT / "mkdocs.yml", folder)
    assert ran.returncode == 0, ran.stderr
    assert [line for line in ran.stderr.splitlines() if not line.startswith("INFO")] == []
    return folder


class Links(HTMLParser):
    """Addresses in a page: those that a browser loads, and those that a reader may follow."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.loaded, self.followed, self.anchors = list[str](), list[str](), set[str]()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value for name, value in attrs if value is not None}
        if "id" in values:
            self.anchors.add(values["id"])
        if tag == "a" and "href" in values:
            self.followed.append(values["href"])
        elif tag != "a":
            self.loaded += [values[name] for name in ("src", "href") if name in values and tag != "base"]


def pages(site: Path) -> Iterator[tuple[Path, Links]]:
    for page in sorted(site.rglob("*.html")):
        if page.name != "404.html":  # whose addresses are those of the server's root
            yield page, Links(page.read_text(encoding="utf-8"))


def test_every_link_inside_leads_to_a_page_and_a_heading(site: Path) -> None:
    found = dict(pages(site))
    assert len(found) > 35
    for page, links in found.items():
        for link in (*links.followed, *links.loaded):
            if re.match("[a-z]+:", link):
                continue
            path, _, anchor = link.partition("#")
            target = (page.parent / path).resolve() if path else page
            target = target / "index.html" if target.is_dir() else target
            assert target.is_file(), (page, link)
            assert not anchor or target not in found or anchor in found[target].anchors, (page, link)


def test_nothing_is_loaded_from_elsewhere(site: Path) -> None:
    for page, links in pages(site):
        assert [link for link in links.loaded if re.match("(https?:)?//", link)] == [], page
    styles = [path.read_text(encoding="utf-8") for path in site.rglob("*.css")]
    assert [text for text in styles if re.search(r"url\(['\"]?(https?:)?//|@import", text)] == []


@pytest.mark.parametrize("name", cli.commands)
def test_a_commands_page_has_its_options_as_help_has_them(site: Path, name: str) -> None:
    page = (site / "options" / f"{name}.html").read_text(encoding="utf-8")
    text = " ".join(re.sub("<[^>]*>", " ", page).split())
    for parameter in cli.commands[name].params:
        for flag in (*parameter.opts, *parameter.secondary_opts):
            assert not flag.startswith("--") or flag in text, flag
    if name == "distill":
        assert "--ipc INTEGER Images per class. [default: 10; at least 1]" in text
        assert "Run directory. [default: runs/&lt;config hash&gt;]" in text
        assert re.search("<h2[^>]*>Clustering", page)


def test_every_page_of_docs_is_in_the_site(site: Path) -> None:
    for page in (*ROOT.glob("docs/*.md"), *ROOT.glob("docs/guide/*.md")):
        assert (site / page.relative_to(ROOT / "docs").with_suffix(".html")).is_file()
    assert "Distilled Fashion-MNIST, 10 images per class" in (site / "index.html").read_text(encoding="utf-8")


def test_a_dead_link_fails_the_build(tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "index.md").write_text("# a\n\n[b](nowhere.md)\n")
    settings = re.search(r"^validation:\n(?: .*\n)*", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE)
    assert settings is not None
    (tmp_path / "mkdocs.yml").write_text(f"site_name: a\ntheme: {{name: material, font: false}}\n{settings[0]}")
    ran = build(tmp_path / "mkdocs.yml", tmp_path / "site")
    assert ran.returncode == 1
    assert "nowhere.md" in ran.stderr


def test_make_builds_as_the_tests_do() -> None:
    assert "mkdocs build --strict\n" in (ROOT / "Makefile").read_text()
    assert "make docs\n" in (ROOT / ".ci" / "run").read_text()
