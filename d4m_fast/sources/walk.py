"""What a directory of class folders holds, file by file, and what of it is left out and why."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field

from d4m_fast.errors import DataError
from d4m_fast.sources.entries import (
    CONTAINERS,
    Identity,
    has_file_suffix,
    identify,
    is_broken_folder,
    is_cache,
    is_folder,
    is_image,
    is_run,
    is_skipped,
    list_entries,
    require_plain_names,
    require_real_folder,
    unpacked_name,
)
from d4m_fast.sources.formats import WITHOUT_DECODER
from d4m_fast.wording import some

_MAX_DEPTH = 32  # of folders below a class; ImageFolder layouts have one or two
_MOST_REASONS = 8  # in the line of what is left out
_SHORT_SUFFIX = re.compile(r"\.[a-z0-9_+-]{1,12}")

Sized = tuple[str, int]


@dataclass
class _Visit:
    """What is found in one class folder.

    Attributes:
        found: images of each folder.
        links: folders that are links, which wait until the real ones are read.
        own: runs and caches of d4m-fast.
    """

    found: dict[str, list[Sized]] = field(default_factory=dict)
    links: list[str] = field(default_factory=list)
    own: list[str] = field(default_factory=list)


@dataclass
class Walk:
    """One pass over the class folders of a root.

    Attributes:
        excluded: directories that are never read, such as the run's own.
        left_out: files that were not taken, counted by reason.
        beside: images that lie beside the class folders.
        skipped_folders: hidden ones, and what tools leave.
        own_folders: runs and caches of d4m-fast.
        bare: classes with images of their own, not in folders.
        inner: names of the folders with images in a class, `images/` itself left out.
    """

    root: str
    excluded: frozenset[Identity] = frozenset()
    left_out: Counter[str] = field(default_factory=Counter)
    beside: int = 0
    skipped_folders: set[str] = field(default_factory=set)
    own_folders: set[str] = field(default_factory=set)
    bare: set[str] = field(default_factory=set)
    inner: dict[str, frozenset[str]] = field(default_factory=dict)
    _real_root: str = ""
    _identity: Identity = (0, 0)
    _known: dict[Identity, str] = field(default_factory=dict)
    _classes: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        self._real_root = os.path.realpath(self.root)
        self._identity = identify(self.root)

    def class_folders(self) -> list[str]:
        """The root's folders that may be classes, in no order.

        Raises:
            DataError: a class is there that cannot be read: a broken link, an archive, a link out of the root.
        """
        entries = list_entries(self.root)
        folders = [entry for entry in entries if is_folder(entry)]
        files = [entry for entry in entries if not is_folder(entry)]
        self._require_unbroken(self.root, files, dotted=any(has_file_suffix(entry.name) for entry in folders))
        names = [entry.name for entry in folders if self._is_open(entry)]
        self._require_unpacked(names, [entry.name for entry in files])
        require_plain_names(self.root, names)
        for entry in files:
            self.beside += is_image(entry.name)
            self._leave_out(entry.name, " images beside the class folders" if is_image(entry.name) else "")
        for name in names:
            self._know(name)
        self._classes = frozenset(names)
        return names

    def images(self, folder: str) -> list[Sized] | None:
        """(path below the root, bytes) of a class's images, in torchvision's order: by directory, then by name.

        A folder that links show more than once is read once. None where all that the class holds is d4m-fast's own.
        """
        visit = _Visit()
        self._collect(folder, visit)
        while visit.links:
            self._collect(visit.links.pop(0), visit)
        images = [
            (f"{below}/{name}", size) for below in sorted(visit.found) for name, size in sorted(visit.found[below])
        ]
        if visit.own and images:
            raise DataError(
                f"{self.root}/{folder}: holds d4m-fast's own runs or cache ({some(visit.own)}) beside images"
                f" ({images[0][0]}); move one or the other out of the data"
            )
        if visit.own:
            self.own_folders.add(folder)
            return None
        self._note_inner(folder, [below for below, listed in visit.found.items() if listed])
        self._require_no_copy(folder, visit.found)
        return images

    def _note_inner(self, folder: str, below: Iterable[str]) -> None:
        paths = [path.split("/")[1:] for path in below]
        cut = [path[1:] if path and path[0].lower() in CONTAINERS else path for path in paths]
        self.inner[folder] = frozenset(path[0] for path in cut if path)
        if not all(cut):
            self.bare.add(folder)

    def _require_no_copy(self, folder: str, found: Iterable[str]) -> None:
        """Refuse a folder that holds the set once more, as some archives do: its images would be a class of their own.

        Raises:
            DataError: two or more folders in it are called like class folders beside it.
        """
        inside = {directory.split("/")[1] for directory in found if "/" in directory}
        repeated = inside & self._classes - {folder}
        if len(repeated) > 1:
            copies = some(sorted(repeated))
            raise DataError(
                f"{self.root}/{folder}: holds folders called like the classes beside it ({copies}), as a copy of the"
                " set does; remove it, or give it alone"
            )

    @property
    def notes(self) -> tuple[str, ...]:
        """What was not taken, one line for each kind."""
        lines = []
        if self.left_out:
            counts = sorted(self.left_out.items(), key=lambda item: (-item[1], item[0]))
            parts = [f"{count:,}{reason}" for reason, count in counts[:_MOST_REASONS]]
            rest = sum(count for _, count in counts[_MOST_REASONS:])
            more = f" and {rest:,} of {len(counts) - _MOST_REASONS:,} other kinds" if rest else ""
            lines.append(f"left out: {', '.join(parts)}{more}")
        if self.skipped_folders:
            lines.append(f"skipped folders: {some(sorted(self.skipped_folders))}")
        if self.own_folders:
            lines.append(f"not read: {some(sorted(self.own_folders))} (d4m-fast's own runs and cache)")
        return tuple(lines)

    def _require_unbroken(self, path: str, files: Iterable[os.DirEntry[str]], *, dotted: bool = False) -> None:
        broken = sorted(entry.name for entry in files if is_broken_folder(entry, dotted=dotted))
        if broken:
            kind = "class folders" if path == self.root else "folders of images"
            raise DataError(f"{path}: broken links where {kind} may be: {some(broken)}; mend or remove")

    def _is_open(self, entry: os.DirEntry[str]) -> bool:
        if is_skipped(entry.name):
            self.skipped_folders.add(entry.name)
            return False
        if self.excluded and identify(entry.path) in self.excluded:
            self.own_folders.add(os.path.relpath(entry.path, self.root))
            return False
        if entry.is_symlink():
            self._require_outside_link(entry.path)
        return True

    def _require_outside_link(self, path: str) -> None:
        require_real_folder(path)
        real = os.path.realpath(path)
        if real != self._real_root and f"{self._real_root}/".startswith(f"{real.rstrip('/')}/"):
            raise DataError(f"{path}: links to {real}, a folder above it; remove the link")

    def _know(self, folder: str) -> None:
        path = f"{self.root}/{folder}"
        identity = identify(path)
        if identity == self._identity:
            raise DataError(f"{path}: links to {self._real_root}, a folder above it; remove the link")
        other = self._known.setdefault(identity, folder)
        if other != folder:
            raise DataError(f"{path}: is the same folder as {other}; remove one of the links")

    def _require_unpacked(self, folders: Collection[str], files: Iterable[str]) -> None:
        known = set(folders)
        packed = next((name for name in sorted(files) if unpacked_name(name) not in (None, *known)), None)
        if packed is not None:
            raise DataError(f"{self.root}: {packed} is still packed: unpack it into a folder, or remove it")

    def _leave_out(self, name: str, reason: str = "") -> None:
        suffix = os.path.splitext(name)[1].lower()
        named = f" {suffix}" if _SHORT_SUFFIX.fullmatch(suffix) else " without extension"
        default = " hidden" if name.startswith(".") else named
        if suffix in WITHOUT_DECODER:
            default = f" {suffix} (no decoder for {WITHOUT_DECODER[suffix]} in Pillow)"
        self.left_out[reason if reason else default] += 1

    def _collect(self, folder: str, visit: _Visit) -> None:
        """List a folder and the real ones below it."""
        path = f"{self.root}/{folder}"
        if folder.count("/") >= _MAX_DEPTH:
            raise DataError(f"{path}: more than {_MAX_DEPTH} folders deep; give the folder that holds the classes")
        if not self._is_first_visit(folder):
            return
        entries = list_entries(path)
        if is_run({entry.name for entry in entries}) or is_cache(entries):
            visit.own.append(folder)
            return
        images, folders = self._sorted_out(path, entries)
        visit.found[folder] = images
        require_plain_names(path, [*(entry.name for entry in folders), *(name for name, _ in images)])
        for entry in sorted(folders, key=lambda entry: entry.name):
            below = f"{folder}/{entry.name}"
            if entry.is_symlink():
                visit.links.append(below)
            else:
                self._collect(below, visit)

    def _is_first_visit(self, folder: str) -> bool:
        """Whether a folder is new to the walk; one that is known from the same class, or holds it, is passed over.

        Raises:
            DataError: it is known from another class.
        """
        path = f"{self.root}/{folder}"
        identity = identify(path)
        if identity == self._identity:
            return False
        other = self._known.setdefault(identity, folder)
        if other.split("/")[0] != folder.split("/")[0]:
            raise DataError(f"{path}: is the same folder as {other}; its images would be of both classes")
        return other == folder

    def _sorted_out(self, path: str, entries: Iterable[os.DirEntry[str]]) -> tuple[list[Sized], list[os.DirEntry[str]]]:
        images, folders, others = [], [], []
        for entry in entries:
            if is_folder(entry):
                if self._is_open(entry):
                    folders.append(entry)
            elif is_image(entry.name):
                images.append((entry.name, _size(entry)))
            else:
                others.append(entry)
                self._leave_out(entry.name)
        self._require_unbroken(path, others)
        return images, folders


def _size(entry: os.DirEntry[str]) -> int:
    try:
        return entry.stat().st_size
    except OSError:  # a dangling link: stays in the list, and `read` says what is wrong with it
        return -1
