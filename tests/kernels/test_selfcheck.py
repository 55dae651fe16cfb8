"""The checks that a GPU owner runs pass here, and each fault of the kernels is found by one of them.

All faults are built at once: in the source, `old` becomes (fault == number ? new : old), or new where that has FAULT.
"""

from __future__ import annotations

import ctypes

import numpy as np
import pytest
from host_cuda import HostCuda, build, source

from d4m_fast.kernels.selfcheck import CHECKS, selfcheck

WORKSPACE = 1 << 18  # bytes: two or three problems in a batch
FAULTS = (
    # of the assignment
    ("of equals the highest", "ties", "distance < best.value - TIE * (square + distance)", "distance <= best.value"),
    ("open decisions not seen", "near ties", "second - best.value <= open", "second - best.value < 0"),
    ("the low halves left out", "near ties", "LOW * (delta / 2 - load(high + d))", "0.0"),
    ("the norm left out", "Lloyd on the points", "squares + 2 * products", "2 * products"),
    ("padded clusters not masked", "Lloyd on the points", "c < k[b]; ++c) {\n        const double value = score",
     "c < (FAULT ? K : k[b]); ++c) {\n        const double value = score"),
    ("the norm of the mean left out", "Lloyd in Gram space", "part * (inner[c] * part - 2.0 * sums[c * N])",
     "part * (-2.0 * sums[c * N])"),
    # of the clusters
    ("the last point left out", "Lloyd on the points", "member < offsets[c + 1]; ++member",
     "member < offsets[c + 1] - FAULT; ++member"),
    ("every other column left out", "Lloyd on the points", "x += row.x", "x += 0"),
    ("no sizes", "Lloyd on the points", "mass[c] = sizes[c]", "mass[c] = 1"),
    ("an only point taken", "empty clusters", "sizes[found[i]] > 1", "sizes[found[i]] > 0"),
    ("half of each distance", "Lloyd on the points", "(a.y - c.y) * (a.y - c.y)", "0.0"),
    ("taken off, though not exact", "Lloyd on the points", "if (!exact)", "if (false)"),
    # of seeding and refinement
    ("the worst candidate", "seeding", "total < lowest", "-total < lowest"),
    ("nothing rejected", "seeding", 
     "limits[next] < closest[candidates[next]]", "true"),
    ("the worst move", "refinement", "better(value, c, best)", "better(-value, c, best)"),
    ("moves not weighed", "refinement", "mass[c] / (mass[c] + 1)", "1.0"),
    ("sums not moved", "refinement", "sums[to * N + j] += row[j]", "sums[to * N + j] += 0"),
    # of values
    ("infinities let through", "bad values", "result[b * N + i] = distance", "result[b * N + i] = 1.0"),
)  # fmt: skip


def test_all_checks_pass(libraries: dict[str, ctypes.CDLL]) -> None:
    found = selfcheck(HostCuda(libraries, workspace=WORKSPACE))
    assert [check["name"] for check in found["checks"]] == [*CHECKS]
    assert [check for check in found["checks"] if not check["passed"]] == []


def with_faults(text: str) -> str:
    for number, (name, _, old, new) in enumerate(FAULTS):
        assert text.count(old) == 1, name
        if "FAULT" in new:
            text = text.replace(old, new.replace("FAULT", f"(fault == {number})"))
        elif old.startswith("if "):
            text = text.replace(old, f"if (fault == {number} ? {new[3:]} : {old[3:]})")
        elif " = " in old or "+=" in old:
            text = text.replace(old, f"{{ if (fault == {number}) {new}; else {old}; }}")
        else:
            text = text.replace(old, f"(fault == {number} ? ({new}) : ({old}))")
    return text.replace("struct Pair", 'extern "C" { int fault = -1; }\n\nstruct Pair', 1)


@pytest.fixture(scope="module")
def faulty(libraries: dict[str, ctypes.CDLL], tmp_path_factory: pytest.TempPathFactory) -> dict[str, ctypes.CDLL]:
    folder = tmp_path_factory.mktemp("faulty")
    return {**libraries, "float16": build(with_faults(source()), folder, "float16", "-Wno-sign-compare")}


@pytest.mark.parametrize("name", [fault[0] for fault in FAULTS])
def test_a_fault_is_found(faulty: dict[str, ctypes.CDLL], name: str) -> None:
    (number,) = (place for place, fault in enumerate(FAULTS) if fault[0] == name)
    check = CHECKS[FAULTS[number][1]]
    switch = ctypes.c_int.in_dll(faulty["float16"], "fault")
    host = HostCuda(faulty, workspace=WORKSPACE)
    try:
        switch.value = number
        error, limit = check(host)
    finally:
        switch.value = -1
    assert not error <= limit


class Unfaithful(HostCuda):
    """Products rounded to float16, as `cupy.matmul` rounds them."""

    def product(self, a: np.ndarray, b: np.ndarray, out: np.ndarray) -> None:
        super().product(a, b, out)
        out[...] = out.astype(np.float16)


def test_products_in_half_precision_are_found(libraries: dict[str, ctypes.CDLL]) -> None:
    error, limit = CHECKS["product"](Unfaithful(libraries))
    assert error > limit
