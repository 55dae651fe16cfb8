"""Per-class k-means against scikit-learn, and what scikit-learn does not promise: independence, exact ties, medoids."""

from __future__ import annotations

import itertools
from collections import Counter
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.cluster import KMeans, MiniBatchKMeans, kmeans_plusplus
from threadpoolctl import threadpool_info, threadpool_limits

from d4m_fast.errors import DataError, UsageError
from d4m_fast.kernels import direct, gram
from d4m_fast.kernels import problem as shared
from d4m_fast.kernels.kmeans import BadProblems, KMeansResult, Method, kmeans


def mixture(n: int, d: int, groups: int, seed: int = 0, mean: float = 0.0) -> np.ndarray:
    """Overlapping Gaussians, so that Lloyd needs several passes."""
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((groups, d)) * 0.5
    return (centres[rng.integers(0, groups, n)] + rng.standard_normal((n, d)) + mean).astype(np.float32)


def some_points(points: np.ndarray, k: int) -> np.ndarray:
    return points[np.random.default_rng(1).choice(len(points), k, replace=False)].astype(np.float32)


def sklearn_lloyd(points: np.ndarray, centres: np.ndarray) -> KMeans:
    """In float64: in float32 its rounding turns labels on long runs (17 of 2,000 in the 16-dimensional case below)."""
    model = KMeans(len(centres), init=centres.astype(float), algorithm="lloyd", n_init=1, tol=0, max_iter=300)
    return model.fit(points.astype(float))


def exact_inertia(points: np.ndarray, labels: np.ndarray, k: int) -> np.ndarray:
    members = [points[labels == c].astype(np.float64) for c in range(k)]
    return np.array([np.square(rows - rows.mean(axis=0)).sum() for rows in members])


def assert_same(one: KMeansResult, other: KMeansResult) -> None:
    for name in KMeansResult.__dataclass_fields__:
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name), err_msg=name, strict=True)


by_points = partial(kmeans, method="direct")


def of(method: Method, points: np.ndarray, k: int, **options: Any) -> KMeansResult:
    return kmeans([points], k, method=method, **options)[0]


SHAPES = ((600, 256, 30, 10), (600, 256, 150, 50), (300, 4096, 8, 20), (2000, 16, 15, 5))


@pytest.mark.parametrize("mean", [0.0, 300.0])
@pytest.mark.parametrize(("n", "d", "groups", "k"), SHAPES)
def test_same_clusters_as_sklearn_from_the_same_centres(n: int, d: int, groups: int, k: int, mean: float) -> None:
    points = mixture(n, d, groups, mean=mean)
    centres = some_points(points, k)
    ours, theirs = by_points([points], k, init=[centres])[0], sklearn_lloyd(points, centres)
    assert ours.iterations == theirs.n_iter_ > 2
    np.testing.assert_array_equal(ours.labels, theirs.labels_)
    assert ours.inertia == pytest.approx(theirs.inertia_, rel=1e-5)
    np.testing.assert_allclose(ours.centroids, theirs.cluster_centers_, rtol=1e-5, atol=1e-4)


def test_float16_points_are_clustered_as_their_float32_values() -> None:
    points = (mixture(600, 256, 30) * 500).astype(np.float16)  # squared norms of 8e7, where float16 ends at 65504
    centres = some_points(points, 10)
    ours = by_points([points], 10, init=[centres])[0]
    np.testing.assert_array_equal(ours.labels, sklearn_lloyd(points, centres).labels_)
    assert_same(ours, by_points([points.astype(np.float32)], 10, init=[centres])[0])


