"""Prompts in the order of the classes, paired by their keys or, where they have none, by position.

Every problem is a `ValueError` that says what to do; `prompts.file` adds the file.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from d4m_fast.sources.class_names import WNID
from d4m_fast.sources.prompts.order import Classes, composed, misplaced_prompt
from d4m_fast.sources.prompts.separators import WNID_KEY, is_marked, separators
from d4m_fast.wording import some

ADVICE = "write folder<TAB>prompt lines"
_DEVKIT_VALUE = re.compile(r"([0-9]+) (\S+)")  # map_clsloc.txt: n02119789 1 kit_fox
_QUOTED = re.compile("(?:'(.*)'|\"(.*)\"|\u201c(.*)\u201d),?", re.DOTALL)
_BULLET = re.compile(r"[-*+\u2022\u00b7]\s+(.+)", re.DOTALL)
_LIST_ENDS = (",", ";")
_FOREIGN_STARTS = frozenset(">|:;=,.)]}/\\_~#\"'&-*+\u2022\u00b7")
"""Characters that no prompt begins with; "(", "[" and "<" are left out: prompt weights and learned tokens begin so."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A prompt and its place in the file; `cells` are those of its row where it comes from a table."""

    place: str
    text: str
    cells: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class KeyedEntry:
    """An entry without its key; `separator` stood between them."""

    key: str
    entry: Entry
    separator: str = "\t"

    @property
    def is_marked(self) -> bool:
        """Return whether the separator is one that sentences hardly have after their first word."""
        return is_marked(self.separator)


def pair_by_key(keyed: Sequence[KeyedEntry], classes: Classes) -> list[Entry]:
    """Return the entries of the classes, found by folder, or else by position in class order, from 0 or from 1."""
    keys = [composed(entry.key) for entry in keyed]
    _refuse_any("given twice", _repeated(keys))
    folders = list(map(composed, classes.folders))
    order = _order_by_folder(keys, folders, wnids=classes.are_wnids)
    if order is not None:
        return _cleaned([keyed[position].entry for position in order], classes)
    if not all(re.fullmatch("[0-9]{1,9}", key) for key in keys):
        wnids = classes.are_wnids and all(map(WNID.fullmatch, keys))
        _refuse_any("no such class folder", () if wnids else set(keys) - set(folders))
        _refuse_any("no prompt for", set(folders) - set(keys))
        raise ValueError(f"its keys are not those of the classes; {ADVICE}")
    order = _order_by_number(list(map(int, keys)), classes)
    entries = _cleaned([keyed[position].entry for position in order], classes)
    _require_own_names(entries, classes)
    return entries


def pair_by_position(lines: Sequence[Entry], classes: Classes) -> list[Entry]:
    """Return the entries themselves, which stand in class order."""
    _require_count(len(lines), len(classes.folders))
    entries = _cleaned(lines, classes)
    _require_own_names(entries, classes)
    return entries


def _require_own_names(entries: Sequence[Entry], classes: Classes) -> None:
    misplaced = misplaced_prompt([entry.text for entry in entries], classes)
    if misplaced is not None:
        named_folder = classes.folders[misplaced.named_class]
        raise ValueError(
            f"{entries[misplaced.position].place} names the class {named_folder} and stands in the place of"
            f" {classes.folders[misplaced.position]}; {ADVICE}"
        )


def _order_by_folder(keys: Sequence[str], folders: Sequence[str], *, wnids: bool) -> list[int] | None:
    """Return the position in `keys` of each folder; None where one is missing or a key that is no WordNet id is left.

    Numbers compare as such, so that the key 1 means the folder 001.
    """
    if all(map(str.isdecimal, [*keys, *folders])) and len({*map(int, folders)}) == len(folders):
        keys, folders = [str(int(key)) for key in keys], [str(int(folder)) for folder in folders]
        _refuse_any("given twice", _repeated(keys))
    positions = {key: i for i, key in enumerate(keys)}
    surplus = set(keys) - set(folders)
    if set(folders) - set(keys) or (surplus and not (wnids and all(map(WNID.fullmatch, keys)))):
        return None
    return [positions[folder] for folder in folders]


