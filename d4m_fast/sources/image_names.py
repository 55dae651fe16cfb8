"""WordNet ids in the names of ImageNet's images, which tell the class where only its number is stored."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from d4m_fast.sources.class_names import WNID, imagenet_labels

_FRONT = re.compile(f"({WNID.pattern})[_.-].+")
_END = re.compile(f"(.+)_({WNID.pattern})(\\.[A-Za-z0-9]+)")


@dataclass(frozen=True, slots=True)
class WnidNames:
    """Names of images that hold WordNet ids of ImageNet-1K.

    Attributes:
        wnids: of each image.
        names: of each image in a class folder: Hugging Face's copy puts the id behind the name, and behind it here.
    """

    wnids: list[str] = field(repr=False)
    names: list[str] = field(repr=False)

    def agree_with(self, labels: Sequence[str]) -> bool:
        """Return whether each label stands for one id, and each id for one label."""
        return is_one_to_one(labels, self.wnids)


def wnid_names(names: Iterable[str]) -> WnidNames | None:
    """Return the WordNet ids in the names of images; None unless all have one, of a class of ImageNet-1K."""
    wnids, plain_names = list[str](), list[str]()
    for name in names:
        end, front = _END.fullmatch(name), _FRONT.fullmatch(name)
        if end is None and front is None:
            return None
        wnids.append(end[2] if end is not None else front[1] if front is not None else "")
        plain_names.append(name if end is None else end[1] + end[3])
    imagenet_wnids = imagenet_labels()
    return WnidNames(wnids, plain_names) if all(wnid in imagenet_wnids for wnid in set(wnids)) else None


def is_one_to_one(labels: Sequence[str], folders: Sequence[str]) -> bool:
    """Return whether each label has one folder, and each folder one label."""
    pairs = set(zip(labels, folders, strict=True))
    return len(pairs) == len(set(labels)) == len(set(folders))
