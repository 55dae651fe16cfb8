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
from d4m_fast.engine.schedule import Schedule
from d4m_fast.engine.signature import COMPONENTS, Component
from d4m_fast.errors import DataError
from d4m_fast.flow.stopwatch import Stopwatch
from d4m_fast.flow.stream import Stream
from d4m_fast.flow.workers import Workers
from d4m_fast.kernels.kmeans import kmeans
from d4m_fast.runs.plan import Group
from d4m_fast.runs.records import Prototypes
from d4m_fast.sources.records import ClassInfo, Item, Source, by_class

IMAGES_PER_PROTOTYPE = 4


@dataclass(frozen=True)
class Few:
    """Some of a source's images."""

    classes: Sequence[ClassInfo]
    items: Sequence[Item]
    source: Source
    fingerprint: str = ""

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
    """What PyTorch was asked, and what came of it.

    Attributes:
        calls: inputs of every call of every network, in order.
        images: the final images, (N, H, W, 3) uint8.
    """

    prototypes: list[Prototypes]
    calls: dict[Component, list[Tensors]]
    images: np.ndarray


def probe(
    source: Source, networks: Networks, schedule: Schedule, *, resolution: int, count: int, batch: int, guidance: float
) -> Probe:
    """Distill `count` images of real prototypes and record every call on the way.

    Raises:
        DataError: the source has too few images.
    """
    recorders: dict[Component, Recorder] = {}

    def record(component: Component) -> Recorder:
        recorders[component] = Recorder(networks.runtime(component))
        return recorders[component]

    recorded = networks.with_runtimes(record)
    prototypes = _prototypes(source, recorded, resolution, count)
    images = final_images(prototypes, recorded, schedule, resolution=resolution, batch=batch, guidance=guidance)
    return Probe(prototypes, {c: recorders[c].calls for c in COMPONENTS}, images)


def final_images(
    prototypes: Sequence[Prototypes],
    networks: Networks,
    schedule: Schedule,
    *,
    resolution: int,
    batch: int,
    guidance: float,
) -> np.ndarray:
    """What `distill` would write: (N, H, W, 3) uint8."""
    watch = Stopwatch()
    with Workers(watch) as workers:
        samples = generate(
            Stream(len(prototypes), prototypes),
            [Group(0, tuple(p.info.id for p in prototypes), batch, batch)],
            networks,
            schedule,
            DistillConfig(guidance=guidance),
            image_size=resolution,
            workers=workers,
            watch=watch,
        )
        return np.stack([sample.pixels for sample in samples])


def _prototypes(source: Source, networks: Networks, resolution: int, count: int) -> list[Prototypes]:
    """`count` cluster means, spread over the first classes."""
    classes = source.classes[:count]
    per_class = math.ceil(count / len(classes))
    grouped = by_class(source.items)
    found: list[Prototypes] = []
    for info in classes:
        k = min(per_class, count - sum(len(p.centroids) for p in found))
        items = grouped.get(info.id, [])[: IMAGES_PER_PROTOTYPE * k]
        if k > 0:
            found.append(_cluster(info, Few([info], items, source), networks, resolution, k))
    return found


def _cluster(info: ClassInfo, few: Few, networks: Networks, resolution: int, k: int) -> Prototypes:
    batch = max(1, len(few.items))
    with Workers(Stopwatch()) as workers:
        encoder = networks.vae_encoder
        batches = list(encode(few, encoder, resolution=resolution, draw=None, batch=batch, workers=workers))
    origins = [item.origin for encoded in batches for item in encoded.items]
    if len(origins) < k:
        raise DataError(f"class {info.folder}: {len(origins)} usable images, {k} are needed to compare engines on")
    latents = np.concatenate([encoded.latents for encoded in batches])
    (result,) = kmeans([latents.reshape(len(latents), -1)], k, ids=[info.id])
    centroids = result.centroids.reshape(k, *latents.shape[1:])
    return Prototypes(info, centroids, result.sizes, np.zeros(k), tuple(origins[i] for i in result.medoids))
