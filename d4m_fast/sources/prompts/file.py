"""Files of prompts in the forms that label files are found in; `docs/data.md` lists them.

`folder<TAB>prompt` lines are the form that is never ambiguous.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from d4m_fast.characters import invisible_character
from d4m_fast.errors import DataError
from d4m_fast.sources.prompts.keys import has_csv_header, pair_csv, pair_lines, pair_mapping
from d4m_fast.sources.prompts.order import Classes
from d4m_fast.sources.prompts.pairs import ADVICE, Entry
from d4m_fast.storage.files import open_regular

_UTF16 = (b"\xff\xfe", b"\xfe\xff")
_WNID = re.compile(r"(?<![a-z0-9])n[0-9]{8}(?![0-9])", re.IGNORECASE)  # N01440764, too, and n01440764_tench
MAX_BYTES = 64 << 20  # ImageNet's largest label file has 1.5 MB


def read_prompts(path: Path, classes: Classes) -> list[str]:
    """Return one prompt per class, in class order.

    Keys in the file (folder names, WordNet ids, positions from 0 or 1) pair prompts with classes; a file without keys
    has one prompt per line, in class order. WordNet ids may be more than the classes; other keys must be exactly them.
    Prompts that stand by position and name the classes in another order are refused.

    Raises:
        DataError: the file cannot be read, does not fit the classes, can be read in two ways, or has characters that
            cannot be seen; the message says where.
    """
    text = _text(path)
    try:
        entries = _entries(text, classes)
    except ValueError as error:
        raise DataError(f"{path}: {error}") from error
    for entry, folder in zip(entries, classes.folders, strict=True):
        character = invisible_character(entry.text)
        if character is not None:
            raise DataError(f"{path}: {entry.place}, the prompt of {folder}, has {character}; take it out")
        if not entry.text:
            raise DataError(f"{path}: {entry.place}, the prompt of {folder}, is empty")
    prompts = [entry.text for entry in entries]
    if all(map(_WNID.search, prompts)):
        raise DataError(f"{path}: every prompt has a WordNet id in it, not at the start of its line; {ADVICE}")
    return prompts


def _text(path: Path) -> str:
    try:
        with open_regular(path) as file:
            content = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); --prompts takes 'official' or a file") from error
    if len(content) > MAX_BYTES:
        raise DataError(f"{path}: more than {MAX_BYTES:,} bytes, so no file of prompts; --prompts takes a text file")
    if content.startswith(_UTF16):
        raise DataError(f"{path}: is UTF-16 text; save it as UTF-8")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 text (byte {error.start}); save it as UTF-8") from error


def _entries(text: str, classes: Classes) -> list[Entry]:
    tabbed = all("\t" in line for line in text.rstrip().splitlines())  # the form that is never ambiguous
    if not tabbed and text.lstrip()[:1] in ("{", "["):
        return _from_structure(text, classes)
    lines = _lines(text, comments=not tabbed)
    if re.match(r"(?:---|names\s*:\s*(?:[\[{].*)?$|(?:path|train|val|nc)\s*:)", lines[0].text):
        raise ValueError(f"looks like YAML, which is not read; {ADVICE}")
    return pair_csv(lines, classes) if has_csv_header(lines) else pair_lines(lines, classes)


def _lines(text: str, *, comments: bool) -> list[Entry]:
    """Return the numbered lines without blank ones at the end, and without comments where there may be some."""
    lines = []
    # Not splitlines(): it would also break at form feeds and Unicode separators inside a prompt.
    for number, content in enumerate(re.split("\r\n|\n|\r", text.rstrip("\r\n\t ")), 1):
        if not (comments and content.startswith("#")):
            lines.append(Entry(f"line {number}", content))
    if not lines:
        raise ValueError("has no prompts; write one line per class, or folder<TAB>prompt lines")
    for line in lines:
        if not line.text.strip():
            raise ValueError(f"{line.place} is blank; every line must be a prompt")
        if "\0" in line.text:
            raise ValueError(f"{line.place} is not text; --prompts takes a UTF-8 file")
    return lines


def _from_structure(text: str, classes: Classes) -> list[Entry]:
    value = _parse(text)
    if isinstance(value, _Mapping) and isinstance(dict(value).get("id2label"), _Mapping):
        value = dict(value)["id2label"]  # a model's config.json
    if isinstance(value, _Mapping):
        return pair_mapping(value, classes)
    if not isinstance(value, list):
        raise ValueError(f"is neither a list nor a table of prompts; {ADVICE}")
    if value and all(isinstance(row, _Mapping) for row in value):
        return _from_rows(value, classes)
    if value and all(isinstance(row, list) and len(row) == 2 for row in value):
        return pair_mapping([(str(key), prompt) for key, prompt in value], classes)
    if not all(isinstance(row, str) for row in value):
        raise ValueError(f"its list has something else than texts; {ADVICE}")
    return pair_lines([Entry(f"entry {number}", row) for number, row in enumerate(value, 1)], classes)


def _from_rows(rows: Sequence[_Mapping], classes: Classes) -> list[Entry]:
    """Pair a list of objects with one key each, or with the same fields each, which are read as CSV columns are."""
    if all(len(row) == 1 for row in rows):
        return pair_mapping(list(chain.from_iterable(rows)), classes)
    fields = [name for name, _ in rows[0]]
    entries = [Entry("object 0", "", fields)]  # in the place of a header, which the rows of CSV files stand below
    for number, row in enumerate(rows, 1):
        if [name for name, _ in row] != fields:
            raise ValueError(f"its objects have different fields; {ADVICE}")
        entries.append(Entry(f"object {number}", "", [str(value) for _, value in row]))
    return pair_csv(entries, classes)


class _Mapping(list[tuple[str, Any]]):
    """The pairs of a JSON object or a dict literal, repeated keys and all."""


def _parse(text: str) -> Any:
    """Read JSON, JSON lines or a Python literal.

    Raises:
        ValueError: it is none of these.
    """
    for reader in (_json, _json_lines, _literal):
        try:
            return reader(text)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
    raise ValueError(f"starts like JSON or a Python dict, and is neither; {ADVICE}")


def _json(text: str) -> Any:
    return json.loads(text, object_pairs_hook=_Mapping)


def _json_lines(text: str) -> Any:
    return list(map(_json, text.strip().split("\n")))


def _literal(text: str) -> Any:
    return _plain(ast.parse(text.strip(), mode="eval").body)


def _plain(node: ast.expr) -> Any:
    """Evaluate a literal, with its dicts as pairs: `ast.literal_eval` drops all but the last of repeated keys."""
    if isinstance(node, ast.Dict):
        keys = [ast.literal_eval(key) for key in node.keys if key is not None]
        return _Mapping(zip(map(str, keys), map(_plain, node.values), strict=True))
    if isinstance(node, ast.List | ast.Tuple):
        return list(map(_plain, node.elts))
    return ast.literal_eval(node)
