"""Prototypes to distilled images: noise, guided denoising, decoding; batches cross class borders inside a group."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch
from PIL import Image

from d4m_fast.config import DistillConfig, derive_seed
from d4m_fast.data.plan import Group
from d4m_fast.data.records import Prototypes, Sample
from d4m_fast.data.stream import Stream
from d4m_fast.data.timing import Stopwatch
from d4m_fast.engine.networks import Networks, Unet
from d4m_fast.engine.schedule import Schedule


@dataclass(frozen=True, slots=True)
class Slot:
    """One image to make: the `index`-th prototype of its class."""

    prototypes: Prototypes
    index: int
    seed: int


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
    batch: int,
    image_size: int,
    watch: Stopwatch,
) -> Stream[Sample]:
    """One image per prototype, group by group; a group's last batch is padded, so every batch has the same shape."""
    prompts = PromptTable(networks, config.negative_prompt)

    def items() -> Iterator[Sample]:
        stream = iter(prototypes)
        for group in groups:
            slots = [slot for p in islice(stream, len(group.classes)) for slot in _slots(p, config.seed)]
            for start in range(0, len(slots), batch):
                real = slots[start : start + batch]
                pixels = _generate(
                    [*real, *[real[-1]] * (batch - len(real))], networks, prompts, schedule, config.guidance, watch
                )
                yield from (_sample(slot, row, image_size) for slot, row in zip(real, pixels, strict=False))

    return Stream(config.ipc * len(prototypes), items())


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
    for i, step in enumerate(schedule.steps):
        timestep = torch.tensor(step.timestep, device=noised.device)
        outputs[i] = unet(samples[i], timestep, *((states, guidance) if step.guided else (conditional, 1.0)))
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


def _slots(p: Prototypes, seed: int) -> list[Slot]:
    return [Slot(p, index, derive_seed(seed, p.info.id, index, "generate")) for index in range(len(p.centroids))]


def _generate(
    slots: Sequence[Slot],
    networks: Networks,
    prompts: PromptTable,
    schedule: Schedule,
    guidance: float,
    watch: Stopwatch,
) -> torch.Tensor:
    """Decoded pixels (B, H, W, 3) in [0, 1] on the host."""
    runtime = networks.unet.runtime
    with watch("text"):
        states = prompts([slot.prototypes.info.prompt for slot in slots], guidance)
    with watch("denoise"):
        latents = denoise(_noised(slots, schedule).to(runtime.device), states, networks.unet, schedule, guidance)
    with watch("decode"):
        return networks.vae_decoder(latents).permute(0, 2, 3, 1).float().cpu()


def _noised(slots: Sequence[Slot], schedule: Schedule) -> torch.Tensor:
    """Prototypes sent up the noise schedule, each by its own random stream."""
    clean = torch.from_numpy(np.stack([slot.prototypes.centroids[slot.index] for slot in slots]))
    generator = torch.Generator()
    noise = [torch.randn(clean.shape[1:], generator=generator.manual_seed(slot.seed)) for slot in slots]
    return schedule.signal * clean + schedule.noise * torch.stack(noise)


def _sample(slot: Slot, pixels: torch.Tensor, image_size: int) -> Sample:
    array = (pixels * 255).round().to(torch.uint8).numpy()
    if array.shape[0] != image_size:
        array = np.asarray(Image.fromarray(array).resize((image_size, image_size), Image.Resampling.BICUBIC))
    p, i = slot.prototypes, slot.index
    return Sample(p.info, i, slot.seed, int(p.sizes[i]), float(p.inertia_share[i]), p.nearest[i], array)
