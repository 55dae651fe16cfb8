"""Contact sheets: one row per class, its prompt beside it."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import groupby, islice
from pathlib import Path

from PIL import Image, ImageDraw

COLUMNS = 10
ROWS = 20
_TILE = 64
_LABEL = 110


def contact_sheet(images: Iterable[tuple[Path, str]]) -> Image.Image:
    """Return a sheet of the images of (file, label) pairs, at most `COLUMNS` in a row and `ROWS` rows.

    Pairs of one class stand together; a new row starts where the file's directory changes. The iterable is not read
    beyond the last row.
    """
    # Rows are read one by one, so that a run of thousands of classes is not listed for a sheet of twenty.
    groups = groupby(images, key=lambda pair: pair[0].parent)
    rows = [list(group) for _, group in islice(groups, ROWS)]
    sheet = Image.new("RGB", (_LABEL + COLUMNS * _TILE, max(len(rows), 1) * _TILE), "white")
    draw = ImageDraw.Draw(sheet)
    for y, row in enumerate(rows):
        draw.text((6, y * _TILE + _TILE // 2), row[0][1][:17], fill="black", anchor="lm")
        for x, (file, _) in enumerate(row[:COLUMNS]):
            with Image.open(file) as image:
                sheet.paste(image.resize((_TILE, _TILE), Image.Resampling.BICUBIC), (_LABEL + x * _TILE, y * _TILE))
    return sheet
