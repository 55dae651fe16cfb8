"""`d4m-fast teach`: a teacher learns, and one that was killed becomes the same."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from driving import HANGS, command, environment, one_line, run_cli, wait_for
from fakes import stripes
from PIL import Image

from d4m_fast.errors import DamageError, ModelError, RunDirectoryError
from d4m_fast.evaluation.teachers import load_teacher
from d4m_fast.evaluation.teaching import RECORD, Teaching, one_cycle, saved_result
from d4m_fast.evaluation.views import to_pixels

OPTIONS = {
    "arch": "convnet-2-8-bn",
    "epochs": 6,
    "resolution": 16,
    "flip": False,
    "batch_size": 16,
    "lr": 0.05,
    "seed": 0,
}
CPU = torch.device("cpu")


def teaching(folder: Path, **changes: Any) -> Teaching:
    folder.mkdir(exist_ok=True)
    return Teaching(folder, OPTIONS | changes, ("across", "down"), stripes(60, 1), stripes(40, 2), "data", CPU)


@pytest.mark.parametrize("steps", [1, 2, 3, 7, 50, 301])
def test_the_rate_is_that_of_pytorchs_one_cycle(steps: int) -> None:
    optimiser = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], 0.4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 0.4, total_steps=steps, cycle_momentum=False)
    for step in range(steps):
        assert 0.4 * one_cycle(step, steps) == pytest.approx(optimiser.param_groups[0]["lr"], rel=1e-6, abs=1e-9)
        optimiser.step()
        if step < steps - 1:
            schedule.step()


def test_a_teacher_learns_and_says_how_well(tmp_path: Path) -> None:
    losses = list(teaching(tmp_path))
    assert len(losses) == 6
    assert losses[-1] < losses[0]
    result, teacher, test = saved_result(tmp_path), load_teacher(tmp_path), stripes(40, 2)
    right = (teacher.label(to_pixels(test.images)).argmax(1) == test.labels).float().mean()
    assert result["accuracy"] == pytest.approx(100 * float(right))
    assert result["accuracy"] > 90  # chance is 50
    assert result["per_class"].keys() == {"across", "down"} == set(teacher.classes or ())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "model.safetensors", RECORD]


@pytest.mark.parametrize("arch", ["convnet-2-8-bn", "timm/mobilenetv3_small_050"])
def test_a_stopped_training_goes_on_to_the_same_weights(tmp_path: Path, arch: str) -> None:
    """Of a network without and of one with dropout."""
    whole, parts = teaching(tmp_path / "whole", arch=arch, epochs=3), teaching(tmp_path / "parts", arch=arch, epochs=3)
    losses, resumed = list(whole), list[float]()
    for _ in range(3):
        torch.rand(7)  # what else is drawn in between does not matter
        resumed.append(next(iter(parts)))
    assert list(parts) == []  # only the teacher is left to write
    assert resumed == losses
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "parts")]
    assert weights[0] == weights[1]


def test_training_leaves_no_trace(tmp_path: Path) -> None:
    state = torch.get_rng_state()
    list(teaching(tmp_path, epochs=1))
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("changes", "said"),
    [({"lr": 0.1}, r"lr 0\.05, not 0\.1"), ({"arch": "resnet18"}, "arch convnet-2-8-bn, not resnet18")],
)
def test_another_teaching_in_the_same_directory(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    next(iter(teaching(tmp_path)))
    with pytest.raises(RunDirectoryError, match=said):
        list(teaching(tmp_path, **changes))


def test_a_directory_of_other_things(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(RunDirectoryError, match=r"thesis\.tex"):
        list(teaching(tmp_path))


@pytest.mark.parametrize("name", [RECORD, "epoch-0001.safetensors"])
def test_a_changed_bit_is_found(tmp_path: Path, name: str) -> None:
    next(iter(teaching(tmp_path)))
    data = bytearray((tmp_path / name).read_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / name).write_bytes(data)
    with pytest.raises(DamageError, match="teach again"):
        list(teaching(tmp_path))


def test_a_teacher_that_changed_since_is_found(tmp_path: Path) -> None:
    list(teaching(tmp_path / "a", epochs=1))
    list(teaching(tmp_path / "b", epochs=1, seed=1))
    shutil.copy(tmp_path / "b" / "model.safetensors", tmp_path / "a")
    with pytest.raises(DamageError, match=r"model\.safetensors"):
        saved_result(tmp_path / "a")


def test_a_loss_that_is_not_finite_ends_it(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="take a smaller --lr"):
        list(teaching(tmp_path, arch="convnet-2-8", lr=1e30))


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes of stripes as PNGs, with a test split."""
    root = tmp_path_factory.mktemp("stripes")
    for split, seed in (("train", 1), ("test", 2)):
        data = stripes(60, seed)
        for row, (image, label) in enumerate(zip(data.images, data.labels.tolist(), strict=True)):
            folder = root / split / ("across", "down")[label]
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image.permute(1, 2, 0).numpy().astype(np.uint8)).save(folder / f"{row}.png")
    return root


