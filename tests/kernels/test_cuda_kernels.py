"""Every kernel, run on the CPU from its own source, against NumPy.

Two problems of different sizes share padded arrays, in which whatever is not input is NaN. Blocks and threads run in an
order that each launch shuffles anew.
"""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from host_cuda import HostCuda, LaunchError, build, kernels, source

from d4m_fast.kernels.backend import COLUMNS_PER_BLOCK, POINTS_PER_BLOCK, THREADS, padded

N, D, K = 128, 48, 24
SIZES, KS = (100, 37), (5, 19)
B = len(SIZES)
TYPES = ("float16", "float32")


@pytest.fixture(params=range(2))
def host(libraries: dict[str, ctypes.CDLL], request: pytest.FixtureRequest) -> HostCuda:
    return HostCuda(libraries, order=request.param)


def ints(values: Any) -> np.ndarray:
    return np.array(values, np.int32)


def some_points(dtype: str, mean: float = 0.0) -> np.ndarray:
    """(B, N, D), padded points 0."""
    points = np.random.default_rng(0).standard_normal((B, N, D)) + mean
    for b, size in enumerate(SIZES):
        points[b, size:] = 0
    return points.astype(dtype)


def some_labels() -> np.ndarray:
    """(B, N), padded points -7; every cluster has a point."""
    labels = np.full((B, N), -7, np.int32)
    for b, (size, k) in enumerate(zip(SIZES, KS, strict=True)):
        labels[b, :size] = np.random.default_rng(b).permutation(np.arange(size) % k)
    return labels


def nans(*shape: int) -> np.ndarray:
    return np.full(shape, np.nan)


def problems() -> list[tuple[int, int, int]]:
    return [(b, size, k) for b, (size, k) in enumerate(zip(SIZES, KS, strict=True))]


def grouped(host: HostCuda, labels: np.ndarray) -> tuple[np.ndarray, ...]:
    """order, offsets, changed, mass, by the kernels."""
    state = Regrouped(host, labels)
    return state.order, state.offsets, state.changed, state.mass


class Regrouped:
    """What `histogram` and `regroup` make of labels."""

    def __init__(
        self, host: HostCuda, found: np.ndarray, *, previous: np.ndarray | None = None,
        distances: np.ndarray | None = None, chosen: np.ndarray | None = None, stop: bool = False,
        done: tuple[int, ...] = (0, 0), limit: int = 9,
    ) -> None:  # fmt: skip
        self.found = found.copy()
        self.sizes, self.empty = ints(np.full((B, K), -1)), ints([-1, -1])
        self.done, self.passes = ints(done), ints([3, 3])
        self.labels = ints(np.full((B, N), -1)) if previous is None else previous.copy()
        self.order, self.offsets = ints(np.full((B, N), -1)), ints(np.full((B, K + 1), -1))
        self.mass, self.changed = nans(B, K), ints(np.full((B, K), -1))
        no_seeds = ints(np.zeros((B, K)))
        seeds = no_seeds if chosen is None else chosen
        sizes, ks = ints(SIZES), ints(KS)
        host.launch("histogram", "float16", (B, 1, 1), (seeds, self.done, sizes, ks, int(chosen is not None), N, K,
                    self.found, self.sizes, self.empty))  # fmt: skip
        host.launch("regroup", "float16", (B, 1, 1), (nans(B, N) if distances is None else distances,
                    self.empty, sizes, ks, ints([limit] * B), int(stop), N, K, self.found, self.sizes, self.labels,
                    self.order, self.offsets, self.mass, self.changed, self.passes, self.done))  # fmt: skip


def test_every_kernel_is_tested_here() -> None:
    text = Path(__file__).read_text(encoding="utf-8")
    assert [name for name in kernels(source()) if f'"{name}"' not in text] == []
    assert len(kernels(source())) == source().count("KERNEL ") - 1


