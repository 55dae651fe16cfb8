"""Real inputs to compare runtimes on: images, their latents' prototypes, and every call of a denoising run."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image

from d4m_fast.config.distill import DistillConfig
from d4m_fast.engine.encode import encode
from d4m_fast.engine.generate import generate
from d4m_fast.engine.networks import Networks
from d4m_fast.engine.runtime import Runtime, Tensors
from d4m_fast.engine.signature import COMPONENTS, Component
from d4m_fast.errors import DataError
from d4m_fast.export.workload import GUIDANCE, Workload
from d4m_fast.flow.stopwatch import Stopwatch
from d4m_fast.flow.stream import Stream
from d4m_fast.flow.workers import Workers
from d4m_fast.kernels.kmeans import kmeans
from d4m_fast.runs.plan import Group
from d4m_fast.runs.records import Prototypes
from d4m_fast.sources.records import ClassInfo, Item, Source, by_class

IMAGES_PER_PROTOTYPE = 4


@dataclass(frozen=True)
class ImageSubset:
    """Some of a source's images, as a source of their own."""

    classes: Sequence[ClassInfo]
    items: Sequence[Item]
    source: Source
    fingerprint: str = ""

    @property
    def kind(self) -> str:
        return self.source.kind

    @property
    def notes(self) -> Sequence[str]:
        return self.source.notes

    def read(self, item: Item) -> Image.Image:
        return self.source.read(item)


class Recorder:
    """A runtime that keeps the inputs it was called with."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self.calls: list[Tensors] = []
        self.device, self.dtype = runtime.device, runtime.dtype

    def __call__(self, inputs: Mapping[str, torch.Tensor]) -> Tensors:
        self.calls.append(dict(inputs))
        return self._runtime(inputs)


@dataclass(frozen=True)
class Probe:
    """A workload as PyTorch computed it.

    Attributes:
        calls: inputs of every call of every network, in order.
        images: the final images, (N, H, W, 3) uint8.
    """

    prototypes: list[Prototypes]
    calls: dict[Component, list[Tensors]]
    images: np.ndarray


def record_probe(workload: Workload, networks: Networks, images: int) -> Probe:
    """Distill so many images of real prototypes, in one batch, and record every call on the way.

    Raises:
        DataError: the source has too few images.
    """
    recorders: dict[Component, Recorder] = {}

    def record(component: Component) -> Recorder:
        recorders[component] = Recorder(networks.runtime(component))
        return recorders[component]

    recorded = networks.with_runtimes(record)
    prototypes = _prototypes(workload, recorded, images)
    pixels = final_images(workload, prototypes, recorded, batch=images)
    return Probe(prototypes, {component: recorders[component].calls for component in COMPONENTS}, pixels)


def final_images(workload: Workload, prototypes: Sequence[Prototypes], networks: Networks, *, batch: int) -> np.ndarray:
    """Return the images that `distill` would write: (N, H, W, 3) uint8."""
    watch = Stopwatch()
    class_ids = tuple(prototype.info.id for prototype in prototypes)
    with Workers(watch) as workers:
        samples = generate(
            Stream(len(prototypes), prototypes),
            [Group(0, class_ids, batch, batch)],
            networks,
            workload.schedule,
            DistillConfig(guidance=GUIDANCE),
            image_size=workload.resolution,
            workers=workers,
            watch=watch,
        )
        return np.stack([sample.pixels for sample in samples])


def _prototypes(workload: Workload, networks: Networks, count: int) -> list[Prototypes]:
    """Return `count` cluster means, spread over the first classes."""
    classes = workload.source.classes[:count]
    per_class = math.ceil(count / len(classes))
    grouped = by_class(workload.source.items)
    prototypes: list[Prototypes] = []
    remaining = count
    for class_info in classes:
        k = min(per_class, remaining)
        items = grouped.get(class_info.id, [])[: IMAGES_PER_PROTOTYPE * k]
        if k > 0:
            subset = ImageSubset([class_info], items, workload.source)
            prototypes.append(_cluster(class_info, subset, networks, workload.resolution, k))
            remaining -= k
    return prototypes


def _cluster(class_info: ClassInfo, images: ImageSubset, networks: Networks, resolution: int, k: int) -> Prototypes:
    batch = max(1, len(images.items))
    with Workers(Stopwatch()) as workers:
        # Means of the latents, draw=None, so that no random numbers enter the comparison.
        encoder = networks.vae_encoder
        batches = list(encode(images, encoder, resolution=resolution, draw=None, batch=batch, workers=workers))
    origins: list[str] = []
    for encoded in batches:
        origins += (item.origin for item in encoded.items)
    if len(origins) < k:
        raise DataError(
            f"class {class_info.folder}: {len(origins)} usable images, {k} are needed to compare engines on"
        )
    latents = np.concatenate([encoded.latents for encoded in batches])
    (result,) = kmeans([latents.reshape(len(latents), -1)], k, ids=[class_info.id])
    centroids = result.centroids.reshape(k, *latents.shape[1:])
    return Prototypes(class_info, centroids, result.sizes, np.zeros(k), tuple(origins[i] for i in result.medoids))
