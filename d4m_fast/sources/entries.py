"""Tell what the entries of a directory are, by their names and kinds: images, archives, runs, what tools leave."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterable
from itertools import chain
from pathlib import Path

from d4m_fast.characters import invisible_character
from d4m_fast.errors import DataError
from d4m_fast.sources.formats import EXTENSIONS
from d4m_fast.storage import files

CONTAINERS = frozenset(  # folders between a class or a set and its images
    {"images", "image", "imgs", "img", "jpg", "jpeg", "jpegs", "png", "jpegimages", "pictures", "rgb", "leftimg8bit"}
)
_ARCHIVES = (
    *(".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tbz", ".tar.xz", ".txz", ".tar.zst", ".tzst", ".tar.lz4", ".tar.lzma"),
    *(".tar.z", ".taz", ".tar", ".zip", ".zipx", ".7z", ".rar", ".squashfs", ".sqsh", ".cpio", ".iso"),
)
_COMPRESSED = (".gz", ".bz2", ".xz", ".zst", ".lz4", ".lzma", ".z")  # one file, which may be a table: labels.csv.gz
_PART_SUFFIX = re.compile(r"\.(?:[0-9]{2,3}|a[a-z]|part[-_]?[a-z0-9]+)")  # of an archive that was split
_TOOL_FOLDERS = frozenset(
    {"__macosx", "@eadir", "#recycle", "@recycle", "#snapshot", "__pycache__", "lost+found", "$recycle.bin", "recycler"}
    | {"system volume information", "_cache", "__cache__", "_thumbnails", "_macosx", "_ipynb_checkpoints"}
    | {"@__thumb", "@tmp", "@recently-snapshot", "~snapshot", "network trash folder", "temporary items"}
)
_PSEUDO_FILE_SYSTEMS = ("/proc", "/sys", "/dev")
_CONTROL = re.compile("[\\x00-\\x1f\\x7f\\ud800-\\udfff]")  # a lone surrogate stands for a byte that is not UTF-8
_FILE_SUFFIXES = (
    *(".txt", ".csv", ".tsv", ".json", ".xml", ".yaml", ".yml", ".md", ".html", ".pdf", ".mat", ".npy", ".py"),
)
_SUFFIX = re.compile(r"\.(?:[a-z][a-z0-9]{1,4}|[A-Z][A-Z0-9]{1,4})")  # no number: v1.0, and no name: 002.Laysan
_RECOVERED = re.compile("FOUND\\.[0-9]{3}", re.IGNORECASE)  # what chkdsk makes
_CACHE_ENTRY = re.compile(r"[0-9a-f]{16}(?:-[0-9]+|\.json|\.images)?|\.building-on-.*")  # of the folders below
INDEXES = "indexes"
CACHES = ("latents", "engines", INDEXES)  # folders of artifacts
_RUN_RECORDS = frozenset({"config.json", "plan.json", "manifest.jsonl"})
_RUN_FOLDERS = frozenset({"groups", "prototypes", "images"})

Identity = tuple[int, int]


def list_entries(path: str) -> list[os.DirEntry[str]]:
    """Return the entries of a directory.

    Raises:
        DataError: it cannot be listed.
    """
    try:
        with os.scandir(path) as entries:
            return list(entries)
    except OSError as error:
        raise _unlistable(path, error) from error


def identify(path: str) -> Identity:
    """Return device and inode, by which a directory is known under all of its names.

    Raises:
        DataError: there is nothing to be seen.
    """
    try:
        status = os.stat(path)
    except OSError as error:
        raise _unlistable(path, error) from error
    return status.st_dev, status.st_ino


def is_image(name: str) -> bool:
    """Return whether a file's name is that of an image, in a format that is read."""
    return name.lower().endswith(EXTENSIONS) and not name.startswith(".")


def is_folder(entry: os.DirEntry[str]) -> bool:
    """Return whether an entry is a directory, or a link to one."""
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def is_broken_folder(entry: os.DirEntry[str], *, dotted: bool = False) -> bool:
    """Return whether an entry is a link that leads nowhere, and led to a folder as far as its name tells.

    Args:
        dotted: folders beside it have names with a dot, as files have.
    """
    if not entry.is_symlink() or os.path.exists(entry.path):
        return False
    name, (stem, suffix) = entry.name, os.path.splitext(entry.name)
    if is_image(name) or name.startswith(".") or suffix.lower() in _FILE_SUFFIXES:
        return False
    return dotted or not has_file_suffix(name) or stem.isdigit()  # 001.ak47


