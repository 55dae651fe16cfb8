"""`d4m-fast evaluate` on a real distilled set of two of the bundled classes."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest
from driving import Finished, Ran, command, environment, refused, run_cli

from d4m_fast.storage.state import EVALUATION, require_state

QUICK = ("--width", 4, "--seeds", 1, "--workers", 1)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Trousers and bags, two each, from few steps."""
    folder = tmp_path_factory.mktemp("evaluate")
    options = ("--classes", "1,8", "--ipc", 2, "--steps", 5, "--batch-size", 4, "--artifacts", folder / "cache")
    assert run_cli("distill", *options, "--out", folder / "run", "--quiet").code == 0
    return folder / "run"


@pytest.mark.parametrize("kind", ["soft", "hard"])
def test_both_arms_are_scored_on_the_chosen_classes(run: Path, kind: str) -> None:
    ran = run_cli("evaluate", run, *QUICK, "--label-kind", kind, "--json")
    assert ran.code == 0
    report = json.loads(ran.out)
    assert {row["arm"] for row in report["rows"]} == {"distilled", "random"}
    assert report["subject"]["images_per_class"] == 2
    assert all(80 < row["mean"] <= 100 for row in report["rows"])  # trousers and bags: chance is 50
    assert require_state(run / "evaluation" / f"small-convnet3-w4-{kind}.json", EVALUATION) == report


def test_a_second_call_repeats_the_kept_report(run: Path) -> None:
    first = run_cli("evaluate", run, *QUICK, "--label-kind", "hard")
    again = run_cli("evaluate", run, *QUICK, "--label-kind", "hard")
    assert again.code == 0
    assert again.out == first.out
    assert "distilled - random, hard labels" in again.out
    assert "students" not in again.err


def test_another_methods_images_need_their_data_named(run: Path, tmp_path: Path) -> None:
    images = shutil.copytree(run / "images", tmp_path / "theirs")
    assert run_cli("evaluate", images, *QUICK).code == 2
    data = ("--train-data", "bundled", "--test-data", "bundled")
    assert run_cli("evaluate", images, *data, *QUICK, "--label-kind", "hard", "--json").code == 0
    assert sorted(p.name for p in images.iterdir()) == ["1", "8"]


def test_images_the_run_was_made_from_are_not_test_images(finished: Finished) -> None:
    ran = run_cli("evaluate", finished.run, *QUICK, "--label-kind", "hard")
    assert ran.code == 2
    assert "--test-data is needed" in ran.err


def test_a_run_that_is_not_finished_is_not_scored(run: Path, tmp_path: Path) -> None:
    half = shutil.copytree(run, tmp_path / "half")
    (half / "summary.json").unlink()
    refused(run_cli("evaluate", half, *QUICK), 4, "this run is not finished; d4m-fast verify prints the command")


def test_results_that_cannot_be_kept_are_printed(run: Path, tmp_path: Path) -> None:
    full = shutil.copytree(run, tmp_path / "full", ignore=shutil.ignore_patterns("evaluation"))
    (full / "evaluation").touch()
    ran = run_cli("evaluate", full, *QUICK, "--label-kind", "hard", "--quiet", "--json")
    assert (ran.code, len(ran.json["results"])) == (0, 2)
    assert (
        ran.err == f"the results are not kept: {full / 'evaluation'}: a file is in the way; choose another directory\n"
    )


def test_results_that_cannot_be_printed_are_kept_also_where_the_run_was_moved(run: Path, tmp_path: Path) -> None:
    whole = shutil.copytree(run, tmp_path / "whole", ignore=shutil.ignore_patterns("evaluation"))
    args = (*QUICK, "--label-kind", "hard")
    with open("/dev/full", "w") as full:  # a process of its own: one that is forked cannot train after this one has
        ran = subprocess.run(
            command("evaluate", whole, *args), env=environment(), stdout=full, stderr=subprocess.PIPE, text=True
        )
    refused(Ran(ran.returncode, "", ran.stderr), 6, "stdout: the result cannot be printed")
    moved = whole.rename(tmp_path / "moved")
    again = run_cli("evaluate", moved, *args)
    assert (again.code, "students" in again.err) == (0, False)
    assert again.out.startswith(f"{moved}: ")
