"""Stored soft labels: for a few epochs, how each image was shown and what the teacher said of it.

    index.json              what the labels are of, by whom, and the SHA-256 of every file; written last
    epoch-00000.safetensors one row per image, in the order of the index's hashes
    epoch-00000.json        its SHA-256, while there is no index

A row belongs to an image by the hash of its pixels, so that neither the order of the loader nor a library's sampler
matters. Logits are float16: all of them, or the `top_k` largest with the logarithm of the rest's sum.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from d4m_fast.errors import DataError, ModelError
from d4m_fast.evaluation.images import ImageSet
from d4m_fast.evaluation.label_rows import LabelRows, packed, unpacked, views_at
from d4m_fast.evaluation.protocols import PROTOCOLS, Protocol
from d4m_fast.evaluation.views import Mix, Views, draw_mix, draw_views, mixed, render
from d4m_fast.fingerprints import derive_seed, fingerprint
from d4m_fast.storage import files
from d4m_fast.storage.locks import locked
from d4m_fast.storage.state import LABELS, read_state, require_state, write_state

INDEX = "index.json"
CACHE_BYTES = 1 << 30  # of labels that are kept in memory from one epoch to the next
SHOWN_BY = ("resolution", "antialias", "shift")  # fields of a protocol without which a stored view is another
HALF_LIMIT = 65504.0  # largest float16

Label = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True, slots=True)
class LabelStore:
    """Stored labels of an image set.

    Attributes:
        rows: (N,) row of the store of each image of the set; every row is that of one image.
        positions: (N,) image of the set of each row, the inverse of `rows`.
        classes: how many the labels tell apart.
        bytes: of all files.
    """

    root: Path
    rows: torch.Tensor
    positions: torch.Tensor
    classes: int
    bytes: int
    epochs: int
    _files: dict[str, str]
    _cache: dict[int, LabelRows] = field(default_factory=dict, compare=False)

    def epoch(self, number: int) -> LabelRows:
        """Return a stored epoch, its tensors by the store's rows.

        Raises:
            DamageError: the file is not what was written.
        """
        if number in self._cache:
            return self._cache[number]
        name = _name(number)
        labels = unpacked(_checked_bytes(self.root / name, self._files[name]))
        if self.bytes <= CACHE_BYTES:
            self._cache[number] = labels
        return labels


def labels_identity(
    images: ImageSet, protocol: Protocol, teacher_sha256: str, classes: Sequence[int], draw: int, top_k: int | None
) -> dict[str, Any]:
    """Return everything that stored labels depend on."""
    return {
        "images": hashlib.sha256("".join(sorted(images.hashes())).encode()).hexdigest(),
        "protocol": protocol.to_json(),
        "teacher": teacher_sha256,
        "classes": list(classes),
        "draw": draw,
        "top_k": top_k,
    }


def open_labels(root: Path, images: ImageSet, identity: dict[str, Any]) -> LabelStore | None:
    """Open stored labels; None if there are none, or the last ones were never finished.

    Raises:
        DamageError: the index is damaged.
        DataError: the labels are of other images, or of another teacher or protocol.
    """
    index = read_state(root / INDEX, LABELS)
    if index is None:
        return None
    if index["made_by"] != identity:
        names = sorted(name for name in identity if index["made_by"].get(name) != identity[name])
        raise DataError(f"{root}: labels of another set (their {', '.join(names)} differ); remove it to label anew")
    return _store_of(root, images, index)


def reopen_labels(root: Path, images: ImageSet, protocol: Protocol, classes: Sequence[int]) -> LabelStore:
    """Open labels that an evaluation of the same images has stored, whoever the teacher was.

    Raises:
        DamageError: the index is damaged, or missing.
        DataError: the labels are of other images or classes, or their views cannot be shown under this protocol.
    """
    index = require_state(root / INDEX, LABELS)
    made_by = index["made_by"]
    if made_by["classes"] != list(classes):
        raise DataError(f"{root}: labels of other classes; give the --classes that they were stored with")
    theirs, ours = made_by["protocol"], protocol.to_json()
    names = SHOWN_BY if made_by["top_k"] is None else (*SHOWN_BY, "temperature")
    for name in names:
        if theirs[name] != ours[name]:
            raise DataError(f"{root}: labels of {name}={theirs[name]}, and the protocol's is {ours[name]}; change it")
    return _store_of(root, images, index)


def open_or_write(
    work: Path, images: ImageSet, identity: dict[str, Any], write: Callable[[Path], Iterable[int]]
) -> LabelStore:
    """Return stored labels in a work folder: those that are there, or those that are written now.

    Args:
        write: writes the labels of this identity to a directory, as far as they are missing there.

    Raises:
        RunDirectoryError: another process writes them.
        errors of `open_labels` and of `write`.
    """
    root = files.make_directory(work / "labels" / fingerprint(identity)[:16])
    store = open_labels(root, images, identity)
    if store is None:
        with locked(root):
            files.sweep(root)
            for _ in write(root):
                pass
        store = open_labels(root, images, identity)
        assert store is not None
    return store


def stored_protocol(root: Path) -> Protocol:
    """Return a protocol that shows images as those were that stored labels are of, at the labels' temperature.

    Raises:
        DamageError: the index is damaged, or missing.
    """
    theirs = require_state(root / INDEX, LABELS)["made_by"]["protocol"]
    return replace(PROTOCOLS["small"], **{name: theirs[name] for name in (*SHOWN_BY, "temperature")})


def stored_hashes(root: Path) -> list[str]:
    """Return the hashes of the images that stored labels are of; errors are those of `stored_protocol`."""
    hashes: list[str] = require_state(root / INDEX, LABELS)["hashes"]
    return hashes


def _store_of(root: Path, images: ImageSet, index: Mapping[str, Any]) -> LabelStore:
    rows, classes = _match(index["hashes"], images, root), len(index["made_by"]["classes"])
    return LabelStore(root, rows, rows.argsort(), classes, index["bytes"], index["epochs"], index["files"])


def write_labels(
    root: Path,
    images: ImageSet,
    protocol: Protocol,
    label: Label,
    identity: dict[str, Any],
    *,
    batch_size: int,
) -> Iterator[int]:
    """Label `protocol.stored_epochs` epochs of an image set, yielding the number of each when it is on the disk.

    Epochs that an interrupted call left are not made again.

    Args:
        label: pixels (N, 3, S, S) to logits (N, classes).

    Raises:
        ModelError: a logit is not finite.
        PreflightError: no space, no permission.
    """
    files.make_directory(root)
    for number in range(protocol.stored_epochs):
        if not has_epoch(root, number):
            generator = torch.Generator().manual_seed(derive_seed(identity["draw"], "labels", number))
            save_epoch(root, number, _label_epoch(images, protocol, label, generator, batch_size, identity["top_k"]))
        yield number
    finish_index(root, images, identity, protocol.stored_epochs)


def has_epoch(root: Path, number: int) -> bool:
    """Return whether an epoch is on the disk as it was written; until there is an index, a record beside it says so.

    Raises:
        DamageError: the record is damaged.
    """
    path, record = root / _name(number), read_state(_record(root, number), LABELS)
    if record is None or not path.is_file():
        return False
    return bool(hashlib.sha256(files.read_regular(path)).hexdigest() == record["sha256"])


def save_epoch(root: Path, number: int, rows: LabelRows) -> None:
    """Write an epoch, then its record; errors are those of `write_labels`."""
    data = packed(rows)
    sha256 = files.write_bytes(root / _name(number), data)
    write_state(_record(root, number), LABELS, {"sha256": sha256, "bytes": len(data)})


def _record(root: Path, number: int) -> Path:
    return (root / _name(number)).with_suffix(".json")


def finish_index(root: Path, images: ImageSet, identity: Mapping[str, Any], epochs: int) -> None:
    """Write the index of so many stored epochs, with which they are labels of these images; it replaces their records.

    Raises:
        DamageError: a record is damaged or missing.
        PreflightError: no space, no permission.
    """
    sums, size = dict[str, str](), 0
    for number in range(epochs):
        record = require_state(_record(root, number), LABELS)
        sums[_name(number)], size = record["sha256"], size + record["bytes"]
    write_state(
        root / INDEX,
        LABELS,
        {
            "made_by": identity,
            "epochs": epochs,
            "bytes": size,
            "files": sums,
            "hashes": images.hashes(),
        },
    )
    for number in range(epochs):
        files.remove(_record(root, number))


def _label_epoch(
    images: ImageSet,
    protocol: Protocol,
    label: Label,
    generator: torch.Generator,
    batch_size: int,
    top_k: int | None,
) -> LabelRows:
    order = torch.randperm(len(images), generator=generator)
    views, partners, boxes, logits = list[Views](), list[torch.Tensor](), list[torch.Tensor](), list[torch.Tensor]()
    for rows in torch.split(order, batch_size):
        batch_views = draw_views(protocol, len(rows), generator)
        mix = draw_mix(protocol, len(rows), generator)
        pixels = render(images.images[rows], batch_views.to(images.images.device), protocol)
        if mix is None:
            mix = Mix(torch.arange(len(rows)), torch.zeros(4, dtype=torch.int64))
        else:
            pixels = mixed(pixels, mix)
        views.append(batch_views)
        partners.append(rows[mix.partners])
        boxes.append(mix.box.expand(len(rows), 4))
        batch_logits = label(pixels).float().cpu()
        if not torch.isfinite(batch_logits).all():
            raise ModelError(
                "the teacher's logits are not finite (NaN or infinity); its weights or its precision are wrong"
            )
        logits.append(batch_logits)
    back = order.argsort()  # from the order of the epoch to that of the rows
    row_views = views_at(_joined(views), back)
    stored_logits, indices, rests = _pruned(torch.cat(logits)[back], top_k, protocol.temperature)
    return LabelRows(order, row_views, torch.cat(partners)[back], torch.cat(boxes)[back], stored_logits, indices, rests)


def _pruned(
    logits: torch.Tensor, top_k: int | None, temperature: float
) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
    """Return logits as they are stored: all, or the largest, where they are and the logarithm of the rest's sum."""
    # Beyond it a logit would be stored as infinity.
    bounded = logits.clamp(-HALF_LIMIT, HALF_LIMIT)
    if top_k is None or top_k >= logits.shape[1]:
        return bounded.half(), None, None
    largest, indices = bounded.topk(top_k, dim=1)
    remaining = bounded.scatter(1, indices, -torch.inf)
    rests = temperature * torch.logsumexp(remaining / temperature, dim=1)
    # Two bytes of 1,000 classes; four where there are too many for them.
    narrow = torch.int16 if logits.shape[1] <= torch.iinfo(torch.int16).max else torch.int32
    return largest.half(), indices.to(narrow), rests.half()


