"""Prototypes to distilled images: noise, guided denoising, decoding; a batch may hold several classes of its group.

The networks run in the caller's thread, on one stream of the device. One thread ahead of it makes the next prototypes
and their noise, and one behind it waits for the pixels and resizes them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain, islice

import numpy as np
import torch
from PIL import Image

from d4m_fast.config.distill import DistillConfig
from d4m_fast.engine.denoise import denoise
from d4m_fast.engine.finite import FiniteCheck
from d4m_fast.engine.memory import fitting, host_empty, to_device, to_host
from d4m_fast.engine.networks import Networks
from d4m_fast.engine.schedule import Schedule
from d4m_fast.errors import NonFiniteError
from d4m_fast.fingerprints import derive_seed
from d4m_fast.flow.stopwatch import Stopwatch
from d4m_fast.flow.stream import Stream
from d4m_fast.flow.workers import Workers
from d4m_fast.runs.plan import Group
from d4m_fast.runs.records import Prototypes, Sample
from d4m_fast.sources.records import ClassInfo

# Batches of noised prototypes that a thread makes ahead, while the device computes.
AHEAD = 2


@dataclass(frozen=True, slots=True)
class Slot:
    """Place of an image to make: the `index`-th prototype of its class."""

    prototypes: Prototypes
    index: int
    seed: int

    @property
    def name(self) -> tuple[ClassInfo, int]:
        """The image's class, and its index in the class."""
        return self.prototypes.info, self.index


@dataclass(frozen=True, slots=True)
class Batch:
    """Images to make together.

    Attributes:
        slots: padded with the last one, so that every batch of a group has the same shape.
        noised: (B, C, h, w) float32 on the host.
        generators: each slot's, after its noise was drawn.
        unpadded: number of slots without the padding.
        decode_batch: most images to decode together.
    """

    slots: list[Slot]
    noised: torch.Tensor
    generators: list[torch.Generator]
    unpadded: int
    decode_batch: int


@dataclass(frozen=True, slots=True)
class Pixels:
    """A batch's images on their way to the host.

    Attributes:
        wait: waits for them and returns them, (B, H, W, 3) uint8.
        verify: waits likewise, and refuses images for which a network returned NaN or infinity.
    """

    batch: Batch
    wait: Callable[[], torch.Tensor]
    verify: Callable[[Sequence[tuple[ClassInfo, int]]], None]


class PromptTable:
    """Text embeddings of prompts, each distinct one encoded once."""

    def __init__(self, networks: Networks, negative_prompt: str) -> None:
        self._networks = networks
        self._negative = negative_prompt
        self._states: dict[str, torch.Tensor] = {}

    def __call__(self, images: Sequence[ClassInfo], guidance: float) -> torch.Tensor:
        """Return hidden states (2B, tokens, width), the negative prompts' first; (B, ...) without guidance.

        Raises:
            NonFiniteError: the states of a prompt are not finite. This alone waits for the device: once per prompt.
        """
        prompts = [class_info.prompt for class_info in images]
        if self._networks.unet.doubles(guidance):
            prompts = [self._negative] * len(images) + prompts
        for prompt in dict.fromkeys(prompts):
            if prompt in self._states:
                continue
            states = self._networks.text_encoder([prompt])[0]
            if not bool(states.isfinite().all()):
                folders = dict.fromkeys(class_info.folder for class_info in images if class_info.prompt == prompt)
                owner = f"class {', '.join(folders)}" if folders else "the negative prompt"
                raise NonFiniteError("text_encoder", f"{owner} ({prompt!r})")
            self._states[prompt] = states
        return torch.stack([self._states[prompt] for prompt in prompts])


def generate(
    prototypes: Stream[Prototypes],
    groups: Iterable[Group],
    networks: Networks,
    schedule: Schedule,
    config: DistillConfig,
    *,
    image_size: int,
    workers: Workers,
    watch: Stopwatch,
) -> Stream[Sample]:
    """Yield one image for each prototype, group by group, in batches of the size that each group names.

    Groups and prototypes are asked for a batch or two before the device needs them, each group before the prototypes of
    its classes; there may be fewer of them than the length of `prototypes` says.

    Raises (from the stream):
        OutOfMemoryError: a batch does not fit the device; the samples of the batches before it come first.
        NonFiniteError: a network returned NaN or infinity; no sample of that batch is yielded.
    """
    make = Maker(networks, PromptTable(networks, config.negative_prompt), schedule, config.guidance, watch)
    count = config.ipc * len(prototypes)  # of images, and so of batches at most
    batches = Stream(count, _batches(iter(prototypes), groups, schedule, config.seed, make.device))
    pixels = Stream(count, map(make, workers.ahead(batches, AHEAD, "prepare")))
    samples = workers.map(partial(_finish, image_size), pixels, threads=1, depth=1, name="resize")
    return Stream(count, chain.from_iterable(samples))


