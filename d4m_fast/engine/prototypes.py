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
from d4m_fast.runs.plan import Group
from d4m_fast.runs.records import Prototypes
from d4m_fast.sources.records import ClassInfo, Source, by_class

# Most bytes of fp16 latents that are clustered in one call: 6 classes of 1,300 images of 512 pixels.
GROUP_BYTES = 1 << 28


@dataclass(frozen=True)
class Clustering:
    """Latents to cluster, and the options to cluster them with.

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

    def images_of(self, group: Group) -> int:
        """Return how many images are made of the classes of a group."""
        most, is_fewer = self.config.ipc, self.config.small_classes == "fewer"
        return sum(min(most, self.latents.usable(number)) if is_fewer else most for number in group.classes)


def cluster(
    classes: Sequence[ClassInfo], latents: LatentStore, source: Source, config: DistillConfig
) -> Stream[Prototypes]:
    """Yield the prototypes of each class, in the order of `classes`: `config.ipc`, or fewer of a small class.

    `config.prototype` "mean" takes the cluster means as D4M does, "medoid" the real latent nearest to each. Classes are
    loaded and clustered in groups of `GROUP_BYTES`, and a group's latents are freed before its first class is yielded.

    A class with fewer images than `config.ipc` has each of them as a prototype, in turn.

    Raises:
        DataError: a class has fewer usable images than `config.ipc`, which `config.small_classes` refuses, or none;
            raised before anything is clustered.
        BadProblems: a class cannot be clustered; raised after the classes before it were yielded.
    """
    require_usable(classes, latents, config)
    clustering = Clustering.of(latents, source, config)
    groups = _groups(classes, latents)
    return Stream(len(classes), chain.from_iterable(cluster_group(group, clustering) for group in groups))


def require_usable(classes: Sequence[ClassInfo], latents: LatentStore, config: DistillConfig) -> None:
    """Refuse classes that have fewer usable images than prototypes are asked for, or none where that is allowed.

    Raises:
        DataError: names the first.
    """
    least = config.ipc if config.small_classes == "refuse" else 1
    for class_info in classes:
        count = latents.usable(class_info.id)
        if count < least:
            raise DataError(
                f"class {class_info.folder}: {count} usable images, fewer than"
                f" {f'--ipc {config.ipc}; lower it or' if least > 1 else 'one;'} add images"
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
    # Of a class with fewer images than prototypes, each image is one: there is nothing to cluster.
    large = [place for place, rows in enumerate(flat) if len(rows) >= config.ipc]
    points: Sequence[Any] = [flat[place] for place in large]
    if config.kmeans_on == "gpu":
        points = [torch.tensor(x, device=config.device) for x in points]
    clusters: Sequence[KMeansResult | None] = ()
    failure = None
    try:
        if large:
            options: dict[str, Any] = {"method": config.kmeans, "seed": config.seed, "threads": config.threads}
            clusters = kmeans(points, config.ipc, ids=[ids[place] for place in large], **options)
    except BadProblems as error:
        clusters, failure = error.results, error
    results = dict(zip(large, clusters, strict=True))
    prototypes = []
    for place, (class_info, (ranks, rows), flat_rows) in enumerate(zip(group, stored, flat, strict=True)):
        if place not in results:
            names = [origins[class_info.id][rank] for rank in ranks]
            prototypes.append(_of_small_class(class_info, rows, names, config))
            continue
        result = results[place]
        if result is None:
            break
        centroids = result.centroids if config.prototype == "mean" else flat_rows[result.medoids].astype(np.float32)
        centroids = centroids.reshape(config.ipc, *rows.shape[1:])
        nearest = tuple(origins[class_info.id][rank] for rank in ranks[result.medoids])
        shares, total = result.inertia_per_cluster, result.inertia_per_cluster.sum()
        shares = shares / total if total > 0 else shares
        prototypes.append(Prototypes(class_info, centroids, result.sizes, shares, nearest))
    return prototypes, failure


def _of_small_class(class_info: ClassInfo, rows: np.ndarray, names: Sequence[str], config: DistillConfig) -> Prototypes:
    """Return each image of a class as a prototype: once, or in turn until there are `config.ipc`."""
    count = len(rows) if config.small_classes == "fewer" else config.ipc
    turn = np.arange(count) % len(rows)
    nearest = tuple(names[place] for place in turn.tolist())
    ones, none = np.ones(count, np.int64), np.zeros(count, np.float64)
    return Prototypes(class_info, rows[turn].astype(np.float32), ones, none, nearest, class_images=len(rows))
