"""Which folder of a data set holds its classes, in the layouts that data sets are unpacked into."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Set
from itertools import islice
from pathlib import Path

from d4m_fast.errors import DataError
from d4m_fast.sources.entries import CONTAINERS, has_images, is_cache, is_folder, is_run, is_skipped, list_entries
from d4m_fast.sources.splits import SPLIT_KINDS, named_split, numbered_parts, split_of
from d4m_fast.wording import some

_VIEWS = frozenset(
    {"mask", "masks", "trimap", "trimaps", "segmentation", "segmentations", "edge", "edges", "depth", "depths", "gt"}
    | {"normals", "contours", "ground_truth", "groundtruth", "gtfine", "gtcoarse", "labels"}
)
_COMPANIONS = _VIEWS - {"mask", "edge"} | frozenset(
    {"annotation", "annotations", "meta", "metadata", "lists", "imagesets", "parts", "attributes", "bboxes"}
    | {"devkit", "ilsvrc2012_devkit_t12", "splits", "unlabeled", "bounding_boxes"}
)
_MAX_DEPTH = 4  # ILSVRC/Data/CLS-LOC/train
_MOST_LOOKED_INTO = 50  # folders of one level
_MOST_SEARCHED = 1000  # folders, for a suggestion
_MOST_SUGGESTED = 6
_NEEDED = "one folder of images per class is needed"


def image_root(root: Path, split: str) -> Path:
    """Where the class folders are: the split's folder, a run's `images`, a sole `images`, or `root` itself.

    Raises:
        DataError: splits that do not fit, or no class folders here, but perhaps below: then the message says where.
    """
    names = _folders(root)
    if "images" in names and is_run({entry.name for entry in list_entries(str(root))}):
        return root / "images"
    splits = {name: kind for name in names if (kind := split_of(name)) and holds_classes(root / name)}
    if splits:
        chosen = root / _chosen_split(root, splits, split)
        _require_no_classes_beside(root, splits)
        return chosen
    _require_no_parts(root, names)
    _require_no_pair(root, names, split)
    if len(names) == 1 and names[0].lower() == "images" and holds_classes(root / names[0]):
        return root / names[0]
    if names and not _are_classes(root, names):
        raise DataError(_refusal(root, names, split))
    return root


def unread_beside(root: Path, chosen: Path) -> tuple[str, ...]:
    """A line about folders of images beside the one that was chosen; none where `root` was."""
    names = (
        _class_like(root) if chosen != root and not is_run({entry.name for entry in list_entries(str(root))}) else []
    )
    return (f"not read, as {chosen.name}/ is taken: {some(names)}",) if names else ()


def require_one_level(root: Path, inner: Mapping[str, Set[str]], bare: Set[str]) -> None:
    """Refuse folders that hold more than a class: splits, masks, or the classes themselves.

    Args:
        inner: names of the folders with images in each class folder.
        bare: class folders with images of their own.

    Raises:
        DataError: the images of these folders are not of one class.
    """
    for folder, names in inner.items():
        _require_no_split_inside(root, folder, names, folder in bare)
        views = sorted(name for name in names if name.lower() in _VIEWS)
        if views and folder in bare:
            raise DataError(
                f"{root}/{folder}: holds {some(views)}/ beside its images, which would be images of the class, too;"
                " move it out of the data"
            )
    if len(inner) < 2 or bare:
        return
    common = frozenset.intersection(*map(frozenset, inner.values()))
    if len(common) > 1:
        raise DataError(
            f"{root}: {some(inner)} all hold {some(sorted(common))}, so they may be parts or domains of one set, and"
            f" these its classes; give one of them, as {root}/{next(iter(inner))}"
        )
    if all(len(folder) == 1 and all(name[0] == folder for name in names) for folder, names in inner.items()):
        first, names = next(iter(inner.items()))
        raise DataError(
            f"{root}: {some(inner)} hold the classes by their first letter ({first}/{min(names)}); move or link them"
            " into one folder"
        )


def _require_no_split_inside(root: Path, folder: str, names: Set[str], bare: bool) -> None:
    splits = sorted(name for name in names if split_of(name))
    kinds = {split_of(name) for name in splits}
    if len(kinds) > 1 or (splits and len(splits) == len(names) and not bare):
        raise DataError(
            f"{root}/{folder}: holds {some(splits)}, a part of the set by name; move or link the class folders into one"
            f" folder per part, as {splits[0]}/{folder}"
        )


def _require_no_parts(root: Path, names: list[str]) -> None:
    """Refuse parts of one split, of which any would lack classes or images: train_1 and train_2, train.X1 and train.X2.

    Raises:
        DataError: there are some.
    """
    parts = numbered_parts(names, vague=False)
    if not parts:
        parts = [name for name in numbered_parts(names, vague=True) if holds_classes(root / name)]
    if len(parts) > 1:
        raise DataError(
            f"{root}: {some(parts)} are parts of one set by their names, no classes; move or link the class folders"
            " into one folder, and give that"
        )


def _require_no_pair(root: Path, names: list[str], split: str) -> None:
    """Refuse folders that are splits by what they have in common: seg_train and seg_test, train and test1.

    One alone may be a class: bullet_train, test_tube.
    """
    stems: dict[str, dict[str, str]] = {}
    for name in names:
        named = named_split(name)
        if named is not None:
            stems.setdefault(named[1], {}).setdefault(named[0], name)
    pair = next((kinds for kinds in stems.values() if len(kinds) > 1), None)
    if pair is not None:
        mine = next((pair[kind] for kind in SPLIT_KINDS[split] if kind in pair), None)
        found = [] if mine is None else _Search(split).places(root / mine)
        advice = f"did you mean {found[0]}?" if len(found) == 1 and _is_set(found[0]) else _NEEDED
        raise DataError(
            f"{root}: {' and '.join(sorted(pair.values()))} are splits by their names, no classes; {advice}"
        )


def holds_classes(path: Path) -> bool:
    """Whether it is a directory of directories that may be classes, and no class itself; stray images do not matter."""
    if not path.is_dir():
        return False
    names = [name for name in _folders(path) if not _is_no_class(name)]
    return bool(names) and (not has_images(path) or any(_is_class(path / name) for name in names[:_MOST_LOOKED_INTO]))


def _is_class(path: Path) -> bool:
    return has_images(path) or has_images(path / "images")


def _are_classes(root: Path, names: list[str]) -> bool:
    """Whether the folders of a root may be classes, as far as their names and the first level below tell."""
    if all(_is_no_class(name) for name in names):
        return False
    if any(_is_bare(root / name) for name in names):
        return False
    if any(_is_no_class(name) and name.lower() not in _COMPANIONS and holds_classes(root / name) for name in names):
        return False
    if any(_is_class(root / name) for name in names):
        return True
    # No class has images of its own: either all are superclasses, or one folder is what an archive was unpacked into.
    others = [name for name in names if name.lower() not in _COMPANIONS][:_MOST_LOOKED_INTO]
    holders = [name for name in others if _Search("train").places(root / name)]
    return len(others) > 1 and len(holders) != 1 and not any(_split_below(root / name, "train") for name in holders)


def _is_bare(path: Path) -> bool:
    """Whether it holds images and cannot be a class by its name, as `train` can."""
    name = path.name.lower()
    return name != "train" and (name in CONTAINERS or split_of(name) is not None) and has_images(path)


def _refusal(root: Path, names: list[str], split: str) -> str:
    found = _suggestion(root, split)
    advice = found if found else "give the folder that holds one folder of images per class"
    if "images" in map(str.lower, names) and any(holds_classes(root / name) for name in names):
        return f"{root}: {some(names)}: not all of these are class folders; {advice}"
    bare = [name for name in names if _is_no_class(name) and has_images(root / name)]
    if not bare:
        return f"{root}: {some(names)}: no class folders; {advice}"
    bare.sort(key=lambda name: not _is_bare(root / name))
    hint = "" if all(map(_is_no_class, names)) else f"; if {bare[0]} is a class, rename it"
    more = f"; {found}" if found else ""
    return f"{root}: {bare[0]}/ holds images without class folders, {_NEEDED}{hint}{more}"


def _suggestion(root: Path, split: str) -> str:
    found = _Search(split).below(root)
    if not all(map(_is_set, found)):
        return ""
    if len(found) == 1:
        return f"did you mean {found[0]}?"
    alike = len(found) > 1 and len(set(_folders(found[0])) & set(_folders(found[1]))) > 1
    return f"did you mean one of {some(map(str, found))}?" if alike else ""


def _is_set(path: Path) -> bool:
    """Whether a folder may be suggested: it has two class folders at least, no bare images, and is not all in parts."""
    names = _folders(path)
    classes = [name for name in names if not _is_no_class(name)][:_MOST_LOOKED_INTO]
    parts = numbered_parts(names, vague=False)
    return (
        sum(_is_class(path / name) for name in classes) > 1 and not parts and not any(_is_bare(path / n) for n in names)
    )


class _Search:
    """A look for the classes of a split, or any classes, which ends however many folders there are."""

    def __init__(self, split: str) -> None:
        self._split = split
        self._left = _MOST_SEARCHED

    def below(self, path: Path) -> list[Path]:
        """The nearest folders below that may hold the classes."""
        return list(islice(self._below(path, _MAX_DEPTH), _MOST_SUGGESTED))

    def places(self, path: Path) -> list[Path]:
        """The folder itself where it holds classes, else the nearest below."""
        return list(islice(self._places(path, _MAX_DEPTH), _MOST_SUGGESTED))

    def _below(self, path: Path, depth: int) -> Iterator[Path]:
        inside = _split_below(path, self._split)
        if inside is not None:
            yield inside
            return
        names = [name for name in _folders(path) if name.lower() not in _COMPANIONS][:_MOST_LOOKED_INTO]
        for group in _by_split(names, self._split):
            found = False
            for name in group:
                for place in self._places(path / name, depth - 1):
                    found = True
                    yield place
            if found:
                return

    def _places(self, path: Path, depth: int) -> Iterator[Path]:
        self._left -= 1
        if depth < 0 or self._left < 0 or (has_images(path) and not holds_classes(path)):
            return
        if _split_below(path, self._split) is None and _first_has_images(path):
            yield path
        else:
            yield from self._below(path, depth)


def _by_split(names: list[str], split: str) -> tuple[list[str], list[str]]:
    """Folders of the split by their names, and those of none."""
    named = [(name, named_split(name)) for name in names]
    mine = [(words[1], name) for name, words in named if words is not None and words[0] in SPLIT_KINDS[split]]
    return [name for _, name in sorted(mine)], [name for name, words in named if words is None]


def _split_below(path: Path, split: str) -> Path | None:
    names = (name for name in _folders(path) if split_of(name) in SPLIT_KINDS[split])
    return next((path / name for name in names if holds_classes(path / name)), None)


def _first_has_images(path: Path) -> bool:
    """Whether one of the first folders that may be classes has images."""
    names = [name for name in _folders(path) if not _is_no_class(name)][:_MOST_LOOKED_INTO]
    return any(has_images(path / name) for name in names)


def _require_no_classes_beside(root: Path, splits: Mapping[str, str]) -> None:
    """Refuse folders of images beside a single one that is called like a split: this may be a class of trains.

    Raises:
        DataError: there are some, and no second split tells what they are.
    """
    beside = _class_like(root) if len(set(splits.values())) == 1 else []
    if beside:
        name = next(iter(splits))
        raise DataError(
            f"{root}: beside {name}/, which holds class folders, are others with images: {some(beside)}; give"
            f" {root / name}, or move {name}/ out"
        )


def _class_like(root: Path) -> list[str]:
    """Folders with images that are no splits, no companions, and not d4m-fast's."""
    return [name for name in _folders(root) if not _is_no_class(name) and _is_class_like(root / name)]


