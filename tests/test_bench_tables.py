"""Tables of the benches in README.md and docs/ are those that the benches' JSON gives."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from statistics import median
from types import ModuleType

import pytest
from driving import ROOT, json_lines, load_tool

BENCH = ROOT / "bench"
ANY_NUMBER = re.compile(r"\d")
CALCULATED = ("roofline",)  # by a formula, from no file


@pytest.fixture(scope="module")
def renderer() -> ModuleType:
    return load_tool("render_benches")


def page_of(*names: str) -> str:
    return "\n".join(f"<!-- bench:{name} begin -->\nold\n<!-- bench:{name} end -->" for name in names)


def test_every_page_has_the_tables_of_its_files(renderer: ModuleType) -> None:
    pages = renderer.pages()
    assert {ROOT / "README.md", ROOT / "docs" / "kmeans.md", ROOT / "docs" / "throughput.md"} <= {*pages}
    for page in pages:
        text = page.read_text(encoding="utf-8")
        assert text == renderer.render(text), f"{page}: run python tools/render_benches.py"


@pytest.mark.parametrize(
    ("page", "sentence"),
    [
        ("README.md", "{onnx reference:.1f} images per second reach the disk with the official settings and"),
        ("README.md", "{onnx unipc:.0f} with `--preset unipc`; the official code's loop makes {official loop:.1f} ("),
        ("docs/throughput.md", "put {onnx reference:.1f} images per second on the disk with the official settings and"),
        ("docs/throughput.md", "and {onnx unipc:.0f} with `--preset unipc`, where the official code's loop makes"),
        ("docs/throughput.md", "loop makes {official loop:.1f} ("),
    ],
)
def test_the_sentences_on_speed_are_those_of_the_file(page: str, sentence: str) -> None:
    rounds = json_lines(BENCH / "official.jsonl")
    medians = {name.removeprefix("distill, ").replace(",", ""): median(r[name] for r in rounds) for name in rounds[0]}
    assert sentence.format(**medians) in " ".join((ROOT / page).read_text(encoding="utf-8").split())


def test_every_table_is_on_a_page(renderer: ModuleType) -> None:
    text = "\n".join(page.read_text(encoding="utf-8") for page in renderer.pages())
    assert {*renderer.page_tables.names_of(text, renderer.KIND)} == {*renderer.TABLES}


def test_every_file_of_a_bench_has_a_table(renderer: ModuleType, tmp_path: Path) -> None:
    """A figure that changes, in any file, changes a page."""
    rendered = renderer.render(page_of(*renderer.TABLES))
    for file in sorted(BENCH.glob("*.json*")):
        folder = tmp_path / file.name
        shutil.copytree(BENCH, folder, ignore=shutil.ignore_patterns("*.py", "__pycache__"))
        (folder / file.name).write_text("\n".join(map(changed, json_texts(file))))
        assert renderer.render(page_of(*renderer.TABLES), folder) != rendered, file.name


def json_texts(file: Path) -> list[str]:
    text = file.read_text(encoding="utf-8")
    return text.splitlines() if file.suffix == ".jsonl" else [text]


def changed(text: str) -> str:
    """The same JSON with every fraction three times as large."""
    return json.dumps(json.loads(text, parse_float=lambda number: 3 * float(number)))


def test_every_table_of_figures_changes_with_them(renderer: ModuleType, tmp_path: Path) -> None:
    for file in BENCH.glob("*.json*"):
        (tmp_path / file.name).write_text("\n".join(map(changed, json_texts(file))))
    for name, table in renderer.TABLES.items():
        assert ANY_NUMBER.search(table(BENCH)), name
        assert (table(BENCH) == table(tmp_path)) == (name in CALCULATED), name


@pytest.mark.parametrize(
    "text",
    [
        "<!-- bench:linear begin -->\n",
        "<!-- bench:linear end -->\n",
        "<!-- bench:linear end -->\n<!-- bench:linear begin -->\n",
        "<!-- bench:linear begin -->\n<!-- bench:start end -->\n",
    ],
)
def test_markers_stand_in_pairs(renderer: ModuleType, text: str) -> None:
    with pytest.raises(ValueError, match="no begin and end"):
        renderer.render(text)


def test_unknown_names_are_errors(renderer: ModuleType) -> None:
    with pytest.raises(KeyError, match="nothing"):
        renderer.render(page_of("nothing"))
