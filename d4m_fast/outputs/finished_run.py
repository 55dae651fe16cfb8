"""A finished run as the forms of output see it: classes, images in an order, and bytes compared with the manifest."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path, PurePosixPath
from typing import Any

from d4m_fast.errors import DamageError, DataError, RunDirectoryError
from d4m_fast.fingerprints import derive_seed, fingerprint
from d4m_fast.runs.commit import read_of_run
from d4m_fast.runs.identity import essence, is_run
from d4m_fast.storage import files
from d4m_fast.storage.state import CONFIG, SUMMARY, require_state

MANIFEST = "manifest.jsonl"


@dataclass(frozen=True, slots=True)
class DistilledClass:
    """A class of a run.

    Attributes:
        label: number that a loader of the output gives it, 0 to the number of classes less one.
        id: its index in the full set, which the run may have a part of.
        folder: its name in the run, and in the output.
        images: their number.
    """

    label: int
    id: int
    folder: str
    prompt: str
    images: int

    @property
    def name(self) -> str:
        """Name of the folder as text that can be encoded as UTF-8."""
        return as_utf8(self.folder)


@dataclass(frozen=True, slots=True)
class DistilledImage:
    """A row of the manifest, and the label of its class.

    Attributes:
        file: below the run's folder of images.
        bytes, sha256: of that file.
    """

    label: int
    class_id: int
    file: PurePosixPath
    prompt: str
    index: int
    seed: int
    cluster_size: int
    inertia_share: float
    nearest: str
    bytes: int
    sha256: str

    @property
    def name(self) -> str:
        """Class folder and file name as text, for what is not a file of its own."""
        return as_utf8(self.file.as_posix())

    @property
    def provenance(self) -> dict[str, Any]:
        """Columns that every form has for an image, by name and in order; their text can be encoded as UTF-8."""
        return {
            "label": self.label,
            "class_id": self.class_id,
            "prompt": as_utf8(self.prompt),
            "index": self.index,
            "seed": self.seed,
            "cluster_size": self.cluster_size,
            "inertia_share": self.inertia_share,
            "nearest": as_utf8(self.nearest),
            "sha256": self.sha256,
        }


@dataclass(frozen=True)
class FinishedRun:
    """A finished run, its images in the order in which an output holds them.

    Attributes:
        identity: what its bytes depend on, as its config.json has it.
        fingerprint: of what is essential in it.
    """

    path: Path
    identity: dict[str, Any]
    fingerprint: str
    manifest_sha256: str
    classes: tuple[DistilledClass, ...]
    images: tuple[DistilledImage, ...]

    def read(self, image: DistilledImage) -> bytes:
        """Return the bytes of an image's file, which are those that the manifest records.

        Raises:
            DamageError: they are not, or there is no such file.
            PreflightError: it cannot be read now, or by this user.
        """
        path = self.path / "images" / image.file
        try:
            data = files.read_regular(path)
        except OSError as error:
            files.refuse_machine_error(path, error)
            raise _damage(path, f"cannot be read, {error.strerror}") from error
        if hashlib.sha256(data).hexdigest() != image.sha256:
            raise _damage(path, "its SHA-256 is another than the manifest has")
        return data

    def shuffled(self, seed: int) -> FinishedRun:
        """Return the run with its images in an order that is drawn from a seed, the same on every machine."""

        def draw(image: DistilledImage) -> int:
            return derive_seed(seed, image.class_id, image.index, "order")

        return replace(self, images=tuple(sorted(self.images, key=draw)))

    def labelled(self, folders: Sequence[str]) -> FinishedRun:
        """Return the run with the classes numbered in the order of their folders' names as given."""
        labels = {folder: label for label, folder in enumerate(folders)}
        classes = {info.folder: info for info in self.classes}
        relabelled = tuple(replace(classes[folder], label=label) for folder, label in labels.items())
        images = tuple(replace(image, label=labels[image.file.parent.name]) for image in self.images)
        return replace(self, classes=relabelled, images=images)


def require_run(path: Path) -> None:
    """Refuse what is no run, before it is locked: a lock is a file.

    Raises:
        DataError: no such directory.
        RunDirectoryError: not a run of ours.
    """
    if not os.path.isdir(path):
        raise DataError(f"{path}: no such run directory; give one that d4m-fast distill made")
    if not is_run(path):
        raise RunDirectoryError(f"{path}: not a run of ours; give one that d4m-fast distill made")


def open_finished(path: Path) -> FinishedRun:
    """Open a run, whose images are all there; classes are numbered in the order of their ids.

    Raises:
        RunDirectoryError: it is not finished.
        DamageError: a file that says what is in it is not what was written.
    """
    identity = require_state(path / "config.json", CONFIG)
    run_fingerprint = fingerprint(essence(identity))
    summary = read_of_run(path / "summary.json", SUMMARY, run_fingerprint)
    if summary is None:
        raise RunDirectoryError(f"{path}: this run is not finished; d4m-fast verify prints the command that goes on")
    manifest_sha256: str = summary["sha256_of"][MANIFEST]
    rows = _manifest_rows(path / MANIFEST, manifest_sha256)
    classes = _classes(path / MANIFEST, rows)
    labels = {info.id: info.label for info in classes}
    images = tuple(_image(row, labels[row["class_id"]]) for row in rows)
    return FinishedRun(path, identity, run_fingerprint, manifest_sha256, classes, images)


def as_utf8(text: str) -> str:
    r"""Return text that can be encoded as UTF-8: a byte of a file's name that is not becomes the letters `\udcff`."""
    return text.encode("utf-8", "backslashreplace").decode()


def _manifest_rows(path: Path, sha256: str) -> list[dict[str, Any]]:
    try:
        data = files.read_regular(path)
    except OSError as error:
        files.refuse_machine_error(path, error)
        raise _damage(path, f"cannot be read, {error.strerror}") from error
    if hashlib.sha256(data).hexdigest() != sha256:
        raise _damage(path, "its SHA-256 is another than the summary has")
    return [json.loads(line) for line in data.splitlines()]


def _classes(manifest: Path, rows: Sequence[dict[str, Any]]) -> tuple[DistilledClass, ...]:
    """Return the classes of a manifest in the order of their ids.

    Raises:
        DamageError: an image lies elsewhere than in its class's folder in the run.
    """
    classes = []
    in_order = sorted(rows, key=lambda row: int(row["class_id"]))
    for label, (class_id, group) in enumerate(groupby(in_order, key=lambda row: int(row["class_id"]))):
        class_rows = list(group)
        folder = PurePosixPath(class_rows[0]["file"]).parent.name
        for row in class_rows:
            # A class's folder is one name: with another path, an output would be written outside its directory.
            file = PurePosixPath(row["file"])
            if file.parent != PurePosixPath("images", folder) or ".." in file.parts:
                raise _damage(manifest, f"it names {row['file']}, not a file in a class's folder")
        classes.append(DistilledClass(label, class_id, folder, class_rows[0]["prompt"], len(class_rows)))
    return tuple(classes)


def _image(row: dict[str, Any], label: int) -> DistilledImage:
    return DistilledImage(
        label=label,
        class_id=row["class_id"],
        file=PurePosixPath(row["file"]).relative_to("images"),
        prompt=row["prompt"],
        index=row["index"],
        seed=row["seed"],
        cluster_size=row["cluster_size"],
        inertia_share=row["inertia_share"],
        nearest=row["nearest"],
        bytes=row["bytes"],
        sha256=row["sha256"],
    )


def _damage(path: Path, reason: str) -> DamageError:
    return DamageError(f"{path}: damaged ({reason}); d4m-fast verify --repair has it made again", reason)