def has_file_suffix(name: str) -> bool:
    """Return whether a name ends as those of files do, which some folders' names do, too: mr.bean."""
    return _SUFFIX.fullmatch(os.path.splitext(name)[1]) is not None


def unpacked_name(name: str) -> str | None:
    """Return the name of an archive or a compressed file without its suffix; None where it is none, or a table."""
    stem, suffix = os.path.splitext(name)
    if _PART_SUFFIX.fullmatch(suffix.lower()) and stem.lower().endswith((*_ARCHIVES, *_COMPRESSED)):
        name = stem
    for suffix in _ARCHIVES:
        if name.lower().endswith(suffix):
            return name[: -len(suffix)]
    stem, suffix = os.path.splitext(name)
    return stem if suffix.lower() in _COMPRESSED and not has_file_suffix(stem) else None


def is_skipped(name: str) -> bool:
    """Return whether a folder is hidden, or one that tools leave behind."""
    return name.startswith(".") or name.lower() in _TOOL_FOLDERS or _RECOVERED.fullmatch(name) is not None


def is_run(entries: Iterable[os.DirEntry[str]]) -> bool:
    """Return whether a directory with these entries is a run of d4m-fast, or a certificate's folder."""
    names = {entry.name for entry in entries}
    return "certify.json" in names or not (_RUN_RECORDS.isdisjoint(names) or _RUN_FOLDERS.isdisjoint(names))


def is_own(entries: Collection[os.DirEntry[str]]) -> bool:
    """Return whether a directory with these entries is d4m-fast's: a run, a certificate's folder, or a cache."""
    return is_run(entries) or is_cache(entries)


def is_cache(entries: Collection[os.DirEntry[str]]) -> bool:
    """Return whether these are the entries of an artifacts folder, or of one of its parts."""
    names = {entry.name for entry in entries} - {".lock"}
    if names and all(map(_CACHE_ENTRY.fullmatch, names)):
        # A hash may be the name of a class, too; but a cache holds no images.
        return not any(is_folder(entry) and has_images(entry.path) for entry in entries)
    caches = [entry for entry in entries if entry.name in CACHES and is_folder(entry)]
    if not caches or len(caches) < len(names):
        return False
    inner_entries = chain.from_iterable(list_entries(cache.path) for cache in caches)
    return all(_CACHE_ENTRY.fullmatch(entry.name) for entry in inner_entries)


def has_images(path: str | os.PathLike[str]) -> bool:
    """Return whether there is an image among the entries of a folder; stops at the first."""
    try:
        with os.scandir(path) as entries:
            return any(is_image(entry.name) and not is_folder(entry) for entry in entries)
    except OSError:
        return False


def require_real_folder(path: str) -> None:
    """Refuse the system's own file trees, and what holds them: /proc never ends, and reading there may do something.

    Raises:
        DataError: the path leads there.
    """
    real = os.path.realpath(path)
    if real == "/":
        raise DataError(f"{path}: is the root of all files; give or link the folder that holds the classes")
    is_pseudo = f"{real}/".startswith(tuple(f"{root}/" for root in _PSEUDO_FILE_SYSTEMS))
    if is_pseudo and not real.startswith("/dev/shm"):
        raise DataError(f"{path}: is {real}, which holds no files; give or link a real folder")


def require_plain_names(path: str, names: Iterable[str]) -> None:
    """Refuse names that no manifest could hold.

    Raises:
        DataError: one is not UTF-8 or has control characters.
    """
    for name in names:
        if _CONTROL.search(name):
            raise DataError(f"{path}: the name {name!a} has {invisible_character(name)}; rename it")


def _unlistable(path: str, error: OSError) -> DataError:
    return DataError(f"{path}: cannot be listed ({error.strerror}); mend its permissions, or remove it")


def read_at_most(path: Path, most_bytes: int) -> bytes:
    """Return the bytes of a file that is part of a set.

    Raises:
        DataError: it is larger, or cannot be read.
    """
    try:
        with files.open_regular(path) as file:
            data = file.read(most_bytes + 1)
    except OSError as error:
        files.refuse_machine_error(path, error)
        raise DataError(f"{path}: cannot be read ({error.strerror}); fetch it again") from error
    if len(data) > most_bytes:
        raise DataError(f"{path}: more than {most_bytes:,} bytes; is it the file of that name? fetch it again")
    return data
