"""`d4m-fast evaluate` on a real distilled set of two of the bundled classes."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from driving import Finished, Ran, command, environment, one_line, refused, run_cli

from d4m_fast.evaluation.students import build_student
from d4m_fast.evaluation.teachers import save_teacher
from d4m_fast.sources.idx_sets import FASHION_MNIST
from d4m_fast.storage.state import EVALUATION, STUDENT, require_state

QUICK = ("--width", 4, "--seeds", 1, "--workers", 1, "--epochs", 40)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Trousers and bags, two each, from few steps."""
    folder = tmp_path_factory.mktemp("evaluate")
    options = ("--classes", "1,8", "--ipc", 2, "--steps", 5, "--batch-size", 4, "--artifacts", folder / "cache")
    assert run_cli("distill", *options, "--out", folder / "run", "--quiet").code == 0
    return folder / "run"


def rows(report: dict[str, Any]) -> dict[tuple[str, str], dict[str, Any]]:
    return {(row["arm"], row["regime"]): row for row in report["rows"]}


def test_regimes_and_arms_are_scored_on_the_chosen_classes(run: Path) -> None:
    regimes = ("--regime", "hard", "--regime", "fixed", "--regime", "online")
    ran = run_cli("evaluate", run, *QUICK, *regimes, "--arms", "distilled,random,medoid", "--json")
    assert ran.code == 0
    report = json.loads(ran.out)
    assert set(rows(report)) == {(a, r) for a in ("distilled", "random", "medoid") for r in ("hard", "fixed", "online")}
    for (arm, regime), row in rows(report).items():
        assert 60 < row["mean"] <= 100  # trousers and bags: chance is 50
        assert row["images_per_class"] == 2
        assert row["protocol"] == "small[epochs=40]"
        assert (row["label_bytes"] > 0) == (regime == "fixed")
        assert (row["teacher"] is None) == (regime == "hard")
        assert (row["difference_to_random"] is None) == (arm == "random")
        assert sum(map(sum, row["confusion"])) == 2000
    assert report["teacher_check"]["accuracy"] > 95
    assert report["teacher_check"]["permuted"] == []
    assert report["seconds"]["total"] == pytest.approx(sum(report["seconds"].values()) / 2)
    assert require_state(run / "evaluation" / "results.json", EVALUATION) == report
    students = list((run / "evaluation" / "students").glob("*/result.json"))
    assert len(students) == 9
    assert all(require_state(path, STUDENT)["losses"] for path in students)


def test_a_second_call_trains_only_what_is_new(run: Path) -> None:
    first = run_cli("evaluate", run, *QUICK, "--regime", "hard")
    again = run_cli("evaluate", run, *QUICK, "--regime", "hard", "--arms", "random,distilled,coreset")
    assert (first.code, again.code) == (0, 0)
    assert "distilled" in first.out
    one, two = (ran.out.splitlines() for ran in (first, again))
    assert {line for line in one if "hard" in line} < {line for line in two if "hard" in line}


def test_a_part_of_the_classes_is_cut_out(run: Path) -> None:
    ran = run_cli("evaluate", run, *QUICK, "--classes", "8", "--regime", "hard", "--json")
    assert ran.json["subject"]["classes"] == ["8"]
    assert [row["mean"] for row in ran.json["rows"]] == [100.0, 100.0]  # of a single class


def test_another_methods_images_need_their_data_named(run: Path, tmp_path: Path) -> None:
    images = shutil.copytree(run / "images", tmp_path / "theirs")
    assert run_cli("evaluate", images, *QUICK).code == 2
    data = ("--train-data", "bundled", "--test-data", "bundled", "--artifacts", tmp_path / "cache")
    ran = run_cli("evaluate", images, *data, *QUICK, "--regime", "hard", "--json")
    assert ran.code == 0
    assert sorted(p.name for p in images.iterdir()) == ["1", "8"]
    assert len(list((tmp_path / "cache").glob("evaluation/*/results.json"))) == 1
    own = run_cli("evaluate", run, *QUICK, "--regime", "hard", "--arm", f"theirs={images}", "--json").json
    theirs = rows(own)["theirs", "hard"]
    assert theirs["accuracy"] == rows(own)["distilled", "hard"]["accuracy"]
    refused(run_cli("evaluate", images, *data, *QUICK, "--arms", "medoid"), 2, "no run of d4m-fast", "leave them out")


