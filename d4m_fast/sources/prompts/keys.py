"""Keys of the entries of a prompts file: folders, WordNet ids, numbers, or none.

Every problem is a `ValueError` that says what to do; `prompts.file` adds the file.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Sequence
from typing import Any

from d4m_fast.sources.class_names import WNID
from d4m_fast.sources.prompts.order import Classes, composed
from d4m_fast.sources.prompts.pairs import ADVICE, Entry, KeyedEntry, pair_by_key, pair_by_position
from d4m_fast.sources.prompts.separators import NUMBER_KEY, WNID_KEY, separators
from d4m_fast.wording import some

_KEY_COLUMNS = frozenset({"folder", "class", "class_id", "wnid", "synset", "synset_id", "id", "index", "idx", "key"})
_PROMPT_COLUMNS = frozenset(
    {"prompt", "prompts", "text", "name", "class_name", "words", "caption", "description", "label"}
)


def pair_lines(lines: Sequence[Entry], classes: Classes) -> list[Entry]:
    """Return the entries of the classes, from lines with or without keys."""
    if any("\t" in line.text for line in lines):
        return pair_by_key(list(map(_tabbed, lines)), classes)
    if lines and all(WNID.fullmatch(line.text.strip()) for line in lines):  # such as wnids.txt
        raise ValueError(f"has WordNet ids and no prompts; {ADVICE}")
    quoted_pairs = _quoted_pairs(lines)
    if quoted_pairs is not None:
        return pair_by_key(quoted_pairs, classes)
    if classes.are_wnids:
        keyed = [_matched(WNID_KEY, line) for line in lines]
        if any(keyed):
            return pair_by_key(_all_keyed(keyed, lines, "a WordNet id"), classes)
    else:
        folders = {composed(folder): folder for folder in classes.folders}
        keyed = [_after_folder(line, folders) for line in lines]
        if _has_keys(keyed):
            return pair_by_key(_unambiguous(_all_keyed(keyed, lines, "a folder's name"), lines), classes)
    keyed = [_matched(NUMBER_KEY, line) for line in lines]
    if _has_keys(keyed):
        return pair_by_key(_unambiguous(_all_keyed(keyed, lines, "a number"), lines, are_numbers=True), classes)
    return pair_by_position(lines, classes)


def _quoted_pairs(lines: Sequence[Entry]) -> list[KeyedEntry] | None:
    """Return the pairs of a CSV file without a header, whose cells are quoted; None where it is none."""
    if not all(line.text.lstrip().startswith('"') for line in lines):
        return None
    pairs = []
    for line in lines:
        cells = _cells(line.text, ",")
        if len(cells) != 2:
            return None
        pairs.append(KeyedEntry(cells[0], Entry(line.place, cells[1])))
    return pairs


def pair_mapping(pairs: Sequence[tuple[str, Any]], classes: Classes) -> list[Entry]:
    """Return the entries of the classes, from keys with prompts, with `[wnid, prompt]`, or prompts with class ids."""
    values = [value for _, value in pairs]
    if values and all(map(_is_wnid_pair, values)):
        # Keras' imagenet_class_index.json writes great_white_shark.
        pairs = [(str(wnid), str(text).replace("_", " ")) for wnid, text in values]
    elif values and all(type(value) is int for value in values):  # isinstance would take True for one
        if {composed(key) for key, _ in pairs} & set(map(composed, classes.folders)):
            raise ValueError(f"gives class ids to folders, no prompts; {ADVICE}")
        pairs = [(str(class_id), prompt) for prompt, class_id in pairs]
    keyed = []
    for key, text in pairs:
        if not isinstance(text, str):
            raise ValueError(f"the value of {key!a} is no text; {ADVICE}")
        keyed.append(KeyedEntry(key, Entry(f"key {key}", text)))
    return pair_by_key(keyed, classes)


def _is_wnid_pair(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and WNID.fullmatch(str(value[0])) is not None


def has_csv_header(lines: Sequence[Entry]) -> bool:
    """Return whether the first line names a column of keys and one of prompts."""
    header = lines[0].text
    names = _column_names(_cells(header, _delimiter(header)))
    return bool(_KEY_COLUMNS & set(names)) and bool(_PROMPT_COLUMNS & set(names)) and len(names) > 1


def pair_csv(lines: Sequence[Entry], classes: Classes) -> list[Entry]:
    """Return the entries of the classes, from a table whose first line names its columns."""
    delimiter = _delimiter(lines[0].text)
    table = [line.cells if line.cells else _cells(line.text, delimiter) for line in lines]
    names = _column_names(table[0])
    for line, row in zip(lines, table, strict=True):
        if len(row) != len(names):
            raise ValueError(
                f"{line.place} has {len(row)} columns, the first line {len(names)}; quote cells with commas"
            )
    rows = table[1:]
    key_columns = _key_columns(names, rows, classes)
    prompt_columns = [i for i, name in enumerate(names) if name in _PROMPT_COLUMNS]
    if len(key_columns) != 1 or len(prompt_columns) != 1:
        raise ValueError(f"its columns ({some(names)}) are not one of keys and one of prompts; {ADVICE}")
    keyed = []
    for line, row in zip(lines[1:], rows, strict=True):
        keyed.append(KeyedEntry(row[key_columns[0]].strip(), Entry(line.place, row[prompt_columns[0]])))
    return pair_by_key(keyed, classes)


def _key_columns(names: Sequence[str], rows: Sequence[Sequence[str]], classes: Classes) -> list[int]:
    """Return the columns called like keys; of several, those that have all folders."""
    columns = [i for i, name in enumerate(names) if name in _KEY_COLUMNS]
    if len(columns) == 1:
        return columns
    folders = set(map(composed, classes.folders))
    complete_columns = []
    for i in columns:
        if folders <= {composed(row[i].strip()) for row in rows}:
            complete_columns.append(i)
    return complete_columns


def _column_names(header: Sequence[str]) -> list[str]:
    return [name.strip().lower() for name in header]


def _delimiter(line: str) -> str:
    return next((mark for mark in ("\t", ";") if mark in line), ",")


def _cells(line: str, delimiter: str) -> list[str]:
    return next(csv.reader([line], delimiter=delimiter, skipinitialspace=True), [])


def _tabbed(line: Entry) -> KeyedEntry:
    key, tab, text = line.text.partition("\t")
    if not tab or not text.strip() or "\t" in text.strip():
        raise ValueError(f"{line.place} is not folder<TAB>prompt, as other lines are")
    return KeyedEntry(key.strip(), Entry(line.place, text))


def _matched(pattern: re.Pattern[str], line: Entry) -> KeyedEntry | None:
    match = pattern.fullmatch(line.text)
    if match is None:
        return None
    return KeyedEntry(match["key"], Entry(line.place, match["prompt"]), match["separator"])


def _after_folder(line: Entry, folders: dict[str, str]) -> KeyedEntry | None:
    """Split a line after the longest folder name that it begins with; None where it begins with none."""
    for separator in separators(line.text):
        key = composed(line.text[: separator.start()])
        if key in folders and separator.end() < len(line.text):
            return KeyedEntry(folders[key], Entry(line.place, line.text[separator.end() :]), separator[0])
    return None


def _has_keys(keyed: Sequence[KeyedEntry | None]) -> bool:
    """Return whether all entries have a key, or most have one that can hardly be anything else."""
    marked = sum(entry is not None and entry.is_marked for entry in keyed)
    return all(keyed) or 2 * marked > len(keyed)


def _all_keyed(keyed: Sequence[KeyedEntry | None], lines: Sequence[Entry], kind: str) -> list[KeyedEntry]:
    complete = []
    for line, entry in zip(lines, keyed, strict=True):
        if entry is None:
            raise ValueError(f"{line.place} does not begin with {kind}, as other lines do; {ADVICE}")
        complete.append(entry)
    return complete


def _unambiguous(keyed: Sequence[KeyedEntry], lines: Sequence[Entry], *, are_numbers: bool = False) -> list[KeyedEntry]:
    """Refuse sentences that may merely begin with a folder's name, or with numbers in no order."""
    if all(entry.is_marked for entry in keyed):
        return list(keyed)
    numbers = [int(entry.key) if are_numbers or entry.key.isdecimal() else -1 for entry in keyed]
    count = len(numbers)
    if count > 1 and numbers in (list(range(count)), list(range(1, count + 1))):
        return list(keyed)
    first = keyed[0]
    line, prompt = lines[0].text.strip(), first.entry.text.strip()
    raise ValueError(
        f"{first.entry.place}: may be the prompt {line!r}, or the prompt {prompt!r} of the class {first.key}; {ADVICE}"
    )
