"""Latents to prototypes: k-means per class, a few classes in memory at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch

from d4m_fast.config.distill import DistillConfig
from d4m_fast.errors import DataError
from d4m_fast.flow.stream import Stream
from d4m_fast.kernels.kmeans import BadProblems, KMeansResult, kmeans
from d4m_fast.runs.latents import LatentStore
from d4m_fast.runs.records import Prototypes
from d4m_fast.sources.records import ClassInfo, Source, by_class

GROUP_BYTES = 1 << 28
"""Float16 latents of the classes that are clustered in one call: 6 classes of 1,300 images of 512 pixels."""


def cluster(
    classes: Sequence[ClassInfo], latents: LatentStore, source: Source, config: DistillConfig
) -> Stream[Prototypes]:
    """The `config.ipc` prototypes of each class, in the order given.

    `config.prototype` "mean" takes the cluster means as D4M does, "medoid" the real latent nearest to each. Classes are
    loaded and clustered in groups of `GROUP_BYTES`, and a group's latents are gone before its first class is yielded.

    Raises:
        DataError: a class has fewer usable images than `config.ipc`; before anything is clustered.
        BadProblems: a class cannot be clustered; after those before it were yielded.
    """
    for info in classes:
        _require_enough(info, latents.usable(info.id), config.ipc)
    origins = {class_id: [item.origin for item in items] for class_id, items in by_class(source.items).items()}

    def items() -> Iterator[Prototypes]:
        for group in _groups(classes, latents):
            yield from _cluster(group, latents, origins, config)

    return Stream(len(classes), items())


def _groups(classes: Sequence[ClassInfo], latents: LatentStore) -> Iterator[list[ClassInfo]]:
    group, held = list[ClassInfo](), 0
    for info in classes:
        size = latents.bytes_of(info.id)
        if group and held + size > GROUP_BYTES:
            yield group
            group, held = [], 0
        group.append(info)
        held += size
    if group:
        yield group


def _cluster(
    group: Sequence[ClassInfo], latents: LatentStore, origins: dict[int, list[str]], config: DistillConfig
) -> Iterator[Prototypes]:
    made, failure = _prototypes(group, latents, origins, config)
    yield from made
    if failure is not None:
        raise failure


def _prototypes(
    group: Sequence[ClassInfo], latents: LatentStore, origins: dict[int, list[str]], config: DistillConfig
) -> tuple[list[Prototypes], BadProblems | None]:
    """Of the classes up to the first that cannot be clustered, and why that one cannot. Latents end with the call."""
    loaded = [latents.load(info.id) for info in group]
    flat = [rows.reshape(len(rows), -1) for _, rows in loaded]
    results, failure = _kmeans(flat, [info.id for info in group], config)
    made = []
    for info, (ranks, rows), points, result in zip(group, loaded, flat, results, strict=True):
        if result is None:
            break
        chosen = result.centroids if config.prototype == "mean" else points[result.medoids].astype(np.float32)
        nearest = tuple(origins[info.id][rank] for rank in ranks[result.medoids])
        made.append(
            Prototypes(info, chosen.reshape(config.ipc, *rows.shape[1:]), result.sizes, _shares(result), nearest)
        )
    return made, failure


def _kmeans(
    points: Sequence[np.ndarray], ids: Sequence[int], config: DistillConfig
) -> tuple[Sequence[KMeansResult | None], BadProblems | None]:
    placed = [torch.tensor(x, device=config.device) for x in points] if config.kmeans_on == "gpu" else points
    try:
        return kmeans(placed, config.ipc, ids=ids, method=config.kmeans, seed=config.seed, threads=config.threads), None
    except BadProblems as error:
        return error.results, error


def _require_enough(info: ClassInfo, count: int, ipc: int) -> None:
    if count < ipc:
        raise DataError(f"class {info.folder}: {count} usable images, fewer than --ipc {ipc}; lower it or add images")


def _shares(result: KMeansResult) -> np.ndarray:
    total = result.inertia_per_cluster.sum()
    shares: np.ndarray = result.inertia_per_cluster / total if total > 0 else result.inertia_per_cluster
    return shares
