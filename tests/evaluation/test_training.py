"""Students that are trained for a second: what they learn from, and that neither kills nor neighbours change them."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from driving import HANGS, wait_for
from evaluation.exams import QUICK, exam, task, teacher_of, untrained_teacher
from fakes import stripes

from d4m_fast.config.choices import Regime
from d4m_fast.errors import DamageError, ModelError, NonFiniteError, PreflightError
from d4m_fast.evaluation import tasks, train
from d4m_fast.evaluation.convnet import ConvNet
from d4m_fast.evaluation.feeds import Batch, HardFeed, OnlineFeed, StoredFeed
from d4m_fast.evaluation.images import ImageSet
from d4m_fast.evaluation.protocols import PROTOCOLS
from d4m_fast.evaluation.tasks import Exam, Result, Task, confusion_of, finish_task
from d4m_fast.evaluation.workers import run_jobs, share_jobs
from d4m_fast.storage import files

REGIMES: tuple[Regime, ...] = get_args(Regime)


def without_seconds(result: Result | None) -> Result:
    assert result is not None
    return dataclasses.replace(result, seconds=0.0)


def test_a_student_learns_from_hard_labels_then_teaches(tmp_path: Path) -> None:
    shared = exam(tmp_path, epochs=40, sets={"a": stripes(10, 1)})
    assert finish_task(shared, task("hard")).accuracy > 90
    network = ConvNet(2, width=8, image_size=16)
    _teach(network, stripes(40, 5))
    # The labels given are wrong: whatever is learnt comes from the teacher.
    swapped = ImageSet(stripes(10, 1).images, 1 - stripes(10, 1).labels)
    shared = exam(tmp_path, epochs=40, sets={"a": swapped}, teacher=teacher_of(network))
    assert finish_task(shared, task("online")).accuracy > 90
    fixed = finish_task(shared, task("fixed"))
    assert fixed.accuracy > 90
    assert fixed.label_bytes == sum(path.stat().st_size for path in (tmp_path / "labels").glob("*/epoch-*"))


def _teach(model: ConvNet, data: ImageSet) -> None:
    optimiser = torch.optim.AdamW(model.parameters(), 5e-3)
    for _ in range(40):
        optimiser.zero_grad()
        torch.nn.functional.cross_entropy(model(data.images.float() / 255), data.labels).backward()  # type: ignore[no-untyped-call]
        optimiser.step()


@pytest.mark.parametrize("regime", REGIMES)
def test_training_leaves_no_trace_and_repeats(tmp_path: Path, regime: Regime) -> None:
    shared, another = exam(tmp_path / "first"), exam(tmp_path / "again")
    torch.set_num_threads(2)
    state = torch.get_rng_state()
    first = finish_task(shared, task(regime, seed=3))
    assert torch.get_num_threads() == 2
    torch.set_num_threads(1)
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(7)
    again = finish_task(another, task(regime, seed=3))
    assert without_seconds(again) == without_seconds(first)
    assert len(first.losses) == 4
    other = finish_task(another, task(regime, seed=4))
    assert other.losses != first.losses


def test_a_finished_student_is_not_trained_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = finish_task(exam(tmp_path), task())
    monkeypatch.setattr(tasks, "fit", None)
    assert finish_task(exam(tmp_path), task()) == first


class Halt(Exception):
    """Stands for a kill between two batches."""


def halting(epoch_of: Callable[..., Iterator[Batch]], at: int) -> Callable[..., Iterator[Batch]]:
    def epoch(self: object, number: int, generator: torch.Generator) -> Iterator[Batch]:
        for index, batch in enumerate(epoch_of(self, number, generator)):
            if number == at and index == 1:
                raise Halt
            yield batch

    return epoch


@pytest.mark.parametrize("student", ["convnet3", "dropout"])
@pytest.mark.parametrize("regime", REGIMES)
def test_a_killed_student_goes_on_to_equal_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, regime: Regime, student: str
) -> None:
    monkeypatch.setattr(tasks, "build_student", _build)
    monkeypatch.setattr(train, "CHECKPOINT_SECONDS", 0.0)
    changes = {"epochs": 9, "batch_size": ((1, 8),), "validations": (0, 2)}
    whole = finish_task(exam(tmp_path / "whole", **changes), task(regime, student=student))  # type: ignore[arg-type]
    kind: Any = {"hard": HardFeed, "online": OnlineFeed, "fixed": StoredFeed}[regime]
    with monkeypatch.context() as patch:
        patch.setattr(kind, "epoch", halting(kind.epoch, 7))
        with pytest.raises(Halt):
            finish_task(exam(tmp_path / "halted", **changes), task(regime, student=student))  # type: ignore[arg-type]
    (checkpoint,) = tmp_path.glob("halted/students/*/checkpoint.pt")
    resumed = finish_task(exam(tmp_path / "halted", **changes), task(regime, student=student))  # type: ignore[arg-type]
    assert without_seconds(resumed) == without_seconds(whole)
    assert [epoch for epoch, _ in resumed.accuracies] == [0, 2, 4, 6, 8]
    assert not checkpoint.exists()


def _build(name: str, *, classes: int, image_size: int, width: int) -> torch.nn.Module:
    if name == "convnet3":
        return ConvNet(classes, width=width, image_size=image_size)
    layers = [torch.nn.Flatten(), torch.nn.Dropout(0.5), torch.nn.LazyLinear(classes)]
    network = torch.nn.Sequential(*layers)
    network(torch.zeros(1, 3, image_size, image_size))
    return network


def test_a_damaged_checkpoint_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train, "CHECKPOINT_SECONDS", 0.0)
    with monkeypatch.context() as patch:
        patch.setattr(HardFeed, "epoch", halting(HardFeed.epoch, 2))
        shared = exam(tmp_path, batch_size=((1, 8),))
        with pytest.raises(Halt):
            finish_task(shared, task("hard"))
    (checkpoint,) = tmp_path.glob("students/*/checkpoint.pt")
    data = bytearray(checkpoint.read_bytes())
    for position in (3, len(data) // 2, len(data) - 9):
        changed = data.copy()
        changed[position] ^= 4
        checkpoint.write_bytes(changed)
        with pytest.raises(DamageError, match=r"checkpoint\.pt.*remove it and evaluate again"):
            finish_task(shared, task("hard"))


def test_a_loss_that_is_not_finite_ends_the_training(tmp_path: Path) -> None:
    with pytest.raises(NonFiniteError, match=r"student.*the loss of epoch 1"):
        finish_task(exam(tmp_path, lr={"": 1e30}, batch_size=((1, 2),)), task("hard"))


def test_a_full_disk_leaves_the_last_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train, "CHECKPOINT_SECONDS", 0.0)
    writes = 0
    write = files.write_bytes

    def filling(path: Path, data: bytes) -> str:
        nonlocal writes
        writes += 1
        if writes == 3:
            raise PreflightError(f"{path}: no space left; free some")
        return write(path, data)

    whole = finish_task(exam(tmp_path / "whole"), task("hard"))
    with monkeypatch.context() as patch:
        patch.setattr(files, "write_bytes", filling)
        with pytest.raises(PreflightError, match="no space left"):
            finish_task(exam(tmp_path / "full"), task("hard"))
    assert list(tmp_path.glob("full/students/*/checkpoint.pt"))
    assert without_seconds(finish_task(exam(tmp_path / "full"), task("hard"))) == without_seconds(whole)


def test_subset_of_classes_restricts_logits(tmp_path: Path) -> None:
    class Favours(torch.nn.Module):
        def forward(self, pixels: torch.Tensor) -> torch.Tensor:
            return torch.tensor([[9.0, 1.0, 2.0, 0.0]]).expand(len(pixels), 4)

    images = ImageSet(torch.zeros(4, 3, 16, 16, dtype=torch.uint8), torch.tensor([1, 2, 2, 2]))
    shared = Exam(QUICK, 8, 4, (1, 2), images, {}, {}, tmp_path)
    assert confusion_of(Favours(), shared) == ((0, 1), (0, 3))
    assert tasks.accuracy_of(((0, 1), (0, 3))) == 75.0
    every = dataclasses.replace(shared, classes=(0, 1, 2, 3))
    assert tasks.accuracy_of(confusion_of(Favours(), every)) == 0.0


def test_a_teacher_without_finite_logits_is_named(tmp_path: Path) -> None:
    teacher = untrained_teacher()
    teacher.network.head.bias.fill_(float("nan"))  # type: ignore[union-attr, operator]
    for regime in ("online", "fixed"):
        with pytest.raises(ModelError, match="NaN or infinite"):
            finish_task(exam(tmp_path, teacher=teacher), task(regime))


def many(work: Path) -> tuple[Exam, list[Task]]:
    sets = {"distilled": stripes(13, 0), "random": stripes(13, 1)}
    jobs = [task("fixed" if seed else "online", seed, arm) for seed in range(2) for arm in sets]
    return exam(work, sets=sets), jobs


def test_workers_do_not_change_results(tmp_path: Path) -> None:
    shared, jobs = many(tmp_path / "one")
    alone = [without_seconds(result) for result in run_jobs(shared, jobs, 1)]
    assert [result.task for result in alone] == jobs
    shared, jobs = many(tmp_path / "two")
    paired = [without_seconds(result) for result in run_jobs(shared, jobs, 2)]
    assert sorted(alone, key=str) == sorted(paired, key=str)


def test_processes_of_a_launcher_share_the_jobs(tmp_path: Path) -> None:
    shared, jobs = many(tmp_path / "one")
    alone = sorted((without_seconds(result) for result in run_jobs(shared, jobs, 1)), key=str)
    shared, jobs = many(tmp_path / "ranks")
    ranks = [share_jobs(shared, jobs, rank, 2) for rank in range(2)]
    first = [without_seconds(next(ranks[1])), *map(without_seconds, ranks[0])]
    assert first[0].task == jobs[2]
    rest = list(map(without_seconds, ranks[1]))
    assert sorted(first[1:], key=str) == alone == sorted([first[0], *rest], key=str)
    assert len(list((tmp_path / "ranks" / "students").iterdir())) == len(jobs)


# Read by every Python that has its folder on its path, so by the workers too, which know nothing of the script.
HOLD = """
import os, time
from pathlib import Path
from d4m_fast.evaluation.feeds import HardFeed

