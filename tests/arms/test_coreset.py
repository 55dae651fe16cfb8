"""Herding and k-center against short NumPy searches, and against what their authors proved."""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations

import numpy as np
import pytest
import torch
from torch import nn
from torchvision.models import VisionTransformer, mobilenet_v3_small, resnet18
from torchvision.models.feature_extraction import create_feature_extractor

from d4m_fast.arms.coreset import herding, k_center
from d4m_fast.arms.features import features_of
from d4m_fast.errors import ModelError
from d4m_fast.evaluation.teachers import BUNDLED, load_teacher, teacher_folder
from d4m_fast.sources.dataset import open_source

CPU = torch.device("cpu")


def random_points(seed: int, n: int = 40, dimensions: int = 5) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, dimensions))


def search_herding(x: np.ndarray, count: int) -> list[int]:
    chosen: list[int] = []
    for _ in range(count):
        free = [i for i in range(len(x)) if i not in chosen]
        errors = [np.linalg.norm(x.mean(0) - x[[*chosen, i]].mean(0)) for i in free]
        chosen.append(free[int(np.argmin(errors))])
    return chosen


def search_k_center(x: np.ndarray, count: int) -> list[int]:
    chosen = [int(np.argmin(np.linalg.norm(x - x.mean(0), axis=1)))]
    while len(chosen) < count:
        distances = np.min([np.linalg.norm(x - x[i], axis=1) for i in chosen], axis=0)
        chosen.append(int(np.argmax(distances)))
    return chosen


def radius(x: np.ndarray, chosen: list[int]) -> float:
    return float(np.min([np.linalg.norm(x - x[i], axis=1) for i in chosen], axis=0).max())


@pytest.mark.parametrize("seed", range(5))
def test_they_choose_what_a_search_chooses(seed: int) -> None:
    x = random_points(seed)
    assert herding(torch.from_numpy(x), 12).tolist() == search_herding(x, 12)
    assert k_center(torch.from_numpy(x), 12).tolist() == search_k_center(x, 12)


@pytest.mark.parametrize("choose", [herding, k_center])
def test_of_equal_points_the_first_is_chosen_and_each_once(choose: Callable[..., torch.Tensor]) -> None:
    assert choose(torch.ones(4, 3), 4).tolist() == [0, 1, 2, 3]
    twice = torch.from_numpy(np.repeat(random_points(0, 5, 3), 2, axis=0))
    assert sorted(choose(twice, 10).tolist()) == list(range(10))
    assert choose(twice, 1).item() % 2 == 0


@pytest.mark.parametrize("seed", range(8))
def test_k_center_is_within_twice_the_best_radius(seed: int) -> None:
    x = random_points(seed, 12, 2)
    best = min(radius(x, list(chosen)) for chosen in combinations(range(12), 3))
    reached = radius(x, k_center(torch.from_numpy(x), 3).tolist())
    assert best <= reached <= 2 * best


def test_on_real_images_both_beat_random_draws() -> None:
    """Herding the best of 20, k-center their mean: of its radius no more is promised."""
    source = open_source("bundled")
    items = [item for item in source.items if item.class_id == 1]
    pixels = np.stack([np.asarray(source.read(item)) for item in items]).transpose(0, 3, 1, 2)
    features = features_of(load_teacher(teacher_folder(BUNDLED)).network, CPU)(torch.from_numpy(pixels))
    x = features.double().numpy()
    rng = np.random.default_rng(0)

    def error(chosen: list[int]) -> float:
        return float(np.linalg.norm(x.mean(0) - x[chosen].mean(0)))

    for count in (5, 20):
        draws = [rng.choice(len(x), count, replace=False).tolist() for _ in range(20)]
        assert error(herding(features, count).tolist()) < min(error(chosen) for chosen in draws)
        assert radius(x, k_center(features, count).tolist()) < np.mean([radius(x, chosen) for chosen in draws])


def tiny_vit() -> nn.Module:
    model: nn.Module = VisionTransformer(64, 16, num_layers=1, num_heads=2, hidden_dim=8, mlp_dim=16)
    return model


@pytest.mark.parametrize(
    ("build", "node"), [(resnet18, "flatten"), (mobilenet_v3_small, "classifier.2"), (tiny_vit, "getitem_5")]
)
def test_features_are_what_torchvisions_own_extractor_returns(build: Callable[[], nn.Module], node: str) -> None:
    model = build().eval()
    images = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    with torch.inference_mode():
        expected = create_feature_extractor(model, [node])(images / 255)[node]
    torch.testing.assert_close(features_of(model, CPU)(images), expected)
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_features_of_many_images_are_those_of_each() -> None:
    model = nn.Sequential(nn.AvgPool2d(4), nn.Flatten(), nn.Linear(3, 2)).eval()
    images = torch.randint(0, 256, (600, 3, 4, 4), dtype=torch.uint8)
    torch.testing.assert_close(features_of(model, CPU)(images), images.float().mean((2, 3)) / 255)


def test_a_teacher_that_gives_no_features_is_refused() -> None:
    with pytest.raises(ModelError, match="no linear layer"):
        features_of(nn.Conv2d(3, 2, 1), CPU)
    broken = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(48, affine=False), nn.Linear(48, 2)).eval()
    broken[1].running_mean.fill_(torch.nan)  # type: ignore[operator]
    with pytest.raises(ModelError, match="NaN"):
        features_of(broken, CPU)(torch.zeros(1, 3, 4, 4, dtype=torch.uint8))
