"""Prototypes to distilled images: noise, guided denoising, decoding; batches cross class borders inside a group.

The networks run in the caller's thread, one stream of the device for all of them. A thread before it makes the next
prototypes and their noise, and one behind it waits for the pixels and resizes them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice

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

AHEAD = 2  # batches of noised prototypes made before they are asked for


@dataclass(frozen=True, slots=True)
class Slot:
    """One image to make: the `index`-th prototype of its class."""

    prototypes: Prototypes
    index: int
    seed: int

    @property
    def name(self) -> tuple[ClassInfo, int]:
        """Its class, and its index in the class."""
        return self.prototypes.info, self.index


@dataclass(frozen=True, slots=True)
class Batch:
    """Images to make together.

    Attributes:
        slots: padded with the last one, so that every batch of a group has the same shape.
        noised: (B, C, h, w) float32 on the host.
        generators: of each slot, after its noise was drawn.
        real: how many are no padding.
        decode: of them at most to decode together.
    """

    slots: list[Slot]
    noised: torch.Tensor
    generators: list[torch.Generator]
    real: int
    decode: int


@dataclass(frozen=True, slots=True)
class Pixels:
    """A batch's images on their way to the host.

    Attributes:
        wait: gives them, (B, H, W, 3) uint8, once they are there.
        verify: waits likewise, and refuses images whose networks returned NaN or infinity.
    """

    batch: Batch
    wait: Callable[[], torch.Tensor]
    verify: Callable[[Sequence[tuple[ClassInfo, int]]], None]


class PromptTable:
    """Text embeddings, each distinct prompt encoded once."""

    def __init__(self, networks: Networks, negative_prompt: str) -> None:
        self._networks = networks
        self._negative = negative_prompt
        self._states: dict[str, torch.Tensor] = {}

    def __call__(self, images: Sequence[ClassInfo], guidance: float) -> torch.Tensor:
        """Hidden states (2B, tokens, width), negative prompts first; (B, ...) without guidance.

        Raises:
            NonFiniteError: the states of a prompt are not finite. This alone waits for the device: once per prompt.
        """
        negative = [self._negative] * len(images) * self._networks.unet.doubles(guidance)
        prompts = [*negative, *(info.prompt for info in images)]
        for prompt in dict.fromkeys(prompts):
            if prompt not in self._states:
                self._states[prompt] = self._encode(prompt, images)
        return torch.stack([self._states[prompt] for prompt in prompts])

    def _encode(self, prompt: str, images: Sequence[ClassInfo]) -> torch.Tensor:
        states = self._networks.text_encoder([prompt])[0]
        if not bool(states.isfinite().all()):
            folders = dict.fromkeys(info.folder for info in images if info.prompt == prompt)
            whose = f"class {', '.join(folders)}" if folders else "the negative prompt"
            raise NonFiniteError("text_encoder", f"{whose} ({prompt!r})")
        return states


def generate(
    prototypes: Stream[Prototypes],
    groups: Sequence[Group],
    networks: Networks,
    schedule: Schedule,
    config: DistillConfig,
    *,
    image_size: int,
    workers: Workers,
    watch: Stopwatch,
) -> Stream[Sample]:
    """One image per prototype, group by group, in the batches that each group names.

    Raises (from the stream):
        OutOfMemoryError: a batch does not fit the device; the samples of the batches before it come first.
        NonFiniteError: a network returned NaN or infinity; none of that batch's samples comes.
    """
    make = Maker(networks, PromptTable(networks, config.negative_prompt), schedule, config.guidance, watch)
    total = config.ipc * len(prototypes)
    count = sum(math.ceil(len(group.classes) * config.ipc / group.batch_size) for group in groups)
    noised = Stream(count, _batches(iter(prototypes), groups, schedule, config.seed, make.device))
    made = Stream(count, (make(batch) for batch in workers.ahead(noised, AHEAD, "prepare")))
    finished = workers.map(partial(_finish, image_size), made, threads=1, depth=1, name="resize")
    return Stream(total, (sample for samples in finished for sample in samples))


@dataclass(frozen=True)
class Maker:
    """What the device does for a batch."""

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
            parts = torch.split(latents, batch.decode)
            pixels = torch.cat([_to_bytes(self.networks.vae_decoder(part, check)) for part in parts])
            return Pixels(batch, to_host(pixels), check.read())


def _batches(
    prototypes: Iterator[Prototypes], groups: Sequence[Group], schedule: Schedule, seed: int, device: torch.device
) -> Iterator[Batch]:
    """A group's images in batches, and their noise; the next group's prototypes are made when they are asked for."""
    for group in groups:
        slots = [slot for p in islice(prototypes, len(group.classes)) for slot in _slots(p, seed)]
        for start in range(0, len(slots), group.batch_size):
            real = slots[start : start + group.batch_size]
            padded = [*real, *[real[-1]] * (group.batch_size - len(real))]
            noised, generators = _noised(padded, schedule, device)
            yield Batch(padded, noised, generators, len(real), group.decode_batch)


def _slots(p: Prototypes, seed: int) -> list[Slot]:
    return [Slot(p, index, derive_seed(seed, p.info.id, index, "generate")) for index in range(len(p.centroids))]


def _noised(
    slots: Sequence[Slot], schedule: Schedule, device: torch.device
) -> tuple[torch.Tensor, list[torch.Generator]]:
    """Prototypes sent up the noise schedule, each by its own random stream, and the streams as they are then."""
    clean = torch.from_numpy(np.stack([slot.prototypes.centroids[slot.index] for slot in slots]))
    noise = host_empty(tuple(clean.shape), torch.float32, device)
    generators = [torch.Generator().manual_seed(slot.seed) for slot in slots]
    for row, generator in zip(noise, generators, strict=True):
        torch.randn(row.shape, generator=generator, out=row)
    return noise.mul_(schedule.noise).add_(schedule.signal * clean), generators


def _to_bytes(pixels: torch.Tensor) -> torch.Tensor:
    """(B, 3, H, W) in [0, 1] to (B, H, W, 3) uint8."""
    return (pixels.permute(0, 2, 3, 1).float() * 255).round().to(torch.uint8).contiguous()


def _finish(image_size: int, pixels: Pixels) -> list[Sample]:
    slots = pixels.batch.slots[: pixels.batch.real]
    pixels.verify([slot.name for slot in slots])
    return [_sample(slot, row, image_size) for slot, row in zip(slots, pixels.wait().numpy(), strict=False)]


def _sample(slot: Slot, pixels: np.ndarray, image_size: int) -> Sample:
    if pixels.shape[0] != image_size:
        image = Image.fromarray(pixels).resize((image_size, image_size), Image.Resampling.BICUBIC)
        pixels = np.asarray(image)
    p, i = slot.prototypes, slot.index
    return Sample(p.info, i, slot.seed, int(p.sizes[i]), float(p.inertia_share[i]), p.nearest[i], pixels)
