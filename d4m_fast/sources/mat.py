"""MATLAB's MAT-files of version 5, as SVHN and ImageNet's devkit have them: arrays of numbers, text, and structs.

The format: https://www.mathworks.com/help/pdf_doc/matlab/matfile_format.pdf; a few lines beside NumPy, for which SciPy
need not be installed.
"""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from d4m_fast.errors import DataError
from d4m_fast.storage import files

MOST_BYTES = 1 << 32  # of a variable; SVHN's largest has 1.6 GB
_MOST_DEPTH = 4  # of structs and cells in each other
_MOST_DIMENSIONS = 8
_TYPES = MappingProxyType({1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"})
_MATRIX, _COMPRESSED, _UTF8, _UTF16 = 14, 15, 16, 17
_CELL, _STRUCT, _CHARS = 1, 2, 4
_NUMBERS = MappingProxyType(
    {6: "f8", 7: "f4", 8: "i1", 9: "u1", 10: "i2", 11: "u2", 12: "i4", 13: "u4", 14: "i8", 15: "u8"}
)
_COMPLEX = 0x08


class _Unreadable(Exception):
    """Raised for what is damaged, or of a kind that is not read; the text says why."""


def read_mat(path: Path) -> dict[str, Any]:
    """Return the variables of a file.

    Numbers are arrays in MATLAB's shape and type, text is a string, a struct array is a list of dictionaries by field,
    a cell array a list; both in MATLAB's order, by columns.

    Raises:
        DataError: the file is damaged, of another version, or holds what is not read.
        PreflightError: the system would not let it be read.
    """
    try:
        with files.open_regular(path) as file:
            data = file.read(MOST_BYTES)
    except OSError as error:
        files.refuse_machine_error(path, error)
        raise DataError(f"{path}: cannot be read ({error.strerror}); fetch it again") from error
    return mat_variables(data, path)


def mat_variables(data: bytes, path: Path) -> dict[str, Any]:
    """Return the variables in the bytes of a file, as `read_mat` does; `path` is what messages call it."""
    try:
        return dict(_variables(data))
    except (_Unreadable, struct.error, zlib.error, ValueError, LookupError, OverflowError, MemoryError) as error:
        raise DataError(f"{path}: no sound MAT-file ({error}); fetch it again") from error


def _variables(data: bytes) -> Iterator[tuple[str, Any]]:
    if data[:4] == b"\x89HDF" or data[124:128] in (b"\x00\x02IM", b"\x02\x00MI"):
        raise _Unreadable("of version 7.3, which is HDF5; save it with -v7")
    if data[126:128] not in (b"IM", b"MI"):
        raise _Unreadable("of no version 5")
    order = "<" if data[126:128] == b"IM" else ">"
    for kind, body in _elements(memoryview(data)[128:], order):
        if kind == _COMPRESSED:
            ((kind, body),) = list(_elements(memoryview(_inflated(body)), order))
        if kind != _MATRIX:
            raise _Unreadable(f"an element of type {kind} in place of a variable")
        name, value = _matrix(body, order, 0)
        yield name, value


def _inflated(body: memoryview) -> bytes:
    stream = zlib.decompressobj()
    data = stream.decompress(body, MOST_BYTES)
    if not stream.eof:
        raise _Unreadable(f"truncated, or a variable of more than {MOST_BYTES:,} bytes")
    return data


def _elements(data: memoryview, order: str) -> Iterator[tuple[int, memoryview]]:
    """Yield type and bytes of elements that lie one behind the other."""
    at = 0
    while at < len(data):
        kind, size = struct.unpack_from(f"{order}2I", data, at)
        start = at + 8
        if kind >> 16:  # of four bytes at most, in the place of the size
            kind, size, start = kind & 0xFFFF, kind >> 16, at + 4
        if start + size > len(data) or (start == at + 4 and size > 4):
            raise _Unreadable("truncated")
        yield kind, data[start : start + size]
        at = at + 8 if start == at + 4 else start + size
        if kind != _COMPRESSED:
            at = (at + 7) // 8 * 8


def _matrix(body: memoryview, order: str, depth: int) -> tuple[str, Any]:
    """Return name and value of an array."""
    if depth > _MOST_DEPTH:
        raise _Unreadable("arrays too deep in each other")
    if len(body) == 0:
        return "", np.zeros((0, 0))
    (_, flags), (_, sizes), (_, name), *parts = list(_elements(body, order))
    word = struct.unpack_from(f"{order}I", flags)[0]
    kind = word & 0xFF
    shape = np.frombuffer(sizes, f"{order}i4").tolist()
    if len(shape) > _MOST_DIMENSIONS or min(shape, default=0) < 0:
        raise _Unreadable("an array of odd dimensions")
    value = _value(kind, shape, parts, order, depth)
    if word >> 8 & _COMPLEX:
        raise _Unreadable("complex numbers")
    return bytes(name).decode("ascii"), value


def _value(kind: int, shape: list[int], parts: list[tuple[int, memoryview]], order: str, depth: int) -> Any:
    count = math.prod(shape)
    if kind in _NUMBERS:
        numbers = _numbers(parts[0], order)
        if numbers.size != count:
            raise _Unreadable(f"{numbers.size:,} numbers where there should be {count:,}")
        return numbers.astype(_NUMBERS[kind], copy=False).reshape(shape, order="F")
    if kind == _CHARS:
        return _text(parts[0], order)
    if kind == _CELL:
        return [_matrix(part, order, depth + 1)[1] for _, part in parts]
    if kind == _STRUCT:
        width = int(_numbers(parts[0], order)[0])
        raw = bytes(parts[1][1])
        if not 0 < width <= 256 or len(raw) % width:
            raise _Unreadable("a struct without names")
        names = [raw[at : at + width].partition(b"\0")[0].decode("ascii") for at in range(0, len(raw), width)]
        values = [_matrix(part, order, depth + 1)[1] for _, part in parts[2:]]
        if not names or len(values) != count * len(names):
            raise _Unreadable("a struct without some of its fields")
        starts = range(0, len(values), len(names))
        return [dict(zip(names, values[at : at + len(names)], strict=True)) for at in starts]
    raise _Unreadable(f"an array of class {kind}")


def _numbers(part: tuple[int, memoryview], order: str) -> np.ndarray:
    kind, data = part
    if kind not in _TYPES:
        raise _Unreadable(f"numbers of type {kind}")
    return np.frombuffer(data, f"{order}{_TYPES[kind]}")


def _text(part: tuple[int, memoryview], order: str) -> str:
    kind, data = part
    if kind in (_UTF8, _UTF16):
        return bytes(data).decode("utf-8" if kind == _UTF8 else "utf-16-le" if order == "<" else "utf-16-be")
    return "".join(map(chr, _numbers(part, order).tolist()))
