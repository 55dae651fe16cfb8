"""The kernels, built once for all tests that run them on the CPU."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator

import pytest
from host_cuda import POINTS, build, has_compiler, source
from threadpoolctl import threadpool_limits


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """On a busy machine a pool's threads spend their time waiting for each other."""
    with threadpool_limits(1):
        yield


@pytest.fixture(scope="session")
def libraries(tmp_path_factory: pytest.TempPathFactory) -> dict[str, ctypes.CDLL]:
    if not has_compiler():
        pytest.skip("the kernels run on the CPU when g++ has built them: no g++ here")
    folder = tmp_path_factory.mktemp("kernels")
    return {points: build(source(), folder, points) for points in POINTS}
