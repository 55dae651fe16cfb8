"""One student by several processes: equal to one process and to DistributedDataParallel, also after deaths."""

from __future__ import annotations

import dataclasses
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from driving import HANGS
from evaluation.exams import QUICK, exam, task
from evaluation.together import CASES, QUICK_CASES, launch, result_of, trained

from d4m_fast.errors import UsageError
from d4m_fast.evaluation import parallel, tasks
from d4m_fast.evaluation.feeds import Batch
from d4m_fast.evaluation.parallel import (
    Ranks,
    require_launcher,
    require_own_devices,
    shared_bn_batch,
    shared_protocol,
)
from d4m_fast.evaluation.protocols import PROTOCOLS
from d4m_fast.evaluation.train import own_rows
from d4m_fast.evaluation.workers import do_together


def assert_equal(ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    assert ours["losses"] == pytest.approx(theirs["losses"], abs=1e-6)
    assert ours["accuracies"] == theirs["accuracies"]
    assert set(ours["weights"]) == set(theirs["weights"])
    for name, value in theirs["weights"].items():
        assert float((ours["weights"][name] - value).abs().max()) < 1e-6, name


def assert_bitwise(answers: list[dict[str, Any]]) -> None:
    """All processes end with the same weights."""
    for answer in answers[1:]:
        for name, value in answers[0]["weights"].items():
            assert torch.equal(answer["weights"][name], value), name


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    answers, codes, lines = launch("quick", tmp_path_factory.mktemp("quick"))
    assert (codes, lines) == ([0, 0], [])
    return answers


@pytest.mark.parametrize("name", QUICK_CASES)
def test_two_processes_train_what_one_does(quick: list[Any], tmp_path: Path, name: str) -> None:
    assert_equal(quick[0][name], trained(name, tmp_path, Ranks()))
    assert_bitwise([answer[name] for answer in quick])


@pytest.mark.parametrize("images", [8, 7])
def test_a_step_is_that_of_ddp(quick: list[Any], images: int) -> None:
    for answer in quick:
        ours, theirs = answer[f"step-{images}"]["ours"], answer[f"step-{images}"]["theirs"]
        assert float(ours["loss"]) == pytest.approx(float(theirs["loss"]), abs=1e-6)
        for name, gradient in theirs["gradients"].items():
            assert float(gradient.abs().max()) > 0
            assert float((ours["gradients"][name] - gradient).abs().max()) < 1e-6, name
    # DDP's running statistics are those of the first process.
    ours, theirs = quick[0][f"step-{images}"]["ours"], quick[0][f"step-{images}"]["theirs"]
    for name, value in theirs["weights"].items():
        if "running" in name or "tracked" in name:
            moved = 1 if "tracked" in name else 0  # also for the other's share, as one process counts
            assert float((ours["weights"][name] - value - moved).abs().max()) < 1e-6, name


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [2, 3, 5])
def test_every_recipe_and_number_of_processes(tmp_path: Path, ranks: int) -> None:
    answers, codes, lines = launch("all", tmp_path / "ranks", ranks)
    assert (codes, lines) == ([0] * ranks, [])
    for name in CASES:
        assert_equal(answers[0][name], trained(name, tmp_path / "alone", Ranks(), ranks))
        assert_bitwise([answer[name] for answer in answers])


@pytest.mark.slow
def test_what_a_killed_process_leaves_goes_on_to_equal_bits(tmp_path: Path) -> None:
    whole, _, _ = launch("results", tmp_path / "whole")
    answers, codes, lines = launch("killed", tmp_path / "killed")
    assert (answers, codes) == ([], [6, -9])
    assert len(lines) == 1
    assert "another process has ended" in lines[0]
    assert "the same command goes on from the last checkpoint" in lines[0]
    assert len(list(tmp_path.glob("killed/students/*/checkpoint.pt"))) == 1
    resumed, codes, lines = launch("results", tmp_path / "killed")
    assert (codes, lines) == ([0, 0], [])
    assert resumed == whole
    assert whole[0] == whole[1]
    assert not list(tmp_path.glob("killed/students/*/checkpoint.pt"))
    alone = result_of("group", tmp_path / "alone", Ranks())
    assert whole[0]["group"]["losses"] == pytest.approx(alone["losses"], abs=1e-6)
    assert whole[0]["group"]["confusion"] == alone["confusion"]
    # Another number of processes draws other dropout, and is another student's folder.
    assert whole[0]["dropout"]["losses"] != result_of("dropout", tmp_path / "killed", Ranks())["losses"]


@pytest.mark.slow
def test_the_first_process_may_die_too(tmp_path: Path) -> None:
    answers, codes, lines = launch("first-killed", tmp_path)
    assert (answers, codes) == ([], [-9, 6])
    assert len(lines) == 1
    assert "another process has ended" in lines[0]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["failed", "refused"])
def test_an_error_of_one_process_is_one_line(tmp_path: Path, name: str) -> None:
    answers, codes, lines = launch(name, tmp_path, 3)
    assert answers == []
    assert lines == ["error: teacher: its logits are NaN or infinite; take other weights"]
    assert 1 in codes
    assert set(codes) <= {1, 6}


