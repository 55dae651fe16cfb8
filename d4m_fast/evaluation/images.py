"""Whole image sets in memory, labelled by the test set's class ids."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from d4m_fast.errors import DataError
from d4m_fast.fingerprints import derive_seed
from d4m_fast.sources.records import Item, Source, by_class
from d4m_fast.storage import files

MOST_IN_MEMORY = 4 << 30  # bytes of a set; a larger one is a file that the system pages in
READ_TOGETHER = 32  # images that a thread reads one after the other


@dataclass(frozen=True, slots=True, eq=False)
class ImageSet:
    """Images and their classes.

    Attributes:
        images: (N, 3, S, S) uint8.
        labels: (N,) int64 class ids.
        origins: where each image comes from, (N,).
    """

    images: torch.Tensor
    labels: torch.Tensor
    origins: tuple[str, ...] = ()
    # Made once: every student's result is named by it, and a set may have gigabytes.
    _fingerprint: list[str] = field(default_factory=list, repr=False)

    def __len__(self) -> int:
        return len(self.labels)

    def to(self, device: torch.device) -> ImageSet:
        """Return the same set on a device."""
        return ImageSet(self.images.to(device), self.labels.to(device), self.origins)

    @property
    def fingerprint(self) -> str:
        """SHA-256 of pixels and labels, in their order."""
        if not self._fingerprint:
            digest = hashlib.sha256(_bytes_of(self.images))
            digest.update(_bytes_of(self.labels))
            self._fingerprint.append(digest.hexdigest())
        return self._fingerprint[0]

    def hashes(self) -> list[str]:
        """Return 32 hexadecimal digits of the SHA-256 of each image's pixels, whatever file they came from."""
        return [hashlib.sha256(_bytes_of(row)).hexdigest()[:32] for row in self.images.cpu()]


def _bytes_of(tensor: torch.Tensor) -> memoryview:
    array: Any = tensor.cpu().contiguous().numpy()
    return memoryview(array)


def load_images(
    source: Source,
    size: int,
    items: Sequence[Item] | None = None,
    ids: Mapping[int, int] | None = None,
    *,
    shorter_side: int | None = None,
) -> ImageSet:
    """Read images of (size, size): those of another size are resized along the shorter side, and their centre is cut.

    Args:
        items: what to read, in this order; the whole source when omitted.
        ids: the label of each class id of the source; the id itself when omitted.
        shorter_side: of the resized image, bilinear as torchvision tests its classifiers; when omitted it is the size
            itself, and the filter Pillow's bicubic one.

    Raises:
        DataError: an image is damaged, or there are none.
    """
    if items is None:
        items = source.items
    if not items:
        raise DataError("no images to load: the set is empty")
    pixels = _room(len(items), size)

    def read(first: int) -> None:
        for row in range(first, min(first + READ_TOGETHER, len(items))):
            image = _central_square(source.read(items[row]), size, shorter_side)
            pixels[row].copy_(torch.from_numpy(np.array(image, np.uint8)).permute(2, 0, 1))

    # Pillow's decoders and filters let go of the interpreter. The error of the first damaged image is raised.
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        list(threads.map(read, range(0, len(items), READ_TOGETHER)))
    labels = [item.class_id if ids is None else ids[item.class_id] for item in items]
    return ImageSet(pixels, torch.tensor(labels, dtype=torch.int64), tuple(item.origin for item in items))


def _room(n: int, size: int) -> torch.Tensor:
    """Return room for images: in memory, or where they are many on the disk, in a file that ends with the process."""
    shape, count = (n, 3, size, size), n * 3 * size * size
    if count <= MOST_IN_MEMORY:
        return torch.empty(shape, dtype=torch.uint8)
    with tempfile.NamedTemporaryFile(prefix="d4m-fast-images-") as file:
        files.require_room(files.Need(Path(file.name).parent, count, "the images of a set"))
        # The mapping outlives the name, which the end of this block removes.
        return torch.from_file(file.name, shared=True, size=count, dtype=torch.uint8).view(shape)


