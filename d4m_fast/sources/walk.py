"""List what a directory of class folders holds, file by file, and what of it is left out and why."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from d4m_fast.errors import DataError
from d4m_fast.sources.entries import (
    CONTAINERS,
    Identity,
    has_file_suffix,
    identify,
    is_broken_folder,
    is_folder,
    is_image,
    is_own,
    is_skipped,
    list_entries,
    require_plain_names,
    require_real_folder,
    unpacked_name,
)
from d4m_fast.sources.left_out import lines_of, reason_of
from d4m_fast.sources.listing import SizedFile
from d4m_fast.wording import some

_MAX_DEPTH = 32  # of folders below a class; ImageFolder layouts have one or two


@dataclass
class _Visit:
    """The contents of one class folder.

    Attributes:
        images: those of each folder in it.
        links: folders that are links, which wait until the real ones are read.
        own_folders: runs and caches of d4m-fast.
    """

    images: dict[str, list[SizedFile]] = field(default_factory=dict)
    links: list[str] = field(default_factory=list)
    own_folders: list[str] = field(default_factory=list)


@dataclass
class Walk:
    """A pass over the class folders of a root.

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
    _root_identity: Identity = (0, 0)
    _folder_of: dict[Identity, str] = field(default_factory=dict)  # the first name that each directory was met under
    _classes: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        self._real_root = os.path.realpath(self.root)
        self._root_identity = identify(self.root)

    def class_folders(self) -> list[str]:
        """Return the root's folders that may be classes, in no order.

        Raises:
            DataError: a class is there that cannot be read: a broken link, an archive, a link out of the root.
        """
        entries = list_entries(self.root)
        folders = [entry for entry in entries if is_folder(entry)]
        files = [entry for entry in entries if not is_folder(entry)]
        self._require_unbroken(self.root, files, dotted=any(has_file_suffix(entry.name) for entry in folders))
        names = [entry.name for entry in folders if self._is_open(entry)]
        for file_name in sorted(entry.name for entry in files):
            folder = unpacked_name(file_name)
            if folder is not None and folder not in names:
                raise DataError(f"{self.root}: {file_name} is still packed: unpack it into a folder, or remove it")
        require_plain_names(self.root, names)
        for entry in files:
            self.beside += is_image(entry.name)
            self.left_out[" images beside the class folders" if is_image(entry.name) else reason_of(entry.name)] += 1
        for name in names:
            self._register_class(name)
        self._classes = frozenset(names)
        return names

    def images(self, folder: str) -> list[SizedFile] | None:
        """Return path below the root and bytes of a class's images, in torchvision's order: by directory, then by name.

        A folder that links show more than once is read once. None where all that the class holds is d4m-fast's own.
        """
        visit = _Visit()
        self._collect(folder, visit)
        while visit.links:
            self._collect(visit.links.pop(0), visit)
        images: list[SizedFile] = []
        for directory in sorted(visit.images):
            images += [(f"{directory}/{name}", size) for name, size in sorted(visit.images[directory])]
        if visit.own_folders and images:
            raise DataError(
                f"{self.root}/{folder}: holds d4m-fast's own runs or cache ({some(visit.own_folders)}) beside images"
                f" ({images[0][0]}); move one or the other out of the data"
            )
        if visit.own_folders:
            self.own_folders.add(folder)
            return None
        self._note_inner(folder, [directory for directory, listed in visit.images.items() if listed])
        self._require_no_copy(folder, visit.images)
        return images

    def _note_inner(self, folder: str, directories: Iterable[str]) -> None:
        """Note which folders of a class have images: by the first name below the class, `images/` itself left out."""
        inner = set[str]()
        for directory in directories:
            names = directory.split("/")[1:]
            if names and names[0].lower() in CONTAINERS:
                names = names[1:]
            if names:
                inner.add(names[0])
            else:
                self.bare.add(folder)
        self.inner[folder] = frozenset(inner)

    def _require_no_copy(self, folder: str, directories: Iterable[str]) -> None:
        """Refuse a folder that holds the set once more, as some archives do: its images would be a class of their own.

        Raises:
            DataError: two or more folders in it are called like class folders beside it.
        """
        inner = {directory.split("/")[1] for directory in directories if "/" in directory}
        repeated = inner & self._classes - {folder}
        if len(repeated) > 1:
            copies = some(sorted(repeated))
            raise DataError(
                f"{self.root}/{folder}: holds folders called like the classes beside it ({copies}), as a copy of the"
                " set does; remove it, or give it alone"
            )

    @property
    def notes(self) -> tuple[str, ...]:
        """Lines about what was not taken, one for each kind."""
        lines = lines_of(self.left_out, self.skipped_folders)
        if self.own_folders:
            lines.append(f"not read: {some(sorted(self.own_folders))} (d4m-fast's own runs and cache)")
        return tuple(lines)

    def _require_unbroken(self, path: str, files: Iterable[os.DirEntry[str]], *, dotted: bool = False) -> None:
        broken = sorted(entry.name for entry in files if is_broken_folder(entry, dotted=dotted))
        if broken:
            kind = "class folders" if path == self.root else "folders of images"
            raise DataError(f"{path}: broken links where {kind} may be: {some(broken)}; mend or remove")

    def _is_open(self, entry: os.DirEntry[str]) -> bool:
        """Return whether a folder is to be read, and note those that are not.

        Raises:
            DataError: it is a link to a folder above it, or to no real folder.
        """
        if is_skipped(entry.name):
            self.skipped_folders.add(entry.name)
            return False
        if self.excluded and identify(entry.path) in self.excluded:
            self.own_folders.add(os.path.relpath(entry.path, self.root))
            return False
        if entry.is_symlink():
            require_real_folder(entry.path)
            real = os.path.realpath(entry.path)
            if real != self._real_root and f"{self._real_root}/".startswith(f"{real.rstrip('/')}/"):
                raise DataError(f"{entry.path}: links to {real}, a folder above it; remove the link")
        return True

    def _register_class(self, folder: str) -> None:
        """Register a class folder, before any is read, so that a link to it from another class is noticed.

        Raises:
            DataError: it is the root itself, or another class folder under a second name.
        """
        path = f"{self.root}/{folder}"
        identity = identify(path)
        if identity == self._root_identity:
            raise DataError(f"{path}: links to {self._real_root}, a folder above it; remove the link")
        first_name = self._folder_of.setdefault(identity, folder)
        if first_name != folder:
            raise DataError(f"{path}: is the same folder as {first_name}; remove one of the links")

    def _collect(self, folder: str, visit: _Visit) -> None:
        """List a folder and the real ones below it."""
        path = f"{self.root}/{folder}"
        if folder.count("/") >= _MAX_DEPTH:
            raise DataError(f"{path}: more than {_MAX_DEPTH} folders deep; give the folder that holds the classes")
        if not self._is_first_visit(folder):
            return
        entries = list_entries(path)
        if is_own(entries):
            visit.own_folders.append(folder)
            return
        images, folders = self._images_and_folders(path, entries)
        visit.images[folder] = images
        require_plain_names(path, [*(entry.name for entry in folders), *(name for name, _ in images)])
        for entry in sorted(folders, key=lambda entry: entry.name):
            below = f"{folder}/{entry.name}"
            if entry.is_symlink():
                visit.links.append(below)
            else:
                self._collect(below, visit)

    def _is_first_visit(self, folder: str) -> bool:
        """Return whether a folder is new to the walk; one that was met in the same class, or holds it, is passed over.

        Raises:
            DataError: it was met in another class.
        """
        path = f"{self.root}/{folder}"
        identity = identify(path)
        if identity == self._root_identity:
            return False
        first_name = self._folder_of.setdefault(identity, folder)
        if first_name.split("/")[0] != folder.split("/")[0]:
            raise DataError(f"{path}: is the same folder as {first_name}; its images would be of both classes")
        return first_name == folder

    def _images_and_folders(
        self, path: str, entries: Iterable[os.DirEntry[str]]
    ) -> tuple[list[SizedFile], list[os.DirEntry[str]]]:
        """Sort out the entries of a folder: its images, and the folders that are to be read; the others are counted."""
        images, folders, other_files = [], [], []
        for entry in entries:
            if is_folder(entry):
                if self._is_open(entry):
                    folders.append(entry)
            elif is_image(entry.name):
                images.append((entry.name, _size(entry)))
            else:
                other_files.append(entry)
                self.left_out[reason_of(entry.name)] += 1
        self._require_unbroken(path, other_files)
        return images, folders


def _size(entry: os.DirEntry[str]) -> int:
    try:
        return entry.stat().st_size
    except OSError:  # a dangling link: stays in the list, and `read` says what is wrong with it
        return -1
