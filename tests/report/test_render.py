"""The page as text: its structure, its sections, and that other people's names stay text."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from driving import Finished
from made_up_results import NAMES, STUDENTS, example_results

from d4m_fast.errors import DataError, PreflightError, UsageError
from d4m_fast.report.files import write_report
from d4m_fast.report.numerals import MINUS, decimal, grouped, signed
from d4m_fast.report.render import render_report

ALL = {"provenance", "teacher", "images", "arms", "scores", "curves", "students", "budgets", "classes", "confusion"}
ALL |= {"features", "bytes", "seconds"}
VOID = {"meta", "link", "img", "line", "rect", "circle", "path", "polyline"}


class Page(HTMLParser):
    """Elements of a page with their attributes and the text in them; open and close must match."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self._open: list[str] = []
        self.feed(html)
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1] != "style":
            self.text.append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]

    @property
    def sections(self) -> set[str]:
        return {str(section["id"]) for section in self.all("section") if "id" in section}


@pytest.fixture(scope="module")
def page() -> Page:
    """Everything but pictures."""
    first = example_results(students=tuple(STUDENTS))
    return Page(render_report([first, example_results(1), example_results(50)]))


def test_every_section_is_there_and_linked(page: Page) -> None:
    assert page.sections == ALL
    links = [link["href"] for link in page.all("a")]
    assert sorted(links[1:], key=str) == sorted(f"#{name}" for name in ALL)
    assert links[0] == "#main"


def test_structure(page: Page) -> None:
    assert len(page.all("h1")) == len(page.all("main")) == len(page.all("nav")) == 1
    assert len(page.all("table")) == len(page.all("caption")) > 20
    assert all(header.get("scope") in ("row", "col") for header in page.all("th"))
    charts = [svg for svg in page.all("svg") if svg.get("role") == "img"]
    assert len(charts) > 30
    assert all(svg.get("aria-hidden") == "true" or str(svg.get("aria-label")).endswith(".") for svg in page.all("svg"))
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))


def test_nothing_leads_out_of_the_page(page: Page) -> None:
    assert page.all("script") == []
    for tag, attributes in page.elements:
        for name in ("src", "href", "xlink:href", "action", "data"):
            target = attributes.get(name)
            assert target is None or target.startswith(("#", "data:")), (tag, target)
        assert not any(name.startswith("on") for name in attributes)


def test_what_has_no_data_is_left_out() -> None:
    whole = example_results()
    bare = {name: whole[name] for name in ("format", "subject")}
    names = ("per_class", "confusion", "label_bytes", "image_bytes")
    rows = [{name: value for name, value in row.items() if name not in names} for row in whole["rows"]]
    page = Page(render_report({**bare, "rows": rows}))
    assert page.sections == {"provenance", "images", "arms"}
    assert "They are left out: no run directory was named" in page.text
    assert Page(render_report(whole)).sections == ALL - {"students", "budgets"}


def test_names_stay_text() -> None:
    bad = "<script>alert(1)</script>"
    results = example_results(names=(bad, '"><img src=x onerror=alert(1)>', *NAMES[2:]))
    results["subject"]["run"] = bad
    results["teacher_check"]["permuted"] = [bad]
    results["provenance"] = {bad: {bad: bad}}
    html = render_report(results)
    page = Page(html)
    assert "<script" not in html
    assert page.all("script") == page.all("img") == []
    assert bad in page.text


def test_bold_means_an_interval_off_zero() -> None:
    html = render_report(example_results())
    rows = example_results()["rows"]
    expected = []
    for row in rows:
        difference = row["difference_to_random"]
        if difference is not None and difference["low"] * difference["high"] > 0:
            expected.append(signed(difference["mean"]))
    assert re.findall("<strong>(.*?)</strong>", html) == expected
    assert 0 < len(expected) < len(rows)


def test_one_seed_and_many_classes() -> None:
    names = tuple(f"class {i}" for i in range(300))
    results = example_results(names=names)
    for row in results["rows"]:
        row |= {"accuracy": row["accuracy"][:1], "std": None}
        if row["difference_to_random"] is not None:
            row["difference_to_random"] |= {"low": None, "high": None}
    html = render_report(results)
    assert "<strong>" not in html
    assert "260 classes between them are left out" in html
    assert len(html) < 1_000_000


def test_pictures_of_a_run(finished: Finished, tmp_path: Path) -> None:
    page = Page(render_report(example_results(), finished.run))
    assert len(page.all("img")) == 12
    assert all(str(image["src"]).startswith("data:image/") and image["alt"] for image in page.all("img"))
    assert "no run of d4m-fast" in render_report(example_results(), tmp_path)


def test_the_same_results_give_the_same_page() -> None:
    assert render_report(example_results()) == render_report([example_results()])


def test_what_is_refused() -> None:
    with pytest.raises(UsageError, match="no results"):
        render_report([])
    with pytest.raises(UsageError, match=r"arm random .* is there twice \(runs/made-up-ipc10, runs/made-up-ipc10\)"):
        render_report([example_results(), example_results()])
    with pytest.raises(DataError, match="results 2 of 2"):
        render_report([example_results(), {}])


def test_the_file(tmp_path: Path) -> None:
    assert write_report(tmp_path, "<p>\udcff") == tmp_path / "report.html"
    assert (tmp_path / "report.html").read_bytes() == rb"<p>\udcff"
    assert write_report(tmp_path / "other.html", "x").read_text() == "x"
    with pytest.raises(PreflightError):
        write_report(tmp_path / "none" / "other.html", "x")


def test_numerals() -> None:
    assert [decimal(-0.001), decimal(-1.005, 1), decimal(3)] == ["0.00", f"{MINUS}1.0", "3.00"]
    assert [signed(0.5), signed(-0.5), signed(-0.001)] == ["+0.50", f"{MINUS}0.50", "0.00"]
    assert grouped(1234567) == "1\N{NARROW NO-BREAK SPACE}234\N{NARROW NO-BREAK SPACE}567"
