"""Import of soft labels in the layout of SRe2L's relabel/ (Yin et al., 2023), after FKD (Shen & Xing, 2022).

    epoch_E/batch_B.tar  torch.save of [crops, flips, partners, share, box, logits]

    crops     (B, 4) float32: top and height in heights, left and width in widths of the image file
    flips     (B,) bool
    partners  (B,) int64, places in the batch of the images pasted in; None where nothing was mixed
    share     CutMix's random number, which nobody reads
    box       first row, first column, end row, end column: SRe2L's "x" counts rows
    logits    (B, classes) float16, or float32

Which image a row is of is not stored: it is the one that torch's RandomSampler draws at that place, its generator
seeded once with 42 and drawn from epoch by epoch, out of the files in the order of torchvision's ImageFolder.
"""

from __future__ import annotations

import io
import pickle
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from d4m_fast.errors import DataError
from d4m_fast.evaluation.imagenet import IMAGENET_CLASSES, imagenet_indices
from d4m_fast.evaluation.images import ImageSet
from d4m_fast.evaluation.label_rows import LabelRows
from d4m_fast.evaluation.label_store import finish_index, has_epoch, save_epoch
from d4m_fast.evaluation.views import Views
from d4m_fast.fingerprints import fingerprint
from d4m_fast.storage import files
from d4m_fast.wording import first_line

SEED = 42  # --fkd-seed of both of SRe2L's stages
BATCH_FIELDS, BOX_EDGES = 6, 4
PIXEL_TOLERANCE = 1e-3  # of a pixel, how far a crop's side may be from a whole one: float32 of up to a few thousand
LEAST_IMAGES = 50  # below which agreement with the classes is too easily one of chance
SIGMAS = 3.0
_GLOBAL = re.compile(r"GLOBAL (\S+)")
# NumPy's integers, of which the box consists, as NumPy 1 and 2 name them.
_SCALAR: Any = np.int64(0).__reduce__()[0]
_NUMBERS: list[Any] = [
    (_SCALAR, "numpy.core.multiarray.scalar"),
    (_SCALAR, "numpy._core.multiarray.scalar"),
    np.dtype,
    *(type(np.dtype(name)) for name in ("int32", "int64", "float32", "float64")),
]


@dataclass(frozen=True, slots=True)
class FkdLayout:
    """The extent of a layout, found from its first epoch.

    Attributes:
        columns: the logit of each class evaluated.
    """

    root: Path
    epochs: int
    batches: int
    batch_size: int
    columns: tuple[int, ...]


def fkd_digest(root: Path) -> str:
    """Return what changes when a file of a layout does: names, sizes and times, as tens of gigabytes are not read."""
    entries = []
    for path in sorted(root.glob("epoch_*/batch_*.tar")):
        stat = path.stat()
        entries.append([str(path.relative_to(root)), stat.st_size, stat.st_mtime_ns])
    return fingerprint(entries)


def open_fkd(root: Path, images: ImageSet, folders: Sequence[str], classes: Sequence[int], batch: int) -> FkdLayout:
    """Find out what a layout holds, and refuse labels of another number of images or of another batch.

    Args:
        folders: of the test set's classes, by id.
        classes: ids of the classes evaluated.
        batch: images per step of the recipe.

    Raises:
        DataError: a file is missing or cannot be read, or the labels are of other images, classes or batches.
    """
    epochs = _count(root, "epoch_{}")
    batches = _count(root / "epoch_0", "batch_{}.tar")
    first = _read_batch(root / "epoch_0" / "batch_0.tar", images.images.shape[-1])
    last = _read_batch(root / "epoch_0" / f"batch_{batches - 1}.tar", images.images.shape[-1])
    size = len(first.flips)
    labelled = size * (batches - 1) + len(last.flips)
    if labelled != len(images):
        raise DataError(f"{root}: labels of {labelled} images, and the set has {len(images)}; give that set's labels")
    if size != min(batch, len(images)):
        raise DataError(
            f"{root}: labels of batches of {size}, and the protocol's are of {batch}; --override batch_size={size}"
        )
    return FkdLayout(root, epochs, batches, size, _columns(root, first.logits.shape[1], folders, classes))


def import_fkd(root: Path, layout: FkdLayout, images: ImageSet, identity: dict[str, Any]) -> Iterator[int]:
    """Write a layout as a label store, yielding the number of each epoch when it is on the disk.

    Args:
        images: those that were labelled, from the files that were labelled; their origins give the order.
        identity: of the store; its "classes" are those of the layout's columns.

    Raises:
        DataError: a file is missing, damaged, or holds other things; or the labels do not fit the images.
        PreflightError: no space, no permission.
    """
    files.make_directory(root)
    for number, order in zip(range(layout.epochs), sampled_orders(images), strict=False):
        if number == 0 or not has_epoch(root, number):
            rows = _read_epoch(layout, number, order, images.images.shape[-1])
            if number == 0:
                _require_agreement(layout.root, rows, images)
            save_epoch(root, number, rows)
        yield number
    finish_index(root, images, identity, layout.epochs)


