"""Classes of ImageNet-1K that folders of images are, by WordNet id, number or name."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence

from d4m_fast.errors import ModelError
from d4m_fast.sources.class_names import WNID, imagenet_labels

IMAGENET_CLASSES = 1000
# "n02012849", or that before a name as in "n02012849_crane" and "n02012849-crane".
_WNID_FIRST = re.compile(rf"({WNID.pattern})(?:[-_. ].*)?")


def imagenet_wnids() -> tuple[str, ...]:
    """Return the WordNet ids in the order of the outputs of torchvision's and timm's classifiers, ascending."""
    return tuple(imagenet_labels())


def imagenet_indices(folders: Sequence[str]) -> tuple[int, ...] | None:
    """Return the class of each folder, 0 to 999; None where one is no class of ImageNet-1K.

    Folders are named by WordNet ids ("n02012849", "n02012849_crane"), as published sets are by the class's number (all
    1,000 of them: "0" to "999", whatever order they were listed in), or by one of the class's names. A name that
    several classes have ("crane": the bird, 134, and the machine, 517) is the class that no other folder is. Capitals
    count only between folders that are alike but for them ("Cardigan" the dog, and "cardigan").

    Raises:
        ModelError: two folders are one class, or a name may still be several.
    """
    if len(folders) == IMAGENET_CLASSES and all(folder.isdecimal() for folder in folders):
        indices = [int(folder) for folder in folders]
        return _distinct(folders, indices) if max(indices) < IMAGENET_CLASSES else None
    wnids = imagenet_wnids()
    index_of_wnid = {wnid: index for index, wnid in enumerate(wnids)}
    indices = []
    for folder in folders:
        match = _WNID_FIRST.fullmatch(folder)
        if match is not None and match[1].lower() in index_of_wnid:
            indices.append(index_of_wnid[match[1].lower()])
    if len(indices) == len(folders):
        return _distinct(folders, indices)
    names, spelt = _classes_of_names(_plain), _classes_of_names(_spaced)
    counts = Counter(map(_plain, folders))
    candidates = []
    for folder in folders:
        if counts[_plain(folder)] > 1:
            candidates.append(spelt.get(_spaced(folder), frozenset()))
        else:
            candidates.append(names.get(_plain(folder), frozenset()))
    if not all(candidates):
        return None
    unambiguous = frozenset[int]()
    for options in candidates:
        if len(options) == 1:
            unambiguous |= options
    indices = []
    for folder, options in zip(folders, candidates, strict=True):
        remaining = sorted(options if len(options) == 1 else options - unambiguous)
        if len(remaining) != 1:
            classes = " or ".join(f"{index} ({wnids[index]})" for index in sorted(options))
            raise ModelError(f"folder {folder!r} may be ImageNet's class {classes}: rename it to the WordNet id")
        indices += remaining
    return _distinct(folders, indices)


def _distinct(folders: Sequence[str], indices: Sequence[int]) -> tuple[int, ...]:
    folder_of_index = dict[int, str]()
    for folder, index in zip(folders, indices, strict=True):
        if index in folder_of_index:
            raise ModelError(
                f"folders {folder_of_index[index]!r} and {folder!r} are both ImageNet's class {index}: rename one"
            )
        folder_of_index[index] = folder
    return tuple(indices)


def _classes_of_names(form: Callable[[str], str]) -> Mapping[str, frozenset[int]]:
    """Return the classes that each name may mean, WordNet's names of the class and torchvision's, in a form of them."""
    from torchvision.models import ResNet18_Weights

    categories = ResNet18_Weights.IMAGENET1K_V1.meta["categories"]
    classes = defaultdict[str, set[int]](set)
    for index, (label, category) in enumerate(zip(imagenet_labels().values(), categories, strict=True)):
        for name in (label, category, *label.split(",")):
            classes[form(name)].add(index)
    return {name: frozenset(indices) for name, indices in classes.items()}


def _spaced(name: str) -> str:
    """Return a name with one blank for whatever stands between its words."""
    return " ".join(re.findall(r"[\w']+", name.replace("_", " ")))


def _plain(name: str) -> str:
    return _spaced(name).casefold()
