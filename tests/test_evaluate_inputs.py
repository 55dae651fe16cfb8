"""Bad input to `d4m-fast evaluate`, and what ends it half-way: one line, the right exit code, nothing lost."""

from __future__ import annotations

import errno
import os
import pickle
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from driving import (
    HANGS,
    Ran,
    attempts_on_a_full_disk,
    command,
    environment,
    leftovers,
    one_line,
    run_cli,
    start,
    tree,
    wait_for,
)
from PIL import Image

from d4m_fast.errors import D4MError, DamageError, NonFiniteError, OutOfMemoryError
from d4m_fast.evaluation.convnet import ConvNet
from d4m_fast.evaluation.teachers import save_teacher
from d4m_fast.storage.state import EVALUATION, require_state

COLOURS = {"apple": (200, 40, 40), "bread": (40, 200, 40), "cloud": (40, 40, 200)}
SIDE = 16
Damage = Callable[[Path], object]
# A student that trains for a second, and keeps its state after every epoch.
EAGER = "from d4m_fast import cli; from d4m_fast.evaluation import train; train.CHECKPOINT_SECONDS = 0.0\n"
KILLED_AFTER = EAGER + (
    "import os, signal\n"
    "save = train._State.save\n"
    "def save_and_die(state, path):\n"
    "    save(state, path)\n"
    "    if state.epoch == 7:\n"
    "        (path.parent / '.tmp-1-checkpoint.pt').write_bytes(b'half')\n"
    "        os.kill(os.getpid(), signal.SIGKILL)\n"
    "train._State.save = save_and_die\n"
)