@pytest.mark.parametrize("dtype", TYPES)
def test_columns_are_centred_where_that_is_exact(host: HostCuda, dtype: str) -> None:
    before = some_points(dtype)
    before[:, :, ::2] += np.asarray(300, dtype)
    before[0, SIZES[0] :], before[1, SIZES[1] :] = 0, 0
    points, offset, shift = before.copy(), np.full((B, D), np.nan, dtype), nans(B, D)
    host.launch("centre", dtype, (1, B, 1), (ints(SIZES), N, D, points, offset, shift))
    for b, size, _ in problems():
        np.testing.assert_array_equal(points[b, :size].astype(float) + offset[b].astype(float), before[b, :size])
        mean = before[b, :size].mean(axis=0, dtype=float)
        np.testing.assert_allclose(offset[b, ::2], mean[::2].astype(dtype))
        np.testing.assert_array_equal(offset[b, 1::2], 0)
        np.testing.assert_allclose(shift[b], mean - offset[b], atol=1e-9)
        assert not points[b, size:].any()


@pytest.mark.parametrize("dtype", TYPES)
def test_distances(host: HostCuda, dtype: str) -> None:
    points, labels = some_points(dtype), some_labels()
    centroids = np.random.default_rng(1).standard_normal((B, K, D))
    for wanted in ((1, 1), (0, 1)):
        result = nans(B, N)
        grid = (N // POINTS_PER_BLOCK, B, 1)
        host.launch("distances", dtype, grid, (points, centroids, labels, ints(wanted), ints(SIZES), N, D, K, result))
        for b, size, _ in problems():
            expected = np.square(points[b, :size].astype(float) - centroids[b, labels[b, :size]]).sum(axis=1)
            np.testing.assert_allclose(result[b, :size], expected if wanted[b] else np.nan, rtol=1e-12)
            assert np.isnan(result[b, size:]).all()


def test_clusters_of_labels(host: HostCuda) -> None:
    labels = some_labels()
    got = Regrouped(host, labels)
    for b, size, k in problems():
        own = labels[b, :size]
        np.testing.assert_array_equal(got.sizes[b, :k], np.bincount(own, minlength=k))
        np.testing.assert_array_equal(got.offsets[b, : k + 1], np.cumsum([0, *np.bincount(own, minlength=k)]))
        np.testing.assert_array_equal(got.order[b, :size], np.argsort(own, kind="stable"))
        np.testing.assert_allclose(got.mass[b, :k], np.bincount(own, minlength=k), rtol=1e-13)
        np.testing.assert_array_equal(got.labels[b, :size], own)
        assert got.changed[b, :k].all() and (got.changed[b, k:] == -1).all()
    assert got.passes.tolist() == [4, 4] and got.done.tolist() == [0, 0] and got.empty.tolist() == [0, 0]


def test_only_clusters_that_gained_or_lost_are_changed(host: HostCuda) -> None:
    previous = some_labels()
    found = previous.copy()
    found[0, 3] = (found[0, 3] + 1) % KS[0]
    got = Regrouped(host, found, previous=previous)
    assert set(np.flatnonzero(got.changed[0, : KS[0]])) == {previous[0, 3], found[0, 3]}
    assert not got.changed[1, : KS[1]].any()
    assert got.done.tolist() == [0, 1]  # nothing moved in the second


def test_who_is_done_is_left_alone(host: HostCuda) -> None:
    got = Regrouped(host, some_labels(), done=(1, 0))
    assert (got.labels[0] == -1).all() and (got.order[0] == -1).all() and not got.changed[0, : KS[0]].any()
    assert got.passes.tolist() == [3, 4] and got.done.tolist() == [1, 0]


def test_the_last_pass_allowed_counts(host: HostCuda) -> None:
    got = Regrouped(host, some_labels(), limit=4)
    assert got.done.tolist() == [1, 1] and got.changed[0, : KS[0]].all()


def test_empty_clusters_take_the_farthest_points(host: HostCuda) -> None:
    found = some_labels()
    found[0, : SIZES[0]] = np.where(np.arange(SIZES[0]) == 60, 1, 3)  # 0, 2 and 4 are empty, and 60 is alone
    distances = nans(B, N)
    distances[0, : SIZES[0]] = 1.0
    distances[0, [60, 70, 50]] = 9, 8, 8
    got = Regrouped(host, found, distances=distances)
    expected = found[0, : SIZES[0]].copy()
    expected[[50, 70, 0]] = 0, 2, 4  # 60 is its cluster's only point; of equals the first
    np.testing.assert_array_equal(got.labels[0, : SIZES[0]], expected)
    assert got.empty.tolist() == [1, 0]
    np.testing.assert_array_equal(got.offsets[0, : KS[0] + 1], [0, 1, 2, 3, 99, 100])


def test_a_problem_may_be_stopped_before_a_cluster_is_empty(host: HostCuda) -> None:
    previous = some_labels()
    found = previous.copy()
    found[0, : SIZES[0]] = np.minimum(found[0, : SIZES[0]], 2)
    got = Regrouped(host, found, previous=previous, stop=True)
    np.testing.assert_array_equal(got.labels[0], previous[0])
    assert got.done[0] == 1 and got.passes[0] == 4 and (got.order[0] == -1).all()


def test_seeds_get_their_own_labels(host: HostCuda) -> None:
    found = some_labels()
    found[0, : SIZES[0]], found[1, : SIZES[1]] = 0, 0
    chosen = ints(np.zeros((B, K)))
    for b, size, k in problems():
        chosen[b, :k] = np.random.default_rng(b).permutation(size)[:k]
    got = Regrouped(host, found, chosen=chosen)
    for b, _, k in problems():
        np.testing.assert_array_equal(got.labels[b, chosen[b, :k]], np.arange(k))


@pytest.mark.parametrize("dtype", TYPES)
def test_means(host: HostCuda, dtype: str) -> None:
    points, labels = some_points(dtype), some_labels()
    order, offsets, changed, mass = grouped(host, labels)
    changed[0, 2] = 0
    result = nans(B, K, D)
    grid = (padded(D, COLUMNS_PER_BLOCK) // COLUMNS_PER_BLOCK, K, B)
    host.launch("mean_points", dtype, grid, (points, order, offsets, changed, mass, ints(KS), N, K, D, result))
    for b, size, k in problems():
        for c in range(k):
            own = labels[b, :size] == c
            expected = points[b, :size][own].astype(float).mean(axis=0)
            np.testing.assert_allclose(result[b, c], expected if (b, c) != (0, 2) else np.nan, rtol=1e-11, atol=1e-12)
        assert np.isnan(result[b, k:]).all()


def test_sums_of_float16_are_exact(host: HostCuda) -> None:
    """In any order, so that a mean does not depend on it."""
    points = np.random.default_rng(3).standard_normal((B, N, D)) * 10.0 ** np.random.default_rng(4).integers(-5, 5, D)
    points = points.astype(np.float16)
    labels = some_labels()
    order, offsets, changed, mass = grouped(host, labels)
    result = nans(B, K, D)
    mass[:] = 1
    host.launch("mean_points", "float16", (1, K, B), (points, order, offsets, changed, mass, ints(KS), N, K, D,
                result))  # fmt: skip
    scaled = points[0, : SIZES[0]].astype(object) * 2**24
    for c in range(KS[0]):
        exact = [int(sum(map(int, column))) for column in scaled[labels[0, : SIZES[0]] == c].T]
        assert [int(value) for value in result[0, c] * 2.0**24] == exact


def test_sums_of_products_and_within(host: HostCuda) -> None:
    labels = some_labels()
    order, offsets, changed, _ = grouped(host, labels)
    gram = np.random.default_rng(2).standard_normal((B, N, N)).astype(np.float32)
    sums, within = nans(B, K, N), nans(B, K)
    grid = (1, K, B)
    host.launch("sum_products", "float16", grid, (gram, order, offsets, changed, ints(KS), N, K, sums))
    host.launch("within", "float16", (padded(K, 8) // 8, B, 1), (sums, order, offsets, ints([0, 0]), ints(KS),
                N, K, within))  # fmt: skip
    for b, size, k in problems():
        z = (labels[b, :size] == np.arange(k)[:, None]) * 1.0
        np.testing.assert_allclose(sums[b, :k], z @ gram[b, :size].astype(float), atol=1e-12)
        np.testing.assert_allclose(
            within[b, :k], (z @ gram[b, :size].astype(float)[:, :size] * z).sum(axis=1), atol=1e-11
        )
        assert np.isnan(sums[b, k:]).all() and np.isnan(within[b, k:]).all()


@pytest.mark.parametrize("scale", [1.0, 3e4])
def test_split_centroids_keep_22_bits(host: HostCuda, scale: float) -> None:
    rng = np.random.default_rng(0)
    centroids, shift = (np.clip(rng.standard_normal(s) * scale, -65504, 65504) for s in ((B, K, D), (B, D)))
    parts, norms, lengths = np.full((B, 2, K, D), np.nan, np.float16), nans(B, K), nans(B, K)
    changed = ints(np.ones((B, K)))
    host.launch("split", "float16", (K, B, 1), (centroids, shift, changed, ints(KS), K, D, parts, norms, lengths))
    for b, _, k in problems():
        delta = centroids[b, :k] - shift[b]
        high, low = parts[b, :, :k].astype(float)
        assert np.isfinite(high).all()
        np.testing.assert_allclose(2 * (high + low / 2048), delta, rtol=2.0**-21, atol=scale * 1e-7)
        np.testing.assert_allclose(norms[b, :k], (delta**2).sum(axis=1) + 2 * delta @ shift[b], atol=scale**2 * 1e-9)
        np.testing.assert_allclose(lengths[b, :k], np.linalg.norm(delta, axis=1), rtol=1e-12)
        assert np.isnan(norms[b, k:]).all()


class Assigned:
    """Labels by `split`, a product, `assign` and `decide`; `open` is what `assign` left open."""

    def __init__(
        self, host: HostCuda, dtype: str, points: np.ndarray, centroids: np.ndarray, done: Any = (0, 0)
    ) -> None:
        shift = nans(B, D)
        for b, size, _ in problems():
            shift[b] = points[b, :size].mean(axis=0, dtype=float)
        squares = np.square(points.astype(float)).sum(axis=2)
        parts, norms, lengths = np.zeros((B, 2, K, D), dtype), nans(B, K), nans(B, K)
        ks = ints(KS)
        host.launch(
            "split", dtype, (K, B, 1), (centroids, shift, ints(np.ones((B, K))), ks, K, D, parts, norms, lengths)
        )
        products = np.full((B, 2 * K, N), np.nan, np.float32)
        host.product(parts.reshape(B, 2 * K, D), points, products)
        found = ints(np.full((B, N), -99))
        scores, rest = (products, norms, lengths), (ints(done), ints(SIZES), ks, N, D, K, found)
        host.launch("assign", dtype, (padded(N, THREADS) // THREADS, B, 1), (*scores, squares, *rest))
        self.open = (found < 0) & (found > -99)
        host.launch("decide", dtype, (N // POINTS_PER_BLOCK, B, 1), (*scores, points, squares, centroids, *rest))
        self.found = found


def nearest(points: np.ndarray, centroids: np.ndarray) -> np.ndarray:
    found: np.ndarray = np.square(points[:, None].astype(float) - centroids).sum(axis=2).argmin(axis=1)
    return found


@pytest.mark.parametrize("mean", [0.0, 20.0])
@pytest.mark.parametrize("dtype", TYPES)
def test_the_nearest_centroid_is_found(host: HostCuda, dtype: str, mean: float) -> None:
    points = some_points(dtype, mean)
    centroids = np.random.default_rng(1).standard_normal((B, K, D)) + mean
    got = Assigned(host, dtype, points, centroids, done=(0, 1))
    np.testing.assert_array_equal(got.found[0, : SIZES[0]], nearest(points[0, : SIZES[0]], centroids[0, : KS[0]]))
    assert (got.found[0, SIZES[0] :] == -99).all() and (got.found[1] == -99).all()
    assert mean > 0 or not got.open.any()


def test_rounding_of_products_decides_nothing(libraries: dict[str, ctypes.CDLL]) -> None:
    """Errors as large as an unfavourable accumulation makes them; centroids so close that they would swap labels."""
    points = some_points("float16")
    centroids = np.repeat(np.random.default_rng(1).standard_normal((B, 1, D)), K, axis=1)
    centroids += 1e-4 * np.random.default_rng(2).standard_normal((B, K, D))
    noisy = [Assigned(HostCuda(libraries, order, noise=D * 2.0**-24), "float16", points, centroids) for order in (0, 1)]
    for got in noisy:
        for b, size, k in problems():
            np.testing.assert_array_equal(got.found[b, :size], nearest(points[b, :size], centroids[b, :k]))
        assert got.open.any()


def test_equal_distances_go_to_the_lowest_index(host: HostCuda) -> None:
    points = np.zeros((B, N, D), np.float16)
    points[:, :, 0] = np.arange(N) % 5
    centroids = nans(B, K, D)
    centroids[:] = 0
    centroids[:, :, 0] = 3 - (np.arange(K) % 2)  # 3, 2, 3, 2, ...
    got = Assigned(host, "float16", points, centroids)
    for b, size, _ in problems():
        expected = np.where(np.arange(size) % 5 >= 3, 0, 1)
        np.testing.assert_array_equal(got.found[b, :size], expected)


def test_the_nearest_mean_in_gram_space(host: HostCuda) -> None:
    points, labels = some_points("float32").astype(float), some_labels()
    sums, inner, mass = nans(B, K, N), nans(B, K), nans(B, K)
    for b, size, k in problems():
        z = (labels[b, :size] == np.arange(k)[:, None]) * 1.0
        mass[b, :k] = z.sum(axis=1)
        sums[b, :k] = z @ points[b, :size] @ points[b].T
        inner[b, :k] = np.square(z @ points[b, :size]).sum(axis=1)
    found = ints(np.full((B, N), -99))
    done = ints([0, 0])
    host.launch("assign_gram", "float16", (1, B, 1), (sums, inner, mass, done, ints(SIZES), ints(KS), N, K, found))
    for b, size, k in problems():
        z = (labels[b, :size] == np.arange(k)[:, None]) * 1.0
        means = z @ points[b, :size] / mass[b, :k, None]
        np.testing.assert_array_equal(found[b, :size], nearest(points[b, :size], means))
        assert (found[b, size:] == -99).all()


def test_draws_are_in_proportion_to_mass(host: HostCuda) -> None:
    rng = np.random.default_rng(0)
    closest, uniforms = nans(B, N), rng.random((B, 2, 40))
    candidates, limits = ints(np.full((B, 40), -1)), nans(B, 40)
    for b, size, _ in problems():
        closest[b, :size] = rng.random(size) * (rng.random(size) < 0.5)
    uniforms[0, 0, :2] = 0, 1 - 2.0**-53
    given = (closest, ints(SIZES), ints([40, 30]), uniforms)
    host.launch("draw", "float16", (B, 1, 1), (*given, N, 40, candidates, limits))
    for b, count in enumerate((40, 30)):
        masses = closest[b, : SIZES[b]]
        cumulative = np.cumsum(masses)
        draws = np.searchsorted(cumulative, uniforms[b, 0, :count] * cumulative[-1], side="right")
        np.testing.assert_array_equal(candidates[b, :count], np.minimum(draws, np.flatnonzero(masses)[-1]))
        np.testing.assert_allclose(limits[b, :count], uniforms[b, 1, :count] * masses[candidates[b, :count]])
        assert (candidates[b, count:] == -1).all()


def choose(points: np.ndarray, k: int, trials: int, candidates: Any, limits: Any) -> Any:
    """Seeds, squared distances to the nearest and which it is; the first candidate is a seed."""
    distances = np.square(points[:, None] - points[candidates]).sum(axis=2).T
    chosen, closest, nearest = [candidates[0]], distances[0].copy(), np.zeros(len(points), int)
    start = 1
    while len(chosen) < k:
        kept = [j for j in range(start, len(candidates)) if limits[j] < closest[candidates[j]]][:trials]
        if len(kept) < trials:
            break
        best = min(kept, key=lambda j: (np.minimum(closest, distances[j]).sum(), j))
        nearest[distances[best] < closest] = len(chosen)
        closest = np.minimum(closest, distances[best])
        chosen.append(candidates[best])
        start = kept[-1] + 1
    return chosen, closest, nearest


@pytest.mark.parametrize("by_index", [True, False])
@pytest.mark.parametrize("trials", [(1, 3), (2, 2)])
def test_seeds_are_the_best_of_what_is_kept(host: HostCuda, trials: tuple[int, int], by_index: bool) -> None:
    count = 48
    points = some_points("float16")
    points[:, 7:20] = points[:, 6:7]  # duplicates, whose distance is exactly 0
    squares = np.square(points.astype(float)).sum(axis=2)
    rng = np.random.default_rng(0)
    candidates = ints([rng.integers(0, size, count) for size in SIZES])
    candidates[:, 0] = 9
    limits = rng.uniform(0, 40, (B, count))
    limits[:, 0] = -1
    closest, nearest = np.full((B, N), np.finfo(float).max), ints(np.full((B, N), -1))
    chosen, progress, left = ints(np.full((B, K), -1)), ints([0, 0]), ints([-1, -1])
    products = np.full((B, N if by_index else count, N), np.nan, np.float32)
    for b in range(B):
        rows = points[b] if by_index else points[b, candidates[b]]
        products[b] = rows.astype(np.float32) @ points[b].astype(np.float32).T
    state = (closest, nearest, chosen, progress, left)
    # The first candidate alone, then the rest: as the driver does.
    first = (ints([1, 1]), ints([1, 1]), candidates, limits)
    rest = limits.copy()
    rest[:, 0] = 1e9
    for tried, counts, drawn, bounds in (first, (ints(trials), ints([count, count]), candidates, rest)):
        given = (products, points, squares, ints(SIZES), ints(KS), tried, counts, drawn, bounds)
        sizes = (int(by_index), products.shape[1], N, D, K, count)
        host.launch("extend", "float16", (B, 1, 1), (*given, *sizes, *state))
    for b, size, k in problems():
        expected = choose(points[b, :size].astype(float), k, trials[b], candidates[b], rest[b])
        assert progress[b] == len(expected[0]) > 1
        np.testing.assert_array_equal(chosen[b, : progress[b]], expected[0])
        np.testing.assert_allclose(closest[b, :size], expected[1], rtol=1e-5)
        np.testing.assert_array_equal(closest[b, :size] == 0, expected[1] == 0)
        np.testing.assert_array_equal(nearest[b, :size], expected[2])
        assert left[b] == 1 and (chosen[b, progress[b] :] == -1).all()


def test_no_seed_is_left_to_choose_among_duplicates(host: HostCuda) -> None:
    points = np.ones((B, N, D), np.float16)
    state = (
        np.full((B, N), np.finfo(float).max),
        ints(np.zeros((B, N))),
        ints(np.zeros((B, K))),
        ints([0, 0]),
        ints([9, 9]),
    )
    products = np.full((B, 8, N), D, np.float32)
    squares, ones = np.full((B, N), float(D)), ints([1, 1])
    limits, candidates = np.full((B, 8), -1.0), ints(np.zeros((B, 8)))
    given = (products, points, squares, ints(SIZES), ints(KS), ones, ones, candidates, limits)
    host.launch("extend", "float16", (B, 1, 1), (*given, 0, 8, N, D, K, 8, *state))
    assert state[3].tolist() == [1, 1] and state[4].tolist() == [0, 0] and not state[0][0, : SIZES[0]].any()


def hartigan(points: np.ndarray, labels: np.ndarray, k: int, least: float) -> np.ndarray:
    """Point after point, on the points."""
    labels, moved = labels.copy(), True

    def gains(i: int) -> np.ndarray:
        mass = np.bincount(labels, minlength=k)
        means = np.array([points[labels == c].mean(axis=0) for c in range(k)])
        distances, own = np.square(points[i] - means).sum(axis=1), labels[i]
        alone = np.count_nonzero(labels == own) == 1
        leaving = 0 if alone else mass[own] / (mass[own] - 1) * distances[own]
        gain: np.ndarray = leaving - mass / (mass + 1) * distances
        gain[own] = -np.inf
        return gain

    while moved:
        candidates = [i for i in range(len(points)) if gains(i).max() > least]
        moved = False
        for i in candidates:
            if gains(i).max() > least:
                labels[i], moved = gains(i).argmax(), True
    return labels


def test_hartigans_moves(host: HostCuda) -> None:
    points, labels = some_points("float32").astype(float), some_labels()
    order, offsets, changed, mass = grouped(host, labels)
    gram = (points @ points.transpose(0, 2, 1)).astype(np.float32)
    sums, inner, sweeps, flags = nans(B, K, N), nans(B, K), ints([-1, -1]), ints(np.full((B, N), -1))
    ks, sizes = ints(KS), ints(offsets[:, 1:] - offsets[:, :-1])
    host.launch("sum_products", "float16", (1, K, B), (gram, order, offsets, changed, ks, N, K, sums))
    host.launch("within", "float16", (K // 8, B, 1), (sums, order, offsets, ints([0, 0]), ks, N, K, inner))
    got, least = labels.copy(), np.full(B, 1e-3)
    squares = np.square(points).sum(axis=2)
    host.launch("hartigan", "float16", (B, 1, 1), (gram, squares, least, ints(SIZES), ks, 100, N, K, sums,
                inner, mass, sizes, flags, got, sweeps))  # fmt: skip
    for b, size, k in problems():
        expected = hartigan(points[b, :size], labels[b, :size], k, 1e-3)
        np.testing.assert_array_equal(got[b, :size], expected)
        np.testing.assert_array_equal(sizes[b, :k], np.bincount(expected, minlength=k))
        np.testing.assert_allclose(mass[b, :k], np.bincount(expected, minlength=k), rtol=1e-12)
        assert (got[b, size:] == -7).all() and sweeps[b] > 1


def test_offsets_pass_32_bits(libraries: dict[str, ctypes.CDLL]) -> None:
    """The third problem begins at element 2^31; of the pages before it none is ever touched."""
    host, (b, n, d) = HostCuda(libraries), (3, 1 << 16, 1 << 14)
    points = np.zeros((b, n, d), np.float16)
    assert points[:2].size == 1 << 31
    points[2, 5] = 3
    sizes, order, offsets = ints([0, 0, 64]), ints(np.zeros((b, n))), ints(np.zeros((b, 2)))
    order[2, 0], offsets[2, 1] = 5, 1
    ks, centroids, squares = ints(sizes > 0), np.zeros((b, 1, d)), np.zeros((b, n))
    clusters = (order, offsets, ks, np.ones((b, 1)), ks)
    host.launch("mean_points", "float16", (d // COLUMNS_PER_BLOCK, 1, b), (points, *clusters, n, 1, d, centroids))
    assert (centroids[2] == 3).all()
    arguments = (points, np.zeros((b, 1, d)), ints(np.zeros((b, n))), sizes, sizes, n, d, 1, squares)
    host.launch("distances", "float16", (64 // POINTS_PER_BLOCK, b, 1), arguments)
    assert squares[2, 5] == 9 * d and squares.sum() == 9 * d


FAULTS = """
KERNEL skipped_barrier(int *x) { if (threadIdx.x < 7) __syncthreads(); x[0] = 1; }
KERNEL other_barrier(int *x) { if (threadIdx.x < 7) __syncthreads(); x[0] = 1;
    if (threadIdx.x >= 7) __syncthreads(); }
KERNEL skipped_exchange(int *x) { if (threadIdx.x % 32 < 7) x[0] = __shfl_xor_sync(ALL, x[0], 1); }
KERNEL partial_exchange(int *x) { x[0] = __shfl_xor_sync(1u, x[0], 1); }
KERNEL write_beside(int *x) { x[256] = 1; }
KERNEL turn(int *x) { __shared__ int y[BLOCK]; y[threadIdx.x] = x[threadIdx.x]; __syncthreads();
    x[threadIdx.x] = y[255 - threadIdx.x]; }
KERNEL turn_without_barrier(int *x) { __shared__ int y[BLOCK]; y[threadIdx.x] = x[threadIdx.x];
    x[threadIdx.x] = y[255 - threadIdx.x]; }
"""


def test_the_shim_finds_faults(tmp_path: Path) -> None:
    text = source()[: source().index("// Subtracts from each column")] + FAULTS
    host = HostCuda({"float16": build(text, tmp_path, "float16", "-Wno-unused")})
    for kernel, message in (
        ("skipped_barrier", "wait for others that never come"),
        ("other_barrier", "meet at different barriers"),
        ("skipped_exchange", "wait for others that never come"),
        ("partial_exchange", "a part of a warp"),
        ("write_beside", "writes beside an array"),
    ):
        with pytest.raises(LaunchError, match=f"{kernel}.*{message}"), host.scope():
            host.launch(kernel, "float16", (1, 1, 1), (host.xp.zeros(256, "int32"),))
    for kernel, right in (("turn", True), ("turn_without_barrier", False)):
        x = ints(np.arange(256))
        host.launch(kernel, "float16", (1, 1, 1), (x,))
        assert (x[::-1].tolist() == list(range(256))) == right


def test_arguments_of_another_type_are_refused(host: HostCuda) -> None:
    with pytest.raises(LaunchError, match="centre takes"):
        host.launch("centre", "float16", (1, 1, 1), (ints([1]), 64, 8, nans(1, 64, 8), nans(1, 8), nans(1, 8)))
