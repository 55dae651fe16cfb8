"""Whole image sets in memory, labelled by the test set's class ids."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image

from d4m_fast.errors import DataError
from d4m_fast.fingerprints import derive_seed
from d4m_fast.sources.records import Item, Source


@dataclass(frozen=True, slots=True, eq=False)
class ImageSet:
    """Images and their classes.

    Attributes:
        images: (N, 3, S, S) uint8.
        labels: (N,) int64 class ids.
    """

    images: torch.Tensor
    labels: torch.Tensor


def load_images(
    source: Source, size: int, items: Sequence[Item] | None = None, ids: Mapping[int, int] | None = None
) -> ImageSet:
    """Read images, resized to (size, size) by Pillow's bicubic filter only where the size differs.

    Args:
        items: what to read, in this order; the whole source when omitted.
        ids: the label of each class id of the source; the id itself when omitted.

    Raises:
        DataError: an image is damaged, or there are none.
    """
    chosen = source.items if items is None else items
    if not chosen:
        raise DataError("no images to load: the set is empty")
    pixels = torch.empty(len(chosen), 3, size, size, dtype=torch.uint8)
    for row, item in zip(pixels, chosen, strict=True):
        row.copy_(_pixels(source.read(item), size))
    labels = [item.class_id if ids is None else ids[item.class_id] for item in chosen]
    return ImageSet(pixels, torch.tensor(labels, dtype=torch.int64))


def _pixels(image: Image.Image, size: int) -> torch.Tensor:
    if image.size != (size, size):
        image = image.resize((size, size), Image.Resampling.BICUBIC)
    return torch.from_numpy(np.array(image, np.uint8)).permute(2, 0, 1)


def match_classes(source: Source, reference: Source) -> dict[int, int]:
    """The id in `reference` of each class id of `source`, found by folder name.

    Raises:
        DataError: a folder of `source` has no match; the message names the first.
    """
    known = {info.folder: info.id for info in reference.classes}
    for info in source.classes:
        if info.folder not in known:
            raise DataError(f"no class {info.folder!r} among the real images; is this the data the run was made from?")
    return {info.id: known[info.folder] for info in source.classes}


def of_classes(source: Source, class_ids: Collection[int]) -> list[Item]:
    """The items of these classes, in the source's order."""
    return [item for item in source.items if item.class_id in class_ids]


def images_per_class(source: Source) -> int:
    """The budget of a class-balanced source.

    Raises:
        DataError: classes differ in size, or one is empty.
    """
    counts = {info.id: 0 for info in source.classes}
    for item in source.items:
        counts[item.class_id] += 1
    budget = max(counts.values(), default=0)
    for info in source.classes:
        if counts[info.id] < max(budget, 1):
            raise DataError(f"class {info.folder!r} has {counts[info.id]} images of {budget}: finish the run first")
    return budget


def random_subset(source: Source, per_class: int, seed: int, class_ids: Collection[int] | None = None) -> list[Item]:
    """Real items drawn without replacement, `per_class` of each class, ordered by class id.

    The draw of a class depends only on its sorted file list and SHA-256("seed/class id/random").

    Args:
        class_ids: the classes to draw from; all when omitted.

    Raises:
        DataError: a class has fewer than `per_class` items.
    """
    wanted = sorted(info.id for info in source.classes if class_ids is None or info.id in class_ids)
    members: dict[int, list[Item]] = {class_id: [] for class_id in wanted}
    for item in of_classes(source, members.keys()):
        members[item.class_id].append(item)
    return [item for class_id in wanted for item in _draw(members[class_id], per_class, class_id, seed)]


def _draw(items: list[Item], count: int, class_id: int, seed: int) -> list[Item]:
    if len(items) < count:
        raise DataError(f"class {class_id} has {len(items)} real images, {count} are needed for the random subset")
    generator = torch.Generator().manual_seed(derive_seed(seed, class_id, "random"))
    ranked = sorted(items, key=lambda item: item.rank)
    return [ranked[i] for i in torch.randperm(len(ranked), generator=generator)[:count].tolist()]
