"""Which class an entry of a prompts file belongs to: its key, if all entries have one, or its position.

Every problem is a `ValueError` that says what to do; `prompt_file` adds the file.
"""

from __future__ import annotations

import csv
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from d4m_fast.data.wording import some

_ADVICE = "write folder<TAB>prompt lines"
_WNID = re.compile("n[0-9]{8}")
_WNID_KEY = re.compile(r"\s*(n[0-9]{8})(?:\s*[:;=,]\s*|\s+)(?=\S)(.*)", re.DOTALL)
_NUMBER_KEY = re.compile(r"\s*([0-9]{1,9})(\s*[:;=,.)]\s*|\s+)(?=\S)(.*)", re.DOTALL)
_SEPARATOR = re.compile(r"\s*[:;=,]\s*|\s+")
_DEVKIT_VALUE = re.compile(r"([0-9]+) (\S+)")  # map_clsloc.txt: n02119789 1 kit_fox
_QUOTED = re.compile("(?:'(.*)'|\"(.*)\"),?", re.DOTALL)
_KEY_COLUMNS = frozenset({"folder", "class", "class_id", "wnid", "synset", "synset_id", "id", "index", "idx", "key"})
_PROMPT_COLUMNS = frozenset(
    {"prompt", "prompts", "text", "name", "class_name", "words", "caption", "description", "label"}
)


@dataclass(frozen=True, slots=True)
class Entry:
    """One prompt, and its place in the file; `cells` are the row's where it comes from a table."""

    place: str
    text: str
    cells: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class _Keyed:
    """An entry without its key; `separator` stood between them."""

    key: str
    entry: Entry
    separator: str = "\t"

    @property
    def is_marked(self) -> bool:
        """Whether the separator is one that sentences hardly have after their first word."""
        return self.separator.strip(" ,") != "" or self.separator == "\t"


def pair_lines(lines: Sequence[Entry], folders: Sequence[str]) -> list[Entry]:
    """The entries of the classes, from lines with or without keys."""
    if any("\t" in line.text for line in lines):
        return _pair([_tabbed(line) for line in lines], folders)
    _require_more_than_keys(lines)
    if all(line.text.lstrip().startswith('"') for line in lines):
        rows = [_cells(line.text, ",") for line in lines]
        if all(len(row) == 2 for row in rows):
            pairs = zip(lines, rows, strict=True)
            return _pair([_Keyed(row[0], Entry(line.place, row[1])) for line, row in pairs], folders)
    if all(map(_WNID.fullmatch, folders)):
        keyed = [_matched(_WNID_KEY, line) for line in lines]
        if any(keyed):
            return _pair(_all_keyed(keyed, lines, "a WordNet id"), folders)
    else:
        keyed = _by_folder(lines, folders)
        if _has_keys(keyed):
            return _pair(_unambiguous(_all_keyed(keyed, lines, "a folder's name"), lines), folders)
    keyed = [_matched(_NUMBER_KEY, line) for line in lines]
    if _has_keys(keyed):
        return _pair(_unambiguous(_all_keyed(keyed, lines, "a number"), lines, numbers=True), folders)
    return _in_order(lines, folders)


def pair_mapping(pairs: Sequence[tuple[str, Any]], folders: Sequence[str]) -> list[Entry]:
    """The entries of the classes, from keys and values: prompts, `[wnid, prompt]`, or the class id of each prompt."""
    values = [value for _, value in pairs]
    if values and all(
        isinstance(value, list) and len(value) == 2 and _WNID.fullmatch(str(value[0])) for value in values
    ):
        # Keras' imagenet_class_index.json writes great_white_shark.
        pairs = [(str(wnid), str(text).replace("_", " ")) for wnid, text in values]
    elif values and all(isinstance(value, int) and not isinstance(value, bool) for value in values):
        if {_composed(key) for key, _ in pairs} & set(map(_composed, folders)):
            raise ValueError(f"gives class ids to folders, no prompts; {_ADVICE}")
        pairs = [(str(value), key) for key, value in pairs]
    wrong = next((key for key, value in pairs if not isinstance(value, str)), None)
    if wrong is not None:
        raise ValueError(f"the value of {wrong!a} is no text; {_ADVICE}")
    return _pair([_Keyed(key, Entry(f"key {key}", text)) for key, text in pairs], folders)


def has_csv_header(lines: Sequence[Entry]) -> bool:
    """Whether the first line names a column of keys and one of prompts."""
    names = _header(lines[0].text)
    return bool(_KEY_COLUMNS & set(names)) and bool(_PROMPT_COLUMNS & set(names)) and len(names) > 1