@pytest.mark.parametrize("mean", [0.0, 1000.0])
def test_every_field_agrees_with_its_definition(mean: float) -> None:
    points, k = mixture(400, 32, 12, mean=mean), 12
    result = by_points([points], k)[0]
    distances = np.linalg.norm(points[:, None].astype(np.float64) - result.centroids, axis=2)
    assert (distances[np.arange(400), result.labels] <= distances.min(axis=1) + 1e-3).all()
    means = np.array([points[result.labels == c].mean(axis=0, dtype=np.float64) for c in range(k)])
    np.testing.assert_allclose(result.centroids, means, rtol=1e-7)
    np.testing.assert_array_equal(result.sizes, np.bincount(result.labels, minlength=k))
    np.testing.assert_allclose(result.inertia_per_cluster, exact_inertia(points, result.labels, k), rtol=1e-6)
    assert result.inertia == pytest.approx(result.inertia_per_cluster.sum())
    inside = np.where(result.labels[:, None] == np.arange(k), distances, np.inf)
    np.testing.assert_array_equal(result.medoids, inside.argmin(axis=0))
    types = [result.centroids.dtype, result.labels.dtype, result.sizes.dtype, result.inertia_per_cluster.dtype]
    assert types == [np.float32, np.int64, np.int64, np.float64] and result.medoids.dtype == np.int64


@pytest.mark.parametrize(("n", "d", "groups", "k"), [(300, 32, 10, 10), (300, 64, 60, 20)])
def test_seeding_is_as_good_as_sklearns(n: int, d: int, groups: int, k: int) -> None:
    points = mixture(n, d, groups)
    ours = [by_points([points], k, seed=seed)[0].inertia for seed in range(10)]
    theirs = [KMeans(k, n_init=1, tol=0, random_state=seed).fit(points).inertia_ for seed in range(10)]
    assert np.mean(ours) <= 1.02 * np.mean(theirs)


def seeds(problem: shared.Problem, seed: int) -> np.ndarray:
    """(k, D): the points chosen."""
    return problem.points[direct.choose_seeds(problem, np.random.default_rng(seed))[0]]


def test_seeding_is_greedy() -> None:
    points = mixture(400, 2, 20)
    problem = shared.prepare(points, 20, 0)

    def potential(centres: np.ndarray) -> float:
        return float(np.square(problem.points[:, None] - centres).sum(axis=2).min(axis=1).sum())

    ours = [potential(seeds(problem, seed)) for seed in range(40)]
    theirs = [potential(kmeans_plusplus(problem.points, 20, random_state=seed)[0]) for seed in range(40)]
    assert np.mean(ours) <= 1.03 * np.mean(theirs)


def test_seeding_finds_well_separated_groups() -> None:
    rng = np.random.default_rng(0)
    truth = np.repeat(np.arange(20), 15)
    points = (rng.standard_normal((20, 8))[truth] * 100 + rng.standard_normal((300, 8))).astype(np.float32)
    for seed in range(5):
        labels = by_points([points], 20, seed=seed)[0].labels
        assert len(set(zip(truth, labels, strict=True))) == 20


def test_seeds_are_drawn_by_the_squared_distance_from_the_nearest() -> None:
    """The law of k-means++, written out: many are drawn at once, but each as if it were drawn alone."""
    places, k, draws = np.array([0.0, 1.0, 10.0, 11.0, 30.0]), 3, 2000
    squared = np.square(places[:, None] - places)
    law: Counter[tuple[int, ...]] = Counter()
    for a, b, c in itertools.permutations(range(5), k):
        second, third = squared[a] / squared[a].sum(), np.minimum(squared[a], squared[b])
        law[tuple(sorted((a, b, c)))] += 0.2 * second[b] * third[c] / third.sum()
    problem = shared.prepare(np.repeat(places.astype(np.float32)[:, None], direct.WIDE, axis=1), k, 0)
    found = Counter(tuple(sorted(direct.choose_seeds(problem, np.random.default_rng(s))[0])) for s in range(draws))
    assert sum(abs(law[seeds] - found[seeds] / draws) for seeds in law) / 2 < 0.04
    assert sum(found[seeds] for seeds in law) == draws


def test_seed_and_id_select_the_stream() -> None:
    points = mixture(300, 16, 40)
    base = by_points([points], 20, ids=[3])[0]
    assert_same(base, by_points([points], 20, ids=[3])[0])
    assert_same(base, by_points([points] * 4, 20)[3])  # the default id is the position
    for other in (by_points([points], 20, ids=[4])[0], by_points([points], 20, ids=[3], seed=1)[0]):
        assert (other.labels != base.labels).any()


