"""k-means on an NVIDIA GPU: `pip install -e .[gpu,dev]`, then `pytest -m gpu tests/gpu`. We have not run it yet."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from d4m_fast.kernels.cuda import CupyBackend
from d4m_fast.kernels.kmeans import kmeans
from d4m_fast.kernels.selfcheck import selfcheck
from d4m_fast.measure.kernels import time_kernels

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="PyTorch sees no GPU here"),
]


@pytest.fixture(scope="module")
def found() -> dict[str, Any]:
    return selfcheck()


def test_all_checks_pass(found: dict[str, Any]) -> None:
    assert [check for check in found["checks"] if not check["passed"]] == []


def test_steps_are_timed() -> None:
    timings = time_kernels(0)
    assert [timing["name"] for timing in timings] == ["Gram product", "Lloyd pass", "segmented sums"]
    assert all(timing["seconds"] > 0 for timing in timings)


def points(n: int, d: int, seed: int) -> torch.Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed)).half()


def test_tensors_are_clustered_where_they_are() -> None:
    problems = [points(300, 128, 0), points(200, 4096, 1)]
    starts = [p[:9].float().numpy() for p in problems]
    expected = kmeans([p.numpy() for p in problems], 9, init=starts, method="direct")
    for got, other in zip(kmeans([p.cuda() for p in problems], 9, init=starts, method="direct"), expected, strict=True):
        np.testing.assert_array_equal(got.labels, other.labels)
        np.testing.assert_allclose(got.centroids, other.centroids, rtol=1e-5, atol=1e-6)


def test_cupy_arrays_and_another_stream() -> None:
    cupy = pytest.importorskip("cupy")
    p = points(300, 256, 2)
    expected = kmeans([p.cuda()], 7)[0]
    with torch.cuda.stream(torch.cuda.Stream()):  # type: ignore[no-untyped-call]
        got = kmeans([cupy.asarray(p.numpy())], 7)[0]
    np.testing.assert_array_equal(got.labels, expected.labels)
    assert got.inertia == expected.inertia


def test_memory_comes_from_pytorch_and_goes_back() -> None:
    cupy = pytest.importorskip("cupy")
    torch.cuda.synchronize()
    before, pool = torch.cuda.memory_allocated(), cupy.get_default_memory_pool().total_bytes()
    torch.cuda.reset_peak_memory_stats()
    kmeans([points(500, 1024, 3).cuda()], 10)
    assert torch.cuda.max_memory_allocated() > before
    assert torch.cuda.memory_allocated() == before and cupy.get_default_memory_pool().total_bytes() == pool


def test_a_batch_of_the_real_size() -> None:
    """More elements than 32 bits count, in problems of their own; company changes no bit."""
    p = points(1300, 16_384, 4).cuda()
    workspace = CupyBackend.workspace
    assert workspace // (p.numel() * p.element_size()) > 20
    results = kmeans([p] * 110, 50, ids=[7] * 110)
    for result in results:
        np.testing.assert_array_equal(result.labels, results[0].labels)
        np.testing.assert_array_equal(result.centroids, results[0].centroids)