def arguments(data: Path, out: Path, epochs: int) -> tuple[object, ...]:
    options = ("--arch", "convnet-2-8-bn", "--resolution", 16, "--no-flip", "--batch-size", 16, "--device", "cpu")
    return ("teach", data, *options, "--epochs", epochs, "--out", out, "--json")


def test_the_command_and_its_second_call(folders: Path, tmp_path: Path) -> None:
    ran = run_cli(*arguments(folders, tmp_path / "t", 5))
    assert ran.code == 0
    assert "epochs 5/5" in ran.err
    assert ran.json["accuracy"] > 90
    assert (ran.json["images"], ran.json["test_images"], ran.json["per_class"].keys()) == (120, 120, {"across", "down"})
    again = run_cli(*arguments(folders, tmp_path / "t", 5))
    assert (again.code, again.json) == (0, ran.json)
    text = run_cli(*arguments(folders, tmp_path / "t", 5)[:-1]).out
    assert f"{ran.json['accuracy']:.1f} % of 120 test images right" in text


def test_a_set_without_test_images(folders: Path, tmp_path: Path) -> None:
    ran = run_cli(*arguments(folders / "train", tmp_path / "t", 1))
    assert (ran.code, ran.json["accuracy"], ran.json["test_images"]) == (0, None, 0)


@pytest.mark.slow
def test_a_killed_command_goes_on_to_the_same_teacher(folders: Path, tmp_path: Path) -> None:
    """Every time in a process of one thread: sums depend on how many PyTorch has."""
    one_thread = {**environment(), "OMP_NUM_THREADS": "1"}

    def begin(name: str) -> subprocess.Popen[str]:
        args = command(*arguments(folders, tmp_path / name, 30))
        return subprocess.Popen(args, env=one_thread, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    with begin("whole") as process:
        whole = json.loads(process.communicate(timeout=HANGS)[0])
    record = tmp_path / "killed" / RECORD
    with begin("killed") as process:
        wait_for(lambda: record.exists() and json.loads(record.read_text())["epoch"] >= 3, process)
        process.send_signal(signal.SIGKILL)
    assert json.loads(record.read_text())["epoch"] < 30
    with begin("killed") as process:
        resumed = json.loads(process.communicate(timeout=HANGS)[0])
    assert resumed["weights"] == whole["weights"]


@pytest.mark.parametrize(
    ("changes", "code", "said"),
    [
        (("--arch", "resnet8"), 2, "Did you mean 'resnet18'?"),
        (("--arch", "maxvit_t"), 2, "does not take images of 16 pixels"),
        (("--epochs", 0), 2, "--epochs must be 1 to 9999, not 0"),
        (("--device", "tpu"), 2, "--device tpu"),
    ],
)
def test_what_cannot_be_taught_is_refused(
    folders: Path, tmp_path: Path, changes: tuple[object, ...], code: int, said: str
) -> None:
    one_line(run_cli(*arguments(folders, tmp_path / "t", 1), "-q", *changes), code, said)
