"""Copies of PNG files without the text that Pillow refuses to unpack."""

from __future__ import annotations

import io
import struct
import zlib
from typing import BinaryIO

_TEXT = frozenset({b"tEXt", b"zTXt", b"iTXt", b"iCCP"})
_TURNING = (b"Raw profile type exif\0", b"XML:com.adobe.xmp\0")  # the texts in which Pillow looks for an orientation


def is_refusal(error: BaseException) -> bool:
    """Return whether Pillow refused a file for its text alone.

    Both of its messages name the limit, `PngImagePlugin.MAX_TEXT_CHUNK` or `MAX_TEXT_MEMORY`.
    """
    return isinstance(error, ValueError) and "MAX_TEXT" in str(error)


def without_text(file: BinaryIO) -> BinaryIO:
    """Return the PNG file with its pixels and all that changes them, but no comments and no profiles.

    Text that may hold an orientation stays where it unpacks to no more than Pillow takes.
    """
    file.seek(0)
    copy = io.BytesIO()
    copy.write(file.read(8))  # the signature
    while len(head := file.read(8)) == 8:
        length, kind = struct.unpack(">I4s", head)
        body = file.read(length + 4)  # with its checksum
        if kind not in _TEXT or (body.startswith(_TURNING) and _is_small(kind, body[:-4])):
            copy.write(head + body)
    copy.seek(0)
    return copy


def _is_small(kind: bytes, body: bytes) -> bool:
    """Return whether the text of a chunk unpacks to no more than Pillow takes; at most so much of it is unpacked."""
    from PIL.PngImagePlugin import MAX_TEXT_CHUNK

    text = body.partition(b"\0")[2]
    if kind == b"iTXt":
        compressed, text = text[:1] == b"\x01", text.split(b"\0", 3)[-1]
    else:
        compressed, text = kind == b"zTXt", text[1:]
    if not compressed:
        return len(body) <= MAX_TEXT_CHUNK
    unpacker = zlib.decompressobj()
    try:
        unpacker.decompress(text, MAX_TEXT_CHUNK)
    except zlib.error:
        return False
    return not unpacker.unconsumed_tail
