"""The kernels, built once for all tests that run them on the CPU."""

from __future__ import annotations

import ctypes

import pytest
from host_cuda import POINTS, build, has_compiler, source


@pytest.fixture(scope="session")
def libraries(tmp_path_factory: pytest.TempPathFactory) -> dict[str, ctypes.CDLL]:
    if not has_compiler():
        pytest.skip("the kernels run on the CPU when g++ has built them: no g++ here")
    folder = tmp_path_factory.mktemp("kernels")
    return {points: build(source(), folder, points) for points in POINTS}
