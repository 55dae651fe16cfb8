"""Decode real image files to 8-bit RGB, and say what is wrong with those that cannot be decoded."""

from __future__ import annotations

import errno
import io
import mmap
import os
import re
import struct
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from PIL import Image, ImageFile, UnidentifiedImageError

from d4m_fast.errors import DataError, PreflightError, wants_of_machine
from d4m_fast.sources import formats, png_text
from d4m_fast.sources.cuts import is_cut_short
from d4m_fast.sources.formats import DECODER_ERRORS
from d4m_fast.sources.pixels import UnscalableError, to_rgb
from d4m_fast.sources.quiet import quiet_pillow
from d4m_fast.storage.files import MACHINE_ERRORS, open_regular

RULES = 4  # of the way from a file to RGB; latents and runs made by others are not gone on with
MAX_PIXELS = 100_000_000  # 300 MB once decoded
MAX_BYTES = 1 << 30  # of an image in a container, which is read at once; 16-bit RGBA of most pixels has 800 MB
_MOST_AT_ONCE = 1 << 24  # bytes of a file that are read before it is decoded

_MORE_FRAMES = "d4m-fast: more frames"  # key in the info of a decoded image
# Not an MPO's previews, nor an icon's sizes: its first picture, and its largest, are the image.
_WITH_FRAMES = frozenset({"GIF", "PNG", "WEBP", "AVIF", "TIFF"})
_READ_WHEN_CUT = frozenset({"TIFF", "JPEG2000"})  # Pillow takes other pixels for the picture then
_STRIP_OFFSETS, _STRIP_SIZES, _TILE_OFFSETS, _TILE_SIZES = 273, 279, 324, 325  # tags of TIFF
_YCBCR, _SUBSAMPLING = 6, 530  # of TIFF's PhotometricInterpretation; a tag, halved in both directions by default
_PLANES = 2  # of TIFF's PlanarConfiguration: one colour after the other
_NEW_SUBFILE_TYPE, _REDUCED = 254, 1  # a TIFF tag, and its flag of a smaller copy of another picture in the file
_CODECS = {"jpeg": "JPEG", "jpeg2k": "JPEG 2000", "zip": "PNG", "libtiff": "compressed TIFF"}  # as Pillow calls them


class _UnknownFormatError(Exception):
    """Raised for a file of no format that is read; the text says what the file is."""


def decode(path: Path) -> Image.Image:
    """Return the image as 8-bit RGB: first frame, upright, transparency dropped, wide grey scaled (docs/images.md).

    Raises:
        DataError: "PATH: reason", when the file is missing, empty, damaged, too large, or of no format that is read.
        PreflightError: the system would not let it be read.
    """
    return _decode(lambda: _open_at_once(path), path)


def decode_bytes(data: bytes, name: str) -> Image.Image:
    """Return the image whose file has these bytes, as `decode` does; errors begin with `name`."""
    return _decode(lambda: io.BytesIO(data), name)


def _decode(open_stream: Callable[[], BinaryIO], name: str | Path) -> Image.Image:
    quiet_pillow()
    try:
        with open_stream() as file:
            return _decode_stream(file)
    except (*DECODER_ERRORS, _UnknownFormatError, UnscalableError) as error:
        # As UTF-8, whatever bytes the name has.
        printable_name = os.fsencode(name).decode("utf-8", "backslashreplace")
        if _is_of_machine(error):
            trouble = error.strerror if isinstance(error, OSError) and error.strerror is not None else "out of memory"
            raise PreflightError(
                f"{printable_name}: cannot be read ({trouble}); mend that, or remove the image, and run again"
            ) from error
        raise DataError(f"{printable_name}: {_reason(error)}") from error


def has_more_frames(image: Image.Image) -> bool:
    """Return whether a decoded image is the first frame, or page, of several."""
    return _MORE_FRAMES in image.info


def _open_at_once(path: Path) -> BinaryIO:
    """Open a file, of usual size in memory: Pillow reads by pieces, which takes a call of the system each."""
    file = open_regular(path)
    if os.fstat(file.fileno()).st_size > _MOST_AT_ONCE:
        return file
    with file:
        return io.BytesIO(file.read())


def _decode_stream(file: BinaryIO) -> Image.Image:
    try:
        image = _load(file)
    except ValueError as error:
        if not png_text.is_refusal(error):
            raise
        image = _load(png_text.without_text(file))
    rgb = to_rgb(image)
    rgb.info = {_MORE_FRAMES: True} if _is_animated(image) else {}
    return rgb


def _load(file: BinaryIO) -> ImageFile.ImageFile:
    """Open a file and decode its pixels, with the checks that Pillow does not make."""
    head = file.read(4)
    if not head:
        raise EOFError("zero bytes")
    image = _open(file, is_icon=head == b"\0\0\1\0")
    _check_size(image.width, image.height)
    if image.format in _READ_WHEN_CUT and is_cut_short(file):
        raise EOFError("truncated")
    if image.format == "TIFF":
        _check_tiff(image)
    if image.format == "PNG" and image.mode == "P" and image.palette is None:  # Pillow would make one up
        raise _UnknownFormatError("damaged (a PNG image of palette colours without a palette)")
    try:
        image.load()
    except (OSError, SyntaxError, ValueError) as error:
        if png_text.is_refusal(error) or getattr(error, "errno", None) is not None:
            raise
        if is_cut_short(file) or _strips_end(image) > file.seek(0, os.SEEK_END):
            raise EOFError("truncated") from error
        raise
    return image


