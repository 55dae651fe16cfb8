"""Which keys the entries of a prompts file have: folders, WordNet ids, numbers, or none.

Every problem is a `ValueError` that says what to do; `prompt_file` adds the file.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Sequence
from typing import Any

from d4m_fast.sources.class_names import WNID
from d4m_fast.sources.prompt_order import Classes, composed
from d4m_fast.sources.prompt_pairs import ADVICE, Entry, KeyedEntry, pair_by_key, pair_by_position
from d4m_fast.sources.prompt_separators import NUMBER_KEY, WNID_KEY, separators
from d4m_fast.wording import some

_KEY_COLUMNS = frozenset({"folder", "class", "class_id", "wnid", "synset", "synset_id", "id", "index", "idx", "key"})
_PROMPT_COLUMNS = frozenset(
    {"prompt", "prompts", "text", "name", "class_name", "words", "caption", "description", "label"}
)


def pair_lines(lines: Sequence[Entry], classes: Classes) -> list[Entry]:
    """The entries of the classes, from lines with or without keys."""
    if any("\t" in line.text for line in lines):
        return pair_by_key([_tabbed(line) for line in lines], classes)
    _require_more_than_keys(lines)
    if all(line.text.lstrip().startswith('"') for line in lines):
        rows = [_cells(line.text, ",") for line in lines]
        if all(len(row) == 2 for row in rows):
            pairs = zip(lines, rows, strict=True)
            return pair_by_key([KeyedEntry(row[0], Entry(line.place, row[1])) for line, row in pairs], classes)
    if classes.are_wnids:
        keyed = [_matched(WNID_KEY, line) for line in lines]
        if any(keyed):
            return pair_by_key(_all_keyed(keyed, lines, "a WordNet id"), classes)
    else:
        keyed = _by_folder(lines, classes)
        if _has_keys(keyed):
            return pair_by_key(_unambiguous(_all_keyed(keyed, lines, "a folder's name"), lines), classes)
    keyed = [_matched(NUMBER_KEY, line) for line in lines]
    if _has_keys(keyed):
        return pair_by_key(_unambiguous(_all_keyed(keyed, lines, "a number"), lines, numbers=True), classes)
    return pair_by_position(lines, classes)


def pair_mapping(pairs: Sequence[tuple[str, Any]], classes: Classes) -> list[Entry]:
    """The entries of the classes, from keys and values: prompts, `[wnid, prompt]`, or the class id of each prompt."""
    values = [value for _, value in pairs]
    if values and all(
        isinstance(value, list) and len(value) == 2 and WNID.fullmatch(str(value[0])) for value in values
    ):
        # Keras' imagenet_class_index.json writes great_white_shark.
        pairs = [(str(wnid), str(text).replace("_", " ")) for wnid, text in values]
    elif values and all(isinstance(value, int) and not isinstance(value, bool) for value in values):
        if {composed(key) for key, _ in pairs} & set(map(composed, classes.folders)):
            raise ValueError(f"gives class ids to folders, no prompts; {ADVICE}")
        pairs = [(str(value), key) for key, value in pairs]
    wrong = next((key for key, value in pairs if not isinstance(value, str)), None)
    if wrong is not None:
        raise ValueError(f"the value of {wrong!a} is no text; {ADVICE}")
    return pair_by_key([KeyedEntry(key, Entry(f"key {key}", text)) for key, text in pairs], classes)


def has_csv_header(lines: Sequence[Entry]) -> bool:
    """Whether the first line names a column of keys and one of prompts."""
    names = _header(lines[0].text)
    return bool(_KEY_COLUMNS & set(names)) and bool(_PROMPT_COLUMNS & set(names)) and len(names) > 1


def pair_csv(lines: Sequence[Entry], classes: Classes) -> list[Entry]:
    """The entries of the classes, from a table whose first line names its columns."""
    delimiter = _delimiter(lines[0].text)
    table = [line.cells if line.cells else _cells(line.text, delimiter) for line in lines]
    names = [name.strip().lower() for name in table[0]]
    for line, row in zip(lines, table, strict=True):
        if len(row) != len(names):
            raise ValueError(
                f"{line.place} has {len(row)} columns, the first line {len(names)}; quote cells with commas"
            )
    rows = table[1:]
    keys = _key_columns(names, rows, classes)
    texts = [i for i, name in enumerate(names) if name in _PROMPT_COLUMNS]
    if len(keys) != 1 or len(texts) != 1:
        raise ValueError(f"its columns ({some(names)}) are not one of keys and one of prompts; {ADVICE}")
    keyed = [
        KeyedEntry(row[keys[0]].strip(), Entry(line.place, row[texts[0]]))
        for line, row in zip(lines[1:], rows, strict=True)
    ]
    return pair_by_key(keyed, classes)


def _key_columns(names: Sequence[str], rows: Sequence[Sequence[str]], classes: Classes) -> list[int]:
    """The columns called like keys; of several, those that have all folders."""
    columns = [i for i, name in enumerate(names) if name in _KEY_COLUMNS]
    if len(columns) == 1:
        return columns
    folders = set(map(composed, classes.folders))
    return [i for i in columns if folders <= {composed(row[i].strip()) for row in rows}]


def _header(line: str) -> list[str]:
    return [name.strip().lower() for name in _cells(line, _delimiter(line))]


def _delimiter(line: str) -> str:
    return next((mark for mark in ("\t", ";") if mark in line), ",")


def _cells(line: str, delimiter: str) -> list[str]:
    return next(csv.reader([line], delimiter=delimiter, skipinitialspace=True), [])


def _tabbed(line: Entry) -> KeyedEntry:
    key, tab, text = line.text.partition("\t")
    if not tab or not text.strip() or "\t" in text.strip():
        raise ValueError(f"{line.place} is not folder<TAB>prompt, as other lines are")
    return KeyedEntry(key.strip(), Entry(line.place, text))


def _require_more_than_keys(lines: Sequence[Entry]) -> None:
    """Refuse a list of WordNet ids, such as wnids.txt."""
    if lines and all(WNID.fullmatch(line.text.strip()) for line in lines):
        raise ValueError(f"has WordNet ids and no prompts; {ADVICE}")


def _matched(pattern: re.Pattern[str], line: Entry) -> KeyedEntry | None:
    match = pattern.fullmatch(line.text)
    if match is None:
        return None
    return KeyedEntry(match["key"], Entry(line.place, match["prompt"]), match["separator"])


def _by_folder(lines: Sequence[Entry], classes: Classes) -> list[KeyedEntry | None]:
    """Each line split after the longest folder name that it begins with; None where it begins with none."""
    known = {composed(folder): folder for folder in classes.folders}
    return [_split(line, known) for line in lines]


def _split(line: Entry, known: dict[str, str]) -> KeyedEntry | None:
    for separator in separators(line.text):
        key = composed(line.text[: separator.start()])
        if key in known and separator.end() < len(line.text):
            return KeyedEntry(known[key], Entry(line.place, line.text[separator.end() :]), separator[0])
    return None


def _has_keys(keyed: Sequence[KeyedEntry | None]) -> bool:
    """Whether all entries have a key, or most have one that can hardly be anything else."""
    marked = sum(1 for key in keyed if key is not None and key.is_marked)
    return all(keyed) or 2 * marked > len(keyed)


def _all_keyed(keyed: Sequence[KeyedEntry | None], lines: Sequence[Entry], kind: str) -> list[KeyedEntry]:
    for line, key in zip(lines, keyed, strict=True):
        if key is None:
            raise ValueError(f"{line.place} does not begin with {kind}, as other lines do; {ADVICE}")
    return [key for key in keyed if key is not None]


def _unambiguous(keyed: Sequence[KeyedEntry], lines: Sequence[Entry], *, numbers: bool = False) -> list[KeyedEntry]:
    """Refuse sentences that may merely begin with a folder's name, or with numbers in no order."""
    if all(key.is_marked for key in keyed):
        return list(keyed)
    counted = [int(key.key) if numbers or key.key.isdecimal() else -1 for key in keyed]
    if len(counted) > 1 and counted in (list(range(len(counted))), list(range(1, len(counted) + 1))):
        return list(keyed)
    whole, key = lines[0].text.strip(), keyed[0]
    rest = key.entry.text.strip()
    raise ValueError(
        f"{key.entry.place}: may be the prompt {whole!r}, or the prompt {rest!r} of the class {key.key}; {ADVICE}"
    )
