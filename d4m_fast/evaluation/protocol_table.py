"""The protocols beside each other, with the source of every field."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from d4m_fast.evaluation.protocols import Protocol

if TYPE_CHECKING:
    from rich.table import Table

_HIDDEN = ("name",)


def protocols_json(protocols: Iterable[Protocol]) -> dict[str, Any]:
    """Return value and source of every field, by protocol."""
    listing = dict[str, Any]()
    for protocol in protocols:
        fields = dict[str, Any]()
        for name, value in protocol.to_json().items():
            if name not in _HIDDEN:
                fields[name] = {"value": value, "source": protocol.sources.get(name, "d4m-fast")}
        listing[protocol.name] = fields
    return listing


def protocols_table(protocols: Iterable[Protocol]) -> Table:
    """Return a table for the terminal: a line per field, a column per protocol."""
    from rich.table import Table

    protocols = list(protocols)
    table = Table()
    table.add_column("field")
    for protocol in protocols:
        table.add_column(protocol.name)
    for row in protocol_rows(protocols):
        table.add_row(*row)
    return table


def protocol_rows(protocols: Iterable[Protocol]) -> list[tuple[str, ...]]:
    """Return a row of text per field: its name, and its value in each protocol."""
    columns = [protocol.to_json() for protocol in protocols]
    rows = []
    for name in columns[0]:
        if name not in _HIDDEN:
            rows.append((name, *(_cell(name, column[name]) for column in columns)))
    return rows


def source_lines(protocols: Iterable[Protocol]) -> list[str]:
    """Return one line per protocol and source: the fields that were read there."""
    lines = []
    for protocol in protocols:
        fields = dict[str, list[str]]()
        for name, source in protocol.sources.items():
            fields.setdefault(source, []).append(name)
        main_source = max(fields, key=lambda source: len(fields[source]))
        lines.append(f"{protocol.name}: {main_source}")
        for source, names in fields.items():
            if source != main_source:
                lines.append(f"  {', '.join(names)}: {source}")
    return lines


def _cell(name: str, value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, dict):  # by student, "" being everybody else
        exceptions = [f", {student} {number:g}" for student, number in value.items() if student]
        return f"{value['']:g}{''.join(exceptions)}"
    if name == "batch_size":
        (first_least, first_size), *larger = value
        if first_least == 1 and not larger:
            return str(first_size)
        return ", ".join(f"{size} from {least}" for least, size in value)
    if isinstance(value, list):
        return (" to " if name == "crop" else ", ").join(f"{number:g}" for number in value)
    return f"{value:g}" if isinstance(value, float) else str(value)