def test_runs_of_several_generation_seeds_are_paired(run: Path, tmp_path: Path) -> None:
    other = shutil.copytree(run, tmp_path / "other")
    ran = run_cli("evaluate", run, other, *QUICK, "--seeds", 2, "--regime", "hard", "--json")
    row = rows(ran.json)["distilled", "hard"]
    assert row["seeds"] == [[0, 0], [0, 1], [1, 0], [1, 1]]
    assert row["accuracy"][:2] == row["accuracy"][2:]  # the same images
    random = rows(ran.json)["random", "hard"]["accuracy"]
    assert len(set(random)) > 2  # drawn anew for each


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (("--override", "epoch=3"), 2, "--override epoch: no such field; these can be changed: resolution, epochs"),
        (("--override", "epochs"), 2, "--override epochs: write it as field=value"),
        (("--override", "lr=fast"), 2, "--override lr=fast: not a number"),
        (("--override", "cutmix=1.5"), 2, "--override cutmix=1.5: must be 0 to 1"),
        (("--override", "patches=3"), 2, "--override patches=3: must be 1 to 2"),
        (("--override", "lr=nan"), 2, "--override lr=nan: must be above 0"),
        (("--protocol", "fkd", "--override", "test_resize=100"), 2, "smaller than the 224 pixels cut"),
        (("--arms", "distilled,medoids"), 2, "Did you mean 'medoid'?"),
        (("--arm", "theirs"), 2, "write it as NAME=DIR"),
        (("--arm", "theirs=nowhere"), 1, "no such directory"),
        (("--student", "resnet19"), 2, "no network 'resnet19'"),
        (("--teacher", "nowhere"), 1, "--teacher nowhere"),
        (("--regime", "online", "--teacher", "resnet18"), 1, "--teacher resnet18"),
        (("--protocol", "rdde"), 2, "Did you mean 'rded'?"),
        (("--classes", "3"), 1, "not in the distilled set"),
        (("--seeds", 0), 2, "--seeds must be 1 to 1000"),
    ],
)
def test_what_makes_no_sense_is_one_line(run: Path, options: tuple[object, ...], code: int, words: str) -> None:
    refused(run_cli("evaluate", run, *QUICK, *options), code, words)


def test_nothing_to_do_is_said(run: Path) -> None:
    refused(run_cli("evaluate"), 2, "RUN is missing")


def test_the_protocols_are_a_table_with_sources() -> None:
    ran = run_cli("evaluate", "--protocols")
    assert ran.code == 0
    for words in ("bn_batch", "74", "small", "rd3", "suduo94/D4M da35d10", "VILA-Lab/SRe2L 8d00cba"):
        assert words in ran.out
    fields = run_cli("evaluate", "--protocols", "--json").json
    assert set(fields) == {"small", "fkd", "d4m", "rded", "rd3", "hard"}
    for protocol in fields.values():
        assert all(field["source"] for field in protocol.values())
    assert fields["rded"]["batch_size"]["value"] == [[1, 20], [10, 100], [50, 200]]


def test_images_the_run_was_made_from_are_not_test_images(finished: Finished) -> None:
    ran = run_cli("evaluate", finished.run, *QUICK, "--regime", "hard")
    assert ran.code == 2
    assert "--test-data is needed" in ran.err
    assert not (finished.run / "evaluation").exists()


def test_a_run_that_is_not_finished_is_not_scored(run: Path, tmp_path: Path) -> None:
    half = shutil.copytree(run, tmp_path / "half")
    (half / "summary.json").unlink()
    refused(run_cli("evaluate", half, *QUICK), 4, "this run is not finished; d4m-fast verify prints the command")


def test_results_that_cannot_be_kept_are_printed(run: Path, tmp_path: Path) -> None:
    full = shutil.copytree(run, tmp_path / "full", ignore=shutil.ignore_patterns("evaluation"))
    (full / "evaluation").touch()
    ran = run_cli("evaluate", full, *QUICK, "--regime", "hard", "--quiet", "--json")
    assert (ran.code, len(ran.json["curves"])) == (0, 2)
    assert (
        ran.err == f"the results are not kept: {full / 'evaluation'}: a file is in the way; choose another directory\n"
    )


def test_results_that_cannot_be_printed_are_kept_also_where_the_run_was_moved(run: Path, tmp_path: Path) -> None:
    whole = shutil.copytree(run, tmp_path / "whole", ignore=shutil.ignore_patterns("evaluation"))
    args = (*QUICK, "--regime", "hard")
    with open("/dev/full", "w") as full:  # a process of its own: one that is forked cannot train after this one has
        ran = subprocess.run(
            command("evaluate", whole, *args), env=environment(), stdout=full, stderr=subprocess.PIPE, text=True
        )
    lines = ran.stderr.splitlines()
    assert ran.returncode == 6
    assert lines[-1].startswith("stdout: the result cannot be printed") or "cannot be printed" in lines[-1]
    kept = require_state(whole / "evaluation" / "results.json", EVALUATION)
    moved = whole.rename(tmp_path / "moved")
    before = {path: path.stat().st_mtime_ns for path in moved.glob("evaluation/students/*/result.json")}
    again = run_cli("evaluate", moved, *args, "--json")
    assert again.json["rows"] == kept["rows"]
    assert before == {path: path.stat().st_mtime_ns for path in moved.glob("evaluation/students/*/result.json")}


