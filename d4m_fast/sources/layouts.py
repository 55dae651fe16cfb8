"""Find the folder of a data set that holds its classes, in the layouts that data sets are unpacked into."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Set
from pathlib import Path

from d4m_fast.errors import DataError
from d4m_fast.sources.class_search import (
    MAX_LOOKED_INTO,
    VIEWS,
    ClassSearch,
    any_class,
    holds_classes,
    is_bare,
    is_no_class,
    is_set,
    list_folders,
    possible_classes,
    split_below,
    without_companions,
)
from d4m_fast.sources.entries import has_images, is_own, is_run, list_entries
from d4m_fast.sources.splits import SPLIT_KINDS, named_split, numbered_parts, split_of
from d4m_fast.wording import some

_REQUIRED_LAYOUT = "one folder of images per class is needed"


def image_root(root: Path, split: str) -> Path:
    """Return the folder of class folders: the split's folder, a run's `images`, a sole `images`, or `root` itself.

    Raises:
        DataError: splits that do not fit, or no class folders here, but perhaps below: then the message says where.
    """
    names = list_folders(root)
    if "images" in names and is_run(list_entries(str(root))):
        return root / "images"
    splits = {}
    for name in names:
        kind = split_of(name)
        if kind is not None and holds_classes(root / name):
            splits[name] = kind
    if splits:
        split_root = root / _choose_split(root, splits, split)
        _require_no_classes_beside(root, splits)
        return split_root
    _require_no_parts(root, names)
    _require_no_pair(root, names, split)
    if len(names) == 1 and names[0].lower() == "images" and holds_classes(root / names[0]):
        return root / names[0]
    if names and not _are_classes(root, names):
        raise DataError(_refusal(root, names, split))
    return root


def unread_beside(root: Path, class_root: Path) -> Iterator[str]:
    """Yield a line about folders of images beside the folder that `image_root` returned; none where that is `root`."""
    if class_root == root or is_run(list_entries(str(root))):
        return
    names = _class_like(root)
    if names:
        yield f"not read, as {class_root.name}/ is taken: {some(names)}"


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
        views = sorted(name for name in names if name.lower() in VIEWS)
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
    if all(_is_by_letter(folder, names) for folder, names in inner.items()):
        letter, names = next(iter(inner.items()))
        raise DataError(
            f"{root}: {some(inner)} hold the classes by their first letter ({letter}/{min(names)}); move or link them"
            " into one folder"
        )


def _is_by_letter(folder: str, names: Iterable[str]) -> bool:
    """Return whether a folder holds the classes that begin with its name, as those of Places365 do: a/airfield."""
    return len(folder) == 1 and all(name[0] == folder for name in names)


def _require_no_split_inside(root: Path, folder: str, names: Set[str], bare: bool) -> None:
    splits = sorted(filter(split_of, names))
    kinds = set(map(split_of, splits))
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
    stems: dict[str, dict[str, str]] = {}  # the words beside "train" and "test" -> kind of split -> folder
    for name in names:
        kind_and_stem = named_split(name)
        if kind_and_stem is not None:
            kind, stem = kind_and_stem
            stems.setdefault(stem, {}).setdefault(kind, name)
    for pair in stems.values():
        if len(pair) > 1:
            folder = next((pair[kind] for kind in SPLIT_KINDS[split] if kind in pair), None)
            places = [] if folder is None else ClassSearch(split).places(root / folder)
            is_clear = len(places) == 1 and is_set(places[0])
            advice = f"did you mean {places[0]}?" if is_clear else _REQUIRED_LAYOUT
            raise DataError(
                f"{root}: {' and '.join(sorted(pair.values()))} are splits by their names, no classes; {advice}"
            )


def _are_classes(root: Path, names: list[str]) -> bool:
    """Return whether the folders of a root may be classes, as far as their names and the first level below tell."""
    if all(map(is_no_class, names)):
        return False
    if any(is_bare(root / name) for name in names):
        return False
    for name in without_companions(names):
        if is_no_class(name) and holds_classes(root / name):
            return False
    if any_class(root, names):
        return True
    # No class has images of its own: either all are superclasses, or one folder is what an archive was unpacked into.
    candidates = without_companions(names)[:MAX_LOOKED_INTO]
    holders = [name for name in candidates if ClassSearch("train").places(root / name)]
    has_split = any(split_below(root / name, "train") for name in holders)
    return len(candidates) > 1 and len(holders) != 1 and not has_split


def _refusal(root: Path, names: list[str], split: str) -> str:
    suggestion = _suggestion(root, split)
    advice = suggestion if suggestion else "give the folder that holds one folder of images per class"
    if "images" in map(str.lower, names) and any(holds_classes(root / name) for name in names):
        return f"{root}: {some(names)}: not all of these are class folders; {advice}"
    bare = [name for name in names if is_no_class(name) and has_images(root / name)]
    if not bare:
        return f"{root}: {some(names)}: no class folders; {advice}"
    bare.sort(key=lambda name: not is_bare(root / name))  # those that cannot be classes come first
    hint = "" if all(map(is_no_class, names)) else f"; if {bare[0]} is a class, rename it"
    more = f"; {suggestion}" if suggestion else ""
    return f"{root}: {bare[0]}/ holds images without class folders, {_REQUIRED_LAYOUT}{hint}{more}"


def _suggestion(root: Path, split: str) -> str:
    places = ClassSearch(split).below(root)
    if not places or not all(map(is_set, places)):
        return ""
    if len(places) == 1:
        return f"did you mean {places[0]}?"
    common = set(list_folders(places[0])) & set(list_folders(places[1]))
    return f"did you mean one of {some(map(str, places))}?" if len(common) > 1 else ""


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
    """Return the folders with images that are no splits, no companions, and not d4m-fast's."""
    return [name for name in possible_classes(list_folders(root)) if _is_class_like(root / name)]


def _is_class_like(path: Path) -> bool:
    if is_own(list_entries(str(path))):
        return False
    if has_images(path):
        return True
    inner_folders = [path / name for name in list_folders(path)[:MAX_LOOKED_INTO]]
    return any(has_images(folder) and not is_own(list_entries(str(folder))) for folder in inner_folders)


def _choose_split(root: Path, splits: Mapping[str, str], split: str) -> str:
    """Return the folder of a split; the one that is called "test" rather than the one that is called "val".

    Raises:
        DataError: there is none, there are several, or another split has other classes.
    """
    kinds = SPLIT_KINDS[split]
    candidates = [name for name, kind in splits.items() if kind in kinds]
    if not candidates:
        raise DataError(f"{root}: has {next(iter(splits))}/ but no {' or '.join(kinds)}/ with class folders")
    folder = min(candidates, key=lambda name: kinds.index(splits[name]))
    for name in list_folders(root):
        # train_2 has the same words as train, but for its number.
        if name != folder and named_split(name) == (splits[folder], "") and holds_classes(root / name):
            raise DataError(
                f"{root}: both {folder}/ and {name}/ may be the split; give {root / folder} or {root / name}"
            )
    reference = min(splits, key=lambda name: ("train", "test", "val").index(splits[name]))
    # Class ids are positions in the list of folders, so a missing folder would shift every label after it.
    unshared = set(list_folders(root / folder)) ^ set(list_folders(root / reference))
    if unshared:
        raise DataError(f"{root}: {folder}/ and {reference}/ hold different class folders ({some(sorted(unshared))})")
    return folder
