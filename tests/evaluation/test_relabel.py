from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from d4m_fast.errors import ModelError
from d4m_fast.evaluation.convnet import ConvNet
from d4m_fast.evaluation.relabel import load_teacher, save_teacher, soft_loss


def kl_by_hand(student: np.ndarray, teacher: np.ndarray, temperature: float) -> float:
    total = 0.0
    for s, t in zip(student / temperature, teacher / temperature, strict=True):
        p, q = np.exp(t) / np.exp(t).sum(), np.exp(s) / np.exp(s).sum()
        total += float((p * np.log(p / q)).sum())
    return total / len(student) * temperature**2


@pytest.mark.parametrize("temperature", [1.0, 4.0, 20.0])
def test_soft_loss_by_hand(temperature: float) -> None:
    student, teacher = 5 * torch.randn(2, 7, 10, dtype=torch.float64)
    expected = kl_by_hand(student.numpy(), teacher.numpy(), temperature)
    assert soft_loss(student, teacher, temperature).item() == pytest.approx(expected, rel=1e-10)
    assert soft_loss(student.float(), teacher.float(), temperature).item() == pytest.approx(expected, rel=1e-4)


def test_soft_loss_survives_a_certain_teacher() -> None:
    teacher = torch.tensor([[1e4, 0.0]])
    assert torch.isfinite(soft_loss(torch.zeros(1, 2), teacher, 1.0))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    save_teacher(ConvNet(3, width=8, norm="batch", mean=(0.3,) * 3), tmp_path / "teacher", ["a", "b", "c"])
    return tmp_path / "teacher"


def test_round_trip_keeps_the_function(tmp_path: Path) -> None:
    model = ConvNet(2, width=4, norm="batch", mean=(0.3,) * 3, std=(0.2,) * 3, image_size=28).eval()
    save_teacher(model, tmp_path, ["a", "b"], image_size=28)
    x = torch.rand(3, 3, 28, 28)
    found = load_teacher(tmp_path)
    assert torch.equal(found(x), model(x))
    assert not found.training
    assert not any(p.requires_grad for p in found.parameters())


def test_half_precision_is_widened(folder: Path) -> None:
    save_file({k: v.half() if v.is_floating_point() else v for k, v in load_file(folder / "model.safetensors").items()},
              folder / "model.safetensors")  # fmt: skip
    assert {v.dtype for v in load_teacher(folder).state_dict().values()} == {torch.float32, torch.int64}


def edit(folder: Path, **changes: object) -> None:
    config = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps({k: v for k, v in config.items() if v is not None}))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"width": None}, "has no 'width'"),
        ({"width": "wide"}, "not a teacher's config"),
        ({"norm": "layer"}, "not a teacher's config"),
        ({"classes": 3}, "not a teacher's config"),
        ({"classes": ["a", "b"]}, r"head\.\w+ has shape"),
        ({"width": 16}, "has shape"),
        ({"depth": 4}, "missing"),
        ({"depth": 2}, "not part of the teacher"),
        ({"norm": "instance"}, "not part of the teacher"),
    ],
)
def test_config_that_does_not_fit(folder: Path, change: dict[str, object], said: str) -> None:
    edit(folder, **change)
    with pytest.raises(ModelError, match=said) as caught:
        load_teacher(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
@pytest.mark.parametrize("damage", ["gone", "cut", "empty"])
def test_damaged_files(folder: Path, name: str, damage: str) -> None:
    path = folder / name
    raw = path.read_bytes()
    path.unlink()
    if damage != "gone":
        path.write_bytes(raw[: len(raw) // 2] if damage == "cut" else b"")
    with pytest.raises(ModelError, match=name.replace(".", r"\.")) as caught:
        load_teacher(folder)
    assert "\n" not in str(caught.value)


def test_classes_must_fit_the_head(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="2 classes"):
        save_teacher(ConvNet(3, width=4), tmp_path, ["a", "b"])
