"""Latents to prototypes: k-means per class, a few classes in memory at a time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
import torch

from d4m_fast.config.distill import DistillConfig
from d4m_fast.errors import DataError
from d4m_fast.flow.stream import Stream
from d4m_fast.kernels.kmeans import BadProblems, KMeansResult, kmeans
from d4m_fast.runs.latents import LatentStore
from d4m_fast.runs.records import Prototypes
from d4m_fast.sources.records import ClassInfo, Source, by_class

# Most bytes of fp16 latents that are clustered in one call: 6 classes of 1,300 images of 512 pixels.
GROUP_BYTES = 1 << 28


@dataclass(frozen=True)
class Clustering:
    """How classes are clustered.

    Attributes:
        origins: of each class's images, by the class's id and then by the image's rank.
    """

    latents: LatentStore
    origins: Mapping[int, Sequence[str]]
    config: DistillConfig

    @classmethod
    def of(cls, latents: LatentStore, source: Source, config: DistillConfig) -> Clustering:
        origins = dict[int, list[str]]()
        for class_id, class_items in by_class(source.items).items():
            origins[class_id] = [item.origin for item in class_items]
        return cls(latents, origins, config)


def cluster(
    classes: Sequence[ClassInfo], latents: LatentStore, source: Source, config: DistillConfig
) -> Stream[Prototypes]:
    """Yield the `config.ipc` prototypes of each class, in the order of `classes`.

    `config.prototype` "mean" takes the cluster means as D4M does, "medoid" the real latent nearest to each. Classes are
    loaded and clustered in groups of `GROUP_BYTES`, and a group's latents are freed before its first class is yielded.

    Raises:
        DataError: a class has fewer usable images than `config.ipc`; raised before anything is clustered.
        BadProblems: a class cannot be clustered; raised after the classes before it were yielded.
    """
    require_usable(classes, latents, config.ipc)
    clustering = Clustering.of(latents, source, config)
    groups = _groups(classes, latents)
    return Stream(len(classes), chain.from_iterable(cluster_group(group, clustering) for group in groups))


def require_usable(classes: Sequence[ClassInfo], latents: LatentStore, ipc: int) -> None:
    """Refuse classes that have fewer usable images than prototypes are asked for.

    Raises:
        DataError: names the first.
    """
    for class_info in classes:
        count = latents.usable(class_info.id)
        if count < ipc:
            raise DataError(
                f"class {class_info.folder}: {count} usable images, fewer than --ipc {ipc}; lower it or add images"
            )


def _groups(classes: Sequence[ClassInfo], latents: LatentStore) -> Iterator[list[ClassInfo]]:
    group, group_bytes = list[ClassInfo](), 0
    for class_info in classes:
        class_bytes = latents.bytes_of(class_info.id)
        if group and group_bytes + class_bytes > GROUP_BYTES:
            yield group
            group, group_bytes = [], 0
        group.append(class_info)
        group_bytes += class_bytes
    if group:
        yield group


def cluster_group(group: Sequence[ClassInfo], clustering: Clustering) -> Iterator[Prototypes]:
    """Cluster a few classes together, and yield the prototypes of each.

    Raises:
        BadProblems: a class cannot be clustered; raised after the classes before it were yielded.
    """
    # A generator of its own, so that no prototype is held while the next group is clustered.
    prototypes, failure = _prototypes(group, clustering)
    yield from prototypes
    if failure is not None:
        raise failure


def _prototypes(group: Sequence[ClassInfo], clustering: Clustering) -> tuple[list[Prototypes], BadProblems | None]:
    """Return the prototypes of the classes before the first that cannot be clustered, and why that one cannot.

    A function of its own, so that the latents are freed when it returns.
    """
    config, origins = clustering.config, clustering.origins
    ids = [class_info.id for class_info in group]
    stored = [clustering.latents.load(class_id) for class_id in ids]
    flat = [rows.reshape(len(rows), -1) for _, rows in stored]
    points: Sequence[Any] = flat
    if config.kmeans_on == "gpu":
        points = [torch.tensor(x, device=config.device) for x in flat]
    results: Sequence[KMeansResult | None]
    failure = None
    try:
        results = kmeans(points, config.ipc, ids=ids, method=config.kmeans, seed=config.seed, threads=config.threads)
    except BadProblems as error:
        results, failure = error.results, error
    prototypes = []
    for class_info, (ranks, rows), flat_rows, result in zip(group, stored, flat, results, strict=True):
        if result is None:
            break
        centroids = result.centroids if config.prototype == "mean" else flat_rows[result.medoids].astype(np.float32)
        centroids = centroids.reshape(config.ipc, *rows.shape[1:])
        nearest = tuple(origins[class_info.id][rank] for rank in ranks[result.medoids])
        shares, total = result.inertia_per_cluster, result.inertia_per_cluster.sum()
        shares = shares / total if total > 0 else shares
        prototypes.append(Prototypes(class_info, centroids, result.sizes, shares, nearest))
    return prototypes, failure