def _central_square(image: Image.Image, size: int, shorter_side: int | None) -> Image.Image:
    if shorter_side is None and image.size == (size, size):
        return image
    side = size if shorter_side is None else shorter_side
    resample = Image.Resampling.BICUBIC if shorter_side is None else Image.Resampling.BILINEAR
    # torchvision's Resize cuts off the longer side's fraction, its CenterCrop rounds the margin.
    width, height = (int(side * length / min(image.size)) for length in image.size)
    if image.size != (width, height):
        image = image.resize((width, height), resample)
    left, top = round((width - size) / 2), round((height - size) / 2)
    return image.crop((left, top, left + size, top + size))


def ids_by_folder(source: Source) -> dict[str, int]:
    """Return the id of each class of a source, by the name of its folder."""
    return {class_info.folder: class_info.id for class_info in source.classes}


def match_classes(source: Source, reference: Source, name: str = "real") -> dict[int, int]:
    """Return the id in `reference` of each class id of `source`, found by folder name.

    Args:
        name: what the reference's images are called.

    Raises:
        DataError: a folder of `source` has no match; the message names the first.
    """
    reference_ids, matches = ids_by_folder(reference), dict[int, int]()
    for class_info in source.classes:
        if class_info.folder not in reference_ids:
            raise DataError(
                f"no class {class_info.folder!r} among the {name} images; is this the data the run was made from?"
            )
        matches[class_info.id] = reference_ids[class_info.folder]
    return matches


def is_same_set(first: Source, second: Source) -> bool:
    """Whether two sources are the same images, also where one is a copy of the other.

    A folder's fingerprint is of names and sizes, which uncompressed images of a train and a test set share.

    Raises:
        DataError: an image that would tell is damaged.
    """
    if first.fingerprint != second.fingerprint:
        return False
    for first_item, second_item in zip(_first_of_classes(first), _first_of_classes(second), strict=True):
        if first.read(first_item).tobytes() != second.read(second_item).tobytes():
            return False
    return True


def _first_of_classes(source: Source) -> list[Item]:
    return [items[0] for _, items in sorted(by_class(source.items).items())]


def of_classes(source: Source, class_ids: Collection[int]) -> list[Item]:
    """Return the items of these classes, in the source's order."""
    return [item for item in source.items if item.class_id in class_ids]


def images_per_class(source: Source) -> int:
    """Return the number of images that every class of a balanced source has.

    Raises:
        DataError: classes differ in size, or one is empty.
    """
    counts = Counter(item.class_id for item in source.items)
    budget = max(counts.values(), default=0)
    for class_info in source.classes:
        if counts[class_info.id] < max(budget, 1):
            raise DataError(
                f"class {class_info.folder!r} has {counts[class_info.id]} images and another class {budget}; every"
                " class needs as many: finish the run, or even them out"
            )
    return budget


def random_subset(source: Source, per_class: int, seed: int, class_ids: Collection[int] | None = None) -> list[Item]:
    """Draw real items without replacement, `per_class` of each class, ordered by class id.

    The draw of a class depends only on its sorted file list and SHA-256("seed/class id/random").

    Args:
        class_ids: the classes to draw from; all when omitted.

    Raises:
        DataError: a class has fewer than `per_class` items.
    """
    folders = {class_info.id: class_info.folder for class_info in source.classes}
    # In the order of their ranks: the draw must not depend on the order in which a file system lists its files.
    members, drawn_items = by_class(source.items), list[Item]()
    for class_id in sorted(folders if class_ids is None else folders.keys() & set(class_ids)):
        items = members.get(class_id, [])
        if len(items) < per_class:
            raise DataError(
                f"class {folders[class_id]!r} has {len(items)} real images, {per_class} are needed for the random"
                " subset"
            )
        generator = torch.Generator().manual_seed(derive_seed(seed, class_id, "random"))
        drawn_items += [items[i] for i in torch.randperm(len(items), generator=generator)[:per_class].tolist()]
    return drawn_items
