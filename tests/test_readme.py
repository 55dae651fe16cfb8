"""README and pages claim no more of GPUs than certificates in `docs/` do, and no other command of tests than CI's."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from driving import ROOT

from d4m_fast.certification.render import BEGIN, END, insert

NO = ("not yet", "not built yet")


def gpu_cells(text: str) -> Iterator[tuple[str, str]]:
    """(part, what the column "ran on a GPU" says of it)."""
    inside = False
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        inside = line.startswith("|") and (inside or cells[-1] == "ran on a GPU")
        if inside and cells[-1] != "ran on a GPU" and set(cells[-1]) != {"-"}:
            yield cells[0], cells[-1]


def unproven(text: str, devices: Sequence[str]) -> list[str]:
    """Cells that claim a run on a GPU and name none of the certified devices."""
    claims = [(part, said) for part, said in gpu_cells(text) if not said.startswith(NO)]
    return [f"{part}: {said}" for part, said in claims if not any(device in said for device in devices)]


def certified_gpus(folder: Path) -> list[str]:
    """Names of the devices whose certificates passed whole."""
    found = [json.loads(file.read_text()) for file in sorted(folder.rglob("certify*.json"))]
    whole = [c["machine"]["device"] for c in found if c["passed"] and c["complete"]]
    return [device.split(" (")[0] for device in whole if device != "cpu"]


@pytest.mark.parametrize(("page", "parts"), [("README.md", 5), ("docs/certify.md", 14)])
def test_a_page_claims_what_is_certified(page: str, parts: int) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    assert len(list(gpu_cells(text))) >= parts
    assert unproven(text, certified_gpus(ROOT / "docs")) == []


def test_ci_runs_the_tests_as_the_readme_says() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    (command,) = re.findall(r"^(make test) +# the tests$", readme, re.MULTILINE)
    assert command in (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()


def test_the_certificate_goes_between_the_markers_of_its_page(tmp_path: Path) -> None:
    page = tmp_path / "certify.md"
    page.write_bytes((ROOT / "docs" / "certify.md").read_bytes())
    insert(f"{BEGIN}\na table\n{END}", page)
    assert f"## The result\n\n{BEGIN}\na table\n{END}\n\n## What ran where" in page.read_text(encoding="utf-8")


TABLE = """x | y

| part | ran on a CPU | ran on a GPU |
|---|---|---|
| a | yes | not yet |
| b | yes | {} |

| c | yes |"""


@pytest.mark.parametrize("said", ["yes", "yes, on an H100", ""])
def test_a_claim_without_a_certificate_is_found(said: str) -> None:
    assert unproven(TABLE.format(said), []) == [f"b: {said}"]
    assert unproven(TABLE.format(said), ["NVIDIA A100"]) == [f"b: {said}"]


def test_a_claim_with_one_is_not(tmp_path: Path) -> None:
    for name, device, passed in (
        ("a", "NVIDIA H100 (sm90)", True),
        ("b", "NVIDIA L40S (sm89)", False),
        ("c", "cpu", True),
    ):
        value = {"machine": {"device": device}, "passed": passed, "complete": True}
        (tmp_path / f"certify-{name}.json").write_text(json.dumps(value))
    assert certified_gpus(tmp_path) == ["NVIDIA H100"]
    assert unproven(TABLE.format("yes, NVIDIA H100"), certified_gpus(tmp_path)) == []