def pair_csv(lines: Sequence[Entry], folders: Sequence[str]) -> list[Entry]:
    """The entries of the classes, from a table whose first line names its columns."""
    delimiter = _delimiter(lines[0].text)
    table = [line.cells if line.cells else _cells(line.text, delimiter) for line in lines]
    names = [name.strip().lower() for name in table[0]]
    keys = [i for i, name in enumerate(names) if name in _KEY_COLUMNS]
    texts = [i for i, name in enumerate(names) if name in _PROMPT_COLUMNS]
    if len(keys) != 1 or len(texts) != 1:
        raise ValueError(f"its columns ({some(names)}) are not one of keys and one of prompts; {_ADVICE}")
    for line, row in zip(lines, table, strict=True):
        if len(row) != len(names):
            raise ValueError(
                f"{line.place} has {len(row)} columns, the first line {len(names)}; quote cells with commas"
            )
    rows = zip(lines[1:], table[1:], strict=True)
    return _pair([_Keyed(row[keys[0]].strip(), Entry(line.place, row[texts[0]])) for line, row in rows], folders)


def _header(line: str) -> list[str]:
    return [name.strip().lower() for name in _cells(line, _delimiter(line))]


def _delimiter(line: str) -> str:
    return next((mark for mark in ("\t", ";") if mark in line), ",")


def _cells(line: str, delimiter: str) -> list[str]:
    return next(csv.reader([line], delimiter=delimiter, skipinitialspace=True), [])


def _tabbed(line: Entry) -> _Keyed:
    key, tab, text = line.text.partition("\t")
    if not tab or not text.strip() or "\t" in text.strip():
        raise ValueError(f"{line.place} is not folder<TAB>prompt, as other lines are")
    return _Keyed(key.strip(), Entry(line.place, text))


def _require_more_than_keys(lines: Sequence[Entry]) -> None:
    """Refuse a list of WordNet ids, such as wnids.txt."""
    if lines and all(_WNID.fullmatch(line.text.strip()) for line in lines):
        raise ValueError(f"has WordNet ids and no prompts; {_ADVICE}")


def _matched(pattern: re.Pattern[str], line: Entry) -> _Keyed | None:
    match = pattern.fullmatch(line.text)
    if match is None:
        return None
    separator = line.text[match.end(1) : match.start(match.lastindex or 0)]
    return _Keyed(match[1], Entry(line.place, match[match.lastindex or 0]), separator)


def _by_folder(lines: Sequence[Entry], folders: Sequence[str]) -> list[_Keyed | None]:
    """Each line split after the longest folder name that it begins with; None where it begins with none."""
    known = {_composed(folder): folder for folder in folders}
    return [_split(line, known) for line in lines]


def _split(line: Entry, known: dict[str, str]) -> _Keyed | None:
    text = _composed(line.text)
    for match in reversed(list(_SEPARATOR.finditer(text))):
        if text[: match.start()] in known and match.end() < len(text):
            return _Keyed(known[text[: match.start()]], Entry(line.place, line.text[match.end() :]), match[0])
    return None


def _has_keys(keyed: Sequence[_Keyed | None]) -> bool:
    """Whether all entries have a key, or most have one that can hardly be anything else."""
    marked = sum(1 for key in keyed if key is not None and key.is_marked)
    return all(keyed) or 2 * marked > len(keyed)


def _all_keyed(keyed: Sequence[_Keyed | None], lines: Sequence[Entry], kind: str) -> list[_Keyed]:
    for line, key in zip(lines, keyed, strict=True):
        if key is None:
            raise ValueError(f"{line.place} does not begin with {kind}, as other lines do; {_ADVICE}")
    return [key for key in keyed if key is not None]


def _unambiguous(keyed: Sequence[_Keyed], lines: Sequence[Entry], *, numbers: bool = False) -> list[_Keyed]:
    """Refuse sentences that may merely begin with a folder's name, or with numbers in no order."""
    if all(key.is_marked for key in keyed):
        return list(keyed)
    counted = [int(key.key) if numbers or key.key.isdecimal() else -1 for key in keyed]
    if len(counted) > 1 and counted in (list(range(len(counted))), list(range(1, len(counted) + 1))):
        return list(keyed)
    whole, key = lines[0].text.strip(), keyed[0]
    rest = key.entry.text.strip()
    raise ValueError(
        f"{key.entry.place}: may be the prompt {whole!r}, or the prompt {rest!r} of the class {key.key}; {_ADVICE}"
    )


def _in_order(lines: Sequence[Entry], folders: Sequence[str]) -> list[Entry]:
    _require_count(len(lines), len(folders))
    _require_own_names(lines, folders)
    return [replace(line, text=line.text.strip()) for line in lines]