def write_noise(root: Path, per_class: int, seed: int) -> Path:
    """Class folders of noise around a colour, which PNG cannot compress: all files have one size."""
    rng = np.random.default_rng(seed)
    for name, colour in COLOURS.items():
        (root / name).mkdir(parents=True)
        for i in range(per_class):
            pixels = np.clip(colour + rng.normal(0, 40, (SIDE, SIDE, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(root / name / f"{i}.png")
    return root


@dataclass(frozen=True)
class Subject:
    """Real images, a set that is scored, and a teacher; not to be changed."""

    root: Path

    @property
    def options(self) -> tuple[object, ...]:
        data = ("--train-data", self.root / "real" / "train", "--test-data", self.root / "real" / "test")
        overrides = ("--override", f"resolution={SIDE}", "--override", "stored_epochs=2", "--epochs", 12)
        networks = ("--teacher", self.root / "teacher", "--student", "convnet-2-4")
        return (self.root / "set", *data, *overrides, *networks, "--seeds", 1, "--workers", 1)

    def evaluate(self, out: Path, *args: object) -> Ran:
        """`evaluate` of the subject; later flags win."""
        return run_cli("evaluate", *self.options, "--quiet", "--out", out, *args)

    def copy(self, name: str, root: Path) -> Path:
        return shutil.copytree(self.root / name, root / Path(name).name)


@pytest.fixture(scope="module")
def subject(tmp_path_factory: pytest.TempPathFactory) -> Subject:
    root = tmp_path_factory.mktemp("subject")
    write_noise(root / "real" / "train", 12, 0)
    write_noise(root / "real" / "test", 12, 1)
    write_noise(root / "set", 2, 2)
    options = ("--arch", "convnet-2-8-bn", "--resolution", SIDE, "--epochs", 8, "--batch-size", 12, "--quiet")
    taught = run_cli("teach", root / "real", *options, "--out", root / "teacher", "--json")
    # The test images have the names and the sizes of the train images, and are others.
    assert (taught.json["test_images"], taught.json["accuracy"]) == (36, 100)
    return Subject(root)


@pytest.fixture(scope="module")
def rows(subject: Subject, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """The rows of an undisturbed evaluation by stored labels."""
    return rows_of(subject.evaluate(tmp_path_factory.mktemp("undisturbed"), "--regime", "fixed", "--json"))


def rows_of(ran: Ran) -> list[dict[str, Any]]:
    """The rows of a finished evaluation, but for their times."""
    assert ran.code == 0, ran.err
    return [{name: value for name, value in row.items() if name != "seconds"} for row in ran.json["rows"]]


def emptied(name: str, keeps: int) -> Damage:
    """All images of a class but some are removed."""

    def remove(root: Path) -> None:
        for path in sorted((root / name).iterdir())[keeps:]:
            path.unlink()

    return remove


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:100])


DATA: dict[str, tuple[str, Damage, str]] = {
    "a class is missing": ("real/test", lambda root: shutil.rmtree(root / "cloud"), "no class 'cloud' among the test"),
    "no train images": ("real/train", lambda root: shutil.rmtree(root / "cloud"), "no class 'cloud' among the real"),
    "an empty class": ("real/test", emptied("cloud", 0), "test: class folders without images: cloud"),
    "an empty train class": ("real/train", emptied("bread", 0), "train: class folders without images: bread"),
    "an empty distilled class": ("set", emptied("bread", 0), "set: class folders without images: bread"),
    "one real image": ("real/train", emptied("apple", 1), "'apple' has 1 real images, 2 are needed for the arm random"),
    "one distilled image": ("set", emptied("cloud", 1), "'cloud' has 1 images and another class 2"),
    "half a test image": ("real/test", lambda root: cut_short(root / "bread" / "3.png"), "bread/3.png: truncated"),
    "half a distilled image": ("set", lambda root: cut_short(root / "bread" / "1.png"), "bread/1.png: truncated"),
}


@pytest.mark.parametrize("name", DATA)
def test_images_that_cannot_be_used(subject: Subject, tmp_path: Path, name: str) -> None:
    which, damage, words = DATA[name]
    copy = subject.copy(which, tmp_path)
    damage(copy)
    flags = {"real/test": ("--test-data", copy), "real/train": ("--train-data", copy)}.get(which, ())
    options = (copy, *subject.options[1:]) if which == "set" else subject.options
    ran = run_cli("evaluate", *options, "--regime", "hard", "--quiet", "--out", tmp_path / "out", *flags)
    one_line(ran, 1, words)
    assert not (tmp_path / "out" / "students").exists()


def test_too_few_images_are_said_before_the_teacher_is_tried(subject: Subject, tmp_path: Path) -> None:
    train = subject.copy("real/train", tmp_path)
    emptied("cloud", 1)(train)
    network = ConvNet(3, width=4, norm="batch", image_size=SIDE)  # not trained: the check would refuse it
    save_teacher(network, tmp_path / "untrained", list(COLOURS), image_size=SIDE)
    flags = ("--arms", "distilled,coreset", "--train-data", train, "--teacher", tmp_path / "untrained")
    one_line(subject.evaluate(tmp_path / "out", *flags), 1, "2 are needed for the arm coreset")


def test_test_images_that_are_a_copy_of_the_train_images(subject: Subject, tmp_path: Path) -> None:
    copy = subject.copy("real/train", tmp_path)
    one_line(subject.evaluate(tmp_path / "out", "--test-data", copy), 2, "--test-data is needed")


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (("--classes", "aple"), 2, "no class 'aple'; there are apple, bread, cloud"),
        (("--classes", "3"), 2, "no class '3'"),
        (("--arm", "mine={root}/real/train"), 1, "12 images per class, the run has 2; arms are compared at one budget"),
        (("--override", "lr=900000000"), 1, "take a smaller rate (--override lr=...)"),
    ],
)
def test_options_that_do_not_fit(
    subject: Subject, tmp_path: Path, options: tuple[str, ...], code: int, words: str
) -> None:
    flags = (option.format(root=subject.root) for option in options)
    one_line(subject.evaluate(tmp_path / "out", "--regime", "hard", *flags), code, words)


@pytest.mark.parametrize(
    "error",
    [NonFiniteError("student", "the loss", 3.0), OutOfMemoryError("encode", "no"), DamageError("a: damaged", "no")],
    ids=lambda error: type(error).__name__,
)
def test_an_error_of_a_training_process_is_the_same_here(error: D4MError) -> None:
    copy = pickle.loads(pickle.dumps(error))
    assert (type(copy), str(copy), vars(copy)) == (type(error), str(error), vars(error))


