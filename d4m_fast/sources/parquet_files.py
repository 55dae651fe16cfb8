"""Parquet files through pyarrow: their rows in small pieces, and their errors as ours."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from d4m_fast.errors import DataError, PreflightError
from d4m_fast.storage import files

MOST_PIECE_BYTES = 1 << 26  # of images that are decoded at once, unless one image alone has more
_MOST_PIECE_ROWS = 64
MOST_TEXT_BYTES = 1 << 30  # of labels and names, likewise
_MOST_TEXT_ROWS = 4096


def pyarrow_parquet() -> ModuleType:
    """Return the module that reads parquet files.

    Raises:
        PreflightError: pyarrow is not installed.
    """
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise PreflightError("parquet files need pyarrow: pip install 'd4m-fast[formats]'") from error
    module: ModuleType = pyarrow.parquet
    return module


@contextlib.contextmanager
def refusing(path: Path) -> Iterator[None]:
    """Turn what pyarrow raises on a file into one line.

    Raises:
        DataError: the file is damaged.
        PreflightError: it cannot be read now, or memory is short.
    """
    from pyarrow import ArrowException, ArrowMemoryError

    try:
        yield
    except (ArrowMemoryError, MemoryError) as error:
        raise PreflightError(f"{path}: no memory for a page of it; free some, or save it with smaller pages") from error
    except (ArrowException, OSError, ValueError, TypeError, LookupError, OverflowError) as error:
        if isinstance(error, OSError):
            files.refuse_machine_error(path, error)
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(f"{path}: no sound parquet file ({reason[:200]}); fetch it again") from error


class ParquetFile:
    """A parquet file that one thread reads at a time."""

    def __init__(self, path: Path) -> None:
        module = pyarrow_parquet()
        self.path = path
        with refusing(path):
            files.open_regular(path).close()  # pyarrow would wait for a pipe
            # Mapped, so that a row group is read page by page, and not as a whole.
            self._file = module.ParquetFile(path, memory_map=True, pre_buffer=False)
            self.schema = self._file.schema_arrow
            self.metadata = self._file.metadata
            rows = [self.metadata.row_group(group).num_rows for group in range(self.metadata.num_row_groups)]
        self.group_rows: tuple[int, ...] = tuple(rows)
        if min(rows, default=0) < 0 or sum(rows) != self.metadata.num_rows:
            raise DataError(f"{path}: no sound parquet file (its row groups do not add up); fetch it again")

    def texts(self, columns: Sequence[str]) -> Iterator[Any]:
        """Yield record batches of small columns."""
        with refusing(self.path):
            groups = range(len(self.group_rows))
            rows = [self._piece_rows(group, columns, MOST_TEXT_BYTES, _MOST_TEXT_ROWS) for group in groups]
            yield from self._file.iter_batches(min(rows, default=1), columns=list(columns), use_threads=False)

    def images(self, group: int, column: str) -> Iterator[bytes | None]:
        """Yield the bytes of each image of a row group; None where a row has none."""
        with refusing(self.path):
            rows = self._piece_rows(group, [column], MOST_PIECE_BYTES, _MOST_PIECE_ROWS)
            for batch in self._file.iter_batches(rows, row_groups=[group], columns=[column], use_threads=False):
                values = batch.column(0)
                if values.type.num_fields:
                    values = values.field(values.type.get_field_index("bytes"))
                for value in values:
                    yield value.as_py()

    def _piece_rows(self, group: int, columns: Sequence[str], most_bytes: int, most_rows: int) -> int:
        """Return how many rows may be decoded at once.

        In a column with a dictionary any number of rows may be one value, which may be as large as the whole chunk: a
        few bytes would stand for gigabytes.
        """
        chunks, rows = self.metadata.row_group(group), most_rows
        for chunk in map(chunks.column, range(chunks.num_columns)):
            if chunk.path_in_schema in columns and chunk.has_dictionary_page:
                rows = min(rows, most_bytes // max(1, int(chunk.total_uncompressed_size)))
        return max(1, rows)
