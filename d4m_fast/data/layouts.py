"""Which folder of a data set holds its classes, in the layouts that data sets are unpacked into."""

from __future__ import annotations

import os
import re
from pathlib import Path
from types import MappingProxyType

from d4m_fast.data.walk import is_folder, is_image, is_run, is_skipped, list_entries
from d4m_fast.data.wording import some
from d4m_fast.errors import DataError

_SPLIT_NAME = re.compile(
    "(?:(?P<train>train|training|trn)|(?P<test>test|testing|tst)|(?P<val>val|valid|validation|dev|eval))"
    "(?:[-_ ]?(?:set|data|images|split))?(?:[-_]?[0-9]{2,4})?",
    re.IGNORECASE,
)
_SPLIT_WORDS = MappingProxyType(
    {
        **dict.fromkeys(("train", "training", "trn"), "train"),
        **dict.fromkeys(("test", "testing", "tst"), "test"),
        **dict.fromkeys(("val", "valid", "validation", "dev", "eval"), "val"),
    }
)
_FILLERS = frozenset({"set", "data", "images", "split", "dataset"})
_WORD = re.compile("[A-Z]?[a-z]+|[A-Z]+(?![a-z])")  # trainingSet, seg_train, stage1_test
SPLIT_KINDS = {"train": ("train",), "test": ("test", "val")}
_CONTAINERS = frozenset({"images", "image", "imgs", "img", "jpg", "jpeg", "jpegs", "png", "jpegimages", "pictures"})
_COMPANIONS = frozenset(
    {"annotation", "annotations", "meta", "metadata", "labels", "lists", "imagesets", "parts", "attributes", "masks"}
    | {"segmentations", "segmentation", "trimaps", "devkit", "ilsvrc2012_devkit_t12", "splits", "unlabeled"}
)
_MAX_DEPTH = 4  # ILSVRC/Data/CLS-LOC/train
_MOST_LOOKED_INTO = 50  # folders of one level


def image_root(root: Path, split: str) -> Path:
    """Where the class folders are: the split's folder, a run's `images`, a sole `images`, or `root` itself.

    Raises:
        DataError: splits that do not fit, or no class folders here, but perhaps below: then the message says where.
    """
    names = _folders(root)
    if "images" in names and is_run({entry.name for entry in list_entries(str(root))}):
        return root / "images"
    splits = {name: kind for name in names if (kind := _split_of(name)) and holds_classes(root / name)}
    if splits:
        return root / _chosen_split(root, splits, split)
    _require_no_pair(root, names, split)
    if len(names) == 1 and names[0].lower() == "images" and holds_classes(root / names[0]):
        return root / names[0]
    if names and not _are_classes(root, names):
        raise DataError(f"{root}: {_reason(root, names)}{_suggestion(root, split)}")
    return root


def _require_no_pair(root: Path, names: list[str], split: str) -> None:
    """Refuse folders that are splits by what they have in common: seg_train and seg_test, train and test1.

    One alone may be a class: bullet_train, test_tube.
    """
    stems: dict[str, dict[str, str]] = {}
    for name in names:
        named = _named_split(name)
        if named is not None:
            stems.setdefault(named[1], {}).setdefault(named[0], name)
    pair = next((kinds for kinds in stems.values() if "train" in kinds and len(kinds) > 1), None)
    if pair is not None:
        mine = next((pair[kind] for kind in SPLIT_KINDS[split] if kind in pair), pair["train"])
        inside = root / mine if _first_has_images(root / mine) else _classes_below(root / mine, split, _MAX_DEPTH)
        advice = "one folder of images per class is needed" if inside is None else f"did you mean {inside}?"
        raise DataError(
            f"{root}: {' and '.join(sorted(pair.values()))} are splits by their names, no classes; {advice}"
        )


def _named_split(name: str) -> tuple[str, str] | None:
    """The kind of split that a folder's first or last word is, and its other words; None where it is none."""
    words = [word.lower() for word in _WORD.findall(name)]
    words = [word for word in words if word not in _FILLERS]
    for at, rest in ((0, words[1:]), (-1, words[:-1])):
        if words and words[at] in _SPLIT_WORDS:
            return _SPLIT_WORDS[words[at]], " ".join(rest)
    return None


def holds_classes(path: Path) -> bool:
    """Whether it is a directory of directories that may be classes, and no class itself."""
    if not path.is_dir():
        return False
    names = _folders(path)
    return any(not _is_no_class(name) for name in names) and not _has_images(path)