def test_a_teacher_of_another_number_of_classes(subject: Subject, tmp_path: Path) -> None:
    network = ConvNet(5, width=4, norm="batch", image_size=SIDE)
    save_teacher(network, tmp_path / "five", list("abcde"), image_size=SIDE)
    ran = subject.evaluate(tmp_path / "out", "--regime", "online", "--teacher", tmp_path / "five")
    one_line(ran, 1, "knows 5 classes, the images have 3 of other names")


@pytest.mark.parametrize(
    ("weight", "words"),
    [(float("nan"), "head.weight holds NaN or infinity"), (3e38, "its logits are NaN or infinite; take other weights")],
)
@pytest.mark.parametrize("regime", ["fixed", "online"])
def test_logits_that_are_not_finite(subject: Subject, tmp_path: Path, weight: float, words: str, regime: str) -> None:
    network = ConvNet(3, width=4, norm="batch", image_size=SIDE)
    torch.nn.init.constant_(network.head.weight, weight)
    save_teacher(network, tmp_path / "broken", list(COLOURS), image_size=SIDE)
    flags = ("--regime", regime, "--teacher", tmp_path / "broken", "--unchecked-teacher")
    one_line(subject.evaluate(tmp_path / "out", *flags), 1, words)


def flipped(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


KEPT = ("labels/*/index.json", "labels/*/epoch-00001.safetensors", "students/*/result.json")


@pytest.mark.parametrize("damage", [flipped, cut_short], ids=["a bit", "the end"])
@pytest.mark.parametrize("pattern", KEPT)
def test_what_is_damaged_is_named_with_the_remedy(
    subject: Subject, rows: list[dict[str, Any]], tmp_path: Path, pattern: str, damage: Damage
) -> None:
    out, flags = tmp_path / "out", ("--regime", "fixed", "--json")
    assert rows_of(subject.evaluate(out, *flags)) == rows
    if pattern.startswith("labels"):
        shutil.rmtree(out / "students")  # which have been trained, and need no labels
    damaged = sorted(out.glob(pattern))[0]
    damage(damaged)
    others = tree(out, "**/result.json", "**/epoch-*")
    ran = subject.evaluate(out, *flags)
    remedy = damaged if pattern.startswith("students") else damaged.parent
    one_line(ran, 5, f"{damaged}: damaged", f"remove {remedy} and evaluate again")
    assert others.items() <= tree(out).items()
    if remedy == damaged:
        damaged.unlink()
    else:
        shutil.rmtree(remedy)
    assert rows_of(subject.evaluate(out, *flags)) == rows


def test_a_damaged_checkpoint_is_named(subject: Subject, rows: list[dict[str, Any]], tmp_path: Path) -> None:
    out, flags = tmp_path / "out", ("--regime", "fixed", "--json")
    assert subject.evaluate(out, *flags).code == 0
    result = sorted(out.glob("students/*/result.json"))[0]
    result.unlink()
    checkpoint = result.with_name("checkpoint.pt")
    checkpoint.write_bytes(b"x" * 100)
    one_line(subject.evaluate(out, *flags), 5, f"{checkpoint}: not a student's checkpoint", "remove it")
    checkpoint.unlink()
    assert rows_of(subject.evaluate(out, *flags)) == rows


def test_labels_of_another_set_in_their_place(subject: Subject, tmp_path: Path) -> None:
    out, flags = tmp_path / "out", ("--regime", "fixed")
    assert subject.evaluate(out, *flags).code == 0
    shutil.rmtree(out / "students")
    one, other = sorted(out.glob("labels/*"))
    shutil.rmtree(one)
    shutil.copytree(other, one)
    one_line(subject.evaluate(out, *flags), 1, f"{one}: labels of another set (their images differ)")


def test_one_out_holds_the_labels_of_several_sets(subject: Subject, rows: list[dict[str, Any]], tmp_path: Path) -> None:
    out, flags = tmp_path / "out", ("--regime", "fixed", "--json")
    assert rows_of(subject.evaluate(out, *flags, "--override", "temperature=2")) != rows
    assert rows_of(subject.evaluate(out, *flags)) == rows


def test_a_disk_that_fills_up(
    subject: Subject, rows: list[dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    attempts, out = 0, tmp_path / "out"
    for ran in attempts_on_a_full_disk(lambda: subject.evaluate(out, "--regime", "fixed", "--json"), monkeypatch):
        attempts += 1
        if ran.code != 0:
            one_line(ran, 6, "no space left")
            assert leftovers(out) == []
    assert attempts > 2
    assert rows_of(ran) == rows


@pytest.mark.parametrize("limit", [200, 1000])
def test_a_limit_of_file_size(subject: Subject, rows: list[dict[str, Any]], tmp_path: Path, limit: int) -> None:
    """The operating system's own refusal."""
    out, flags = tmp_path / "out", ("--regime", "fixed", "--json")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        ran = subject.evaluate(out, *flags)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    one_line(ran, 6, "file size limit")
    assert leftovers(out) == []
    assert rows_of(subject.evaluate(out, *flags)) == rows


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES])
def test_a_folder_that_cannot_be_written_to(
    subject: Subject, rows: list[dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """What is trained goes to a temporary folder, and the rows are printed."""
    opened, out = Path.open, tmp_path / "out"

    def read_only(path: Path, mode: str = "r", *args: Any, **named: Any) -> Any:
        if mode != "rb" and out in path.parents:
            raise OSError(number, os.strerror(number), str(path))
        return opened(path, mode, *args, **named)

    monkeypatch.setattr(Path, "open", read_only)
    ran = subject.evaluate(out, "--regime", "fixed", "--json")
    assert rows_of(ran) == rows
    assert ran.err.startswith(f"the results are not kept: {out}")
    assert len(ran.err.splitlines()) == 1
    assert tree(out) == {}


def in_process(subject: Subject, out: Path, program: str, *args: object) -> subprocess.CompletedProcess[str]:
    """`evaluate` in a process of its own, after other lines of Python."""
    shown = ["d4m-fast", *command("evaluate", *subject.options, "--out", out, *args)[3:]]
    line = [sys.executable, "-c", f"{program}import sys; sys.argv = {shown!r}; cli.main()"]
    return subprocess.run(line, env=environment(), capture_output=True, text=True)


def test_a_kill_in_the_seventh_epoch(subject: Subject, rows: list[dict[str, Any]], tmp_path: Path) -> None:
    flags = ("--regime", "fixed", "--quiet", "--json")
    assert in_process(subject, tmp_path, KILLED_AFTER, *flags).returncode == -signal.SIGKILL
    (checkpoint,) = tmp_path.glob("students/*/checkpoint.pt")
    assert not (checkpoint.parent / "result.json").exists()
    assert len(leftovers(tmp_path)) == 1
    # The state is what is gone on with: from another one, the rows would be others.
    again = subject.evaluate(tmp_path, *flags)
    assert rows_of(again) == rows
    assert not checkpoint.exists()
    assert leftovers(tmp_path) == []
    assert require_state(tmp_path / "results.json", EVALUATION)["rows"] == again.json["rows"]


LONG = ("--regime", "hard", "--epochs", 300, "--seeds", 2, "--json")


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_ctrl_c_and_the_same_command_again(subject: Subject, tmp_path: Path, workers: int) -> None:
    args = ("evaluate", *subject.options, *LONG, "--workers", workers, "--out", tmp_path / "out")
    process = start(*args)
    wait_for(lambda: any((tmp_path / "out").glob("students/*/.lock")), process)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=HANGS)
    assert process.returncode == 130, err
    assert err.splitlines()[-1] == "interrupted; run the same command to go on"
    assert "Traceback" not in err
    whole = rows_of(subject.evaluate(tmp_path / "whole", *LONG))
    assert rows_of(run_cli(*args, "--quiet")) == whole


@pytest.mark.slow
def test_the_student_of_a_process_that_was_killed_is_taken_over(subject: Subject, tmp_path: Path) -> None:
    process = start("evaluate", *subject.options, *LONG, "--workers", 2, "--out", tmp_path / "out")
    wait_for(lambda: any((tmp_path / "out").glob("students/*/.lock")), process)
    os.kill(spawned(process.pid)[0], signal.SIGKILL)
    out, err = process.communicate(timeout=HANGS)
    assert "a training process died (exit code -9); another goes on" in err
    assert rows_of(Ran(process.returncode, out, err)) == rows_of(subject.evaluate(tmp_path / "whole", *LONG))


def spawned(pid: int) -> list[int]:
    """The worker processes of a process."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [int(child) for child in children if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes()]
