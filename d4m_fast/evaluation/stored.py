"""Soft labels that somebody stored before: our own store, or SRe2L's FKD layout, which is imported once."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from d4m_fast.config.choices import Regime
from d4m_fast.errors import DataError, UsageError
from d4m_fast.evaluation.fkd import fkd_digest, import_fkd, open_fkd
from d4m_fast.evaluation.images import ImageSet
from d4m_fast.evaluation.label_store import INDEX, LabelStore, open_or_write, reopen_labels
from d4m_fast.evaluation.protocols import Protocol
from d4m_fast.fingerprints import fingerprint
from d4m_fast.storage import files

STORED = "stored"
"""Stands for the teacher of labels that were stored before: nothing says who it was."""


@dataclass(frozen=True, slots=True)
class StoredLabels:
    """A directory of labels.

    Attributes:
        folders: of the test set's classes, by id.
    """

    path: Path
    folders: tuple[str, ...]

    @property
    def is_ours(self) -> bool:
        return files.is_there(self.path / INDEX)

    @property
    def digest(self) -> str:
        """Return what changes when the labels do."""
        if self.is_ours:
            return hashlib.sha256(files.read_regular(self.path / INDEX)).hexdigest()
        return fkd_digest(self.path)

    def require(self, protocol: Protocol) -> None:
        """Refuse a directory without labels, and a protocol that shows images otherwise than FKD's loader.

        Raises:
            DataError, UsageError: says which.
        """
        if self.is_ours:
            return
        if not (self.path / "epoch_0").is_dir():
            raise DataError(f"{self.path}: no soft labels, which have {INDEX}, or epoch_0/ as SRe2L stores them")
        if protocol.crop is None or not protocol.antialias:
            raise UsageError(
                f"--labels {self.path}: cropped by Pillow as --protocol fkd does, {protocol.name} does not"
            )

    def open(
        self, images: ImageSet, protocol: Protocol, classes: Sequence[int], batch_size: int, work: Path
    ) -> LabelStore:
        """Open the labels of a set, importing them if they are not ours.

        Args:
            classes: ids of the classes evaluated.
            batch_size: of the recipe.
            work: directory for the imported labels.

        Raises:
            errors of `reopen_labels`, `open_fkd` and `import_fkd`.
        """
        if self.is_ours:
            return reopen_labels(self.path, images, protocol, classes)
        identity: dict[str, Any] = {
            "labels": self.digest,
            "images": fingerprint([images.hashes(), images.origins]),
            "folders": list(self.folders),
            "classes": list(classes),
            "batch_size": batch_size,
            "protocol": protocol.to_json(),
            "top_k": None,
        }

        def import_to(root: Path) -> Iterator[int]:
            layout = open_fkd(self.path, images, self.folders, classes, batch_size)
            yield from import_fkd(root, layout, images, identity)

        return open_or_write(work, images, identity, import_to)


def parse_labels(texts: Sequence[str], folders: Sequence[str]) -> dict[str, StoredLabels]:
    """Return the labels of several `--labels [ARM=]DIR`, by arm; without a name they are the distilled set's.

    Args:
        folders: of the test set's classes, by id.

    Raises:
        UsageError: two are of one arm.
        DataError: there is no such directory.
    """
    labels = dict[str, StoredLabels]()
    for text in texts:
        # A directory may have an equals sign in its own name.
        name, equals, path = ("distilled", "=", text) if Path(text).is_dir() else text.partition("=")
        if not equals or not Path(path).is_dir():
            raise DataError(f"--labels {text}: no such directory; it takes [ARM=]DIR")
        if name in labels:
            raise UsageError(f"--labels {text}: {name} has labels already; write ARM=DIR for another arm's")
        labels[name] = StoredLabels(Path(path), tuple(folders))
    return labels


def require_labels(
    labels: Mapping[str, StoredLabels],
    arms: Sequence[str],
    folders: Collection[str],
    regimes: Collection[Regime],
    runs: int,
    protocol: Protocol,
) -> None:
    """Refuse stored labels that cannot be replayed, and arms beside them that have none.

    Args:
        folders: arms of the user's own.
        runs: number of distilled sets.

    Raises:
        UsageError, DataError: names the first that does not fit.
    """
    if not labels:
        return
    if "fixed" not in regimes:
        raise UsageError("--labels: nobody reads them; add --regime fixed")
    if runs > 1:
        raise UsageError("--labels: they are of one set; give one RUN")
    for name, stored in labels.items():
        if name not in arms:
            raise UsageError(f"--labels {name}=...: no such arm is evaluated; there are {', '.join(arms)}")
        if name != "distilled" and name not in folders:
            raise UsageError(f"--labels {name}=...: labels are of files; give those as --arm NAME=DIR")
        stored.require(protocol)
    for name in arms:
        if name not in labels:
            raise UsageError(f"--labels: {name} has none, and no teacher is asked; add {name}=DIR or change --arms")