@dataclass(frozen=True)
class Maker:
    """The device's part in making a batch of images."""

    networks: Networks
    prompts: PromptTable
    schedule: Schedule
    guidance: float
    watch: Stopwatch

    @property
    def device(self) -> torch.device:
        return self.networks.unet.runtime.device

    def __call__(self, batch: Batch) -> Pixels:
        check = FiniteCheck()
        with fitting("denoise"), self.watch("text"):
            states = self.prompts([slot.prototypes.info for slot in batch.slots], self.guidance)
        with fitting("denoise"), self.watch("denoise"):
            noised = to_device(batch.noised, self.device)
            latents = denoise(
                noised,
                states,
                self.networks.unet,
                self.schedule,
                self.guidance,
                generators=batch.generators,
                check=check,
            )
        with fitting("decode"), self.watch("decode"):
            decoder = self.networks.vae_decoder
            pixels = [to_bytes(decoder(latent, check)) for latent in torch.split(latents, batch.decode_batch)]
            return Pixels(batch, to_host(torch.cat(pixels)), check.read())


def _batches(
    prototypes: Iterator[Prototypes], groups: Iterable[Group], schedule: Schedule, seed: int, device: torch.device
) -> Iterator[Batch]:
    """Yield a group's images in batches, with their noise; the next group's prototypes are made when it is its turn."""
    for group in groups:
        slots = list[Slot]()
        for of_class in islice(prototypes, len(group.classes)):
            for index in range(len(of_class.centroids)):
                slots.append(Slot(of_class, index, derive_seed(seed, of_class.info.id, index, "generate")))
        for start in range(0, len(slots), group.batch_size):
            unpadded = slots[start : start + group.batch_size]
            padded = unpadded + [unpadded[-1]] * (group.batch_size - len(unpadded))
            noised, generators = _add_noise(padded, schedule, device)
            yield Batch(padded, noised, generators, len(unpadded), group.decode_batch)


def _add_noise(
    slots: Sequence[Slot], schedule: Schedule, device: torch.device
) -> tuple[torch.Tensor, list[torch.Generator]]:
    """Return x_0 of each prototype, drawn from a generator of its own, and the generators in their state after that."""
    clean = torch.from_numpy(np.stack([slot.prototypes.centroids[slot.index] for slot in slots]))
    noise = host_empty(tuple(clean.shape), torch.float32, device)
    generators = [torch.Generator().manual_seed(slot.seed) for slot in slots]
    for row, generator in zip(noise, generators, strict=True):
        torch.randn(row.shape, generator=generator, out=row)
    # In place, because this memory is page-locked, and on the host, because its bits do not depend on the device then.
    return noise.mul_(schedule.noise).add_(schedule.signal * clean), generators


def to_bytes(pixels: torch.Tensor) -> torch.Tensor:
    """Convert (B, 3, H, W) in [0, 1] to (B, H, W, 3) uint8."""
    return (pixels.permute(0, 2, 3, 1).float() * 255).round().to(torch.uint8).contiguous()


def resized(pixels: np.ndarray, image_size: int) -> np.ndarray:
    """Return a square image (H, H, 3) uint8 at the size of the written images."""
    if pixels.shape[0] == image_size:
        return pixels
    return np.asarray(Image.fromarray(pixels).resize((image_size, image_size), Image.Resampling.BICUBIC))


def _finish(image_size: int, pixels: Pixels) -> list[Sample]:
    """Wait for a batch's pixels, check them, and drop the padding."""
    slots = pixels.batch.slots[: pixels.batch.unpadded]
    pixels.verify([slot.name for slot in slots])
    samples = list[Sample]()
    for slot, image in zip(slots, pixels.wait().numpy(), strict=False):  # the padding comes last
        of_class, index = slot.prototypes, slot.index
        size, share = int(of_class.sizes[index]), float(of_class.inertia_share[index])
        fields = (of_class.info, index, slot.seed, size, share, of_class.nearest[index], resized(image, image_size))
        samples.append(Sample(*fields, class_images=of_class.class_images))
    return samples
