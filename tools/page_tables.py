"""Tables of Markdown, on pages between `<!-- KIND:NAME begin -->` and `<!-- KIND:NAME end -->`."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table in Markdown."""
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows))


def names_of(text: str, kind: str) -> list[str]:
    """Return the names of the tables of a kind on a page, in their order."""
    return [block[2] for block in _blocks(kind).finditer(text)]


def render(text: str, kind: str, tables: Mapping[str, Callable[[], str]]) -> str:
    """Return a page with every table of a kind made anew.

    Raises:
        ValueError: a marker stands alone or in the wrong order.
        KeyError: no table has that name.
    """
    blocks = _blocks(kind)
    alone = re.search(rf"^<!-- {kind}:\S+ (?:begin|end) -->$", blocks.sub("", text), re.MULTILINE)
    if alone is not None:
        raise ValueError(f"{alone.group()}: no begin and end in this order")
    return blocks.sub(lambda block: f"{block[1]}{tables[block[2]]()}\n{block[3]}", text)


def rewrite(page: Path, render_page: Callable[[str], str]) -> None:
    """Put a page's rendered text in the place of its text."""
    page.write_text(render_page(page.read_text(encoding="utf-8")), encoding="utf-8")


def _blocks(kind: str) -> re.Pattern[str]:
    return re.compile(rf"^(<!-- {kind}:(\S+) begin -->\n).*?^(<!-- {kind}:\2 end -->)$", re.DOTALL | re.MULTILINE)
