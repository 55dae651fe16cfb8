"""What classes are called: the ImageNet-1K labels, and the names inside folder names."""

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
    rows = [line.split("\t") for line in text.splitlines()]
    return {wnid: other[0] if official and other else label for wnid, label, *other in rows}


def names_in_folders(folders: Sequence[str]) -> list[str | None]:
    """Return what follows the WordNet id or number in each folder's name; None where it has none."""
    best: list[re.Match[str] | None] = [None] * len(folders)
    for pattern in _NAMED_FOLDERS:
        matches = [pattern.fullmatch(folder) for folder in folders]
        if sum(match is not None for match in matches) > sum(match is not None for match in best):
            best = matches
    keys = {match["key"] for match in best if match}
    return [match["name"] if match and len(keys) == len(folders) - best.count(None) else None for match in best]


def spoken_folders(folders: Sequence[str]) -> list[str]:
    """Folder names as prompts: `_` read as a space, WordNet ids and numbers before the names left out.

    Raises:
        DataError: most folders have an id or a number before their name, and some have none.
    """
    names = names_in_folders(folders)
    odd = [folder for folder, name in zip(folders, names, strict=True) if name is None]
    if odd and 2 * len(odd) < len(folders):
        example = next(folder for folder, name in zip(folders, names, strict=True) if name is not None)
        raise DataError(
            f"{len(folders) - len(odd):,} of {len(folders):,} folders are called like {example!r}, but not"
            f" {some(odd)}: rename or remove, or give --prompts FILE"
        )
    texts = folders if odd else [name for name in names if name is not None]
    return [text.replace("_", " ") for text in texts]