def sampled_orders(images: ImageSet) -> Iterator[torch.Tensor]:
    """Yield the rows of a set in the order of SRe2L's loader, epoch by epoch, without end."""
    from torch.utils.data import RandomSampler

    by_file = torch.tensor(sorted(range(len(images)), key=lambda row: _place(images.origins[row])))
    sampler = RandomSampler(range(len(images)), generator=torch.Generator().manual_seed(SEED))
    while True:
        yield by_file[torch.tensor(list(sampler))]


def _place(origin: str) -> tuple[str, str, str]:
    """Return what ImageFolder sorts a file by: its class as text, then its directory, then its name."""
    folder, _, name = origin.rpartition("/")
    return folder.partition("/")[0], folder, name


def _count(folder: Path, form: str) -> int:
    """Return how many entries have the form's numbers, from 0 on without a gap."""
    pattern = re.compile(re.escape(form).replace(r"\{\}", "([0-9]+)"))
    numbers = set[int]()
    for path in files.entries(folder):
        match = pattern.fullmatch(path.name)
        if match is not None:
            numbers.add(int(match[1]))
    for number in range(max(numbers, default=0) + 1):
        if number not in numbers:
            raise DataError(f"{folder}: {form.format(number)} is missing; copy the labels again, or store them anew")
    return len(numbers)


def _columns(root: Path, count: int, folders: Sequence[str], classes: Sequence[int]) -> tuple[int, ...]:
    """Return the logit of each class: by its place among ImageNet's 1,000, else the classes are the test set's."""
    indices = imagenet_indices(folders) if count == IMAGENET_CLASSES else None
    if indices is not None:
        return tuple(indices[class_id] for class_id in classes)
    if count != len(folders):
        raise DataError(f"{root}: labels of {count} classes, and the test set has {len(folders)} others")
    return tuple(classes)


@dataclass(frozen=True, slots=True)
class _Batch:
    """A file's contents, the crops in pixels (B, 4), the mix box as top, bottom, left, right."""

    boxes: torch.Tensor
    flips: torch.Tensor
    partners: torch.Tensor
    mix_box: torch.Tensor
    logits: torch.Tensor


def _read_epoch(layout: FkdLayout, number: int, order: torch.Tensor, side: int) -> LabelRows:
    folder = layout.root / f"epoch_{number}"
    count = _count(folder, "batch_{}.tar")
    if count != layout.batches:
        raise DataError(f"{folder}: {count} batches, and epoch_0 has {layout.batches}; copy the labels again")
    batches, partners = list[_Batch](), list[torch.Tensor]()
    for index, rows in enumerate(torch.split(order, layout.batch_size)):
        path = folder / f"batch_{index}.tar"
        batch = _read_batch(path, side)
        if len(batch.flips) != len(rows):
            raise DataError(f"{path}: labels of {len(batch.flips)} images, {len(rows)} are due; copy the labels again")
        if max(layout.columns) >= batch.logits.shape[1]:
            raise DataError(f"{path}: labels of {batch.logits.shape[1]} classes, fewer than those of the first batch")
        batches.append(batch)
        partners.append(rows[batch.partners])
    back = order.argsort()
    boxes = torch.cat([batch.boxes for batch in batches])[back]
    flips = torch.cat([batch.flips for batch in batches])[back]
    return LabelRows(
        order,
        Views(None, boxes, None, flips),
        torch.cat(partners)[back],
        torch.cat([batch.mix_box.expand(len(batch.flips), 4) for batch in batches])[back],
        torch.cat([batch.logits[:, list(layout.columns)] for batch in batches])[back],
        None,
        None,
    )


def _require_agreement(root: Path, rows: LabelRows, images: ImageSet) -> None:
    """Refuse labels that know the images' classes no better than chance: another order, other files, other columns."""
    _, classes = torch.unique(images.labels, return_inverse=True)
    frequencies = torch.bincount(classes).double() / len(classes)
    predicted = rows.logits.float().argmax(1)
    hits = (predicted == classes) | (predicted == classes[rows.partners])
    is_mixed = rows.partners != torch.arange(len(classes))
    by_chance = 1 - (1 - frequencies[predicted]) ** (1 + is_mixed)
    spread = float((by_chance * (1 - by_chance)).sum().sqrt())
    excess = float(hits.sum() - by_chance.sum())
    if len(classes) >= LEAST_IMAGES and spread > 0 and excess < SIGMAS * spread:
        raise DataError(
            f"{root}: the labels know the images' classes no better than chance ({100 * hits.double().mean():.1f} %);"
            " these are not the files that were labelled, or their names sort otherwise, or an older torch ordered them"
        )


