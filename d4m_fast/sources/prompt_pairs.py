"""Prompts in the order of the classes, once it is known what their keys are, or that they have none.

Every problem is a `ValueError` that says what to do; `prompt_file` adds the file.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from d4m_fast.sources.class_names import WNID
from d4m_fast.sources.prompt_order import Classes, composed, misplaced_prompt
from d4m_fast.sources.prompt_separators import WNID_KEY, is_marked, separators
from d4m_fast.wording import some

ADVICE = "write folder<TAB>prompt lines"
_DEVKIT_VALUE = re.compile(r"([0-9]+) (\S+)")  # map_clsloc.txt: n02119789 1 kit_fox
_QUOTED = re.compile("(?:'(.*)'|\"(.*)\"|\u201c(.*)\u201d),?", re.DOTALL)
_BULLET = re.compile(r"[-*+\u2022\u00b7]\s+(.+)", re.DOTALL)
_LIST_ENDS = (",", ";")
_FOREIGN_STARTS = frozenset(">|:;=,.)]}/\\_~#\"'&-*+\u2022\u00b7")
"""What no prompt begins with; "(", "[" and "<" are left out: prompt weights and learned tokens begin so."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One prompt, and its place in the file; `cells` are the row's where it comes from a table."""

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
        """Whether the separator is one that sentences hardly have after their first word."""
        return is_marked(self.separator)


def pair_by_key(keyed: Sequence[KeyedEntry], classes: Classes) -> list[Entry]:
    """Return the entries of the classes, found by folder, or else by position in class order, from 0 or from 1."""
    keys = [composed(key.key) for key in keyed]
    _refuse("given twice", (key for key, count in Counter(keys).items() if count > 1))
    folders = [composed(folder) for folder in classes.folders]
    order = _order_by_folder(keys, folders, wnids=classes.are_wnids)
    if order is not None:
        return _cleaned([keyed[position].entry for position in order], classes)
    if not all(re.fullmatch("[0-9]{1,9}", key) for key in keys):
        wnids = classes.are_wnids and all(map(WNID.fullmatch, keys))
        _refuse("no such class folder", () if wnids else set(keys) - set(folders))
        _refuse("no prompt for", set(folders) - set(keys))
        raise ValueError(f"its keys are not those of the classes; {ADVICE}")
    order = _order_by_number([int(key) for key in keys], classes)
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
    swap = misplaced_prompt([entry.text for entry in entries], classes)
    if swap is not None:
        raise ValueError(
            f"{entries[swap.position].place} names the class {classes.folders[swap.named]} and stands in the place of"
            f" {classes.folders[swap.position]}; {ADVICE}"
        )


def _order_by_folder(keys: Sequence[str], folders: Sequence[str], *, wnids: bool) -> list[int] | None:
    """Where in the keys each folder is; None where one is missing, or where other keys than WordNet ids are left."""
    if all(map(str.isdecimal, [*keys, *folders])) and len({*map(int, folders)}) == len(folders):
        keys, folders = [str(int(key)) for key in keys], [str(int(folder)) for folder in folders]
        _refuse("given twice", (key for key, count in Counter(keys).items() if count > 1))
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
    """The entries without what the form of the file adds to their texts: quotes, bullets, a second key."""
    texts = _unwrapped([entry.text.strip() for entry in entries])
    if len(texts) > 1 and all(text.isdecimal() for text in texts):
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
        matches = [wrapping.fullmatch(text) for text in texts]
        if all(matches):
            texts = [match[match.lastindex or 0].strip() for match in matches if match]
    numbered = [_DEVKIT_VALUE.fullmatch(text) for text in texts]
    if all(numbered) and len({match[1] for match in numbered if match}) == len(texts):
        return [match[2].replace("_", " ") for match in numbered if match]
    return texts


def _without_second_key(texts: Sequence[str], classes: Classes) -> Sequence[str]:
    """`0 n01440764 tench` and `0,car,a car`: both keys must name the same class."""
    keys = [_second_key(text, classes) for text in texts]
    if not all(keys):
        return texts
    for key, folder in zip(keys, classes.folders, strict=True):
        if key is not None and key.key != composed(folder):
            raise ValueError(f"pairs {folder} with {key.key} by position; {ADVICE}")
    return [key.entry.text for key in keys if key is not None]


def _second_key(text: str, classes: Classes) -> KeyedEntry | None:
    match = WNID_KEY.fullmatch(text)
    if match is not None:
        return KeyedEntry(match["key"], Entry("", match["prompt"]))
    known = set(map(composed, classes.folders))
    for mark in separators(text):
        key, rest = composed(text[: mark.start()]), text[mark.end() :]
        if key in known and rest and (is_marked(mark[0]) or "," in mark[0]):
            return KeyedEntry(key, Entry("", rest), mark[0])
    return None


def _require_no_residue(texts: Sequence[str]) -> None:
    """Refuse prompts that all begin with a mark, which was half of a separator or of a list's form."""
    starts = {text[:1] for text in texts}
    if len(texts) > 1 and len(starts) == 1 and starts <= _FOREIGN_STARTS:
        raise ValueError(f"every prompt begins with {starts.pop()}; {ADVICE}")
    if len(texts) > 1 and all(re.match("<[^>]*>.*</|<[a-z]+ ", text) for text in texts):
        raise ValueError(f"looks like HTML, which is not read; {ADVICE}")


def _refuse(problem: str, folders: Iterable[str]) -> None:
    wrong = sorted(folders)
    if wrong:
        raise ValueError(f"{problem}: {some(wrong)}")
