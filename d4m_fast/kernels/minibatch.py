"""The clustering of D4M's official code, for reproducing it, with the points it drops and the weights it gives.

Its loader is shuffled without a seed; a class's points go to scikit-learn's `MiniBatchKMeans.partial_fit` (Sculley, WWW
2010) in float64 and in lots of exactly k, and those left over are never seen.
"""

from __future__ import annotations

import numpy as np

from d4m_fast.errors import PreflightError
from d4m_fast.kernels.problem import Array, Float64


def official_centres(points: Array, k: int, rng: np.random.Generator) -> Float64:
    """Compute centres (k, D), which are means of what each lot added to them and not of the labels.

    Raises:
        PreflightError: scikit-learn is not installed.
    """
    try:
        from sklearn.cluster import MiniBatchKMeans
    except ImportError as error:
        raise PreflightError("--kmeans minibatch needs scikit-learn: pip install 'd4m-fast[official]'") from error
    model = MiniBatchKMeans(n_clusters=k, random_state=0, batch_size=k, n_init="auto")
    order = rng.permutation(len(points))
    # Lots of exactly k: what is left over at the end is dropped, as by the official code.
    for start in range(0, len(order) - k + 1, k):
        model.partial_fit(points[order[start : start + k]].astype(np.float64))
    centres: Float64 = model.cluster_centers_
    return centres
