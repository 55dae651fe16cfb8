"""The map of teacher features against scikit-learn's principal components."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA

from d4m_fast.errors import DataError, NonFiniteError
from d4m_fast.evaluation.images import ImageSet
from d4m_fast.report.feature_map import feature_map


def image_set(count: int, seed: int) -> ImageSet:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (count, 3, 4, 4), dtype=torch.uint8, generator=generator)
    return ImageSet(images, torch.arange(count) % 3)


def features_of(images: torch.Tensor) -> torch.Tensor:
    """Some 7 features of uint8 images, of different variance."""
    weights = torch.linspace(-1, 1, 48 * 7).sin().reshape(48, 7) * torch.arange(1, 8)
    assert images.dtype == torch.uint8
    return (images.flatten(1) / 255 @ weights).tanh()


def test_against_scikit_learn() -> None:
    sets = {"distilled": image_set(5, 1), "real": image_set(40, 0)}
    result = feature_map(features_of, sets)
    reference = PCA(2, svd_solver="full").fit(features_of(sets["real"].images).numpy())
    for kind, images in sets.items():
        points = [point for point in result["points"] if point[2] == kind]
        expected = reference.transform(features_of(images.images).numpy())
        actual = np.array([point[:2] for point in points])
        signs = np.sign(reference.components_[[0, 1], np.abs(reference.components_).argmax(1)])
        assert np.allclose(actual, expected * signs, atol=2e-4)
        assert [point[3] for point in points] == images.labels.tolist()
    share = 100 * reference.explained_variance_ratio_.sum()
    assert f"{share:.1f} % of the variance" in result["method"]


def test_the_distilled_do_not_turn_the_map() -> None:
    alone = feature_map(features_of, {"real": image_set(20, 0)})["points"]
    beside = feature_map(features_of, {"real": image_set(20, 0), "distilled": image_set(30, 1)})["points"]
    assert beside[:20] == alone


def test_images_that_are_all_alike_lie_on_one_point() -> None:
    images = ImageSet(torch.zeros(4, 3, 4, 4, dtype=torch.uint8), torch.zeros(4, dtype=torch.int64))
    assert {tuple(point[:2]) for point in feature_map(features_of, {"real": images})["points"]} == {(0, 0)}


def test_what_is_refused() -> None:
    with pytest.raises(NonFiniteError):
        feature_map(lambda pixels: features_of(pixels) * torch.nan, {"real": image_set(4, 0)})
    with pytest.raises(DataError, match="a plane needs"):
        feature_map(features_of, {"real": image_set(2, 0)})
    with pytest.raises(DataError, match="photo"):
        feature_map(features_of, {"photo": image_set(4, 0)})
