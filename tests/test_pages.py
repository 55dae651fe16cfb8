"""README.md, CONTRIBUTING.md and docs/: links that lead somewhere, pages that answer a question, one version."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from driving import ROOT

from d4m_fast import __version__
from d4m_fast.cli import cli

DOCS = ROOT / "docs"
PAGES = sorted(DOCS.glob("*.md"))
GUIDES = sorted(DOCS.glob("guide/*.md"))
LINKING = (*(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")), *PAGES, *GUIDES)
LINK = re.compile(r"\]\(([^)\s]+)\)")
FOREIGN = re.compile(r"^.*\b[\w-]+/[\w-]+ [0-9a-f]{7}\b.*$", re.MULTILINE)  # files of another repository's commit
LAUNCHED = re.compile(r"^(?:torchrun|srun) .*?(?:-m d4m_fast|d4m-fast) ", re.MULTILINE)
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


@pytest.mark.parametrize("page", (*PAGES, *GUIDES), ids=lambda page: page.name)
def test_a_page_begins_with_its_question(page: Path) -> None:
    first = page.read_text(encoding="utf-8").splitlines()[0]
    assert re.fullmatch(r"# [A-Z].*\?", first), first


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_readme_has_every_page_but_the_guides(page: Path) -> None:
    assert f"](docs/{page.name})" in (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").split()) <= MOST_WORDS


@pytest.mark.parametrize(("file", "said"), [("CITATION.cff", "version: {}\n"), ("CHANGELOG.md", "({})\n")])
def test_the_version_is_that_of_the_package(file: str, said: str) -> None:
    assert said.format(__version__) in (ROOT / file).read_text(encoding="utf-8")


@pytest.mark.parametrize("page", LINKING, ids=lambda page: str(page.relative_to(ROOT)))
def test_files_of_the_code_that_a_page_names_are_there(page: Path) -> None:
    assert missing_files(page.read_text(encoding="utf-8")) == []


def missing_files(text: str) -> list[str]:
    """Python and CUDA files with a folder before their name that are neither below the root nor in the package."""
    own = FOREIGN.sub("", text)
    names = set(re.findall(r"(?<![\w/.])((?:[a-z0-9_]+/)+[a-z0-9_]+\.(?:py|cu))", own))
    return sorted(name for name in names if not (ROOT / name).is_file() and not (ROOT / "d4m_fast" / name).is_file())


def test_a_file_that_is_gone_is_found() -> None:
    text = "`engine/unet.py`, `data/run.py` and tests/test_pages.py\nLINs-lab/RDED 3f6453d, validation/main.py"
    assert missing_files(text) == ["data/run.py"]


@pytest.mark.parametrize("page", LINKING, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_of_a_page_have_the_flags_it_gives_them(page: Path) -> None:
    assert unknown_flags(page.read_text(encoding="utf-8")) == []


def unknown_flags(text: str) -> list[str]:
    """Flags of `d4m-fast COMMAND ...`, in code blocks and in backticks, that the command does not have."""
    text, wrong = LAUNCHED.sub("d4m-fast ", text), []
    for line in re.findall(r"`(d4m-fast [^`]*)`|^(?:.*/)?(d4m-fast .*)$", text, re.MULTILINE):
        words = "".join(line).partition("#")[0].split()
        command = cli.commands.get(words[1]) if len(words) > 1 else None
        if command is None:
            continue
        known = {flag for parameter in command.params for flag in (*parameter.opts, *parameter.secondary_opts)}
        given = {word.partition("=")[0] for word in words if word.startswith("--")}
        wrong += [f"{words[1]} {flag}" for flag in sorted(given - known - {"--help"})]
    return wrong


def test_a_flag_that_is_gone_is_found() -> None:
    text = (
        "`d4m-fast plan --gpu h100 --fast`\n.venv/bin/d4m-fast verify RUN --deeper  # --x\n"
        "torchrun --nproc-per-node 8 -m d4m_fast evaluate RUN --arms random --armies\n"
    )
    assert unknown_flags(text) == ["plan --fast", "verify --deeper", "evaluate --armies"]
