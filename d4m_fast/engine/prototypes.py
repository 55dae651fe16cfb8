"""Latents to prototypes: k-means per class, one class in memory at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from d4m_fast.config import DistillConfig
from d4m_fast.data.latents import LatentStore
from d4m_fast.data.records import ClassInfo, Prototypes, Source, by_class
from d4m_fast.data.stream import Stream
from d4m_fast.errors import DataError
from d4m_fast.kernels.kmeans import KMeansResult, kmeans


def cluster(
    classes: Sequence[ClassInfo], latents: LatentStore, source: Source, config: DistillConfig
) -> Stream[Prototypes]:
    """The `config.ipc` prototypes of each class, in the order given.

    `config.prototype` "mean" takes the cluster means as D4M does, "medoid" the real latent nearest to each.

    Raises:
        DataError: a class has fewer usable images than `config.ipc`; before anything is clustered.
    """
    ipc = config.ipc
    for info in classes:
        _require_enough(info, latents.usable(info.id), ipc)
    origins = {class_id: [item.origin for item in items] for class_id, items in by_class(source.items).items()}

    def items() -> Iterator[Prototypes]:
        for info in classes:
            ranks, rows = latents.load(info.id)
            flat = rows.reshape(len(rows), -1)
            (result,) = kmeans([flat], ipc, ids=[info.id], method=config.kmeans, seed=config.seed)
            chosen = result.centroids if config.prototype == "mean" else flat[result.medoids].astype(np.float32)
            nearest = tuple(origins[info.id][rank] for rank in ranks[result.medoids])
            yield Prototypes(info, chosen.reshape(ipc, *rows.shape[1:]), result.sizes, _shares(result), nearest)

    return Stream(len(classes), items())


def _require_enough(info: ClassInfo, count: int, ipc: int) -> None:
    if count < ipc:
        raise DataError(f"class {info.folder}: {count} usable images, fewer than --ipc {ipc}; lower it or add images")


def _shares(result: KMeansResult) -> np.ndarray:
    total = result.inertia_per_cluster.sum()
    shares: np.ndarray = result.inertia_per_cluster / total if total > 0 else result.inertia_per_cluster
    return shares
