"""k-means of several classes: ours, scikit-learn and faiss on the same float32 arrays, taking turns in one process.

    python bench/kmeans.py --data fields:1300x16384 --problems 2 --k 50,200
    python bench/kmeans.py --data build/latents/cifar --problems 4 --k 10,50,200        # bench/latents.py makes it
    python bench/kmeans.py --data build/latents/cifar --problems 4 --peak

`fields` are random fields with a 1/f^2 spectrum, four channels, as latents have. Two tables, a line of JSON per row,
the median of the rounds: `whole` has each one's own seeding, `lloyd` starts all from the same centres. `seconds` are
per problem; `inertia` is computed here, in float64, from everybody's centroids. Peers are called one problem after
another, each on all cores, with one seeding, to convergence, faiss on all points; the peer that the first round shows
to be over five times slower than the other is timed in that round only. `--peak` measures the machine instead: products
of these shapes, in 10^9 operations per second.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import click
import numpy as np

from d4m_fast.kernels.kmeans import kmeans

PEERS = ("scikit-learn", "faiss")
SLOW = 5
Points = Sequence[np.ndarray]
Fit = Callable[[], list[np.ndarray]]


def fields(n: int, d: int, seed: int = 0) -> np.ndarray:
    """(n, d) float32: four channels of square Gaussian fields whose power falls with the square of the frequency."""
    side = int((d / 4) ** 0.5)
    frequency = np.hypot(np.fft.fftfreq(side)[:, None], np.fft.rfftfreq(side))
    frequency[0, 0] = frequency[0, 1]
    noise = np.random.default_rng(seed).standard_normal((n, 4, side, side), dtype=np.float32)
    shaped = np.fft.irfft2(np.fft.rfft2(noise) / frequency, s=(side, side)).astype(np.float32)
    scaled: np.ndarray = (shaped / shaped.std()).reshape(n, -1)
    return scaled


def load(data: str, count: int) -> list[np.ndarray]:
    if data.startswith("fields:"):
        n, d = map(int, data.removeprefix("fields:").split("x"))
        return [fields(n, d, seed) for seed in range(count)]
    tables = (np.load(path) for path in sorted(Path(data).glob("*.npy"))[:count])
    return [table.reshape(len(table), -1).astype(np.float32) for table in tables]


def ours(points: Points, k: int, **options: Any) -> list[np.ndarray]:
    return [result.centroids for result in kmeans(points, k, **options)]


def by_sklearn(points: Points, k: int, starts: Points | None) -> list[np.ndarray]:
    from sklearn.cluster import KMeans

    settings = {"n_init": 1, "algorithm": "lloyd", "tol": 0, "max_iter": 300}
    inits = ["k-means++"] * len(points) if starts is None else starts
    return [KMeans(k, init=i, **settings).fit(x).cluster_centers_ for x, i in zip(points, inits, strict=True)]


def by_faiss(points: Points, k: int, starts: Points | None) -> list[np.ndarray]:
    import faiss

    seeding = {} if starts is not None else {"init_method": faiss.ClusteringInitMethod_KMEANS_PLUS_PLUS}
    every = {"niter": 300, "max_points_per_centroid": 10**9, "min_points_per_centroid": 1}
    centroids = []
    for x, start in zip(points, [None] * len(points) if starts is None else starts, strict=True):
        model: Any = faiss.Kmeans(x.shape[1], k, **every, **seeding)
        model.train(x, init_centroids=start)
        centroids.append(model.centroids)
    return centroids


def whole(points: Points, k: int) -> dict[str, Fit]:
    return {
        "ours, Lloyd": partial(ours, points, k, refine=False),
        "ours, Hartigan": partial(ours, points, k, method="gram"),
        "official mini-batches": partial(ours, points, k, method="minibatch"),
        "scikit-learn": partial(by_sklearn, points, k, None),
        "faiss": partial(by_faiss, points, k, None),
    }


def lloyd(points: Points, k: int) -> dict[str, Fit]:
    draws = np.random.default_rng(1)
    starts = [x[draws.choice(len(x), k, replace=False)] for x in points]
    return {
        "ours, Lloyd": partial(ours, points, k, refine=False, init=starts),
        "scikit-learn": partial(by_sklearn, points, k, starts),
        "faiss": partial(by_faiss, points, k, starts),
    }


def inertia(points: Points, centroids: Points) -> float:
    """Sum over all problems of squared distances to the nearest centroid."""
    total = 0.0
    for x, c in zip(points, centroids, strict=True):
        rows = c.astype(np.float64)
        labels = (np.square(rows).sum(axis=1) - 2 * (x @ c.T)).argmin(axis=1)
        total += sum(float(np.square(x[labels == i] - row).sum()) for i, row in enumerate(rows))
    return total


def alternate(rows: dict[str, Fit], points: Points, rounds: int) -> dict[str, tuple[list[float], float]]:
    """Seconds per problem of each round, and the inertia, of each row; the first round warms up, or is the only one."""
    taken: dict[str, list[float]] = {name: [] for name in rows}
    found = {}
    for _ in range(1 + rounds):
        for name, fit in rows.items():
            if not _much_slower(name, taken):
                start = time.perf_counter()
                found[name] = fit()
                taken[name].append((time.perf_counter() - start) / len(points))
    return {name: (values[1:] or values, inertia(points, found[name])) for name, values in taken.items()}


def _much_slower(name: str, taken: dict[str, list[float]]) -> bool:
    """A peer that the other beat by far in the first round."""
    return name in PEERS and all(map(len, taken.values())) and taken[name][0] > SLOW * min(taken[p][0] for p in PEERS)


def peak(points: Points, rounds: int) -> dict[str, float]:
    """10^9 operations per second of X X^T, one half of it computed, and of X C^T, on all cores and on one."""
    from threadpoolctl import threadpool_limits

    x = points[0]
    n, d = x.shape
    products: dict[str, tuple[Callable[[], Any], float]] = {"x_xt": (lambda: x @ x.T, 1.0 * n * n * d)}
    for k in (10, 50, 200):
        products[f"x_ct_{k}"] = (partial(np.matmul, x, x[:k].copy().T), 2.0 * n * d * k)
    found = {}
    for threads in (None, 1):
        with threadpool_limits(threads, user_api="blas"):
            for name, (product, operations) in products.items():
                taken = []
                for _ in range(1 + rounds):
                    start = time.perf_counter()
                    product()
                    taken.append(time.perf_counter() - start)
                found[name if threads is None else f"{name}_one_core"] = operations / statistics.median(taken[1:]) / 1e9
    return found


@click.command(help=__doc__)
@click.option("--data", default="fields:1300x16384", show_default=True, help="A directory of .npy, or fields:NxD.")
@click.option("--problems", default=2, show_default=True, help="Classes per timing.")
@click.option("--k", "ks", default="10,50,200", show_default=True)
@click.option("--tables", default="whole,lloyd", show_default=True)
@click.option("--rounds", default=5, show_default=True)
@click.option("--peak", "only_peak", is_flag=True, help="Only the machine's speed at such products.")
def main(data: str, problems: int, ks: str, tables: str, rounds: int, only_peak: bool) -> None:
    points = load(data, problems)
    n, d = points[0].shape
    shape = {"data": Path(data).name, "problems": len(points), "n": n, "d": d}
    if only_peak:
        click.echo(json.dumps({"table": "peak", **shape, **peak(points, rounds)}))
        return
    for k, table in ((k, table) for k in map(int, ks.split(",")) for table in tables.split(",")):
        found = alternate({"whole": whole, "lloyd": lloyd}[table](points, k), points, rounds)
        medians = {name: statistics.median(seconds) for name, (seconds, _) in found.items()}
        peer = min(PEERS, key=lambda name: medians[name])
        for name, (seconds, value) in found.items():
            row = {"table": table, **shape, "k": k, "row": name, "rounds": len(seconds), "seconds": medians[name]}
            ratios = {"speedup": medians[peer] / medians[name], "inertia_ratio": value / found[peer][1]}
            click.echo(json.dumps({**row, "inertia": value, "faster_peer": peer, **ratios}))


if __name__ == "__main__":
    main()