@pytest.mark.parametrize("method", ["direct", "gram"])
def test_order_grouping_and_threads_change_no_bit(method: Method) -> None:
    sizes = {7: (200, 5), 3: (120, 12), 11: (301, 1), 5: (64, 64), 2: (150, 30)}
    problems = {key: mixture(n, 48, 9, seed=key) for key, (n, _) in sizes.items()}

    def run(keys: list[int], threads: int) -> dict[int, KMeansResult]:
        points, ks = [problems[key] for key in keys], [sizes[key][1] for key in keys]
        return dict(zip(keys, kmeans(points, ks, ids=keys, method=method, threads=threads), strict=True))

    assert kmeans([], 3) == []
    together = run([7, 3, 11, 5, 2], threads=4)
    with threadpool_limits(2):
        apart = run([2, 11], threads=1) | run([5], threads=3) | run([3, 7], threads=2)
    for key, result in together.items():
        assert_same(result, apart[key])


def test_blas_has_one_thread_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    def blas() -> list[int]:
        return [library["num_threads"] for library in threadpool_info() if library["user_api"] == "blas"]

    def watched(*arguments: Any) -> tuple[np.ndarray, int]:
        seen.append(blas())
        return lloyd(*arguments)

    seen, lloyd = list[list[int]](), direct.lloyd
    monkeypatch.setattr(direct, "lloyd", watched)
    with threadpool_limits(2, user_api="blas"):
        before = blas()
        by_points([mixture(50, 8, 3)] * 3, 3, threads=2)
        assert blas() == before
    assert before and seen == [[1] * len(before)] * 3


def test_memory_layout_changes_nothing() -> None:
    points = mixture(200, 32, 9)
    assert_same(by_points([points], 9)[0], by_points([np.asfortranarray(points)], 9)[0])
    assert_same(by_points([points], 9)[0], by_points([np.repeat(points, 2, axis=1)[:, ::2]], 9)[0])


def test_input_is_left_alone() -> None:
    points, centres = mixture(100, 8, 5, mean=5), some_points(mixture(100, 8, 5), 5)
    before = points.copy(), centres.copy()
    by_points([points], 5, init=[centres])
    np.testing.assert_array_equal(points, before[0])
    np.testing.assert_array_equal(centres, before[1])


def test_empty_clusters_take_the_farthest_points() -> None:
    points = np.array([[0], [1], [2], [3], [50], [-30]], np.float32)
    far = np.array([[1], [1e6], [2e6]], np.float32)
    result = by_points([points], 3, init=[far])[0]
    assert result.labels.tolist() == [0, 0, 0, 0, 1, 2]


@pytest.mark.parametrize("k", [5, 40])
def test_no_cluster_stays_empty(k: int) -> None:
    points = mixture(200, 16, 9)
    result = by_points([points], k, init=[np.full((k, 16), 1e4, np.float32)])[0]
    assert result.sizes.min() >= 1
    assert result.inertia < 1.2 * by_points([points], k)[0].inertia


def test_a_cluster_of_one_is_never_emptied() -> None:
    points = np.array([[0], [1], [100]], np.float32)  # the farthest point is alone in its cluster
    result = by_points([points], 3, init=[np.array([[0], [60], [1e6]], np.float32)], max_iter=1)[0]
    assert result.labels.tolist() == [0, 2, 1]


def test_ties_go_to_the_lowest_index() -> None:
    points = np.array([[-1, 5], [0, 5], [1, 5], [0, 5]], np.float32)
    assert by_points([points], 2, init=[np.array([[-1, 5], [1, 5]], np.float32)])[0].labels.tolist() == [0, 0, 1, 0]
    assert by_points([points], 2, init=[np.array([[1, 5], [-1, 5]], np.float32)])[0].labels.tolist() == [1, 0, 0, 0]