folder, epoch = Path({folder!r}), HardFeed.epoch

def held_epoch(feed, number, generator):
    if number == 1 and len(feed.positions) > 10:
        (folder / f"held-{{os.getpid()}}").touch()
        while not (folder / "go").exists():
            time.sleep(0.01)
    return epoch(feed, number, generator)

HardFeed.epoch = held_epoch
"""
# Without a guard: workers that read it again would start workers of their own.
SCRIPT = """
import sys
from pathlib import Path
from evaluation.exams import exam, task
from fakes import stripes
from d4m_fast.evaluation.workers import run_jobs

sets = {{"long": stripes(20, 0), "longer": stripes(21, 0), "quick": stripes(5, 0)}}
jobs = [task("hard", arm=arm) for arm in ("quick", "long", "longer")]
for result in run_jobs(exam(Path({folder!r}) / "work", epochs=3, sets=sets), jobs, 2):
    sys.stdout.write(result.task.arm + " " + repr(result.losses) + chr(10))
    sys.stdout.flush()
"""


def _start(tmp_path: Path) -> subprocess.Popen[str]:
    """One short job, and two that wait in their second epoch for a file `go`; who waits is `held-PID`."""
    script, path = tmp_path / "script.py", [str(tmp_path), str(Path(__file__).parents[1]), *sys.path]
    script.write_text(SCRIPT.format(folder=str(tmp_path)))
    (tmp_path / "sitecustomize.py").write_text(HOLD.format(folder=str(tmp_path)))
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path)}
    return subprocess.Popen(
        [sys.executable, str(script)],
        env=environment,
        start_new_session=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def _group(group: int) -> list[int]:
    stats = [(int(p.name), p / "stat") for p in Path("/proc").iterdir() if p.name.isdigit()]
    fields = dict[int, list[str]]()
    for pid, stat in stats:
        try:
            fields[pid] = stat.read_text().rpartition(")")[2].split()
        except OSError:  # it has ended
            continue
    return [pid for pid, values in fields.items() if int(values[2]) == group and values[0] != "Z"]


needs_proc = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="reads /proc")


def _both_at_work(tmp_path: Path, process: subprocess.Popen[str]) -> list[int]:
    """The workers, once the short job is done and each is in the middle of another."""
    assert process.stdout is not None
    assert process.stdout.readline().startswith("quick")
    wait_for(lambda: len([*tmp_path.glob("held-*")]) == 2, process)
    return [int(file.name.removeprefix("held-")) for file in tmp_path.glob("held-*")]


@needs_proc
def test_interrupt_ends_the_workers(tmp_path: Path) -> None:
    with _start(tmp_path) as process:
        workers = _both_at_work(tmp_path, process)
        assert set(workers) < set(_group(process.pid))
        os.killpg(process.pid, signal.SIGINT)
        _, errors = process.communicate(timeout=HANGS)
    assert errors.count("Traceback") == 1  # the parent's own KeyboardInterrupt, none from the workers
    for _ in range(600):
        if not _group(process.pid):
            break
        time.sleep(0.1)
    assert not _group(process.pid)


def test_what_a_killed_worker_did_is_taken_over(tmp_path: Path) -> None:
    with _start(tmp_path) as process:
        os.kill(_both_at_work(tmp_path, process)[0], signal.SIGKILL)
        (tmp_path / "go").touch()
        output, errors = process.communicate(timeout=HANGS)
    assert process.returncode == 0, errors
    assert sorted(line.split()[0] for line in output.splitlines()) == ["long", "longer"]
    assert "another goes on" in errors


def test_protocol_small_is_as_published() -> None:
    small = PROTOCOLS["small"]
    assert (small.resolution, small.epochs, small.batch_for(10), small.lr_of("convnet3")) == (32, 300, 50, 2e-3)
    assert (small.weight_decay, small.shift, small.temperature, small.scales_loss) == (0.01, 4, 4.0, True)
    with pytest.raises(TypeError):
        PROTOCOLS["small"] = QUICK  # type: ignore[index]


def test_autocast_is_of_the_forward_passes_alone(tmp_path: Path) -> None:
    execution = train.Execution(autocast=torch.bfloat16)
    shared = dataclasses.replace(exam(tmp_path, epochs=20), execution=execution)
    plain = exam(tmp_path, epochs=20)
    halved, whole = finish_task(shared, task("online")), finish_task(plain, task("online"))
    assert halved.losses != whole.losses
    assert halved.losses == pytest.approx(whole.losses, rel=0.05, abs=5e-4)
