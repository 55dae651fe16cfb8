"""Seconds of the CUDA kernels of k-means on a GPU, beside what an H100 would need at least."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from d4m_fast.kernels import roofline
from d4m_fast.kernels.backend import Shape
from d4m_fast.kernels.batch import Batch
from d4m_fast.kernels.cuda import CupyBackend

N, D, K = 1300, 16_384, 50  # a class of ImageNet in Stable Diffusion's latents, and its clusters
IMAGENET = Shape("float16", "gram", 1344, D, 56)  # the same, padded
REPEATS = 7


def time_kernels(gpu: int) -> list[dict[str, Any]]:
    """Time the steps of k-means on a full batch of random points, each cluster made of every 50th row.

    Returns:
        A list of {"name", "seconds", "roofline_seconds", "share"}, seconds being the median of `REPEATS`.

    Raises:
        PreflightError: no CuPy.
    """
    backend = CupyBackend(gpu)
    timings = []
    with backend.scope():
        points = backend.array(np.random.default_rng(0).standard_normal((N, D), dtype=np.float32).astype(np.float16))
        slots = IMAGENET.slots(backend.workspace)
        batch = Batch(backend, IMAGENET, [points] * slots, [K] * slots)
        batch.centre()
        batch.measure()
        labels = np.tile(np.arange(IMAGENET.n) % K, (batch.slots, 1))
        for name, (step, best) in _steps(batch).items():
            # Every step begins with the same clusters, all of them to be computed anew.
            batch.reset(1000)
            batch.set_labels(labels)
            batch.set_all_means()
            backend.seconds(step)  # the first run compiles
            seconds = statistics.median([backend.seconds(step) for _ in range(REPEATS)])
            best_seconds = best * batch.slots
            share = best_seconds / seconds
            timings.append({"name": name, "seconds": seconds, "roofline_seconds": best_seconds, "share": share})
    return timings


def _steps(batch: Batch) -> Mapping[str, tuple[Callable[[], object], float]]:
    """Name the steps, with the least seconds that each takes for one problem on an H100."""

    def lloyd_pass() -> None:
        batch.resume()
        batch.pass_on_points()
        batch.set_all_means()

    return {
        "Gram product": (batch.multiply, roofline.product_seconds(N, D, 2, roofline.H100)),
        "Lloyd pass": (lloyd_pass, roofline.pass_seconds(N, D, K, 2, roofline.H100)),
        # Two bytes of each value, read once.
        "segmented sums": (batch.set_all_means, roofline.H100.seconds(2.0 * N * D)),
    }
