"""Cost of k-means on a GPU, calculated: bytes of memory traffic and operations of products on an H100 SXM.

With X a problem's points (n x D) and G its inner products, each step takes the longer of its traffic at 3.35 TB/s and
its products at 60 % of 989 TFLOP/s (float16) or of 67 (float32). On the points: one read of X per seed, and per pass X
read twice and centroids of 24 bytes per value written and read. In Gram space: one read of X and 2 n^2 D operations for
G, G read once per seeding and per pass, and two passes on the points at the end.
"""

from __future__ import annotations

from dataclasses import dataclass

from d4m_fast.kernels.gram import LARGEST_GRAM

PASSES = 6  # of Lloyd until it converges
# How much more time Hartigan's refinement, which only Gram space affords, may cost.
REFINED = 1.5
CENTROID_BYTES = 24  # per value: written in float64, read and written as two float16, read by the product


@dataclass(frozen=True, slots=True)
class Machine:
    """Peaks of a GPU: bytes per second of its memory, operations per second of products by bytes of an element."""

    bandwidth: float
    products: dict[int, float]
    share: float = 1.0

    def seconds(self, traffic: float, operations: float = 0.0, item: int = 2) -> float:
        return max(traffic / self.bandwidth, operations / (self.share * self.products[item]))


H100 = Machine(3.35e12, {2: 989e12, 4: 67e12})
ATTAINABLE = Machine(H100.bandwidth, H100.products, 0.6)


def pass_seconds(n: int, d: int, k: int, item: int, machine: Machine = ATTAINABLE) -> float:
    """Return the seconds of one Lloyd pass on the points: scores of split centroids, then means."""
    points = float(n) * d * item
    scores = machine.seconds(points + CENTROID_BYTES * float(k) * d, 4.0 * n * d * k, item)
    return scores + machine.seconds(points)


def product_seconds(n: int, d: int, item: int, machine: Machine = ATTAINABLE) -> float:
    """Return the seconds of G."""
    return machine.seconds(float(n) * d * item + 4.0 * n * n, 2.0 * n * n * d, item)


def gram_pays(n: int, d: int, k: int, item: int, *, refine: bool) -> bool:
    """Tell whether method "auto" goes to Gram space on a GPU, which may cost `REFINED` times as much to refine."""
    direct = k * ATTAINABLE.seconds(float(n) * d * item) + PASSES * pass_seconds(n, d, k, item)
    reads = (1 + PASSES) * ATTAINABLE.seconds(4.0 * n * n)
    gram = product_seconds(n, d, item) + reads + 2 * pass_seconds(n, d, k, item)
    return 4 * n * n <= LARGEST_GRAM and gram <= direct * (REFINED if refine else 1.0)
