"""Latents to prototypes: k-means per class, a few classes in memory at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
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


def cluster(
    classes: Sequence[ClassInfo], latents: LatentStore, source: Source, config: DistillConfig
) -> Stream[Prototypes]:
    """Yield the prototypes of each class, in the order of `classes`: as many as `image_counts` says.

    `config.prototype` "mean" takes the cluster means as D4M does, "medoid" the real latent nearest to each. Classes are
    loaded and clustered in groups of `GROUP_BYTES`, and a group's latents are freed before its first class is yielded.

    A class with fewer images than `config.ipc` has each of them as a prototype, in turn.

    Raises:
        DataError: a class has fewer usable images than `config.ipc`, which `config.small_classes` refuses, or none;
            raised before anything is clustered.
        BadProblems: a class cannot be clustered; raised after the classes before it were yielded.
    """
    _require_usable(classes, latents, config)
    origins = dict[int, list[str]]()  # by an image's rank in its class
    for class_id, class_items in by_class(source.items).items():
        origins[class_id] = [item.origin for item in class_items]

    def items() -> Iterator[Prototypes]:
        for group in _groups(classes, latents):
            yield from _of_group(group, latents, origins, config)

    return Stream(len(classes), items())


def image_counts(classes: Sequence[ClassInfo], latents: LatentStore, config: DistillConfig) -> dict[int, int]:
    """Return how many images are made of each class."""
    if config.small_classes != "fewer":
        return {class_info.id: config.ipc for class_info in classes}
    return {class_info.id: min(config.ipc, latents.usable(class_info.id)) for class_info in classes}


def _require_usable(classes: Sequence[ClassInfo], latents: LatentStore, config: DistillConfig) -> None:
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


def _of_group(
    group: Sequence[ClassInfo], latents: LatentStore, origins: dict[int, list[str]], config: DistillConfig
) -> Iterator[Prototypes]:
    # A generator of its own, so that no prototype is held while the next group is clustered.
    prototypes, failure = _prototypes(group, latents, origins, config)
    yield from prototypes
    if failure is not None:
        raise failure


def _prototypes(
    group: Sequence[ClassInfo], latents: LatentStore, origins: dict[int, list[str]], config: DistillConfig
) -> tuple[list[Prototypes], BadProblems | None]:
    """Return the prototypes of the classes before the first that cannot be clustered, and why that one cannot.

    A function of its own, so that the latents are freed when it returns.
    """
    stored = [latents.load(class_info.id) for class_info in group]
    flat = [rows.reshape(len(rows), -1) for _, rows in stored]
    large = [place for place, points in enumerate(flat) if len(points) >= config.ipc]
    clusterings, failure = _kmeans([flat[place] for place in large], [group[place].id for place in large], config)
    results = dict(zip(large, clusterings, strict=True))
    prototypes = []
    for place, (class_info, (ranks, rows), points) in enumerate(zip(group, stored, flat, strict=True)):
        if place not in results:
            names = [origins[class_info.id][rank] for rank in ranks]
            prototypes.append(_of_small_class(class_info, rows, names, config))
            continue
        result = results[place]
        if result is None:
            break
        centroids = result.centroids if config.prototype == "mean" else points[result.medoids].astype(np.float32)
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


def _kmeans(
    points: Sequence[np.ndarray], ids: Sequence[int], config: DistillConfig
) -> tuple[Sequence[KMeansResult | None], BadProblems | None]:
    """Cluster the classes' points; where some cannot be, return the others' results and the error."""
    if not points:
        return [], None
    if config.kmeans_on == "gpu":
        arrays: Sequence[Any] = [torch.tensor(x, device=config.device) for x in points]
    else:
        arrays = points
    try:
        return kmeans(arrays, config.ipc, ids=ids, method=config.kmeans, seed=config.seed, threads=config.threads), None
    except BadProblems as error:
        return error.results, error
