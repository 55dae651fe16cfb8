"""What a directory of class folders holds, file by file, and what of it is left out and why."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field

from d4m_fast.data.characters import invisible_character
from d4m_fast.data.formats import EXTENSIONS, WITHOUT_DECODER
from d4m_fast.data.wording import some
from d4m_fast.errors import DataError

ARCHIVES = (
    *(".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tbz", ".tar.xz", ".txz", ".tar.zst", ".tzst", ".tar.lz4"),
    *(".tar.lzma", ".zip", ".7z", ".rar", ".squashfs", ".sqsh"),
)
TOOL_FOLDERS = frozenset(
    {"__macosx", "@eadir", "#recycle", "@recycle", "#snapshot", "__pycache__", "lost+found", "$recycle.bin", "recycler"}
    | {"system volume information", "_cache", "__cache__", "_thumbnails", "_macosx", "_ipynb_checkpoints"}
    | {"@__thumb", "@tmp", "@recently-snapshot", "~snapshot", "network trash folder", "temporary items"}
)
_PSEUDO_FILE_SYSTEMS = ("/proc", "/sys", "/dev")
_MAX_DEPTH = 32  # of folders below a class; ImageFolder layouts have one or two
_CONTROL = re.compile("[\\x00-\\x1f\\x7f\\ud800-\\udfff]")  # a lone surrogate stands for a byte that is not UTF-8
_FILE_SUFFIXES = (
    *(".txt", ".csv", ".tsv", ".json", ".xml", ".yaml", ".yml", ".md", ".html", ".pdf", ".mat", ".npy", ".py"),
)
_RECOVERED = re.compile("FOUND\\.[0-9]{3}", re.IGNORECASE)  # what chkdsk makes
_CACHE_ENTRY = re.compile(r"[0-9a-f]{16}(?:-[0-9]+)?|\.building-on-.*")  # of `engines` and `latents`
_RUN_RECORDS = frozenset({"config.json", "plan.json", "manifest.jsonl"})
_RUN_FOLDERS = frozenset({"groups", "prototypes", "images"})

Identity = tuple[int, int]
Sized = tuple[str, int]


def list_entries(path: str) -> list[os.DirEntry[str]]:
    """The entries of a directory.

    Raises:
        DataError: it cannot be listed.
    """
    try:
        with os.scandir(path) as entries:
            return list(entries)
    except OSError as error:
        raise _unlistable(path, error) from error


def identify(path: str) -> Identity:
    """Device and inode, by which a directory is known under all of its names.

    Raises:
        DataError: there is nothing to be seen.
    """
    try:
        status = os.stat(path)
    except OSError as error:
        raise _unlistable(path, error) from error
    return status.st_dev, status.st_ino


def is_image(name: str) -> bool:
    """Whether a file's name is that of an image, in a format that is read."""
    return name.lower().endswith(EXTENSIONS) and not name.startswith(".")


def _is_file_name(name: str) -> bool:
    """Whether a link that leads nowhere was one to a file, as far as its name tells."""
    return is_image(name) or name.startswith(".") or name.lower().endswith(_FILE_SUFFIXES)


def is_folder(entry: os.DirEntry[str]) -> bool:
    """Whether it is a directory, or a link to one."""
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def is_skipped(name: str) -> bool:
    """Whether a folder is hidden, or one that tools leave behind."""
    return name.startswith(".") or name.lower() in TOOL_FOLDERS or _RECOVERED.fullmatch(name) is not None


def is_run(names: Collection[str]) -> bool:
    """Whether a directory with these entries is a run of ours, or a certificate's folder."""
    return "certify.json" in names or not (_RUN_RECORDS.isdisjoint(names) or _RUN_FOLDERS.isdisjoint(names))


def require_real_folder(path: str) -> None:
    """Refuse what the system makes up: /proc and its like never end, and reading there may do something.

    Raises:
        DataError: the path leads there.
    """
    real = os.path.realpath(path)
    below = any(real == root or real.startswith(f"{root}/") for root in _PSEUDO_FILE_SYSTEMS)
    if below and not real.startswith("/dev/shm"):
        raise DataError(f"{path}: is {real}, which holds no files; give or link a real folder")


def require_plain_names(path: str, names: Iterable[str]) -> None:
    """Refuse names that no manifest could hold.

    Raises:
        DataError: one is not UTF-8 or has control characters.
    """
    wrong = next((name for name in names if _CONTROL.search(name)), None)
    if wrong is not None:
        raise DataError(f"{path}: the name {wrong!a} has {invisible_character(wrong)}; rename it")