def _are_classes(root: Path, names: list[str]) -> bool:
    """Whether the folders of a root may be classes, as far as their names and the first level below tell."""
    if all(_is_no_class(name) for name in names):
        return False
    if any(_is_no_class(name) and name.lower() not in _COMPANIONS and holds_classes(root / name) for name in names):
        return False
    if any(_has_images(root / name) or _has_images(root / name / "images") for name in names):
        return True
    # No class has images of its own: either all are superclasses, or one folder is what an archive was unpacked into.
    others = [name for name in names if name.lower() not in _COMPANIONS][:_MOST_LOOKED_INTO]
    holders = [
        name
        for name in others
        if _classes_below(root / name, "train", _MAX_DEPTH) is not None or _is_holder(root / name)
    ]
    return len(holders) != 1 and not any(_split_below(root / name, "train") for name in holders)


def _reason(root: Path, names: list[str]) -> str:
    if "images" in map(str.lower, names) and any(holds_classes(root / name) for name in names):
        return f"{some(names)}: not all of these are class folders"
    bare = [name for name in names if _is_no_class(name) and _has_images(root / name)]
    if bare:
        return f"{bare[0]}/ holds images without class folders, one folder of images per class is needed"
    return f"{some(names)}: no class folders"


def _suggestion(root: Path, split: str) -> str:
    found = _classes_below(root, split, _MAX_DEPTH)
    return "" if found is None else f"; did you mean {found}?"


def _classes_below(path: Path, split: str, depth: int) -> Path | None:
    """The nearest folder below that a split's classes are in, or any classes."""
    inside = _split_below(path, split)
    if inside is not None:
        return inside
    for name in _by_split(_folders(path)[:_MOST_LOOKED_INTO], split) if depth else ():
        below = path / name
        if name.lower() in _COMPANIONS or _has_images(below):
            continue
        deeper = _classes_below(below, split, depth - 1) if not _first_has_images(below) else None
        if deeper is not None:
            return deeper
        if _first_has_images(below):
            return below
    return None


def _by_split(names: list[str], split: str) -> list[str]:
    """Without the folders of other splits; those of the split itself come first."""
    named = [(name, _named_split(name)) for name in names]
    mine = [(words[1], name) for name, words in named if words is not None and words[0] in SPLIT_KINDS[split]]
    return [name for _, name in sorted(mine)] + [name for name, words in named if words is None]


def _is_holder(path: Path) -> bool:
    return holds_classes(path) and _first_has_images(path)


def _split_below(path: Path, split: str) -> Path | None:
    names = (name for name in _folders(path) if _split_of(name) in SPLIT_KINDS[split])
    return next((path / name for name in names if holds_classes(path / name)), None)


def _first_has_images(path: Path) -> bool:
    """Whether one of the first folders that may be classes has images."""
    names = [name for name in _folders(path) if not _is_no_class(name)][:_MOST_LOOKED_INTO]
    return any(_has_images(path / name) for name in names)


def _chosen_split(root: Path, splits: dict[str, str], split: str) -> str:
    wanted = SPLIT_KINDS[split]
    mine = sorted((name for name, kind in splits.items() if kind in wanted), key=lambda n: wanted.index(splits[n]))
    if not mine:
        kinds = " or ".join(wanted)
        raise DataError(f"{root}: has {next(iter(splits))}/ but no {kinds}/ with class folders")
    twin = next((name for name in mine[1:] if splits[name] == splits[mine[0]]), None)
    if twin is not None:
        raise DataError(f"{root}: both {mine[0]}/ and {twin}/ may be the split; did you mean {root / mine[0]}?")
    other = min(splits, key=lambda name: ("train", "test", "val").index(splits[name]))
    # Class ids are positions in the list of folders, so a missing folder would shift every label after it.
    differ = set(_folders(root / mine[0])) ^ set(_folders(root / other))
    if differ:
        raise DataError(f"{root}: {mine[0]}/ and {other}/ hold different class folders ({some(sorted(differ))})")
    return mine[0]


def _split_of(name: str) -> str | None:
    match = _SPLIT_NAME.fullmatch(name)
    return None if match is None else match.lastgroup


def _is_no_class(name: str) -> bool:
    return _split_of(name) is not None or name.lower() in _CONTAINERS or name.lower() in _COMPANIONS


def _folders(path: Path) -> list[str]:
    """Names of the folders that are not hidden or a tool's, sorted."""
    return sorted(e.name for e in list_entries(str(path)) if is_folder(e) and not is_skipped(e.name))


def _has_images(path: Path) -> bool:
    """Whether there is an image among the entries of a folder; stops at the first."""
    try:
        with os.scandir(path) as entries:
            return any(is_image(entry.name) and not is_folder(entry) for entry in entries)
    except OSError:
        return False
