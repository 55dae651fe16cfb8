"""`verify` of outputs, alone and in their run: what is wrong is named, and the command it prints makes exactly that."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path

import pytest
from converting import FORMS, converted, copied, state_of
from driving import Finished, Ran, one_line, run_cli, tree

Distill = Callable[..., Ran]


def do(command: str, run: Path) -> Ran:
    """Run what `verify` printed; RUN stands for a run in it where the output lies alone."""
    name, *words = shlex.split(command)
    assert name == "d4m-fast"
    return run_cli(*[str(run) if word == "RUN" else word for word in words], "--quiet")


def flip(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


def shorten(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1])


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("damage", [flip, shorten, Path.unlink])
def test_every_file_of_an_output(
    finished: Finished, tmp_path: Path, form: str, damage: Callable[[Path], object]
) -> None:
    out = converted(finished.run, form, tmp_path / "out")
    whole = tree(out)
    assert run_cli("verify", out).out == f"{out}: whole; 6 images compared\n"
    for name in sorted(set(whole) - {".lock", "output.json"}):
        damage(out / name)
        found = run_cli("verify", out, "--json")
        assert (found.code, [finding["file"] for finding in found.json["findings"]]) == (5, [name])
        assert found.json["findings"][0]["problem"] == ("missing" if damage is Path.unlink else "damaged")
        repaired = run_cli("verify", out, "--repair", "--json")
        assert repaired.code == 5
        ran = do(repaired.json["command"], finished.run)
        assert (ran.code, ran.err) == (0, "")
        assert tree(out) == whole
        assert run_cli("verify", out).code == 0


@pytest.mark.parametrize("form", FORMS)
def test_a_damaged_record(finished: Finished, tmp_path: Path, form: str) -> None:
    out = converted(finished.run, form, tmp_path / "out")
    shorten(out / "output.json")
    before = tree(out)
    found = run_cli("verify", out)
    assert found.code == 5
    assert f"remove {out} and convert again" in found.out
    assert "mends none of this" in found.out
    assert run_cli("verify", out, "--repair").code == 5
    one_line(run_cli("convert", finished.run, "--to", form, "--out", out), 5, "output.json: damaged", "remove")
    assert tree(out) == before


def test_a_foreign_file_is_named_and_left(finished: Finished, tmp_path: Path) -> None:
    out = converted(finished.run, "imagefolder", tmp_path / "out")
    (out / "bread" / "mine.png").write_bytes(b"mine")
    for flags in ((), ("--repair",)):
        found = run_cli("verify", out, *flags)
        assert found.code == 5
        assert "foreign: " in found.out and "foreign files are yours to remove" in found.out
    assert (out / "bread" / "mine.png").read_bytes() == b"mine"


@pytest.mark.parametrize("form", ["webdataset", "parquet"])
def test_an_output_in_its_run(distill: Distill, tmp_path: Path, form: str) -> None:
    assert distill("--output", form).code == 0
    run = tmp_path / "run"
    whole = tree(run)
    files = sorted(
        name for name in whole if name.startswith("outputs/") and not name.endswith((".lock", "output.json"))
    )
    for name in files:
        flip(run / name)
        found = run_cli("verify", run, "--repair", "--json")
        assert (found.code, [finding["file"] for finding in found.json["findings"]]) == (5, [name])
        assert "distill" not in found.json["command"]
        assert do(found.json["command"], run).code == 0
        assert tree(run) == whole


def test_a_part_of_an_output_in_its_run(distill: Distill, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a kill leaves it: the run is whole, and what it was asked for is not there."""
    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr("d4m_fast.runs.output_files.SummedFile.write", full)
        one_line(distill("--output", "webdataset", "--quiet"), 6, "no space left")
    found = run_cli("verify", run, "--json")
    assert (found.code, found.json["finished"], found.json["whole"]) == (1, True, False)
    assert do(found.json["command"], run).code == 0
    assert run_cli("verify", run).code == 0


def full(*_: object) -> int:
    raise OSError(28, "No space left on device")


def test_a_damaged_run_and_its_output(distill: Distill, tmp_path: Path) -> None:
    """Both are made again, the run first."""
    assert distill("--output", "webdataset").code == 0
    run = tmp_path / "run"
    whole = tree(run, "images/**/*", "outputs/**/*", "manifest.jsonl")
    flip(run / "images" / "bread" / "00000.png")
    flip(run / "outputs" / "webdataset" / "train-00000.tar")
    command = run_cli("verify", run, "--repair", "--json").json["command"]
    distilling, converting = command.split(" && ")
    assert distilling.startswith("d4m-fast distill --config ")
    assert do(distilling, run).code == 0
    assert do(converting, run).code == 0
    assert tree(run, "images/**/*", "outputs/**/*", "manifest.jsonl") == whole
    assert run_cli("verify", run).code == 0


def test_an_output_of_other_images_than_the_run_has(distill: Distill, tmp_path: Path) -> None:
    assert distill("--output", "webdataset").code == 0
    assert distill("--seed", 1, "--out", tmp_path / "other", "--output", "webdataset").code == 0
    other = tmp_path / "other" / "outputs" / "webdataset"
    for file in (tmp_path / "run" / "outputs" / "webdataset").iterdir():
        (other / file.name).write_bytes(file.read_bytes())
    found = run_cli("verify", tmp_path / "other")
    assert found.code == 5
    assert "it is of other images than the run has now" in found.out


def test_an_empty_folder_of_outputs_is_none(finished: Finished, tmp_path: Path) -> None:
    """As a kill leaves it before the record is there."""
    run = copied(finished.run, tmp_path / "run")
    (run / "outputs" / "webdataset").mkdir(parents=True)
    (run / "outputs" / "webdataset" / ".lock").touch()
    assert run_cli("verify", run).code == 0


def test_verify_changes_nothing(finished: Finished, tmp_path: Path) -> None:
    out = converted(finished.run, "webdataset", tmp_path / "out")
    before = state_of(out)
    assert run_cli("verify", out).code == 0
    assert state_of(out) == before