@dataclass
class Walk:
    """One pass over the class folders of a root.

    Attributes:
        excluded: directories that are never read, such as the run's own.
        left_out: files that were not taken, counted by reason.
        skipped_folders: hidden ones, and what tools leave.
        own_folders: runs and caches of d4m-fast.
    """

    root: str
    excluded: frozenset[Identity] = frozenset()
    left_out: Counter[str] = field(default_factory=Counter)
    skipped_folders: set[str] = field(default_factory=set)
    own_folders: set[str] = field(default_factory=set)
    _real_root: str = ""
    _class_of: dict[Identity, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._real_root = os.path.realpath(self.root)

    def class_folders(self) -> list[str]:
        """The root's folders that may be classes, in no order.

        Raises:
            DataError: a class is there that cannot be read: a broken link, an archive, a link out of the root.
        """
        folders, archives, broken = [], [], []
        for entry in list_entries(self.root):
            if is_folder(entry):
                folders.append(entry)
            elif entry.name.lower().endswith(ARCHIVES):
                archives.append(entry.name)
            elif entry.is_symlink() and not os.path.exists(entry.path) and not _is_file_name(entry.name):
                broken.append(entry.name)
            else:
                self._leave_out(entry.name, " images beside the class folders" if is_image(entry.name) else "")
        if broken:
            raise DataError(
                f"{self.root}: broken links where class folders may be: {some(sorted(broken))}; mend or remove"
            )
        names = [entry.name for entry in folders if self._is_open(entry)]
        self._require_unpacked(names, archives)
        require_plain_names(self.root, names)
        for name in names:
            self._know(name)
        return names

    def images(self, folder: str) -> list[Sized] | None:
        """(path below the root, bytes) of a class's images, in torchvision's order: by directory, then by name.

        None where the folder is d4m-fast's own.
        """
        found: dict[str, list[Sized]] = {}
        if self._collect(folder, (identify(self.root),), found, set()):
            self.own_folders.add(folder)
            return None
        self._require_no_copy(folder, found)
        return [(f"{directory}/{name}", size) for directory in sorted(found) for name, size in sorted(found[directory])]

    def _require_no_copy(self, folder: str, found: Iterable[str]) -> None:
        """Refuse a folder that holds the set once more, as some archives do: its images would be a class of their own.

        Raises:
            DataError: two or more folders in it are called like class folders beside it.
        """
        inside = {directory.split("/")[1] for directory in found if "/" in directory}
        repeated = inside & set(self._class_of.values()) - {folder}
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
            lines.append("left out: " + ", ".join(f"{count:,}{reason}" for reason, count in counts))
        if self.skipped_folders:
            lines.append(f"skipped folders: {some(sorted(self.skipped_folders))}")
        if self.own_folders:
            lines.append(f"not read: {some(sorted(self.own_folders))} (d4m-fast's own runs and cache)")
        return tuple(lines)

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
        if identity == identify(self.root):
            raise DataError(f"{path}: links to {self._real_root}, a folder above it; remove the link")
        other = self._class_of.setdefault(identity, folder)
        if other != folder:
            raise DataError(f"{path}: is the same folder as {other}; remove one of the links")

    def _require_unpacked(self, folders: Collection[str], archives: Iterable[str]) -> None:
        known = set(folders)
        for archive in sorted(archives):
            suffix = next(s for s in sorted(ARCHIVES, key=len, reverse=True) if archive.lower().endswith(s))
            if archive[: -len(suffix)] not in known:
                raise DataError(f"{self.root}: {archive} is still packed: unpack it into a folder, or remove it")
            self._leave_out(archive)

    def _leave_out(self, name: str, reason: str = "") -> None:
        suffix = os.path.splitext(name)[1].lower()
        default = " hidden" if name.startswith(".") else f" {suffix}" if suffix else " without extension"
        if suffix in WITHOUT_DECODER:
            default = f" {suffix} (no decoder for {WITHOUT_DECODER[suffix]} in Pillow)"
        self.left_out[reason if reason else default] += 1

    def _collect(
        self, folder: str, above: tuple[Identity, ...], found: dict[str, list[Sized]], linked: set[Identity]
    ) -> bool:
        """List a folder and what is below it into `found`; returns whether it is d4m-fast's own, and not to be read."""
        path = f"{self.root}/{folder}"
        identity = identify(path)
        if identity in above:  # a link to a directory above
            return False
        if len(above) > _MAX_DEPTH:
            raise DataError(f"{path}: more than {_MAX_DEPTH} folders deep; give the folder that holds the classes")
        entries = list_entries(path)
        names = {entry.name for entry in entries}
        if is_run(names) or _is_cache(entries):
            return True
        images, folders = self._sorted_out(path, entries)
        found[folder] = images
        require_plain_names(path, [*(entry.name for entry in folders), *(name for name, _ in images)])
        own = [self._collect_below(folder, entry, (*above, identity), found, linked) for entry in folders]
        return bool(own) and all(own) and not images

    def _sorted_out(self, path: str, entries: Iterable[os.DirEntry[str]]) -> tuple[list[Sized], list[os.DirEntry[str]]]:
        images, folders = [], []
        for entry in entries:
            if is_folder(entry):
                if self._is_open(entry):
                    folders.append(entry)
            elif is_image(entry.name):
                images.append((entry.name, _size(entry)))
            else:
                self._leave_out(entry.name)
        return images, folders

    def _collect_below(
        self,
        folder: str,
        entry: os.DirEntry[str],
        above: tuple[Identity, ...],
        found: dict[str, list[Sized]],
        linked: set[Identity],
    ) -> bool:
        below = f"{folder}/{entry.name}"
        if entry.is_symlink():
            identity = identify(entry.path)
            other = self._class_of.get(identity)
            if other is not None and identity not in above:
                raise DataError(f"{entry.path}: links to the class folder {other}; its images would be of both classes")
            if identity in linked:  # folders that link to each other could be walked through in any order
                return False
            linked.add(identity)
        own = self._collect(below, above, found, linked)
        if own:
            self.own_folders.add(below)
        return own


def _is_cache(entries: Collection[os.DirEntry[str]]) -> bool:
    """Whether these are the entries of an artifacts folder, or of one of its two parts."""
    names = {entry.name for entry in entries} - {".lock"}
    if names and all(_CACHE_ENTRY.fullmatch(name) for name in names):
        return True
    parts = [entry for entry in entries if entry.name in ("latents", "engines") and is_folder(entry)]
    if not parts or len(parts) < len(names):
        return False
    return all(_CACHE_ENTRY.fullmatch(entry.name) for part in parts for entry in list_entries(part.path))


def _size(entry: os.DirEntry[str]) -> int:
    try:
        return entry.stat().st_size
    except OSError:  # a dangling link: stays in the list, and `read` says what is wrong with it
        return -1


def _unlistable(path: str, error: OSError) -> DataError:
    return DataError(f"{path}: cannot be listed ({error.strerror}); mend its permissions, or remove it")
