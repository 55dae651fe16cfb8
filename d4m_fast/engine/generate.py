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

from d4m_fast.config import DistillConfig, derive_seed
from d4m_fast.data.plan import Group
from d4m_fast.data.records import Prototypes, Sample
from d4m_fast.data.stream import Stream
from d4m_fast.data.timing import Stopwatch
from d4m_fast.data.workers import Workers
from d4m_fast.engine.memory import fitting, host_empty, to_device, to_host
from d4m_fast.engine.networks import Networks, Unet
from d4m_fast.engine.schedule import Schedule

AHEAD = 2  # batches of noised prototypes made before they are asked for


@dataclass(frozen=True, slots=True)
class Slot:
    """One image to make: the `index`-th prototype of its class."""

    prototypes: Prototypes
    index: int
    seed: int


@dataclass(frozen=True, slots=True)
class Batch:
    """Images to make together.

    Attributes:
        slots: padded with the last one, so that every batch of a group has the same shape.
        noised: (B, C, h, w) float32 on the host.
        real: how many are no padding.
        decode: of them at most to decode together.
    """

    slots: list[Slot]
    noised: torch.Tensor
    real: int
    decode: int


class PromptTable:
    """Text embeddings, each distinct prompt encoded once."""

    def __init__(self, networks: Networks, negative_prompt: str) -> None:
        self._networks = networks
        self._negative = negative_prompt
        self._states: dict[str, torch.Tensor] = {}

    def __call__(self, prompts: Sequence[str], guidance: float) -> torch.Tensor:
        """Hidden states (2B, tokens, width), negative prompts first; (B, ...) without guidance."""
        wanted = [self._negative] * len(prompts) * (guidance > 1) + list(prompts)
        for prompt in dict.fromkeys(wanted):
            if prompt not in self._states:
                self._states[prompt] = self._networks.text_encoder([prompt])[0]
        return torch.stack([self._states[prompt] for prompt in wanted])


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
    """
    make = Maker(networks, PromptTable(networks, config.negative_prompt), schedule, config.guidance, watch)
    total = config.ipc * len(prototypes)
    count = sum(math.ceil(len(group.classes) * config.ipc / group.batch_size) for group in groups)
    noised = Stream(count, _batches(iter(prototypes), groups, schedule, config.seed, make.device))
    made = Stream(count, ((batch, make(batch)) for batch in workers.ahead(noised, AHEAD, "prepare")))
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

    def __call__(self, batch: Batch) -> Callable[[], torch.Tensor]:
        """Pixels (B, H, W, 3) uint8, on their way to the host."""
        with fitting("denoise"), self.watch("text"):
            states = self.prompts([slot.prototypes.info.prompt for slot in batch.slots], self.guidance)
        with fitting("denoise"), self.watch("denoise"):
            noised = to_device(batch.noised, self.device)
            latents = denoise(noised, states, self.networks.unet, self.schedule, self.guidance)
        with fitting("decode"), self.watch("decode"):
            parts = torch.split(latents, batch.decode)
            return to_host(torch.cat([_to_bytes(self.networks.vae_decoder(part)) for part in parts]))


@torch.inference_mode()
def denoise(
    noised: torch.Tensor, states: torch.Tensor, unet: Unet, schedule: Schedule, guidance: float
) -> torch.Tensor:
    """Run a schedule's steps on x_0 = `noised` (B, C, h, w); returns x_S, clean and scaled.

    `states` are those of a guided call; a step without guidance runs on their conditional half, `noised`'s size.
    """
    samples, outputs = {0: noised}, {}
    conditional = states[-len(noised) :]
    sample_uses, output_uses = schedule.last_use()
    timesteps = _timesteps(schedule, noised.device)
    for i, step in enumerate(schedule.steps):
        guided = (states, guidance) if step.guided else (conditional, 1.0)
        outputs[i] = unet(samples[i], timesteps[i], *guided)
        terms = [(c, samples[j]) for j, c in step.samples] + [(c, outputs[j]) for j, c in step.outputs]
        samples[i + 1] = _combine(terms)
        samples = {j: x for j, x in samples.items() if j == i + 1 or sample_uses.get(j, -1) > i}
        outputs = {j: e for j, e in outputs.items() if output_uses.get(j, -1) > i}
    return samples[len(schedule.steps)]


def _combine(terms: Sequence[tuple[float, torch.Tensor]]) -> torch.Tensor:
    total = torch.zeros_like(terms[0][1])
    for coefficient, tensor in terms:
        total = torch.add(total, tensor, alpha=coefficient)
    return total


def _timesteps(schedule: Schedule, device: torch.device) -> torch.Tensor:
    """All at once, so that no step waits for a copy of its own."""
    timesteps = host_empty((len(schedule.steps),), torch.int64, device)
    for i, step in enumerate(schedule.steps):
        timesteps[i] = step.timestep
    return to_device(timesteps, device)


def _batches(
    prototypes: Iterator[Prototypes], groups: Sequence[Group], schedule: Schedule, seed: int, device: torch.device
) -> Iterator[Batch]:
    """A group's images in batches, and their noise; the next group's prototypes are made when they are asked for."""
    for group in groups:
        slots = [slot for p in islice(prototypes, len(group.classes)) for slot in _slots(p, seed)]
        for start in range(0, len(slots), group.batch_size):
            real = slots[start : start + group.batch_size]
            padded = [*real, *[real[-1]] * (group.batch_size - len(real))]
            yield Batch(padded, _noised(padded, schedule, device), len(real), group.decode_batch)


def _slots(p: Prototypes, seed: int) -> list[Slot]:
    return [Slot(p, index, derive_seed(seed, p.info.id, index, "generate")) for index in range(len(p.centroids))]


def _noised(slots: Sequence[Slot], schedule: Schedule, device: torch.device) -> torch.Tensor:
    """Prototypes sent up the noise schedule, each by its own random stream."""
    clean = torch.from_numpy(np.stack([slot.prototypes.centroids[slot.index] for slot in slots]))
    noise, generator = host_empty(tuple(clean.shape), torch.float32, device), torch.Generator()
    for row, slot in zip(noise, slots, strict=True):
        torch.randn(row.shape, generator=generator.manual_seed(slot.seed), out=row)
    return noise.mul_(schedule.noise).add_(schedule.signal * clean)


def _to_bytes(pixels: torch.Tensor) -> torch.Tensor:
    """(B, 3, H, W) in [0, 1] to (B, H, W, 3) uint8."""
    return (pixels.permute(0, 2, 3, 1).float() * 255).round().to(torch.uint8).contiguous()


def _finish(image_size: int, made: tuple[Batch, Callable[[], torch.Tensor]]) -> list[Sample]:
    batch, wait = made
    pixels = wait().numpy()
    return [_sample(slot, row, image_size) for slot, row in zip(batch.slots[: batch.real], pixels, strict=False)]


def _sample(slot: Slot, pixels: np.ndarray, image_size: int) -> Sample:
    if pixels.shape[0] != image_size:
        image = Image.fromarray(pixels).resize((image_size, image_size), Image.Resampling.BICUBIC)
        pixels = np.asarray(image)
    p, i = slot.prototypes, slot.index
    return Sample(p.info, i, slot.seed, int(p.sizes[i]), float(p.inertia_share[i]), p.nearest[i], pixels)
