"""The GPU driver and its kernels, both run on the CPU, against the CPU path and scikit-learn."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from host_cuda import HostCuda
from sklearn.cluster import KMeans

from d4m_fast.errors import DataError, UsageError
from d4m_fast.kernels.backend import Shape, trials_for
from d4m_fast.kernels.device import solve
from d4m_fast.kernels.kmeans import KMeansResult, kmeans
from d4m_fast.kernels.request import Options, requests
from d4m_fast.kernels.roofline import gram_pays
from d4m_fast.kernels.seeding import candidate_count

Libraries = dict[str, ctypes.CDLL]
SIZES = ((150, 40, 9), (97, 64, 20), (64, 7, 4), (33, 100, 33), (50, 24, 1), (130, 40, 12))
EXACT = ("labels", "sizes", "medoids", "effective_k")


def mixture(n: int, d: int, groups: int, seed: int = 0, mean: float = 0.0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((groups, d)) * 0.5
    return (centres[rng.integers(0, groups, n)] + rng.standard_normal((n, d)) + mean).astype(np.float16)


def problems(dtype: str = "float16", mean: float = 0.0) -> list[np.ndarray]:
    return [mixture(n, d, k, seed, mean).astype(dtype) for seed, (n, d, k) in enumerate(SIZES)]


KS = [k for _, _, k in SIZES]


def on_device(host: HostCuda, points: Sequence[np.ndarray], ks: Sequence[int], **options: Any) -> list[Any]:
    ids, init = (options.pop(name, None) for name in ("ids", "init"))
    asked = requests(points, ks, None if ids is None else ids[: len(points)], init)
    return [*solve(host, asked, Options(**options))]


def assert_alike(got: Sequence[KMeansResult], expected: Sequence[KMeansResult]) -> None:
    for one, other in zip(got, expected, strict=True):
        for name in EXACT:
            np.testing.assert_array_equal(getattr(one, name), getattr(other, name), err_msg=name, strict=True)
        assert one.inertia == pytest.approx(other.inertia, rel=1e-5, abs=1e-9)
        np.testing.assert_allclose(one.inertia_per_cluster, other.inertia_per_cluster, rtol=1e-5, atol=1e-9)
        np.testing.assert_allclose(one.centroids, other.centroids, rtol=1e-5, atol=1e-6, strict=True)


@pytest.mark.parametrize("options", [{"method": "direct"}, {"method": "gram"}, {"method": "gram", "refine": False}])
@pytest.mark.parametrize(("dtype", "mean"), [("float16", 0.0), ("float16", 300.0), ("float32", 0.0)])
def test_whole_fits_are_the_cpu_paths(libraries: Libraries, dtype: str, mean: float, options: dict[str, Any]) -> None:
    """Same random stream, same seeds, same clusters."""
    points = problems(dtype, mean)
    got = on_device(HostCuda(libraries), points, KS, **options)
    assert_alike(got, kmeans(points, KS, **options))


@pytest.mark.parametrize("method", ["direct", "gram"])
def test_lloyd_is_sklearns(libraries: Libraries, method: str) -> None:
    points = [p for p, k in zip(problems(), KS, strict=True) if 1 < k < len(p)]
    ks = [k for k, (n, _, _) in zip(KS, SIZES, strict=True) if 1 < k < n]
    starts = [p[:k].astype(np.float32) for p, k in zip(points, ks, strict=True)]
    got = on_device(HostCuda(libraries), points, ks, init=starts, method=method, refine=False)
    for result, p, start in zip(got, points, starts, strict=True):
        theirs = KMeans(len(start), init=start.astype(float), n_init=1, tol=0, algorithm="lloyd").fit(p.astype(float))
        np.testing.assert_array_equal(result.labels, theirs.labels_)
        assert result.inertia == pytest.approx(theirs.inertia_, rel=1e-5)
        assert method == "gram" or result.iterations == theirs.n_iter_


def test_rounding_of_products_changes_no_label(libraries: Libraries) -> None:
    """From given centres; errors as large as an unfavourable accumulation makes them."""
    points = problems()
    starts = [p[:k].astype(np.float32) for p, k in zip(points, KS, strict=True)]
    exact, noisy = (
        on_device(HostCuda(libraries, noise=noise), points, KS, init=starts, method="direct") for noise in (0, 2e-6)
    )
    assert_alike(noisy, exact)


@pytest.mark.parametrize("method", ["direct", "gram"])
def test_company_and_order_change_no_bit(libraries: Libraries, method: str) -> None:
    """Problems of one padded shape, in batches of one, of three, and in another order."""
    points = [mixture(n, d, 9, seed) for seed, (n, d) in enumerate(((64, 40), (50, 35), (41, 40), (60, 33)))]
    ks, ids = [8, 3, 5, 6], [4, 7, 1, 9]
    shape = Shape("float16", "gram" if method == "gram" else "direct", 64, 40, 8)
    size = next(size for size in range(1 << 12, 1 << 22, 1 << 10) if shape.slots(size) == 3)
    together = on_device(HostCuda(libraries, workspace=size), points, ks, ids=ids, method=method)
    alone = HostCuda(libraries, order=5, workspace=1)
    for place in (2, 0, 3, 1):
        (one,) = on_device(alone, [points[place]], [ks[place]], ids=[ids[place]], method=method)
        for name in KMeansResult.__dataclass_fields__:
            np.testing.assert_array_equal(getattr(one, name), getattr(together[place], name), err_msg=name)


def test_stopped_early_centroids_are_means_of_the_labels(libraries: Libraries) -> None:
    points = [mixture(150, 16, 30)]
    for method in ("direct", "gram"):
        (result,) = on_device(HostCuda(libraries), points, [10], method=method, max_iter=2)
        assert result.iterations == 2
        means = [points[0][result.labels == c].mean(axis=0, dtype=float) for c in range(10)]
        np.testing.assert_allclose(result.centroids, means, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("distinct", [1, 3])
@pytest.mark.parametrize("method", ["direct", "gram"])
def test_fewer_distinct_points_than_k(
    libraries: Libraries, distinct: int, method: str, caplog: pytest.LogCaptureFixture
) -> None:
    points = np.repeat(mixture(distinct, 64, 2), 8, axis=0)
    (result,) = on_device(HostCuda(libraries), [points], [5], method=method)
    assert caplog.messages == [f"class 0: only {distinct} distinct points for k = 5"]
    assert result.sizes.min() >= 1 and result.inertia == 0 and result.effective_k == distinct


def test_empty_clusters_are_filled_as_on_the_cpu(libraries: Libraries) -> None:
    points = mixture(90, 16, 5)
    start = np.concatenate([points[:2], points[:1] + 100, points[:1] + 200, points[3:5]]).astype(np.float32)
    for method in ("direct", "gram"):
        got = on_device(HostCuda(libraries), [points], [6], init=[start], method=method, refine=False)
        assert_alike(got, kmeans([points], 6, init=[start], method="direct"))


def spoiled(value: float) -> np.ndarray:
    points = mixture(20, 4, 2)
    points[7, 2] = value
    return points


GOOD = mixture(20, 4, 2)


@pytest.mark.parametrize(
    ("points", "k", "more", "message"),
    [
        (GOOD, 21, {}, "k = 21 is more than its 20 points"),
        (GOOD, 0, {}, "k = 0 is below 1"),
        (spoiled(np.nan), 2, {}, "NaN or infinite values in its points"),
        (spoiled(np.inf), 2, {}, "NaN or infinite values in its points"),
        (spoiled(-np.inf), 20, {}, "NaN or infinite values in its points"),
        ((GOOD * np.float32(1e19)), 2, {}, "values too large"),
        (GOOD[0], 2, {}, r"points of shape \(4,\)"),
        (GOOD.astype(np.float64), 2, {}, "points are float64"),
        (GOOD, 2, {"init": GOOD[:3]}, r"initial centres of shape \(3, 4\), not \(2, 4\)"),
        (GOOD, 2, {"init": spoiled(np.nan)[6:8]}, "NaN, infinite or too large values in its initial centres"),
    ],
)
def test_a_bad_problem_loses_no_other(
    libraries: Libraries, points: np.ndarray, k: int, more: dict[str, np.ndarray], message: str
) -> None:
    extra = {name: [GOOD[:2], value] for name, value in more.items()}
    good, bad = on_device(HostCuda(libraries), [GOOD, points], [2, k], ids=[4, 9], method="direct", **extra)
    assert isinstance(bad, DataError)
    with pytest.raises(DataError, match=f"class 9: {message}"):
        raise bad
    init = [GOOD[:2]] if "init" in more else None
    assert_alike([good], kmeans([GOOD], 2, ids=[4], method="direct", init=init))


def test_the_official_clustering_stays_on_the_cpu(libraries: Libraries) -> None:
    with pytest.raises(UsageError, match="runs on the CPU"):
        on_device(HostCuda(libraries), [GOOD], [2], method="minibatch")


@pytest.mark.parametrize(
    ("n", "d", "k", "refine", "pays"),
    [
        (1300, 16_384, 10, False, True),  # ImageNet-1K in Stable Diffusion's latents
        (1300, 16_384, 200, True, True),
        (5000, 4096, 50, True, True),  # CIFAR-10 at 256 pixels
        (5000, 4096, 2, False, False),
        (6000, 256, 50, True, False),  # Fashion-MNIST whole, bundled latents
        (20_000, 16_384, 200, True, False),  # 1.6 GB of inner products
    ],
)
def test_auto_follows_its_cost_model(n: int, d: int, k: int, refine: bool, pays: bool) -> None:
    assert gram_pays(n, d, k, 2, refine=refine) == pays


def test_auto_is_one_of_the_two(libraries: Libraries) -> None:
    host = HostCuda(libraries)
    on_device(host, [mixture(64, 8, 3)], [4])
    assert "hartigan" not in host.launched
    on_device(host, [mixture(64, 2048, 3)], [20])
    assert "hartigan" in host.launched


def test_a_shape_has_room_for_all_candidates_drawn() -> None:
    for method, d in (("gram", 64), ("direct", 64), ("direct", 1024), ("direct", 1030)):
        for k in (2, 7, 50, 200, 3000):
            n = max(k, 130)
            shape = Shape("float16", method, -(-n // 64) * 64, -(-d // 8) * 8, -(-k // 8) * 8)  # type: ignore[arg-type]
            most = max(candidate_count(k, n, chosen, trials_for(k, d, shape.method)) for chosen in range(1, k))
            assert most <= shape.most_candidates