def _order_by_number(numbers: Sequence[int], classes: Classes) -> list[int]:
    positions = {number: i for i, number in enumerate(numbers)}
    count = len(classes.folders)
    _require_count(len(numbers), count)
    if set(positions) == set(range(count)):
        return [positions[number] for number in range(count)]
    if set(positions) != set(range(1, count + 1)):
        missing = sorted(set(range(count)) - set(positions))
        raise ValueError(
            f"its numbers are not 0 to {count - 1} or 1 to {count} (no {some(map(str, missing))}); {ADVICE}"
        )
    if classes.are_wnids:
        raise ValueError(
            "numbers from 1 may be ImageNet's own (ILSVRC2012_ID, in another order than the folders) or positions;"
            f" {ADVICE}"
        )
    return [positions[number] for number in range(1, count + 1)]


def _require_count(entries: int, classes: int) -> None:
    if entries != classes:
        raise ValueError(f"{entries:,} prompts for {classes:,} classes; give one line per class, or {ADVICE}")


def _cleaned(entries: Sequence[Entry], classes: Classes) -> list[Entry]:
    """Return the entries without what the form of the file adds to their texts: quotes, bullets, a second key."""
    texts = _unwrapped([entry.text.strip() for entry in entries])
    if len(texts) > 1 and all(map(str.isdecimal, texts)):
        raise ValueError(f"gives numbers, no prompts; {ADVICE}")
    texts = _without_second_key(texts, classes)
    if list(texts) == list(classes.folders):  # CUB-200's classes.txt: 1 001.Black_footed_Albatross
        texts = classes.spoken_folders
    _require_no_residue(texts)
    return [replace(entry, text=text) for entry, text in zip(entries, texts, strict=True)]


def _unwrapped(texts: Sequence[str]) -> Sequence[str]:
    for end in _LIST_ENDS:
        if len(texts) > 1 and all(text.endswith(end) for text in texts):
            texts = [text[:-1].rstrip() for text in texts]
    for wrapping in (_BULLET, _QUOTED):
        matches = _match_all(wrapping, texts)
        if matches is not None:
            texts = list(map(_wrapped_text, matches))
    matches = _match_all(_DEVKIT_VALUE, texts)
    if matches is not None and len({match[1] for match in matches}) == len(texts):
        return [match[2].replace("_", " ") for match in matches]
    return texts


def _match_all(pattern: re.Pattern[str], texts: Sequence[str]) -> list[re.Match[str]] | None:
    """Return how a pattern matches each text; None where it does not match all of them."""
    matches = []
    for text in texts:
        match = pattern.fullmatch(text)
        if match is None:
            return None
        matches.append(match)
    return matches


def _wrapped_text(match: re.Match[str]) -> str:
    """Return the one group that took part in a match of `_BULLET` or `_QUOTED`."""
    return next(text.strip() for text in match.groups() if text is not None)


def _without_second_key(texts: Sequence[str], classes: Classes) -> Sequence[str]:
    """Drop a second key, as of `0 n01440764 tench` and `0,car,a car`: both keys must name the same class."""
    folders = frozenset(map(composed, classes.folders))
    keyed: list[KeyedEntry] = []
    for text in texts:
        entry = _second_key(text, folders)
        if entry is None:
            return texts
        keyed.append(entry)
    for entry, folder in zip(keyed, classes.folders, strict=True):
        if entry.key != composed(folder):
            raise ValueError(f"pairs {folder} with {entry.key} by position; {ADVICE}")
    return [entry.entry.text for entry in keyed]


def _second_key(text: str, folders: frozenset[str]) -> KeyedEntry | None:
    match = WNID_KEY.fullmatch(text)
    if match is not None:
        return KeyedEntry(match["key"], Entry("", match["prompt"]))
    for separator in separators(text):
        key, prompt = composed(text[: separator.start()]), text[separator.end() :]
        if key in folders and prompt and (is_marked(separator[0]) or "," in separator[0]):
            return KeyedEntry(key, Entry("", prompt), separator[0])
    return None


def _require_no_residue(texts: Sequence[str]) -> None:
    """Refuse prompts that all begin with a mark, which was half of a separator or of a list's form."""
    starts = {text[:1] for text in texts}
    if len(texts) > 1 and len(starts) == 1 and starts <= _FOREIGN_STARTS:
        raise ValueError(f"every prompt begins with {starts.pop()}; {ADVICE}")
    if len(texts) > 1 and all(re.match("<[^>]*>.*</|<[a-z]+ ", text) for text in texts):
        raise ValueError(f"looks like HTML, which is not read; {ADVICE}")


def _repeated(keys: Iterable[str]) -> list[str]:
    return [key for key, count in Counter(keys).items() if count > 1]


def _refuse_any(problem: str, keys: Iterable[str]) -> None:
    refused_keys = sorted(keys)
    if refused_keys:
        raise ValueError(f"{problem}: {some(refused_keys)}")
