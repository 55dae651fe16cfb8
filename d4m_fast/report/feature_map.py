"""Map of images in a teacher's features, in two dimensions."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from d4m_fast.errors import DataError, NonFiniteError
from d4m_fast.evaluation.images import ImageSet

REAL, PROTOTYPE, DISTILLED = "real", "prototype", "distilled"
KINDS = (REAL, PROTOTYPE, DISTILLED)
MOST_MAPPED = 1000  # images of each kind


def feature_map(features_of: Callable[[Tensor], Tensor], sets: Mapping[str, ImageSet]) -> dict[str, Any]:
    """Return the `feature_map` of results: principal components of a teacher's features.

    The components are those of the real images alone, where there are any: what was distilled does not turn the map
    that it is looked for on. Each points to where its largest coefficient is positive, so that the map of the same
    features is the same everywhere.

    Args:
        features_of: takes images (N, 3, S, S) uint8; returns (N, D) features.
        sets: by kind, "real", "prototype" or "distilled"; labels are positions in the subject's classes.

    Raises:
        DataError: fewer than three images or two features, or another kind of set.
        NonFiniteError: a feature is NaN or infinite.
    """
    if not set(sets) <= set(KINDS):
        raise DataError(f"feature map: sets {', '.join(sets)}; they are called {', '.join(KINDS)}")
    features = {kind: _features(features_of, sets[kind]) for kind in KINDS if kind in sets}
    basis = features[REAL] if REAL in features else torch.cat(list(features.values()))
    if len(basis) < 3 or basis.shape[1] < 2:
        raise DataError(f"feature map: {len(basis)} images of {basis.shape[1]} features; a plane needs 3 of 2")
    centre = basis.mean(0)
    components, share = _principal(basis - centre)
    points = list[list[Any]]()
    for kind, rows in features.items():
        places = ((rows - centre) @ components.T).tolist()
        for (x, y), class_id in zip(places, sets[kind].labels.tolist(), strict=True):
            points.append([round(x, 4), round(y, 4), kind, class_id])
    fitted = f"{len(basis)} real images" if REAL in features else f"all {len(basis)} images"
    method = f"PCA of {basis.shape[1]} teacher features of {fitted}; two axes hold {100 * share:.1f} % of the variance"
    return {"method": method, "points": points}


def mapped_images(images: ImageSet, classes: Sequence[int]) -> ImageSet:
    """Return at most `MOST_MAPPED` images, evenly of all, their labels being positions among the classes' ids."""
    rows = torch.linspace(0, len(images) - 1, min(len(images), MOST_MAPPED)).long()
    return ImageSet(images.images[rows], torch.searchsorted(torch.tensor(classes), images.labels[rows]))


@torch.no_grad()
def _features(features_of: Callable[[Tensor], Tensor], images: ImageSet) -> Tensor:
    """Return (N, D) float64 features on the host, where the decomposition is the same on every machine's device."""
    features = features_of(images.images).double().cpu()
    if not torch.isfinite(features).all():
        raise NonFiniteError("teacher", f"the features of {len(images)} images")
    return features


def _principal(centred: Tensor) -> tuple[Tensor, float]:
    """Return the first two components, (2, D), and their share of the variance; 0 where all images are alike."""
    _, singular, right = torch.linalg.svd(centred, full_matrices=False)
    components = right[:2]
    largest = components.abs().argmax(1, keepdim=True)
    variances = singular.square()
    total = float(variances.sum())
    return components * components.gather(1, largest).sign(), float(variances[:2].sum()) / total if total else 0.0
