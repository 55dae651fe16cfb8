"""`d4m_fast.load`: a distilled set as a dataset of PyTorch, with the labels that a teacher gave it."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, overload

import torch
from PIL import Image
from torch.utils.data import Dataset

from d4m_fast.api.runs import Run, path_of
from d4m_fast.api.surroundings import foreseen
from d4m_fast.errors import DataError, UsageError
from d4m_fast.evaluation.feeds import stored_pixels
from d4m_fast.evaluation.images import ImageSet, load_images
from d4m_fast.evaluation.label_store import INDEX, LabelStore, reopen_labels, stored_hashes, stored_protocol
from d4m_fast.evaluation.protocols import Protocol
from d4m_fast.evaluation.views import to_pixels
from d4m_fast.runs.identity import is_run, require_finished
from d4m_fast.runs.reading import class_ids
from d4m_fast.sources.dataset import open_source
from d4m_fast.sources.records import Source
from d4m_fast.storage import files

Transform = Callable[[Any], Any]


class LabelledImages(Dataset[tuple[Any, int]]):
    """Images and their classes, read from their files when they are asked for.

    An item is (image, label): the image (3, H, W) float32 in [0, 1], or what the transform makes of Pillow's RGB
    image; the label a position in `classes`.

    Attributes:
        classes: folders of the classes; of a run by class id, of other images sorted as `distill --data` has them.
        targets: the labels of all items.
    """

    def __init__(self, source: Source, classes: Sequence[str], transform: Transform | None) -> None:
        positions = {folder: position for position, folder in enumerate(classes)}
        folders = {info.id: info.folder for info in source.classes}
        self.classes = tuple(classes)
        self.targets = [positions[folders[item.class_id]] for item in source.items]
        self._source = source
        self._transform = transform

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        with foreseen():
            image = self._source.read(self._source.items[index])
        return to_tensor(image) if self._transform is None else self._transform(image), self.targets[index]


class SoftLabelledImages(Dataset[tuple[Any, torch.Tensor]]):
    """Images as a teacher saw them, and what it said: one stored epoch at a time.

    An item is (image, label): the image (3, S, S) float32 in [0, 1], cropped, shifted, mirrored and mixed with another
    image as it was when it was labelled, or what the transform makes of that tensor; the label (classes,) float32, the
    teacher's probabilities at `temperature`. A student that learns from them divides its logits by the same.

    Attributes:
        classes: as of `LabelledImages`; a label's columns are in this order.
        targets: the classes of all items, as positions in `classes`.
        epochs: number of stored epochs.
        temperature: that the teacher's logits are divided by.
    """

    def __init__(
        self,
        images: ImageSet,
        store: LabelStore,
        protocol: Protocol,
        classes: Sequence[str],
        transform: Transform | None,
    ) -> None:
        self.classes = tuple(classes)
        self.targets: list[int] = images.labels.tolist()
        self.epochs = store.epochs
        self.temperature = protocol.temperature
        self._images = images
        self._store = store
        self._protocol = protocol
        self._transform = transform
        # Shared, so that the workers of a DataLoader that keeps them hear of another epoch.
        self._epoch = torch.zeros((), dtype=torch.int64)
        self._epoch.share_memory_()  # type: ignore[no-untyped-call]

    def set_epoch(self, epoch: int) -> None:
        """Show the images as in another stored epoch, counted from 0.

        Raises:
            UsageError: there is no such epoch.
        """
        if not 0 <= epoch < self.epochs:
            raise UsageError(f"epoch {epoch}: the labels have epochs 0 to {self.epochs - 1}")
        self._epoch.fill_(epoch)

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> tuple[Any, torch.Tensor]:
        rows = self._store.rows[[range(len(self))[index]]]
        with foreseen():
            labels = self._store.epoch(int(self._epoch))
        (pixels,) = stored_pixels(self._protocol, self._images, self._store, labels, rows)
        (label,) = labels.log_probabilities(rows, self._store.classes, self.temperature).exp()
        return pixels if self._transform is None else self._transform(pixels), label


def to_tensor(image: Image.Image) -> torch.Tensor:
    """Return an RGB image as a tensor (3, H, W) float32 in [0, 1]."""
    pixels = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
    return to_pixels(pixels.view(image.height, image.width, 3).permute(2, 0, 1)).contiguous()


@overload
def load(
    run: Run | str | os.PathLike[str], transform: Transform | None = None, labels: None = None
) -> LabelledImages: ...


@overload
def load(
    run: Run | str | os.PathLike[str], transform: Transform | None = None, *, labels: str | os.PathLike[str]
) -> SoftLabelledImages: ...


@overload
def load(
    run: Run | str | os.PathLike[str], transform: Transform | None, labels: str | os.PathLike[str]
) -> SoftLabelledImages: ...


def load(
    run: Run | str | os.PathLike[str],
    transform: Transform | None = None,
    labels: str | os.PathLike[str] | None = None,
) -> LabelledImages | SoftLabelledImages:
    """Return a distilled set as a dataset of PyTorch.

    Args:
        run: a finished run, or any directory of class folders of images.
        transform: of Pillow's RGB image; with labels, of the tensor that the teacher saw, of which the label holds:
            a crop or a flip of it would be another view.
        labels: a directory that `evaluate` of this set has stored with regime "fixed": evaluation/labels/NAME.

    Raises:
        RunDirectoryError: the run is not finished.
        DataError: no such images or labels, or labels of other images or classes.
        DamageError: the labels are not what was written.
    """
    path = path_of(run)
    with foreseen():
        require_finished(path)
        source = open_source(str(path), prompts_needed=False)
        ids = class_ids(path) if is_run(path) else {info.folder: info.id for info in source.classes}
        if labels is None:
            return LabelledImages(source, list(ids), transform)
        return _with_labels(source, ids, Path(os.fspath(labels)), transform)


def _with_labels(source: Source, ids: Mapping[str, int], root: Path, transform: Transform | None) -> SoftLabelledImages:
    if not files.is_there(root / INDEX):
        raise DataError(
            f"{root}: no stored labels (no {INDEX}); evaluate stores them in evaluation/labels/ with regime 'fixed',"
            " and imports SRe2L's there"
        )
    protocol = stored_protocol(root)
    positions = {folder: position for position, folder in enumerate(ids)}
    labels = {info.id: positions[info.folder] for info in source.classes}
    images = load_images(source, protocol.resolution, ids=labels)
    store = reopen_labels(root, images, protocol, list(ids.values()))
    return SoftLabelledImages(images, store, protocol, list(ids), transform)


def labels_of(run: Path) -> list[Path]:
    """Return the directories of labels in a run's evaluation/ that are of its own images; others are of other arms'."""
    with foreseen():
        source = open_source(str(run), prompts_needed=False)
        roots = [root for root in files.entries(run / "evaluation" / "labels") if files.is_there(root / INDEX)]
        return [root for root in roots if _is_of(root, source)]


def _is_of(root: Path, source: Source) -> bool:
    """Whether labels are of a set of images, by the first of these: sets of different images share none."""
    first = load_images(source, stored_protocol(root).resolution, source.items[:1])
    return first.hashes()[0] in stored_hashes(root)