@pytest.mark.slow
def test_a_process_that_does_not_answer_ends_the_others(tmp_path: Path) -> None:
    started = time.monotonic()
    answers, codes, lines = launch("late", tmp_path)
    assert answers == []
    assert codes == [6, 6]
    assert len(lines) == 1
    assert "does not answer" in lines[0]
    assert time.monotonic() - started < HANGS


@pytest.mark.slow
def test_weights_that_drift_apart_are_refused(tmp_path: Path) -> None:
    answers, codes, lines = launch("apart", tmp_path)
    assert (answers, codes) == ([], [6, 6])
    assert len(lines) == 1
    assert "the processes' weights differ after epoch 5" in lines[0]


@pytest.mark.parametrize("regime", ["hard", "fixed", "online"])
@pytest.mark.parametrize("changes", [{}, {"mixes_hard_labels": True}, {"crop": (0.5, 1.0), "patches": 2, "shift": 0}])
def test_shares_are_rows_of_the_whole_batch(tmp_path: Path, regime: Any, changes: dict[str, Any]) -> None:
    shared = exam(tmp_path, batch_size=((1, 7),), **changes)
    images, ranks = shared.sets["a"], [Ranks(rank, 3) for rank in range(3)]
    protocol = shared_protocol(shared.protocol, 7, 3)
    assert protocol.bn_batch == 3

    def batches(share: Any) -> list[Batch]:
        feed, _ = tasks._feed(shared, task(regime), images, 7, share)
        return list(feed.epoch(0, torch.Generator().manual_seed(5)))

    whole = batches(lambda n: slice(0, n))
    shares = [batches(partial(own_rows, protocol, rank)) for rank in ranks]
    assert sorted(batch.size for batch in whole) == [2, 7, 7, 7, 7]
    for index, batch in enumerate(whole):
        parts = [share[index] for share in shares]
        assert [part.size for part in parts] == [batch.size] * 3
        rows = [own_rows(protocol, rank, batch.size) for rank in ranks]
        assert [len(part.pixels) for part in parts] == ([3, 3, 1] if batch.size == 7 else [2, 1, 1])
        logits = torch.randn(batch.size, 2, generator=torch.Generator().manual_seed(6))
        for part, own in zip(parts, rows, strict=True):
            assert torch.equal(part.pixels, batch.pixels[own])
            loss = part.targets.loss(logits[own], slice(None))
            assert float(loss) == pytest.approx(float(batch.targets.loss(logits[own], own)), rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("count", [0, 1, 2, 7, 8])
@pytest.mark.parametrize("size", [1, 2, 3, 8])
def test_shares_are_all_and_even(count: int, size: int) -> None:
    shares = [Ranks(rank, size).share(count) for rank in range(size)]
    assert [index for share in shares for index in share] == list(range(count))
    assert len(shares[0]) == max(map(len, shares))
    assert len(shares[0]) - len(shares[-1]) <= 1


@pytest.mark.parametrize(
    ("name", "batch", "processes", "bn_batch"),
    [
        ("small", 50, 2, 25),
        ("small", 10, 4, 3),
        ("fkd", 1024, 2, None),  # a micro-batch of 512 each, as the recipe has it
        ("fkd", 1024, 7, 74),
        ("fkd", 1024, 8, 64),
        ("d4m", 1024, 8, 74),
        ("small", 50, 1, None),
    ],
)
def test_bn_batch_is_what_data_parallel_makes_it(name: str, batch: int, processes: int, bn_batch: int | None) -> None:
    assert shared_protocol(PROTOCOLS[name], batch, processes).bn_batch == bn_batch
    expected = None if bn_batch == PROTOCOLS[name].bn_batch else bn_batch
    assert shared_bn_batch(PROTOCOLS[name], [batch], processes) == expected


def test_batches_that_cannot_be_shared_alike_are_refused() -> None:
    with pytest.raises(UsageError, match=r"8 processes share batches of 20, 200 images.*--override bn_batch=N"):
        shared_bn_batch(PROTOCOLS["rded"], [20, 200], 8)
    with pytest.raises(UsageError, match="one share of at least 2"):
        shared_bn_batch(PROTOCOLS["rded"], [8], 8)
    assert shared_bn_batch(dataclasses.replace(QUICK, bn_batch=4), [20, 200], 8) is None


def test_processes_that_cannot_find_each_other_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match=r"there is one process.*torchrun --nproc-per-node N"):
        require_launcher(None)
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    monkeypatch.setenv("MASTER_PORT", "29500")
    with pytest.raises(UsageError, match=r"--data-parallel: MASTER_ADDR not set"):
        require_launcher((1, 2))
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    assert require_launcher((1, 2)) == Ranks(1, 2)


def test_processes_on_one_gpu_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 2)
    require_own_devices(torch.device("cpu"))
    with pytest.raises(UsageError, match="4 processes for 2 GPUs; start one per GPU"):
        require_own_devices(torch.device("cuda"))
    with pytest.raises(UsageError, match="--device cuda:1 is one GPU for 4 processes"):
        require_own_devices(torch.device("cuda:1"))
    with pytest.raises(UsageError, match="no backend for meta"):
        require_own_devices(torch.device("meta"))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    require_own_devices(torch.device("cuda"))


def test_one_process_communicates_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parallel, "dist", None)
    with parallel.joined(Ranks()):
        results = list(do_together(exam(tmp_path), [tasks.LabelTask("a", "teacher", 0), task("fixed")], 0, 1))
    assert results[0] is None
    assert results[1] is not None
