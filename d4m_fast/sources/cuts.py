"""Tell image files that end before what their own lengths and end marks say, as copies that were broken off do."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable
from types import MappingProxyType
from typing import BinaryIO

# Types of TIFF of more than one byte, and the tags that say where its pixels are, how deep, packed and coloured.
_TIFF_SIZES = MappingProxyType({3: 2, 8: 2, 4: 4, 9: 4, 11: 4, 13: 4, 5: 8, 10: 8, 12: 8, 16: 8, 17: 8, 18: 8})
_TIFF_PIXELS = frozenset({258, 273, 279, 320, 324, 325, 339, 347})
_END = 1 << 16  # bytes in which an end mark is looked for; other data may follow it


def is_cut_short(file: BinaryIO) -> bool:
    """Return whether a file ends before its container's own lengths say; False where it has none that can be read."""
    before = file.tell()
    file.seek(0)
    head = file.read(64)
    check = next((check for magic, check in _CHECKS.items() if head.startswith(magic)), None)
    if check is None and head[4:8] in (b"ftyp", b"jP  "):
        check = _ends_inside_boxes
    if check is None:
        return False
    try:
        return check(file, head, file.seek(0, os.SEEK_END))
    except (struct.error, OverflowError):  # the file ends in a length
        return True
    finally:
        file.seek(before)


def _ends_inside_riff(file: BinaryIO, head: bytes, size: int) -> bool:
    return int.from_bytes(head[4:8], "little") + 8 > size


def _ends_inside_boxes(file: BinaryIO, head: bytes, size: int) -> bool:
    """Look, in AVIF and JPEG 2000, for a box that reaches beyond the end, or for the lack of one with the pixels."""
    at = count = 0
    while at < size:
        file.seek(at)
        length, kind = struct.unpack(">I4s", file.read(8))
        if length == 1:
            length = struct.unpack(">Q", file.read(8))[0]
        if length == 0:  # up to the end
            length = size - at
        if length < 8 or not kind.strip().isalnum():
            return False
        at, count = at + length, count + 1
    if at > size or count < 3:  # of AVIF, ftyp, meta and mdat
        return True
    return head[4:8] == b"jP  " and _lacks_end_mark(_END_OF_CODESTREAM)(file, head, size)


def _ends_inside_png(file: BinaryIO, head: bytes, size: int) -> bool:
    at = 8
    while at < size:
        file.seek(at)
        length, kind = struct.unpack(">I4s", file.read(8))
        if kind == b"IEND" or not kind.isalpha():
            return False
        at += length + 12  # with the chunk's length, kind and checksum
    return True


def _ends_inside_tiff(file: BinaryIO, head: bytes, size: int) -> bool:
    """Return whether the first page's directory, or what a tag of its pixels points to, reaches beyond the end."""
    order = "<" if head[:2] == b"II" else ">"
    is_bigtiff = 43 in head[2:4]  # whose offsets have 64 bits; 42 of other TIFFs
    word, count = (f"{order}Q", f"{order}Q") if is_bigtiff else (f"{order}I", f"{order}H")
    file.seek(struct.unpack_from(word, head, 8 if is_bigtiff else 4)[0])
    for _ in range(struct.unpack(count, file.read(struct.calcsize(count)))[0]):
        entry = file.read(20 if is_bigtiff else 12)
        tag, kind = struct.unpack_from(f"{order}HH", entry)
        values, at = struct.unpack_from(f"{order}2{word[1]}", entry, 4)
        length = values * _TIFF_SIZES.get(kind, 1)
        # Where a word has no room for the values, they stand elsewhere.
        if tag in _TIFF_PIXELS and length > struct.calcsize(word) and at + length > size:
            return True
    return False


def _lacks_end_mark(mark: bytes) -> Callable[[BinaryIO, bytes, int], bool]:
    def check(file: BinaryIO, head: bytes, size: int) -> bool:
        file.seek(max(0, size - _END))
        return mark not in file.read()

    return check


_END_OF_CODESTREAM = b"\xff\xd9"  # of JPEG and JPEG 2000
_CHECKS = MappingProxyType(
    {
        b"RIFF": _ends_inside_riff,
        b"\x89PNG\r\n\x1a\n": _ends_inside_png,
        b"II*\0": _ends_inside_tiff,
        b"MM\0*": _ends_inside_tiff,
        b"II+\0": _ends_inside_tiff,
        b"MM\0+": _ends_inside_tiff,
        b"GIF8": _lacks_end_mark(b"\0;"),  # the end of the last picture, and of the file
        b"\xff\x4f\xff\x51": _lacks_end_mark(_END_OF_CODESTREAM),
        b"\xff\xd8\xff": _lacks_end_mark(_END_OF_CODESTREAM),
    }
)
