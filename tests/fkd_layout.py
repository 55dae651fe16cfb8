"""Labels as SRe2L stores and replays them, written after its relabel/ and validate/ with torchvision's own parts."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, RandomSampler
from torchvision.datasets import ImageFolder
from torchvision.transforms import InterpolationMode, RandomResizedCrop
from torchvision.transforms import functional as F

SIDE = 32  # of the files and of what is cut from them
CLASSES = ("cyan", "green", "red")


def write_images(root: Path, per_class: int, seed: int = 0, classes: tuple[str, ...] = CLASSES) -> Path:
    """Class folders of coloured noise, with names that do not sort as they were written."""
    generator = np.random.default_rng(seed)
    for channel, name in enumerate(classes):
        (root / name).mkdir(parents=True)
        for number in range(per_class):
            pixels = generator.integers(0, 120, (SIDE, SIDE, 3), np.uint8)
            pixels[..., channel] += 120
            Image.fromarray(pixels).save(root / name / f"{number}.png")
    return root


def teacher(pixels: torch.Tensor) -> torch.Tensor:
    """Logits of the three colours."""
    return 30 * pixels.mean((2, 3))


class _Recorded(ImageFolder):  # type: ignore[misc]
    """Images with how they were cropped and flipped: drawn now, or as a batch's file has it."""

    replayed: Iterator[tuple[torch.Tensor, torch.Tensor]] | None = None

    def __getitem__(self, index: int) -> Any:
        image = self.loader(self.samples[index][0])
        width, height = image.size
        if self.replayed is None:
            i, j, h, w = RandomResizedCrop.get_params(image, [0.08, 1.0], [3 / 4, 4 / 3])
            coords = torch.tensor((i / height, j / width, h / height, w / width))
            flip = bool(torch.rand(1) < 0.5)
            box: Any = (i, j, h, w)
        else:
            coords, status = next(self.replayed)
            flip = bool(status)
            box = tuple(share.item() * length for share, length in zip(coords, (height, width) * 2, strict=True))
        image = F.resized_crop(image, *box, [SIDE, SIDE], InterpolationMode.BILINEAR)
        return F.to_tensor(F.hflip(image) if flip else image), flip, coords


def _loader(dataset: _Recorded, batch: int) -> DataLoader[Any]:
    sampler = RandomSampler(dataset, generator=torch.Generator().manual_seed(42))
    return DataLoader(dataset, batch_size=batch, sampler=sampler)


def _box(lam: float) -> list[Any]:
    cut = int(SIDE * np.sqrt(1.0 - lam))
    x, y = np.random.randint(SIDE), np.random.randint(SIDE)
    low, high = (np.clip(np.array([x, y]) + sign * (cut // 2), 0, SIDE) for sign in (-1, 1))
    return [*low, *high]  # NumPy's integers, as they are stored


def _pasted(images: torch.Tensor, partners: torch.Tensor, box: list[Any]) -> torch.Tensor:
    x1, y1, x2, y2 = box
    images[:, :, x1:x2, y1:y2] = images[partners, :, x1:x2, y1:y2]
    return images


def write_fkd(
    root: Path,
    images: Path,
    epochs: int,
    batch: int,
    label: Callable[[torch.Tensor], torch.Tensor] = teacher,
    *,
    mixes: bool = True,
) -> Path:
    """The relabel loop, with --mix-type cutmix --use-fp16, or without mixing."""
    loader = _loader(_Recorded(str(images)), batch)
    for epoch in range(epochs):
        folder = root / f"epoch_{epoch}"
        folder.mkdir(parents=True)
        for number, (pixels, flips, coords) in enumerate(loader):
            mix: list[Any] = [None, None, None]
            if mixes:
                lam = np.random.beta(1.0, 1.0)
                mix = [torch.randperm(len(pixels)), lam, _box(lam)]
                pixels = _pasted(pixels, mix[0], mix[2])
            torch.save([coords, flips, *mix, label(pixels).half()], folder / f"batch_{number}.tar")
    return root


def replay_fkd(root: Path, images: Path, epochs: int, batch: int) -> Iterator[list[tuple[torch.Tensor, torch.Tensor]]]:
    """The validate loop: an epoch's batches of pixels and logits."""
    dataset = _Recorded(str(images))
    # The file of a batch is known before its images are read, as in the patched fetcher.
    for epoch, order in zip(range(epochs), _orders(len(dataset)), strict=False):
        batches = []
        for number, rows in enumerate(torch.split(order, batch)):
            stored = torch.load(root / f"epoch_{epoch}" / f"batch_{number}.tar", weights_only=False)
            coords, flips, partners, _, box, logits = stored
            dataset.replayed = iter(zip(coords, flips, strict=True))
            pixels = torch.stack([dataset[index][0] for index in rows.tolist()])
            batches.append((pixels if partners is None else _pasted(pixels, partners, box), logits))
        yield batches


def _orders(n: int) -> Iterator[torch.Tensor]:
    sampler = RandomSampler(range(n), generator=torch.Generator().manual_seed(42))
    while True:
        yield torch.tensor(list(sampler))
