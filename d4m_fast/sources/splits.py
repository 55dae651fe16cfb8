"""Tell folders that are parts of a set by their names: train, seg_test, fold1."""

from __future__ import annotations

import re
from collections.abc import Iterable
from types import MappingProxyType

_SPLIT_NAME = re.compile(
    "(?:(?P<train>train|training|trn)|(?P<test>test|testing|tst)|(?P<val>val|valid|validation|dev|eval))"
    "(?:[-_ ]?(?:set|data|images|split))?(?:[-_]?[0-9]{2,4})?",
    re.IGNORECASE,
)
_SPLIT_WORDS = MappingProxyType(
    {
        **dict.fromkeys(("train", "training", "trn", "tr", "trainval"), "train"),
        **dict.fromkeys(("test", "testing", "tst", "te", "holdout"), "test"),
        **dict.fromkeys(("val", "valid", "validation", "validate", "va", "dev", "eval", "evaluation"), "val"),
    }
)
_FILLERS = frozenset({"set", "data", "images", "split", "dataset"})
_WORD = re.compile("[A-Z]?[a-z]+|[A-Z]+(?![a-z])")  # trainingSet, seg_train, stage1_test
_PART_WORDS = (*_SPLIT_WORDS, "fold", "split", "shard", "chunk", "subset", "images", "imgs", "img")
_VAGUE_PART_WORDS = ("part", "batch", "data", "group", "set")  # classes may be called so, too
_COUNTER = "(?:[-_. ][a-z]|[-_. ]*[a-z]?[0-9]{1,4})"  # train.X1, fold_0, part-a
_PART_NAME = re.compile(
    f"((?:.*[-_. ])?(?:{'|'.join(_PART_WORDS)}|(?:images?|imgs?)[-_. ](?:{'|'.join(_VAGUE_PART_WORDS)}))){_COUNTER}",
    re.IGNORECASE,
)
_VAGUE_PART_NAME = re.compile(f"((?:.*[-_. ])?(?:{'|'.join(_VAGUE_PART_WORDS)})){_COUNTER}", re.IGNORECASE)
SPLIT_KINDS = {"train": ("train",), "test": ("test", "val")}


def split_of(name: str) -> str | None:
    """Return the kind of split that a whole name is: train, test or val; None where it is none."""
    match = _SPLIT_NAME.fullmatch(name)
    return None if match is None else match.lastgroup


def named_split(name: str) -> tuple[str, str] | None:
    """Return the kind of split that a folder's first or last word is, and its other words; None where it is none."""
    words = [word for word in map(str.lower, _WORD.findall(name)) if word not in _FILLERS]
    if words and words[0] in _SPLIT_WORDS:
        return _SPLIT_WORDS[words[0]], " ".join(words[1:])
    if words and words[-1] in _SPLIT_WORDS:
        return _SPLIT_WORDS[words[-1]], " ".join(words[:-1])
    return None


def numbered_parts(names: Iterable[str], *, vague: bool) -> list[str]:
    """Return two or more names that are one word with a counter, and so parts of one set; none where there are none.

    Args:
        vague: look for the words that classes are called by, too, instead of those that only parts are called by.
    """
    pattern = _VAGUE_PART_NAME if vague else _PART_NAME
    names_of_word: dict[str, list[str]] = {}
    for name in names:
        match = pattern.fullmatch(name)
        if match is not None:
            names_of_word.setdefault(match[1].lower(), []).append(name)
    return next((numbered for numbered in names_of_word.values() if len(numbered) > 1), [])