def test_equal_centroids_share_no_points_by_rounding() -> None:
    points = mixture(257, 500, 9, mean=3)
    centres = np.repeat(some_points(points, 3), 7, axis=0)  # 21 columns of the product, equal in sevens
    problem = shared.prepare(points, 21, 0)
    centroids = shared.initial_centres(problem, centres)
    scores = np.empty((257, 21), np.float32)
    direct.score(problem, centroids, np.arange(21), scores)
    assert set(direct.nearest(problem, centroids, scores)) == {0, 7, 14}


def test_ties_that_rounding_breaks_go_to_the_lowest_index() -> None:
    rows = (np.random.default_rng(0).random((50, 1)) * np.ones(37)).astype(np.float32)
    problem = shared.prepare(rows, 37, 0)
    first = np.random.default_rng(1).random(37)
    centroids = np.array([np.roll(first, shift) for shift in range(37)])  # all as far from a constant vector
    scores = np.empty((50, 37), np.float32)
    direct.score(problem, centroids, np.arange(37), scores)
    assert not direct.nearest(problem, centroids, scores).any()


def nested_groups() -> tuple[np.ndarray, np.ndarray]:
    """Points and their groups: two far apart, and inside each of them two some 10^4 times closer."""
    rng = np.random.default_rng(0)
    far = np.where(rng.random((2, 64)) < 0.5, -1.0, 1.0) * 1000
    truth = rng.integers(0, 4, 400)
    near = np.array([[0.0], [0.05]])[truth % 2] + rng.standard_normal((400, 64)) * 0.005
    return (far[truth // 2] + near).astype(np.float32), truth


@pytest.mark.parametrize("method", ["direct", "gram"])
def test_what_float32_cannot_resolve_is_decided_exactly(method: Method) -> None:
    points, truth = nested_groups()
    centres = points[[int(np.argmax(truth == group)) for group in range(4)]]
    np.testing.assert_array_equal(of(method, points, 4, init=[centres]).labels, truth)


def test_seeding_resolves_what_float32_cannot() -> None:
    points, truth = nested_groups()
    problem = shared.prepare(points, 4, 0)
    found = 0
    for seed in range(40):
        centres = seeds(problem, seed)
        chosen = [int(np.abs(problem.points - centre).sum(axis=1).argmin()) for centre in centres]
        found += len(set(truth[chosen])) == 4
    assert found >= 36


def test_the_medoid_of_equals_is_the_lowest_index() -> None:
    points = np.array([[9], [2], [0], [2], [0]], np.float32)
    result = by_points([points], 2, init=[np.array([[9], [1]], np.float32)])[0]
    assert result.medoids.tolist() == [0, 1]


@pytest.mark.parametrize(("distinct", "k"), [(1, 4), (3, 4), (3, 30)])
def test_fewer_distinct_points_than_k(distinct: int, k: int, caplog: pytest.LogCaptureFixture) -> None:
    points = np.tile(mixture(distinct, 300, 3, mean=2), (30 // distinct, 1))
    result = by_points([points], k, ids=[42])[0]
    assert caplog.messages == [f"class 42: only {distinct} distinct points for k = {k}"]
    assert result.effective_k == distinct == len(np.unique(result.centroids, axis=0))
    assert result.sizes.min() >= 1 and result.inertia == 0 and result.iterations < 10
    np.testing.assert_array_equal(result.centroids[result.labels], points)


def test_duplicates_are_no_reason_to_warn_while_k_points_differ(caplog: pytest.LogCaptureFixture) -> None:
    points = np.repeat(mixture(6, 300, 6, mean=50), 8, axis=0)
    result = by_points([points], 6)[0]
    assert not caplog.messages and result.inertia == 0 and result.effective_k == 6
    assert sorted(result.sizes.tolist()) == [8] * 6  # seeding never draws a duplicate of a chosen point


def test_one_cluster_is_the_mean() -> None:
    points = mixture(100, 8, 5, mean=10)
    result = by_points([points], 1)[0]
    np.testing.assert_allclose(result.centroids[0], points.mean(axis=0, dtype=np.float64), rtol=1e-7)
    assert result.inertia == pytest.approx(np.square(points - points.mean(axis=0)).sum(dtype=np.float64), rel=1e-5)
    assert result.sizes.tolist() == [100] and not result.labels.any()
    assert result.medoids[0] == np.linalg.norm(points - result.centroids, axis=1).argmin()


def test_as_many_clusters_as_points_gives_the_points() -> None:
    points = mixture(50, 8, 5, mean=1000)
    result = by_points([points], 50)[0]
    np.testing.assert_array_equal(result.centroids[result.labels], points)
    np.testing.assert_array_equal(result.medoids[result.labels], np.arange(50))
    assert result.inertia == 0


def test_stopped_early_centroids_are_still_means_of_the_labels() -> None:
    points = mixture(600, 16, 30)
    centres = some_points(points, 10)
    stopped, full = (by_points([points], 10, init=[centres], max_iter=limit)[0] for limit in (2, 300))
    assert stopped.iterations == 2 < full.iterations and full.inertia < stopped.inertia
    means = np.array([points[stopped.labels == c].mean(axis=0, dtype=np.float64) for c in range(10)])
    np.testing.assert_allclose(stopped.centroids, means, rtol=1e-6)


def spoiled(value: float) -> np.ndarray:
    points = mixture(20, 4, 2)
    points[7, 2] = value
    return points


GOOD = mixture(20, 4, 2)


@pytest.mark.parametrize(
    ("points", "k", "message"),
    [
        (GOOD, 21, "class 9: k = 21 is more than its 20 points"),
        (GOOD, 0, "class 9: k = 0 is below 1"),
        (GOOD[:0], 1, "class 9: k = 1 is more than its 0 points"),
        (spoiled(np.nan), 2, "class 9: NaN or infinite"),
        (spoiled(np.inf), 1, "class 9: NaN or infinite"),
        (spoiled(-np.inf).astype(np.float16), 2, "class 9: NaN or infinite"),
        (spoiled(1e19), 2, "class 9: values too large"),
        (GOOD[0], 2, r"class 9: points of shape \(4,\)"),
        (GOOD[None], 2, r"class 9: points of shape \(1, 20, 4\)"),
        (GOOD[:, :0], 2, r"class 9: points of shape \(20, 0\)"),
        (GOOD.astype(np.float64), 2, "class 9: points are float64"),
    ],
)
def test_bad_points_are_refused_by_id_and_lose_no_others(points: np.ndarray, k: int, message: str) -> None:
    with pytest.raises(BadProblems, match=message) as caught:
        by_points([GOOD, points, GOOD], [2, k, 3], ids=[4, 9, 5])
    good, bad, other = caught.value.results
    assert good is not None and other is not None and bad is None and list(caught.value.errors) == [1]
    assert_same(good, by_points([GOOD], 2, ids=[4])[0])
    assert_same(other, by_points([GOOD], 3, ids=[5])[0])


def test_every_bad_problem_is_named() -> None:
    with pytest.raises(BadProblems, match=r"class 0: k = 21 .* \(and 1 more: class 2: NaN") as caught:
        by_points([GOOD, GOOD, spoiled(np.nan)], [21, 2, 2])
    assert isinstance(caught.value, DataError) and caught.value.exit_code == 1
    assert [result is None for result in caught.value.results] == [True, False, True]


@pytest.mark.parametrize(
    ("centres", "message"),
    [
        (GOOD[:3], r"class 9: initial centres of shape \(3, 4\), not \(2, 4\)"),
        (spoiled(np.nan)[6:8], "class 9: NaN"),
        (torch.ones(2, 4, requires_grad=True), "class 9: its initial centres are no array"),
    ],
)
def test_bad_initial_centres_are_refused_by_id(centres: np.ndarray, message: str) -> None:
    with pytest.raises(DataError, match=message):
        by_points([GOOD], 2, ids=[9], init=[centres])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "minibatch", "init": [GOOD[:2]]}, "runs once, from its own centres"),
        ({"method": "elkan"}, "no k-means method 'elkan'"),
        ({"max_iter": 0}, "at least 1, not 0"),
        ({"k": [2, 2]}, "1 problems but 2 k"),
        ({"ids": [1, 2]}, "1 problems but 2 ids"),
        ({"init": []}, "1 problems but 0 init"),
    ],
)
def test_options_that_make_no_sense(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        kmeans([GOOD], **({"k": 2} | options))


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_tensors_are_taken_without_a_copy(dtype: torch.dtype) -> None:
    tensor = torch.from_numpy(mixture(100, 16, 5)).to(dtype)
    problem = shared.prepare(tensor, 5, 0)
    assert np.shares_memory(problem.original, tensor.numpy())
    assert np.shares_memory(problem.points, tensor.numpy()) == (dtype == torch.float32)
    assert_same(by_points([tensor], 5)[0], by_points([tensor.numpy()], 5)[0])


@pytest.mark.parametrize("points", [torch.ones(9, 4, dtype=torch.bfloat16), torch.ones(9, 4, requires_grad=True)])
def test_tensors_that_numpy_cannot_read_are_refused(points: torch.Tensor) -> None:
    with pytest.raises(DataError, match="class 0: its points are no array in memory that NumPy can read"):
        by_points([points], 2)


def test_neither_direct_by_name_nor_blocks_change_a_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    points = mixture(200, 32, 9)
    expected = by_points([points], 9)[0]
    assert_same(kmeans([points], 9, method="direct")[0], expected)
    monkeypatch.setattr(shared, "BLOCK_ELEMENTS", 100)
    assert_same(by_points([points], 9)[0], expected)


# Gram space


def fields(n: int, d: int) -> np.ndarray:
    """Four channels of square random fields whose power falls with the square of the frequency, as latents' does."""
    side = int((d / 4) ** 0.5)
    frequency = np.hypot(np.fft.fftfreq(side)[:, None], np.fft.rfftfreq(side))
    frequency[0, 0] = frequency[0, 1]
    noise = np.random.default_rng(0).standard_normal((n, 4, side, side))
    return np.fft.irfft2(np.fft.rfft2(noise) / frequency, s=(side, side)).astype(np.float32).reshape(n, -1)


@pytest.mark.parametrize("mean", [0.0, 300.0])
@pytest.mark.parametrize(("n", "d", "groups", "k"), SHAPES)
def test_gram_space_gives_sklearns_clusters_from_the_same_centres(
    n: int, d: int, groups: int, k: int, mean: float
) -> None:
    points = mixture(n, d, groups, mean=mean)
    centres = some_points(points, k)
    ours = of("gram", points, k, init=[centres], refine=False)
    theirs = sklearn_lloyd(points, centres)
    np.testing.assert_array_equal(ours.labels, theirs.labels_)
    assert ours.inertia == pytest.approx(theirs.inertia_, rel=1e-5)


@pytest.mark.parametrize(("n", "d", "groups", "k"), [(300, 32, 10, 10), (300, 512, 60, 40)])
def test_seeding_in_gram_space_is_as_good_as_sklearns(n: int, d: int, groups: int, k: int) -> None:
    points = mixture(n, d, groups)
    ours = [of("gram", points, k, seed=seed, refine=False).inertia for seed in range(10)]
    theirs = [KMeans(k, n_init=1, tol=0, random_state=seed).fit(points).inertia_ for seed in range(10)]
    assert np.mean(ours) <= 1.02 * np.mean(theirs)


def improvable(points: np.ndarray, labels: np.ndarray, k: int) -> bool:
    """Whether moving any one point lowers the inertia, tried one by one in float64."""
    base = exact_inertia(points, labels, k).sum()
    for point in range(len(points)):
        for cluster in range(k):
            moved = labels.copy()
            moved[point] = cluster
            whole = np.bincount(moved, minlength=k).min() > 0
            if whole and exact_inertia(points, moved, k).sum() < base * (1 - 1e-6):
                return True
    return False


def test_refinement_ends_where_no_move_of_one_point_helps() -> None:
    points, k = mixture(60, 64, 10), 6
    before = [of("gram", points, k, seed=seed, refine=False) for seed in range(4)]
    after = [of("gram", points, k, seed=seed) for seed in range(4)]
    assert any(improvable(points, result.labels, k) for result in before)
    assert not any(improvable(points, result.labels, k) for result in after)
    assert all(a.inertia <= b.inertia for a, b in zip(after, before, strict=True))


def test_refinement_lowers_the_inertia_of_wide_points() -> None:
    points = fields(300, 4096)
    before = np.mean([of("gram", points, 30, seed=seed, refine=False).inertia for seed in range(3)])
    after = np.mean([of("gram", points, 30, seed=seed).inertia for seed in range(3)])
    assert after < 0.99 * before


@pytest.mark.parametrize("method", ["gram", "minibatch"])
def test_every_method_is_independent_of_its_neighbours(method: Any) -> None:
    problems = [mixture(90, 128, 9, seed=s) for s in range(3)]
    together = kmeans(problems, [5, 6, 7], ids=[4, 5, 6], method=method)
    for points, k, key, expected in zip(problems, [5, 6, 7], [4, 5, 6], together, strict=True):
        assert_same(kmeans([points], k, ids=[key], method=method)[0], expected)


@pytest.mark.parametrize("distinct", [1, 3])
def test_gram_space_with_fewer_distinct_points_than_k(distinct: int, caplog: pytest.LogCaptureFixture) -> None:
    points = np.repeat(mixture(distinct, 64, 2), 8, axis=0)
    result = of("gram", points, 5)
    assert result.sizes.min() >= 1
    assert result.inertia == 0
    assert f"only {distinct} distinct points for k = 5" in caplog.text


def test_gram_space_from_float16() -> None:
    points = (mixture(100, 512, 9) * 500).astype(np.float16)
    assert_same(of("gram", points, 9), of("gram", points.astype(np.float32), 9))


@pytest.mark.parametrize(
    ("n", "d", "k", "refine", "seeds", "pays"),
    [
        (500, 256, 10, True, True, False),  # the bundled images
        (6000, 256, 50, True, True, False),  # Fashion-MNIST whole
        (2000, 4096, 200, False, True, False),
        (2000, 4096, 10, True, True, True),
        (1300, 16_384, 200, False, True, True),  # ImageNet-1K in Stable Diffusion's latents
        (1300, 16_384, 200, False, False, False),
        (1300, 16_384, 50, False, True, False),
        (1300, 16_384, 50, True, True, True),
        (20_000, 16_384, 200, True, True, False),  # 1.6 GB of inner products
    ],
)
def test_auto_follows_its_cost_model(n: int, d: int, k: int, refine: bool, seeds: bool, pays: bool) -> None:
    assert gram.pays(n, d, k, refine=refine, seeds=seeds) == pays


def test_auto_is_one_of_the_two() -> None:
    narrow, wide = mixture(400, 16, 5), mixture(120, 2048, 5)
    assert_same(of("auto", narrow, 4), of("direct", narrow, 4))
    assert_same(of("auto", wide, 20), of("gram", wide, 20))


def test_official_clustering_is_sklearns_on_lots_of_k() -> None:
    """Points in the generator's order; the 4 left over change nothing."""
    points, k = mixture(64, 32, 6), 10
    ours = of("minibatch", points, k)
    order = shared.generator(0, 0).permutation(64)
    model = MiniBatchKMeans(k, random_state=0, batch_size=k, n_init="auto")
    for start in range(0, 60, k):
        model.partial_fit(points[order[start : start + k]].astype(float))
    np.testing.assert_array_equal(ours.centroids, model.cluster_centers_.astype(np.float32))
    assert ours.inertia > of("direct", points, k).inertia
    distances = np.linalg.norm(points[:, None].astype(float) - ours.centroids, axis=2)
    np.testing.assert_array_equal(ours.medoids, distances.argmin(axis=0))
    np.testing.assert_array_equal(ours.labels, distances.argmin(axis=1))
