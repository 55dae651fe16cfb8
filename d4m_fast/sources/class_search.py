"""Search folders for those that hold one folder of images per class."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path

from d4m_fast.sources.entries import CONTAINERS, has_images, is_folder, is_skipped, list_entries
from d4m_fast.sources.splits import SPLIT_KINDS, named_split, numbered_parts, split_of

# Folders of pictures of the images, such as masks, which are no images of a class themselves.
VIEWS = frozenset(
    {"mask", "masks", "trimap", "trimaps", "segmentation", "segmentations", "edge", "edges", "depth", "depths", "gt"}
    | {"normals", "contours", "ground_truth", "groundtruth", "gtfine", "gtcoarse", "labels"}
)
# Folders that data sets have beside their classes. A class may be called "mask" or "edge".
_COMPANIONS = VIEWS - {"mask", "edge"} | frozenset(
    {"annotation", "annotations", "meta", "metadata", "lists", "imagesets", "parts", "attributes", "bboxes"}
    | {"devkit", "ilsvrc2012_devkit_t12", "splits", "unlabeled", "bounding_boxes"}
)
_MAX_DEPTH = 4  # ILSVRC/Data/CLS-LOC/train
MAX_LOOKED_INTO = 50  # folders of one level
_MOST_SEARCHED = 1000  # folders, for a suggestion
_MOST_SUGGESTED = 6


def holds_classes(path: Path) -> bool:
    """Return whether a path is a directory of directories that may be classes, and no class itself.

    Images beside these directories do not matter if one of the directories is a class.
    """
    if not path.is_dir():
        return False
    names = possible_classes(list_folders(path))
    return bool(names) and (not has_images(path) or any_class(path, names[:MAX_LOOKED_INTO]))


def is_class(path: Path) -> bool:
    """Return whether a folder holds images, or a folder `images` that does."""
    return has_images(path) or has_images(path / "images")


def any_class(root: Path, names: Iterable[str]) -> bool:
    """Return whether one of the named folders below a root is a class."""
    return any(is_class(root / name) for name in names)


def is_bare(path: Path) -> bool:
    """Return whether a folder holds images and cannot be a class by its name, as `train` can."""
    name = path.name.lower()
    return name != "train" and (name in CONTAINERS or split_of(name) is not None) and has_images(path)


def is_set(path: Path) -> bool:
    """Return whether a folder may be suggested: it has two classes or more, no bare images, and no numbered parts."""
    names = list_folders(path)
    classes = sum(is_class(path / name) for name in possible_classes(names)[:MAX_LOOKED_INTO])
    if classes < 2 or numbered_parts(names, vague=False):
        return False
    return not any(is_bare(path / name) for name in names)


def is_no_class(name: str) -> bool:
    """Return whether a folder is called as a split, a container of images, or a companion of classes is."""
    return split_of(name) is not None or name.lower() in CONTAINERS or name.lower() in _COMPANIONS


def without_companions(names: Iterable[str]) -> list[str]:
    """Return the names that are not those of companions of classes."""
    return [name for name in names if name.lower() not in _COMPANIONS]


def possible_classes(names: Iterable[str]) -> list[str]:
    """Return the names that classes may have."""
    return [name for name in names if not is_no_class(name)]


def list_folders(path: Path) -> list[str]:
    """Return the names of the folders that are not hidden or a tool's, sorted."""
    folders = filter(is_folder, list_entries(str(path)))
    return sorted(folder.name for folder in folders if not is_skipped(folder.name))


def split_below(path: Path, split: str) -> Path | None:
    """Return the folder in a folder that is a split by its whole name and holds classes; None where there is none."""
    for name in list_folders(path):
        if split_of(name) in SPLIT_KINDS[split] and holds_classes(path / name):
            return path / name
    return None


class ClassSearch:
    """Look for the classes of a split, or any classes; the search ends however many folders there are."""

    def __init__(self, split: str) -> None:
        self._split = split
        self._remaining = _MOST_SEARCHED

    def below(self, path: Path) -> list[Path]:
        """Return the nearest folders below that may hold the classes."""
        return list(islice(self._below(path, _MAX_DEPTH), _MOST_SUGGESTED))

    def places(self, path: Path) -> list[Path]:
        """Return the folder itself where it holds classes, else the nearest below."""
        return list(islice(self._places(path, _MAX_DEPTH), _MOST_SUGGESTED))

    def _below(self, path: Path, depth: int) -> Iterator[Path]:
        split_root = split_below(path, self._split)
        if split_root is not None:
            yield split_root
            return
        names = without_companions(list_folders(path))[:MAX_LOOKED_INTO]
        for group in _by_split(names, self._split):
            is_empty = True
            for name in group:
                for place in self._places(path / name, depth - 1):
                    is_empty = False
                    yield place
            if not is_empty:
                return

    def _places(self, path: Path, depth: int) -> Iterator[Path]:
        self._remaining -= 1
        if depth < 0 or self._remaining < 0 or (has_images(path) and not holds_classes(path)):
            return
        names = possible_classes(list_folders(path))[:MAX_LOOKED_INTO]
        if split_below(path, self._split) is None and any(has_images(path / name) for name in names):
            yield path
        else:
            yield from self._below(path, depth)


def _by_split(names: Iterable[str], split: str) -> tuple[list[str], list[str]]:
    """Return the folders that are of the split by their names, the plainest names first, and those of no split."""
    of_split: list[tuple[str, str]] = []
    of_none = []
    for name in names:
        kind_and_stem = named_split(name)
        if kind_and_stem is None:
            of_none.append(name)
        elif kind_and_stem[0] in SPLIT_KINDS[split]:
            of_split.append((kind_and_stem[1], name))
    return [name for _, name in sorted(of_split)], of_none
