"""Whether prompts that stand by position name the classes in another order."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from d4m_fast.sources.class_names import WNID, imagenet_labels, names_in_folders, spoken_folders


@dataclass(frozen=True, slots=True)
class Classes:
    """The classes that prompts are for, in class order.

    Attributes:
        folders: their keys.
        names: what the data set calls them, for those that come with names.
    """

    folders: Sequence[str]
    names: Sequence[str] | None = None

    @property
    def are_wnids(self) -> bool:
        """Whether all keys are WordNet ids."""
        return all(map(WNID.fullmatch, self.folders))

    @property
    def spoken_folders(self) -> Sequence[str]:
        """The keys as prompts; `DataError` where some have another form than most."""
        return spoken_folders(self.folders)

    def known_names(self) -> list[set[str]]:
        """For each class the folded names by which a prompt may mean it."""
        names: list[set[str]] = [{fold(folder)} for folder in self.folders]
        for i, name in enumerate(names_in_folders(self.folders)):
            names[i] |= {fold(name)} if name is not None else set()
        for i, name in enumerate([] if self.names is None else self.names):
            names[i].add(fold(name))
        if self.are_wnids:
            labels = imagenet_labels()
            for i, folder in enumerate(self.folders):
                names[i].update(map(fold, labels.get(folder.lower(), "").split(",")))
        # "two apples" and "thing 2" do not mean the class of a folder `2`.
        return [{name for name in known if name and not name.isdecimal()} for known in names]


@dataclass(frozen=True, slots=True)
class Misplaced:
    """A prompt at the position of one class that names another."""

    position: int
    named: int


def misplaced_prompt(prompts: Sequence[str], classes: Classes) -> Misplaced | None:
    """Return the first prompt that names another class, if these are no chance; else None.

    "Ship: a boat", "photo of a Ship" and "a boat, ship" all name the class of the folder `ship`. One prompt may name
    another class ("a car on a ship"); a circle of prompts in each other's places, or most of them elsewhere, is an
    order that is not that of the classes.
    """
    named = _named_classes(prompts, classes.known_names())
    misplaced = {i: j for i, j in enumerate(named) if j is not None and j != i and named[j] != j}
    circles = _circles(misplaced)
    wrong = circles if circles else misplaced
    if not circles and 2 * len(misplaced) <= len(prompts):
        return None
    position = min(wrong)
    return Misplaced(position, wrong[position])


def _circles(places: Mapping[int, int]) -> Mapping[int, int]:
    """Drop what leads out of the places, until only circles, and what leads to them, are left."""
    while True:
        rest = {i: j for i, j in places.items() if j in places}
        if len(rest) == len(places):
            return rest
        places = rest


def _named_classes(prompts: Sequence[str], names: Sequence[set[str]]) -> list[int | None]:
    """The class that each prompt names: its own where it does, else the one with the longest name in it."""
    classes: dict[str, int] = {}
    for i, known in enumerate(names):
        for name in known:
            classes.setdefault(name, i)
    longest = max((name.count(" ") + 1 for name in classes), default=0)
    named: list[int | None] = []
    for prompt, own in zip(prompts, names, strict=True):
        phrases = {phrase for phrase in _phrases(fold(prompt), longest) if phrase in classes}
        # Of sea_ship and ship, "a sea ship" names the first.
        phrases = {phrase for phrase in phrases if not any(_is_within(phrase, other) for other in phrases)}
        best = max(sorted(phrases), key=len, default=None)
        named.append(len(named) if phrases & own else None if best is None else classes[best])
    return named


def _phrases(text: str, longest: int) -> Iterator[str]:
    """Runs of one to `longest` words."""
    words = text.split()
    for start in range(len(words)):
        for stop in range(start + 1, min(start + longest, len(words)) + 1):
            yield " ".join(words[start:stop])


def _is_within(phrase: str, other: str) -> bool:
    return phrase != other and f" {phrase} " in f" {other} "


def fold(text: str) -> str:
    """Return its words without case and punctuation."""
    return " ".join(re.findall(r"[^\W_]+", unicodedata.normalize("NFKC", text).casefold()))


def composed(text: str) -> str:
    """Return a name as it compares: some file systems store accents apart from their letters."""
    return unicodedata.normalize("NFC", text)
