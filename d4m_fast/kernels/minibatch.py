"""The clustering of D4M's official code, for reproducing it: what it drops and how it weighs is part of it.

Its loader is shuffled without a seed; a class's points go to scikit-learn's `MiniBatchKMeans.partial_fit` (Sculley, WWW
2010) in float64 and in lots of exactly k, and those left over are never seen.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from d4m_fast.errors import PreflightError
from d4m_fast.kernels.problem import Array, Float64


def official_centres(points: Array, k: int, rng: np.random.Generator) -> Float64:
    """(k, D) centres, which are means of what each lot gave them and not of the labels.

    Raises:
        PreflightError: scikit-learn is not installed.
    """
    model = _sklearn()(n_clusters=k, random_state=0, batch_size=k, n_init="auto")
    order = rng.permutation(len(points))
    for start in range(0, len(order) - k + 1, k):
        model.partial_fit(points[order[start : start + k]].astype(np.float64))
    centres: Float64 = model.cluster_centers_
    return centres


def _sklearn() -> Any:
    try:
        from sklearn.cluster import MiniBatchKMeans
    except ImportError as error:
        raise PreflightError("--kmeans minibatch needs scikit-learn: pip install 'd4m-fast[official]'") from error
    return MiniBatchKMeans
