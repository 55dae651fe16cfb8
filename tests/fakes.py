"""Image sets made in memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from PIL import Image

from d4m_fast.evaluation.images import ImageSet
from d4m_fast.sources.records import ClassInfo, Item


@dataclass(frozen=True)
class MemorySource:
    """Flat-coloured images: class i is grey level 10 i, rank r adds r."""

    classes: Sequence[ClassInfo]
    items: Sequence[Item]
    side: int
    fingerprint: str = "memory"
    kind: str = "images in memory"
    notes: Sequence[str] = ()

    def read(self, item: Item) -> Image.Image:
        return Image.new("RGB", (self.side, self.side), (10 * item.class_id + item.rank,) * 3)


def make_source(folders: Sequence[str], sizes: Sequence[int], side: int = 32) -> MemorySource:
    classes = [ClassInfo(i, folder, folder) for i, folder in enumerate(folders)]
    items = [Item(i, rank, f"{folders[i]}/{rank}") for i, size in enumerate(sizes) for rank in range(size)]
    return MemorySource(classes, items, side)


def stripes(per_class: int, seed: int, side: int = 16) -> ImageSet:
    """Two separable classes, horizontal and vertical stripes of random phase, under noise."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(2).repeat(per_class)
    phase = torch.randint(0, 4, (len(labels), 1, 1), generator=generator)
    wave = ((torch.arange(side).view(1, 1, -1) + phase) % 4 < 2).float().expand(-1, side, -1)
    wave = torch.where(labels.view(-1, 1, 1) == 1, wave, wave.transpose(1, 2))
    noise = 60 * torch.rand(len(labels), 3, side, side, generator=generator)
    return ImageSet((wave.unsqueeze(1) * 180 + noise).to(torch.uint8), labels)