def _is_class_like(path: Path) -> bool:
    if _is_own(path):
        return False
    return has_images(path) or any(
        has_images(path / name) and not _is_own(path / name) for name in _folders(path)[:_MOST_LOOKED_INTO]
    )


def _is_own(path: Path) -> bool:
    entries = list_entries(str(path))
    return is_run({entry.name for entry in entries}) or is_cache(entries)


def _chosen_split(root: Path, splits: Mapping[str, str], split: str) -> str:
    wanted = SPLIT_KINDS[split]
    mine = sorted((name for name, kind in splits.items() if kind in wanted), key=lambda n: wanted.index(splits[n]))
    if not mine:
        kinds = " or ".join(wanted)
        raise DataError(f"{root}: has {next(iter(splits))}/ but no {kinds}/ with class folders")
    same = [name for name in _folders(root) if named_split(name) == (splits[mine[0]], "") and name != mine[0]]
    twin = next((name for name in same if holds_classes(root / name)), None)  # train_2, too
    if twin is not None:
        raise DataError(f"{root}: both {mine[0]}/ and {twin}/ may be the split; give {root / mine[0]} or {root / twin}")
    other = min(splits, key=lambda name: ("train", "test", "val").index(splits[name]))
    # Class ids are positions in the list of folders, so a missing folder would shift every label after it.
    differ = set(_folders(root / mine[0])) ^ set(_folders(root / other))
    if differ:
        raise DataError(f"{root}: {mine[0]}/ and {other}/ hold different class folders ({some(sorted(differ))})")
    return mine[0]


def _is_no_class(name: str) -> bool:
    return split_of(name) is not None or name.lower() in CONTAINERS or name.lower() in _COMPANIONS


def _folders(path: Path) -> list[str]:
    """Names of the folders that are not hidden or a tool's, sorted."""
    return sorted(e.name for e in list_entries(str(path)) if is_folder(e) and not is_skipped(e.name))
