"""The notebook of the pages: every call of it works, and its outputs are of no particular machine."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from driving import ROOT

import d4m_fast

nbformat = pytest.importorskip("nbformat")
NOTEBOOK = ROOT / "docs" / "notebook.ipynb"


def cells() -> list[Any]:
    return [cell for cell in nbformat.read(NOTEBOOK, 4).cells if cell.cell_type == "code"]


def test_every_cell_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    names = dict[str, Any]()
    for cell in cells():
        exec(compile(cell.source, str(NOTEBOOK), "exec"), names)
    said = capsys.readouterr()
    assert said.err == ""
    printed = [output.text for cell in cells() for output in cell.outputs if output.output_type == "stream"]
    assert said.out == "".join(printed)  # what it shows is what it does
    run = names["run"]
    assert isinstance(run, d4m_fast.Run)
    assert (len(run.images), run.classes, run.verify().whole) == (4, ("1", "8"), True)
    assert {(row["arm"], row["regime"]) for row in names["result"].rows} == {
        (arm, regime) for arm in ("distilled", "random") for regime in ("hard", "fixed")
    }


@pytest.mark.slow
def test_it_runs_in_a_kernel_without_a_warning(tmp_path: Path) -> None:
    client = pytest.importorskip("nbclient").NotebookClient
    notebook = nbformat.read(NOTEBOOK, 4)
    client(notebook, timeout=900, coalesce_streams=True, resources={"metadata": {"path": str(tmp_path)}}).execute()
    executed = [cell for cell in notebook.cells if cell.cell_type == "code"]
    for before, after in zip(cells(), executed, strict=True):
        assert [output.output_type for output in after.outputs] == [output.output_type for output in before.outputs]
        for old, new in zip(before.outputs, after.outputs, strict=True):
            if old.output_type == "stream":
                assert (new.name, new.text) == ("stdout", old.text)


def test_its_outputs_name_no_machine_and_no_error() -> None:
    text = NOTEBOOK.read_text(encoding="utf-8")
    assert re.findall(r"/(?:home|root|tmp|work|usr|Users)/[^\s\"]*", text) == []
    kinds = {output.output_type for cell in cells() for output in cell.outputs}
    assert kinds == {"stream", "execute_result"}
    assert all(cell.outputs or cell.source == "import d4m_fast" for cell in cells())
