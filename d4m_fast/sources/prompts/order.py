"""Check that prompts which are paired by position do not name the classes in another order."""

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
        """Whether all keys are WordNet ids, as those of ImageNet are."""
        return all(map(WNID.fullmatch, self.folders))

    @property
    def spoken_folders(self) -> Sequence[str]:
        """The keys as prompts; `DataError` where some have another form than most."""
        return spoken_folders(self.folders)

    def known_names(self) -> list[set[str]]:
        """Return, for each class, the folded names by which a prompt may mean it."""
        names = [{fold(folder)} for folder in self.folders]
        for i, name_in_folder in enumerate(names_in_folders(self.folders)):
            if name_in_folder is not None:
                names[i].add(fold(name_in_folder))
        if self.names is not None:
            for i, name in enumerate(self.names):
                names[i].add(fold(name))
        if self.are_wnids:
            labels = imagenet_labels()
            for i, wnid in enumerate(self.folders):
                names[i].update(map(fold, labels.get(wnid.lower(), "").split(",")))
        return [set(filter(_is_telling, class_names)) for class_names in names]


def _is_telling(name: str) -> bool:
    """Return whether a name has words: "two apples" and "thing 2" do not mean the class of a folder `2`."""
    return name != "" and not name.isdecimal()


@dataclass(frozen=True, slots=True)
class Misplaced:
    """A prompt at the position of one class that names another."""

    position: int
    named_class: int


def misplaced_prompt(prompts: Sequence[str], classes: Classes) -> Misplaced | None:
    """Return the first prompt that names another class, if there are too many such prompts for chance; else None.

    "Ship: a boat", "photo of a Ship" and "a boat, ship" all name the class of the folder `ship`. One prompt may name
    another class ("a car on a ship"); a circle of prompts in each other's places, or most of them elsewhere, is an
    order that is not that of the classes.
    """
    named_classes = _named_classes(prompts, classes.known_names())
    misplaced: dict[int, int] = {}
    for position, named_class in enumerate(named_classes):
        # Of "a car on a ship" and "a ship", the second is the prompt of the ships, so the first is none out of place.
        if named_class not in (None, position) and named_classes[named_class] != named_class:
            misplaced[position] = named_class
    circles = _circles(misplaced)
    if not circles and 2 * len(misplaced) <= len(prompts):
        return None
    evidence = circles if circles else misplaced
    position = min(evidence)
    return Misplaced(position, evidence[position])


def _circles(places: Mapping[int, int]) -> Mapping[int, int]:
    """Drop what leads out of the places, until only circles, and what leads to them, are left."""
    while True:
        inner_places = {i: j for i, j in places.items() if j in places}
        if len(inner_places) == len(places):
            return inner_places
        places = inner_places


def _named_classes(prompts: Sequence[str], names: Sequence[set[str]]) -> list[int | None]:
    """Return the class that each prompt names: its own where it does, else the one with the longest name in it."""
    class_of_name: dict[str, int] = {}
    for i, class_names in enumerate(names):
        for name in class_names:
            class_of_name.setdefault(name, i)
    max_words = max((name.count(" ") + 1 for name in class_of_name), default=0)
    named_classes: list[int | None] = []
    for position, (prompt, own_names) in enumerate(zip(prompts, names, strict=True)):
        phrases = _outermost(class_of_name.keys() & _phrases(fold(prompt), max_words))
        if phrases & own_names:
            named_classes.append(position)
        else:
            # Sorted, because the order of a set, and so the first of the longest, changes from process to process.
            longest_phrase = max(sorted(phrases), key=len, default=None)
            named_classes.append(None if longest_phrase is None else class_of_name[longest_phrase])
    return named_classes


def _phrases(text: str, max_words: int) -> Iterator[str]:
    """Yield the runs of one to `max_words` words."""
    words = text.split()
    for start in range(len(words)):
        for stop in range(start + 1, min(start + max_words, len(words)) + 1):
            yield " ".join(words[start:stop])


def _outermost(phrases: set[str]) -> set[str]:
    """Return the phrases that are not part of a longer one: of sea_ship and ship, "a sea ship" names the first."""
    outermost = set[str]()
    for phrase in phrases:
        if not any(f" {phrase} " in f" {longer} " for longer in phrases - {phrase}):
            outermost.add(phrase)
    return outermost


def fold(text: str) -> str:
    """Return the words of a text without case and punctuation."""
    return " ".join(re.findall(r"[^\W_]+", unicodedata.normalize("NFKC", text).casefold()))


def composed(text: str) -> str:
    """Return a name as it compares: some file systems store accents apart from their letters."""
    return unicodedata.normalize("NFC", text)
