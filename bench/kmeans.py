"""k-means: our methods, scikit-learn and (where installed) faiss on the same data, taking turns in one process.

    python bench/kmeans.py --shape 1300x16384 --k 50,200
    python bench/kmeans.py --points latents.npy --k 10,50,200

Without data: random fields with a 1/f^2 spectrum, four channels, as latents have. Two tables, a line of JSON per row:
`whole` has each one's own seeding, in time and inertia; `lloyd` starts all from the same centres. Peers get float32,
one seeding, and their best settings; faiss all points (`max_points_per_centroid` raised). Median of the rounds.
"""

from __future__ import annotations

import importlib.util
import json
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import click
import numpy as np

from d4m_fast.kernels.kmeans import kmeans

Fit = Callable[[], float]


def fields(n: int, d: int, seed: int = 0) -> np.ndarray:
    """(n, d) float32: four channels of square Gaussian fields whose power falls with the square of the frequency."""
    side = int((d / 4) ** 0.5)
    frequency = np.hypot(np.fft.fftfreq(side)[:, None], np.fft.rfftfreq(side))
    frequency[0, 0] = frequency[0, 1]
    noise = np.random.default_rng(seed).standard_normal((n, 4, side, side), dtype=np.float32)
    shaped = np.fft.irfft2(np.fft.rfft2(noise) / frequency, s=(side, side)).astype(np.float32)
    scaled: np.ndarray = (shaped / shaped.std()).reshape(n, -1)
    return scaled


def ours(points: np.ndarray, k: int, **options: Any) -> float:
    return kmeans([points], k, **options)[0].inertia


def by_sklearn(points: np.ndarray, k: int, init: Any) -> float:
    from sklearn.cluster import KMeans

    return float(KMeans(k, init=init, n_init=1, algorithm="lloyd", tol=0, max_iter=300).fit(points).inertia_)


def by_official(points: np.ndarray, k: int) -> float:
    return ours(points, k, method="minibatch")


def by_faiss(points: np.ndarray, k: int, init: np.ndarray | None) -> float:
    import faiss

    seeding = {} if init is not None else {"init_method": faiss.ClusteringInitMethod_KMEANS_PLUS_PLUS}
    every = {"max_points_per_centroid": 10**9, "min_points_per_centroid": 1}
    model: Any = faiss.Kmeans(points.shape[1], k, niter=50, **every, **seeding)
    model.train(points, init_centroids=init)
    return float(model.obj[-1])


def whole(points: np.ndarray, k: int) -> dict[str, Fit]:
    rows: dict[str, Fit] = {
        "ours, auto": partial(ours, points, k),
        "ours, gram, Lloyd only": partial(ours, points, k, method="gram", refine=False),
        "ours, direct": partial(ours, points, k, method="direct"),
        "official code's minibatch": partial(by_official, points, k),
        "scikit-learn": partial(by_sklearn, points, k, "k-means++"),
    }
    return rows | ({"faiss": partial(by_faiss, points, k, None)} if importlib.util.find_spec("faiss") else {})


def lloyd(points: np.ndarray, k: int) -> dict[str, Fit]:
    centres = points[np.random.default_rng(1).choice(len(points), k, replace=False)]
    rows: dict[str, Fit] = {
        "ours, gram": partial(ours, points, k, method="gram", refine=False, init=[centres]),
        "ours, direct": partial(ours, points, k, method="direct", init=[centres]),
        "scikit-learn": partial(by_sklearn, points, k, centres),
    }
    return rows | ({"faiss": partial(by_faiss, points, k, centres)} if importlib.util.find_spec("faiss") else {})


def alternate(rows: dict[str, Fit], rounds: int) -> dict[str, tuple[float, float]]:
    """Median seconds and the inertia of each; the first round warms up."""
    taken: dict[str, list[float]] = {name: [] for name in rows}
    inertia = {}
    for _ in range(1 + rounds):
        for name, fit in rows.items():
            start = time.perf_counter()
            inertia[name] = fit()
            taken[name].append(time.perf_counter() - start)
    return {name: (statistics.median(values[1:]), inertia[name]) for name, values in taken.items()}


@click.command(help=__doc__)
@click.option("--shape", default="1300x16384", show_default=True, help="Points x width of the random fields.")
@click.option("--points", "file", type=click.Path(exists=True), help="An (n, D) .npy file instead.")
@click.option("--k", "ks", default="10,50,200", show_default=True)
@click.option("--rounds", default=5, show_default=True)
def main(shape: str, file: str | None, ks: str, rounds: int) -> None:
    n, d = map(int, shape.split("x"))
    points = fields(n, d) if file is None else np.load(file).astype(np.float32)
    for k in map(int, ks.split(",")):
        for table, rows in (("whole", whole(points, k)), ("lloyd", lloyd(points, k))):
            found = alternate(rows, rounds)
            seconds, inertia = found["scikit-learn"]
            for name, (spent, value) in found.items():
                row = {"table": table, "n": len(points), "d": points.shape[1], "k": k, "row": name, "seconds": spent}
                click.echo(json.dumps({**row, "speedup": seconds / spent, "inertia_ratio": value / inertia}))


if __name__ == "__main__":
    main()