def _read_batch(path: Path, side: int) -> _Batch:
    value = _load(path)
    if not isinstance(value, list | tuple) or len(value) != BATCH_FIELDS:
        raise DataError(f"{path}: no batch of FKD labels, which is a list of {BATCH_FIELDS}; store the labels anew")
    crops, flips, partners, _, box, logits = value
    _require(path, "crops", crops, torch.float32, (None, 4))
    n = len(crops)
    _require(path, "flips", flips, torch.bool, (n,))
    is_single = isinstance(logits, torch.Tensor) and logits.dtype == torch.float32
    _require(path, "logits", logits, torch.float32 if is_single else torch.float16, (n, None))
    if partners is None:
        partners, box = torch.arange(n), (0, 0, 0, 0)
    elif box is None:
        raise DataError(f"{path}: labels of MixUp, which cannot be shown again here; store them with CutMix")
    _require(path, "partners", partners, torch.int64, (n,))
    if n and not 0 <= int(partners.min()) <= int(partners.max()) < n:
        raise DataError(f"{path}: partners beyond the batch; copy the labels again")
    return _Batch(_pixels(path, crops, side), flips, partners, _mix_box(path, box, side), logits.detach())


def _load(path: Path) -> Any:
    try:
        data = io.BytesIO(files.read_regular(path))
    except OSError as error:
        files.refuse_machine_error(path, error)
        raise DataError(f"{path}: cannot be read ({error.strerror}); copy the labels again") from error
    try:
        with torch.serialization.safe_globals(_NUMBERS):
            return torch.load(data, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        code = _GLOBAL.search(str(error))
        if code is not None:
            raise DataError(f"{path}: refused, as it holds code ({code[1]}) where labels are numbers") from error
        raise _damage(path, error) from error
    # What PyTorch's reader raises of bytes that are no file of its own depends on where they stop making sense.
    except (ArithmeticError, AssertionError, AttributeError, EOFError, LookupError, RuntimeError) as error:
        raise _damage(path, error) from error
    except (OSError, TypeError, ValueError) as error:
        raise _damage(path, error) from error


def _damage(path: Path, error: Exception) -> DataError:
    return DataError(f"{path}: damaged, or no file of torch.save ({first_line(error)}); copy the labels again")


def _require(path: Path, name: str, value: object, dtype: torch.dtype, shape: tuple[int | None, ...]) -> None:
    """Refuse anything but a finite tensor of a type and a shape, None standing for any length."""
    is_dense = isinstance(value, torch.Tensor) and value.layout == torch.strided
    if not isinstance(value, torch.Tensor) or not is_dense or value.dtype != dtype or value.ndim != len(shape):
        kind = str(value.dtype) if isinstance(value, torch.Tensor) else type(value).__name__
        raise DataError(f"{path}: the {name} are {kind}, not a {dtype} tensor of {len(shape)} dimensions")
    for length, due in zip(value.shape, shape, strict=True):
        if length == 0 or due not in (None, length):
            raise DataError(f"{path}: the {name} are {tuple(value.shape)}, not of as many images as the crops")
    if not bool(torch.isfinite(value).all()):
        raise DataError(f"{path}: NaN or infinity in the {name}; store the labels anew")


def _pixels(path: Path, crops: torch.Tensor, side: int) -> torch.Tensor:
    """Return the boxes that Pillow cuts, which rounds their edges: top, left, height, width in pixels."""
    exact = crops.double() * side
    if float((exact - exact.round()).abs().max()) > PIXEL_TOLERANCE:
        raise DataError(
            f"{path}: crops of no whole pixels of images of {side} a side; the files that were labelled are not of the"
            f" protocol's resolution: resize them to {side} and store labels of those"
        )
    starts, lengths = torch.split(exact.round().long(), 2, dim=1)
    if bool((starts < 0).any() or (lengths < 1).any() or (starts + lengths > side).any()):
        raise DataError(f"{path}: crops beyond the image; copy the labels again")
    return torch.cat((starts, lengths), dim=1)


def _mix_box(path: Path, box: Any, side: int) -> torch.Tensor:
    if not isinstance(box, list | tuple) or not all(isinstance(edge, int | np.integer) for edge in box):
        raise DataError(f"{path}: the box of CutMix is no list of integers; store the labels anew")
    if len(box) != BOX_EDGES or not (0 <= box[0] <= box[2] <= side and 0 <= box[1] <= box[3] <= side):
        raise DataError(f"{path}: the box of CutMix is not within {side} pixels, the protocol's resolution")
    return torch.tensor([int(box[0]), int(box[2]), int(box[1]), int(box[3])])
