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

SIDE = 32  # of the files that are written here; what is cut from a file has its side
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
        image = F.resized_crop(image, *box, [height, width], InterpolationMode.BILINEAR)
        return F.to_tensor(F.hflip(image) if flip else image), flip, coords


def _box(side: int, lam: float) -> list[Any]:
    cut = int(side * np.sqrt(1.0 - lam))
    x, y = np.random.randint(side), np.random.randint(side)
    low, high = (np.clip(np.array([x, y]) + sign * (cut // 2), 0, side) for sign in (-1, 1))
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
    dataset = _Recorded(str(images))
    sampler = RandomSampler(dataset, generator=torch.Generator().manual_seed(42))
    loader: DataLoader[Any] = DataLoader(dataset, batch_size=batch, sampler=sampler)
    for epoch in range(epochs):
        folder = root / f"epoch_{epoch}"
        folder.mkdir(parents=True)
        for number, (pixels, flips, coords) in enumerate(loader):
            mix: list[Any] = [None, None, None]
            if mixes:
                lam = np.random.beta(1.0, 1.0)
                mix = [torch.randperm(len(pixels)), lam, _box(pixels.shape[-1], lam)]
                pixels = _pasted(pixels, mix[0], mix[2])
            torch.save([coords, flips, *mix, label(pixels).half()], folder / f"batch_{number}.tar")
    return root


class _LabelledBatches:
    """Batches of places, before each of which its file is read: what the patched fetcher of DataLoader does."""

    def __init__(self, folder: Path, dataset: _Recorded, order: torch.Tensor, batch: int) -> None:
        self.folder, self.dataset, self.batches = folder, dataset, torch.split(order, batch)
        self.mix: Any = None

    def __iter__(self) -> Iterator[list[int]]:
        for number, places in enumerate(self.batches):
            stored = torch.load(self.folder / f"batch_{number}.tar", weights_only=False)
            coords, flips, *self.mix = stored
            self.dataset.replayed = iter(zip(coords, flips, strict=True))
            yield places.tolist()


def replay_fkd(root: Path, images: Path, batch: int) -> Iterator[Iterator[tuple[torch.Tensor, torch.Tensor]]]:
    """The validate loop: for each epoch its batches of pixels and logits."""
    dataset = _Recorded(str(images))
    sampler = RandomSampler(range(len(dataset)), generator=torch.Generator().manual_seed(42))
    for epoch in range(len(list(root.iterdir()))):
        yield _replay_epoch(_LabelledBatches(root / f"epoch_{epoch}", dataset, torch.tensor(list(sampler)), batch))


def _replay_epoch(batches: _LabelledBatches) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    loader: Any = DataLoader(batches.dataset, batch_sampler=batches)
    for pixels, _, _ in loader:
        partners, _, box, logits = batches.mix
        yield pixels if partners is None else _pasted(pixels, partners, box), logits
