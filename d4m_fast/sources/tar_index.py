"""Indexes of tar files: which images are in them, where, and which labels lie beside them."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from d4m_fast.errors import DataError
from d4m_fast.sources.entries import is_image, is_skipped, require_plain_names
from d4m_fast.sources.index_cache import IndexCache, pack, unpack
from d4m_fast.sources.left_out import reason_of
from d4m_fast.sources.positioned import State, state_of
from d4m_fast.sources.tar_members import Member, ReadAt, Window, members_of
from d4m_fast.storage import files

LABEL_KINDS = ("cls", "json", "txt")  # of WebDataset, the surest first
_MOST_LABEL_BYTES = 1 << 16  # of a file with an image's label; a larger one is something else
_JSON_FIELDS = ("label", "class", "cls", "class_id", "class_name", "wnid", "synset")
FORM = "tar 1"


@dataclass(frozen=True, slots=True)
class Section:
    """Images of a tar, or of a tar in a tar.

    Attributes:
        stem: the tar's name without its suffix.
        names: paths of the images in it, in its order.
        offsets, sizes: (n,) int64, of their bytes in the outermost file.
        labels: by kind, the text of each image's label; None where it has none of this kind.
    """

    stem: str
    names: list[str] = field(repr=False)
    offsets: np.ndarray = field(repr=False)
    sizes: np.ndarray = field(repr=False)
    labels: Mapping[str, list[str | None]] = field(repr=False)


@dataclass(frozen=True, slots=True)
class TarIndex:
    """Index of a tar file in a state; what was not taken is counted."""

    state: State
    sections: tuple[Section, ...]
    left_out: Counter[str]
    skipped_folders: frozenset[str]

    def to_json(self) -> dict[str, Any]:
        """Return the fields of a state file."""
        sections = []
        for section in self.sections:
            places = {"offsets": pack(section.offsets), "sizes": pack(section.sizes)}
            sections.append({"stem": section.stem, "names": section.names, **places, "labels": dict(section.labels)})
        return {"sections": sections, "left_out": self.left_out, "skipped_folders": sorted(self.skipped_folders)}

    @classmethod
    def from_json(cls, state: State, value: Mapping[str, Any]) -> TarIndex:
        """Return the index that `to_json` described."""
        sections = []
        for row in value["sections"]:
            places = unpack(row["offsets"]), unpack(row["sizes"])
            sections.append(Section(row["stem"], row["names"], *places, row["labels"]))
        return cls(state, tuple(sections), Counter(value["left_out"]), frozenset(value["skipped_folders"]))


def index_of(path: Path, cache: IndexCache) -> TarIndex:
    """Return the index of a tar file, from the cache where it was indexed in the state it is in.

    Raises:
        DataError: it is no sound tar, or has names or members that are not read.
        PreflightError: the system would not let it be read, or it changed meanwhile.
        DamageError: its index in the cache is not what was written.
    """
    state = state_of(path)
    saved = cache.load(path, state)
    if saved is not None:
        return TarIndex.from_json(state, saved)
    with files.open_regular(path) as file:
        descriptor = file.fileno()
        window = Window(lambda offset, count: os.pread(descriptor, count, offset))
        try:
            index = _Indexing(str(path), window).index(state, path.stem)
        except OSError as error:
            files.refuse_machine_error(path, error)
            raise DataError(f"{path}: cannot be read ({error.strerror}); fetch it again") from error
    if state_of(path) == state:  # else the places may be those of two files; reading says that it changed
        cache.save(path, state, index.to_json())
    return index


class _Indexing:
    """The pass over a tar that indexes it."""

    def __init__(self, tar: str, read_at: ReadAt) -> None:
        self._tar = tar
        self._read_at = read_at
        self._left_out: Counter[str] = Counter()
        self._skipped_folders: set[str] = set()
        self._open_folders: dict[str, bool] = {}

    def index(self, state: State, stem: str) -> TarIndex:
        inner_tars: list[Member] = []
        section = self._section(stem, members_of(self._read_at, 0, state[0], self._tar), inner_tars)
        sections = [section]
        if inner_tars and section.names:
            raise DataError(
                f"{self._tar}: holds both images ({section.names[0]}) and tars ({inner_tars[0].name}); give one of"
                " them alone"
            )
        if inner_tars:
            sections = list(self._inner_sections(inner_tars))
        return TarIndex(state, tuple(sections), self._left_out, frozenset(self._skipped_folders))

    def _inner_sections(self, inner_tars: Iterable[Member]) -> Iterator[Section]:
        for inner_tar in inner_tars:
            stop = inner_tar.offset + inner_tar.size
            members = members_of(self._read_at, inner_tar.offset, stop, f"{self._tar}/{inner_tar.name}")
            stem = inner_tar.name.rpartition("/")[2].removesuffix(".tar")
            yield self._section(stem, members, None)

    def _section(self, stem: str, members: Iterable[Member], inner_tars: list[Member] | None) -> Section:
        """Sort out the members of a tar: images, labels, and tars, for which there is a list unless it is one."""
        images: list[Member] = []
        texts: dict[str, dict[str, str | None]] = {kind: {} for kind in LABEL_KINDS}
        for member in members:
            folder, _, base = member.name.rpartition("/")
            name, _, suffix = member.name.rpartition(".")
            if not self._is_open(folder):
                continue
            is_label = suffix in texts and not base.startswith(".") and member.size <= _MOST_LABEL_BYTES
            if is_image(base) or is_label:
                self._require_file(member)
            if is_image(base):
                images.append(member)
            elif is_label:
                # Now, because its bytes lie in the window beside its header.
                texts[suffix][name] = _label(suffix, self._read_at(member.offset, member.size))
            elif inner_tars is not None and suffix == "tar" and not member.kind:
                inner_tars.append(member)
            else:
                self._left_out[reason_of(base)] += 1
        names = [member.name for member in images]
        require_plain_names(self._tar, names)
        self._require_distinct(names)
        places = np.array([(member.offset, member.size) for member in images], np.int64).reshape(-1, 2)
        return Section(stem, names, places[:, 0], places[:, 1], self._labels(names, texts))

    def _labels(self, names: list[str], texts: Mapping[str, dict[str, str | None]]) -> dict[str, list[str | None]]:
        """Return the labels of the images, of each kind of which there is one; files of no image are left out."""
        stems = [name.rpartition(".")[0] for name in names]
        labels = {}
        for kind, text_of in texts.items():
            image_labels = [text_of.pop(stem, None) for stem in stems]
            if any(text is not None for text in image_labels):
                labels[kind] = image_labels
            if text_of:
                self._left_out[f" .{kind}"] += len(text_of)
        return labels

    def _is_open(self, folder: str) -> bool:
        """Return whether a folder is read, by the names on the way to it."""
        is_open = self._open_folders.get(folder)
        if is_open is None:
            skipped = next(filter(is_skipped, folder.split("/")), None) if folder else None
            is_open = self._open_folders[folder] = skipped is None
            if skipped is not None:
                self._skipped_folders.add(skipped)
        return is_open

    def _require_file(self, member: Member) -> None:
        if member.kind:
            raise DataError(
                f"{self._tar}: {member.name!a} is {member.kind}, not a file; make the tar with --dereference"
                " --hard-dereference"
            )

    def _require_distinct(self, names: list[str]) -> None:
        if len(set(names)) < len(names):
            name, _ = Counter(names).most_common(1)[0]
            raise DataError(f"{self._tar}: two images are called {name}; make the tar anew")


def _label(kind: str, data: bytes) -> str | None:
    """Return the text of a label file; None where it is JSON without a class, or no text."""
    try:
        text = data.decode("utf-8").strip()
        value = json.loads(text) if kind == "json" else text
    except (ValueError, RecursionError):  # not UTF-8, not JSON, or a number of thousands of digits
        return None
    if kind == "json":
        value = _json_label(value)
    return value if value else None


def _json_label(value: object) -> str | None:
    """Return the class that a JSON object names; a truth value or a fraction is none."""
    if not isinstance(value, dict):
        return None
    for name in _JSON_FIELDS:
        label = value.get(name)
        if isinstance(label, str) or (isinstance(label, int) and not isinstance(label, bool)):
            return str(label).strip()
    return None