@pytest.mark.slow
def test_processes_under_torchrun_share_the_students(run: Path, tmp_path: Path) -> None:
    alone = run_cli("evaluate", run, *QUICK, "--seeds", 2, "--regime", "fixed", "--out", tmp_path / "alone", "--json")
    args = ("evaluate", run, *QUICK, "--seeds", 2, "--regime", "fixed", "--out", tmp_path / "shared", "--json")
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", "29531"]
    launched = [*launcher, "-m", "d4m_fast", *map(str, args), "--quiet"]
    ran = subprocess.run(launched, env=environment(), capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert json.loads(ran.stdout)["rows"][0]["accuracy"] == alone.json["rows"][0]["accuracy"]
    assert len(ran.stdout.splitlines()) == 1


@pytest.mark.slow
def test_processes_under_torchrun_train_one_student_together(run: Path, tmp_path: Path) -> None:
    students = ("--student", "convnet-2-4-bn", "--student", "convnet-2-4", "--regime", "fixed", "--regime", "online")
    # The labels' and the students' names have the share in them, so that one process alone is told it.
    share = ("--override", "bn_batch=2")
    alone = run_cli("evaluate", run, *QUICK, *students, *share, "--out", tmp_path / "alone", "--json").json
    args = ("evaluate", run, *QUICK, *students, "--data-parallel", "--out", tmp_path / "shared", "--json")
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", "29532"]
    launched = [*launcher, "-m", "d4m_fast", *map(str, args)]
    ran = subprocess.run(launched, env=environment(), capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    together = json.loads(ran.stdout)
    assert len(ran.stdout.splitlines()) == 1
    assert together["provenance"]["processes_per_student"] == 2
    assert len(together["rows"]) == len(alone["rows"]) == 8
    for ours, theirs in zip(together["rows"], alone["rows"], strict=True):
        assert ours["protocol"] == theirs["protocol"] == "small[bn_batch=2,epochs=40]"
        assert ours["mean"] == pytest.approx(theirs["mean"], abs=1)
    for ours, theirs in zip(together["curves"], alone["curves"], strict=True):
        assert ours["losses"][:5] == pytest.approx(theirs["losses"][:5], rel=1e-3)
    kept = subprocess.run(launched, env=environment(), capture_output=True, text=True)
    assert json.loads(kept.stdout)["rows"] == together["rows"]


@pytest.mark.slow
def test_an_error_under_torchrun_is_said_once(run: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "students").touch()
    args = ("evaluate", run, *QUICK, "--data-parallel", "--regime", "hard", "--quiet")
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", "29533"]
    launched = [*launcher, "-m", "d4m_fast", *map(str, (*args, "--out", tmp_path / "out"))]
    ran = subprocess.run(launched, env=environment(), capture_output=True, text=True)
    assert ran.returncode == 1
    said = [line for line in ran.stderr.splitlines() if line.startswith("error: ")]
    assert len(said) == 1  # torchrun's own lines are beside it
    assert "a file is in the way" in said[0]
    assert not ran.stdout


def test_one_process_is_not_data_parallel(run: Path, tmp_path: Path) -> None:
    ran = run_cli("evaluate", run, *QUICK, "--data-parallel", "--out", tmp_path / "out")
    one_line(ran, 2, "--data-parallel: there is one process", "torchrun --nproc-per-node N -m d4m_fast evaluate")
    assert not (tmp_path / "out").exists()


def test_a_teacher_without_a_linear_layer_has_no_map_and_loses_nothing(
    run: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    network = build_student("squeezenet1_1", classes=10, image_size=32, width=0)
    save_teacher(network, tmp_path / "teacher", list(FASHION_MNIST), image_size=32, arch="squeezenet1_1")
    teacher = ("--teacher", tmp_path / "teacher", "--unchecked-teacher", "--out", tmp_path / "out", "--epochs", 2)
    ran = run_cli("evaluate", run, *QUICK, *teacher, "--regime", "online", "--json")
    assert (ran.code, len(ran.json["rows"]), ran.json["feature_map"]) == (0, 2, None)
    assert "no map of the teacher's features" in caplog.text
    refused(run_cli("evaluate", run, *QUICK, *teacher, "--arms", "coreset"), 1, "the teacher has no linear layer")


def test_what_is_quiet_says_nothing(run: Path) -> None:
    ran = run_cli("evaluate", run, *QUICK, "--regime", "hard", "--quiet", "--json")
    assert isinstance(ran, Ran)
    assert ran.err == ""
