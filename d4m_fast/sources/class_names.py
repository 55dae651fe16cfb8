"""Names of classes: the ImageNet-1K labels, and the names inside folder names."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from importlib import resources

from d4m_fast.errors import DataError
from d4m_fast.wording import some

WNID = re.compile("[nN][0-9]{8}")
_NAMED_FOLDERS = (
    re.compile("(?P<key>[nN][0-9]{8})[-_. ](?P<name>.+)"),  # Stanford Dogs: n02085620-Chihuahua
    re.compile("(?P<key>[0-9]+)[.](?P<name>.+)"),  # CUB-200 and Caltech-256: 001.Black_footed_Albatross
)


def imagenet_labels(*, official: bool = False) -> Mapping[str, str]:
    """Return WordNet id -> label line of the 1,000 ImageNet-1K classes, in class order."""
    text = (resources.files("d4m_fast") / "assets" / "labels" / "imagenet-1k.tsv").read_text(encoding="utf-8")
    labels = {}
    for line in text.splitlines():
        wnid, label, *official_labels = line.split("\t")  # a third column where the published code has another label
        labels[wnid] = official_labels[0] if official and official_labels else label
    return labels


def names_in_folders(folders: Sequence[str]) -> list[str | None]:
    """Return what follows the WordNet id or number in each folder's name; None where it has none."""
    best: list[re.Match[str] | None] = [None] * len(folders)
    for pattern in _NAMED_FOLDERS:
        matches = list(map(pattern.fullmatch, folders))
        if matches.count(None) < best.count(None):
            best = matches
    # Where two folders have one number it counts something else, and is a part of their names.
    keys = {match["key"] for match in best if match}
    if len(keys) < len(folders) - best.count(None):
        return [None] * len(folders)
    return [match["name"] if match else None for match in best]


def spoken_folders(folders: Sequence[str]) -> list[str]:
    """Return folder names as prompts: `_` read as a space, WordNet ids and numbers before the names left out.

    Raises:
        DataError: most folders have an id or a number before their name, and some have none.
    """
    names: dict[str, str] = {}
    unnamed = []
    for folder, name in zip(folders, names_in_folders(folders), strict=True):
        if name is None:
            unnamed.append(folder)
        else:
            names[folder] = name
    if unnamed and 2 * len(unnamed) < len(folders):
        raise DataError(
            f"{len(names):,} of {len(folders):,} folders are called like {next(iter(names))!r}, but not"
            f" {some(unnamed)}: rename or remove, or give --prompts FILE"
        )
    texts = folders if unnamed else names.values()
    return [text.replace("_", " ") for text in texts]