def _open(file: BinaryIO, *, is_icon: bool) -> ImageFile.ImageFile:
    """Read the header of a file, and say what the file is if Pillow does not."""
    try:
        if is_icon:
            _check_icon(file)
        return Image.open(file, formats=formats.registered())
    except (UnidentifiedImageError, *formats.HEADER_ERRORS) as error:
        if png_text.is_refusal(error):
            raise
        raise _UnknownFormatError(formats.explain_refusal(file)) from error
    except OSError as error:
        if error.errno is not None or _is_of_machine(error):
            raise
        raise _UnknownFormatError(formats.explain_refusal(file)) from error


def _check_size(width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise Image.DecompressionBombError


def _check_tiff(image: ImageFile.ImageFile) -> None:
    """Refuse what Pillow would take for the image: rows that no strip holds, and a camera file's thumbnail."""
    from PIL.TiffImagePlugin import (
        BITSPERSAMPLE,
        COMPRESSION,
        IMAGELENGTH,
        PHOTOMETRIC_INTERPRETATION,
        PLANAR_CONFIGURATION,
        SAMPLESPERPIXEL,
        STRIPOFFSETS,
        SUBIFD,
        TILEOFFSETS,
        TiffImageFile,
    )

    assert isinstance(image, TiffImageFile)
    tags = image.tag_v2
    is_uncompressed = tags.get(COMPRESSION, 1) == 1
    if tags.get(_NEW_SUBFILE_TYPE, 0) & _REDUCED:
        if SUBIFD in tags:
            raise _UnknownFormatError("no decoder for camera RAW in Pillow, only for the thumbnail in this file")
        raise _UnknownFormatError("its first page is a reduced copy of another page; save that one alone")
    if tags.get(PLANAR_CONFIGURATION, 1) == _PLANES and tags.get(SAMPLESPERPIXEL, 1) > 1:
        # Pillow reads uncompressed planes of 16 bits as if they were of 8.
        if max(tags.get(BITSPERSAMPLE, (8,))) > 8 and is_uncompressed:
            raise _UnknownFormatError("uncompressed planes of more than 8 bits, which Pillow reads wrongly")
        if len(tags.get(STRIPOFFSETS, tags.get(TILEOFFSETS, ()))) < tags[SAMPLESPERPIXEL]:
            raise EOFError("truncated: fewer strips than colour planes")
    is_ycbcr = tags.get(PHOTOMETRIC_INTERPRETATION) == _YCBCR and is_uncompressed
    if is_ycbcr and tuple(tags.get(_SUBSAMPLING, (2, 2))) != (1, 1):
        raise _UnknownFormatError("uncompressed YCbCr of halved colour, which Pillow reads wrongly")
    bottom = max((tile.extents[3] for tile in image.tile if tile.extents is not None), default=0)
    if bottom < tags[IMAGELENGTH]:
        raise EOFError(f"truncated: strips for {bottom:,} of {tags[IMAGELENGTH]:,} rows")


def _strips_end(image: ImageFile.ImageFile) -> int:
    """Return the end of a TIFF's last strip or tile; 0 for other images."""
    tags = getattr(image, "tag_v2", {})
    offsets = (*tags.get(_STRIP_OFFSETS, ()), *tags.get(_TILE_OFFSETS, ()))
    sizes = (*tags.get(_STRIP_SIZES, ()), *tags.get(_TILE_SIZES, ()))
    return max(map(sum, zip(offsets, sizes, strict=False)), default=0)


def _check_icon(file: BinaryIO) -> None:
    """Check the sizes of an icon's pictures before Pillow decodes them, which it does when it opens the icon.

    The sizes are those of the pictures themselves, because the icon's list of them may be wrong.
    """
    from PIL import IcoImagePlugin

    file.seek(0)
    for entry in IcoImagePlugin.IcoFile(file).entry:
        file.seek(entry.offset)
        head = file.read(24)
        is_png = head.startswith(b"\x89PNG\r\n\x1a\n")
        width, height = struct.unpack_from(">II", head, 16) if is_png else struct.unpack_from("<ii", head, 4)
        _check_size(abs(width), abs(height))


def _is_of_machine(error: BaseException) -> bool:
    """Return whether the machine failed, and the file may be sound: leaving it out would change the result."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno in MACHINE_ERRORS
    if isinstance(error, MemoryError):
        return True
    if not wants_of_machine(error):
        return False
    # Pillow's decoders lack memory for sizes in damaged files, too: the machine has failed if it holds no large image.
    try:
        mmap.mmap(-1, 4 * MAX_PIXELS).close()
    except OSError:
        return True
    return False


def _is_animated(image: ImageFile.ImageFile) -> bool:
    try:
        return image.format in _WITH_FRAMES and bool(getattr(image, "is_animated", False))
    except DECODER_ERRORS:  # the second frame of a GIF is damaged
        return False


def _reason(error: BaseException) -> str:
    """Say in words why an image cannot be used."""
    if isinstance(error, Image.DecompressionBombError):
        return f"too many pixels (limit {MAX_PIXELS:,})"
    if isinstance(error, (_UnknownFormatError, UnscalableError)):
        return str(error)
    if isinstance(error, ImportError):
        return f"needs what this Pillow was built without ({error})"
    if isinstance(error, OSError) and error.strerror is not None:
        return error.strerror if error.errno == errno.EINVAL else f"unreadable ({error.strerror})"
    message = str(error)
    missing = re.fullmatch(r"(?:de|en)coder (\w+) not available", message)
    if missing:
        return f"no decoder for {_CODECS.get(missing[1], missing[1])} in this Pillow"
    if "truncat" in message.lower() or "not enough image data" in message:
        return "truncated"
    return message if message == "zero bytes" else f"damaged ({message if message else type(error).__name__})"