def _require_own_names(lines: Sequence[Entry], folders: Sequence[str]) -> None:
    """Refuse lines that name each class once, and not in class order: these are keys, or names sorted otherwise.

    "Ship: a boat", "photo of a Ship" and "a boat, ship" all name the class of the folder `ship`.
    """
    names = [_spoken(folder) for folder in folders]
    spoken = [f" {_spoken(line.text)} " for line in lines]
    named = [[i for i, name in enumerate(names) if f" {name} " in line] for line in spoken]
    # Of sea_ship and ship, "a sea ship" names the first.
    longest = [max(found, key=lambda i: len(names[i]), default=None) for found in named]
    if None in longest or len(set(longest)) < len(folders):
        return
    wrong = next(((position, i) for position, i in enumerate(longest) if i is not None and position != i), None)
    if wrong is not None:
        place, named_class = wrong
        raise ValueError(
            f"{lines[place].place} names the class {folders[named_class]} and stands in the place of {folders[place]};"
            f" {_ADVICE}"
        )


def _spoken(text: str) -> str:
    """Its words, without case and punctuation."""
    return " ".join(re.findall(r"[^\W_]+", unicodedata.normalize("NFKC", text).casefold()))


def _require_count(entries: int, classes: int) -> None:
    if entries != classes:
        raise ValueError(f"{entries:,} prompts for {classes:,} classes; give one line per class, or {_ADVICE}")


def _pair(keyed: Sequence[_Keyed], folders: Sequence[str]) -> list[Entry]:
    """The entries in the order of the classes, their texts cleaned of what the form adds to them."""
    keys = [_composed(key.key) for key in keyed]
    _refuse("given twice", (key for key, count in Counter(keys).items() if count > 1))
    positions = _positions(keys, folders)
    entries = [keyed[position].entry for position in positions]
    texts = _cleaned([entry.text.strip() for entry in entries])
    if len(texts) > 1 and all(text.isdecimal() for text in texts):
        raise ValueError(f"gives numbers, no prompts; {_ADVICE}")
    texts = _without_second_key(texts, folders)
    return [replace(entry, text=text) for entry, text in zip(entries, texts, strict=True)]


def _positions(keys: Sequence[str], folders: Sequence[str]) -> list[int]:
    """Where in the keys each class is: by its folder, or else by its position in class order, from 0 or from 1."""
    names, found = [_composed(folder) for folder in folders], {key: i for i, key in enumerate(keys)}
    surplus = set(keys) - set(names)
    wnids = all(map(_WNID.fullmatch, names)) and all(map(_WNID.fullmatch, keys))
    if set(names) <= set(keys) and (wnids or not surplus):
        return [found[name] for name in names]
    if all(re.fullmatch("[0-9]{1,9}", key) for key in keys) and not set(names) & set(keys):
        return _by_number([int(key) for key in keys], wnids=all(map(_WNID.fullmatch, names)), classes=len(names))
    _refuse("no such class folder", () if wnids else surplus)
    _refuse("no prompt for", set(names) - set(keys))
    raise ValueError(f"its keys are not those of the classes; {_ADVICE}")


def _by_number(numbers: Sequence[int], *, wnids: bool, classes: int) -> list[int]:
    found = {number: i for i, number in enumerate(numbers)}
    _require_count(len(numbers), classes)
    if set(found) == set(range(classes)):
        return [found[number] for number in range(classes)]
    if set(found) != set(range(1, classes + 1)):
        missing = sorted(set(range(classes)) - set(found))
        raise ValueError(
            f"its numbers are not 0 to {classes - 1} or 1 to {classes} (no {some(map(str, missing))}); {_ADVICE}"
        )
    if wnids:
        raise ValueError(
            "numbers from 1 may be ImageNet's own (ILSVRC2012_ID, in another order than the folders) or positions;"
            f" {_ADVICE}"
        )
    return [found[number] for number in range(1, classes + 1)]


def _cleaned(texts: Sequence[str]) -> list[str]:
    quoted = [_QUOTED.fullmatch(text) for text in texts]
    if all(quoted):
        return [match[match.lastindex or 0].strip() for match in quoted if match]
    numbered = [_DEVKIT_VALUE.fullmatch(text) for text in texts]
    if all(numbered) and len({match[1] for match in numbered if match}) == len(texts):
        return [match[2].replace("_", " ") for match in numbered if match]
    return list(texts)


def _without_second_key(texts: Sequence[str], folders: Sequence[str]) -> list[str]:
    """`0 n01440764 tench`: both keys must name the same class."""
    matches = [_WNID_KEY.fullmatch(text) for text in texts]
    if not all(matches):
        return list(texts)
    for match, folder in zip(matches, folders, strict=True):
        if match is not None and match[1] != folder:
            raise ValueError(f"pairs {folder} with {match[1]} by position; {_ADVICE}")
    return [match[2] for match in matches if match]


def _refuse(problem: str, folders: Iterable[str]) -> None:
    wrong = sorted(folders)
    if wrong:
        raise ValueError(f"{problem}: {some(wrong)}")


def _composed(text: str) -> str:
    """Names as they compare: some file systems store accents apart from their letters."""
    return unicodedata.normalize("NFC", text)