def _joined(views: Sequence[Views]) -> Views:
    first = views[0]
    return Views(
        None if first.swaps is None else torch.cat([view.swaps for view in views if view.swaps is not None]),
        None if first.boxes is None else torch.cat([view.boxes for view in views if view.boxes is not None]),
        None if first.offsets is None else torch.cat([v.offsets for v in views if v.offsets is not None], dim=1),
        torch.cat([view.flips for view in views]),
    )


def _match(hashes: Sequence[str], images: ImageSet, root: Path) -> torch.Tensor:
    """Return the row of each image; images with equal pixels take equal hashes' rows in their order."""
    rows_by_hash = dict[str, list[int]]()
    for row, digest in enumerate(hashes):
        rows_by_hash.setdefault(digest, []).append(row)
    matched = []
    for position, digest in enumerate(images.hashes()):
        rows = rows_by_hash.get(digest)
        if not rows:
            origin = images.origins[position] if images.origins else f"image {position}"
            raise DataError(f"{root}: no labels for {origin}; they are of other images")
        matched.append(rows.pop(0))
    return torch.tensor(matched)


def _name(number: int) -> str:
    return f"epoch-{number:05d}.safetensors"


def _checked_bytes(path: Path, sha256: str) -> bytes:
    with LABELS.reading(path):
        data = files.read_regular(path)
    if hashlib.sha256(data).hexdigest() != sha256:
        raise LABELS.damage(path, "it is not what its checksum says")
    return data
