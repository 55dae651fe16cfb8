"""k-means++ on a device: what kernels/seeding.py does, for a batch of problems, with the same random numbers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from d4m_fast.kernels.backend import trials_for
from d4m_fast.kernels.batch import Batch
from d4m_fast.kernels.problem import Int64
from d4m_fast.kernels.seeding import candidate_count

Generators = Sequence[np.random.Generator]


def choose_seeds(batch: Batch, shapes: Sequence[tuple[int, int]], ks: Sequence[int], generators: Generators) -> None:
    """Choose seeds of the problems in the first slots, of these (n, D), and label their points by the nearest."""
    batch.begin_seeding()
    _extend(batch, [1] * len(ks), [1] * len(ks), generators, numbers=1)
    trials = [trials_for(k, d, batch.shape.method) for k, (_, d) in zip(ks, shapes, strict=True)]
    while True:
        seed_counts, is_point_left = batch.seeds_chosen()
        counts = [0] * len(ks)
        for slot, (k, (n, _)) in enumerate(zip(ks, shapes, strict=True)):
            if seed_counts[slot] < k and is_point_left[slot]:
                counts[slot] = candidate_count(k, n, int(seed_counts[slot]), trials[slot])
        if not any(counts):
            return batch.label_by_seeds()
        _extend(batch, trials, counts, generators, numbers=2)


def _extend(batch: Batch, trials: Sequence[int], counts: Sequence[int], generators: Generators, numbers: int) -> None:
    uniforms = np.zeros((batch.slots, 2, batch.most_candidates))
    for slot, (count, rng) in enumerate(zip(counts, generators, strict=True)):
        for row in uniforms[slot, :numbers]:
            row[:count] = rng.random(count)
    batch.extend_seeds(_padded(trials, batch.slots), _padded(counts, batch.slots), uniforms)


def _padded(values: Sequence[int], slots: int) -> Int64:
    return np.array([*values, *[0] * (slots - len(values))], np.int64)
