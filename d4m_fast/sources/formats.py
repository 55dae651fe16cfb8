"""Formats of images that are read, and descriptions of files that cannot be."""

from __future__ import annotations

import functools
import os
import re
import struct
import zlib
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import BinaryIO

from PIL import Image

from d4m_fast.sources.cuts import is_cut_short

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "DIB", "PPM", "TIFF", "GIF", "AVIF", "JPEG2000", "ICO")
NAMES = (*FORMATS, "MPO")  # whose files are JPEG files
EXTENSIONS = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".apng", ".webp", ".bmp", ".dib"),
    *(".ppm", ".pgm", ".pbm", ".pnm", ".pfm", ".tif", ".tiff", ".gif", ".avif", ".avifs"),
    *(".jp2", ".j2k", ".jpc", ".jpf", ".jpx", ".j2c", ".ico"),
)

# Extensions of images that no Pillow decodes, for the list of files that are left out.
WITHOUT_DECODER = {
    **dict.fromkeys((".heic", ".heif", ".heics", ".hif"), "HEIC"),
    **dict.fromkeys((".jxl",), "JPEG XL"),
    **dict.fromkeys((".jxr", ".wdp", ".hdp"), "JPEG XR"),
    **dict.fromkeys((".svg", ".svgz"), "SVG"),
    **dict.fromkeys((".exr",), "OpenEXR"),
    **dict.fromkeys((".hdr",), "Radiance HDR"),
    **dict.fromkeys((".dcm", ".dicom"), "DICOM"),
    **dict.fromkeys((".xcf",), "XCF"),
    **dict.fromkeys((".cr2", ".cr3", ".nef", ".arw", ".dng", ".raf", ".orf", ".rw2", ".pef", ".srw", ".x3f"), "RAW"),
}

# What Pillow's decoders are known to raise on damaged files.
DECODER_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    AttributeError,
    AssertionError,
    ImportError,
    LookupError,
    ArithmeticError,
    EOFError,
    MemoryError,
    RuntimeError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)

# Of them, those of a header, whatever the machine has.
HEADER_ERRORS = (
    SyntaxError,
    ValueError,
    TypeError,
    AttributeError,
    LookupError,
    ArithmeticError,
    EOFError,
    struct.error,
)

_HEAD = 4096
_MIN_HEAD = 12  # bytes that tell every format; the smallest image with a header is longer
# Their files are read from beginning to end, so that who has reached the end when the header is refused missed some.
_READ_IN_ORDER = frozenset({"JPEG", "PNG", "BMP", "DIB", "PPM", "JPEG2000", "ICO"})
# Of HEIF, by what compresses the picture; the last are of its structure, whatever compresses it.
_HEIF_BRANDS = (
    (re.compile(rb"he[iv].|hev."), "HEIC"),
    (re.compile(rb"avc[is]"), "HEIF with AVC"),
    (re.compile(rb"vv[ic][cs]|vvis"), "HEIF with VVC"),
    (re.compile(rb"evb[is]|evm[is]"), "HEIF with EVC"),
    (re.compile(rb"j2k[is]|j2is"), "HEIF with JPEG 2000"),
    (re.compile(rb"jpe[gs]"), "HEIF with JPEG"),
    (re.compile(rb"mif[12]|msf1|miaf|1pic|unif"), "HEIF"),
)
_VIDEO_BRANDS = re.compile(rb"iso[m1-9a-c]|mp4[12v]|qt  |M4[VAPB] |f4v |avc1|3g[2eghprs]\w|dash|msdh|MSNV|cmf.")
_UNDECODED = (  # offset, first bytes, name
    (0, b"PF\n", "colour PFM"),
    (0, b"P7\n", "PAM"),
    (0, b"\xff\x0a", "JPEG XL"),
    (0, b"\0\0\0\x0cJXL \r\n\x87\n", "JPEG XL"),
    (0, b"II\xbc", "JPEG XR"),
    (0, b"v/1\x01", "OpenEXR"),
    (0, b"#?RADIANCE", "Radiance HDR"),
    (128, b"DICM", "DICOM"),
    (0, b"gimp xcf", "XCF"),
    (0, b"BPG\xfb", "BPG"),
    (0, b"FLIF", "FLIF"),
    (0, b"AT&TFORM", "DjVu"),
    (8, b"CR\x02", "Canon RAW"),
    (4, b"ftypcrx ", "Canon RAW"),
    (0, b"FUJIFILMCCD-RAW", "Fujifilm RAW"),
    (0, b"IIU\0", "Panasonic RAW"),
    (0, b"IIRO", "Olympus RAW"),
    (0, b"IIRS", "Olympus RAW"),
    (0, b"FOVb", "Sigma RAW"),
)
_OTHER_KINDS = (  # offset, first bytes, description
    (0, b"version https://git-lfs.github.com/spec/", "a Git LFS pointer in place of an image; run git lfs pull"),
    (0, b"%PDF", "a PDF document"),
    (0, b"%!PS", "a PostScript document"),
    (0, b"8BPS", "a Photoshop document (PSD)"),
    (0, b"qoif", "a QOI image"),
    (0, b"DDS ", "a DDS texture"),
    (0, b"icns", "an Apple icon (ICNS)"),
    (0, b"SIMPLE  =", "a FITS image"),
    (0, b"/* XPM */", "an XPM image"),
    (0, b"\x01\xda", "an SGI image"),
    (0, b"\x89PNG\n\x1a\n", "a PNG image whose line ends were changed when it was copied as text; copy it anew"),
    (0, b"\x89PNG\r\n\x1a\r\n", "a PNG image whose line ends were changed when it was copied as text; copy it anew"),
    (0, b"\xef\xbf\xbd", "a file whose bytes were replaced when it was copied as text; copy it anew"),
    (0, b"HTTP/1.", "the answer of a server with its headers, in place of an image"),
    (0, b"PK\x03\x04", "a ZIP archive"),
    (0, b"Rar!", "a RAR archive"),
    (0, b"7z\xbc\xaf\x27\x1c", "a 7-Zip archive"),
    (0, b"\x1f\x8b", "a gzip archive"),
    (0, b"BZh", "a bzip2 archive"),
    (0, b"\xfd7zXZ\0", "an xz archive"),
    (0, b"\x28\xb5\x2f\xfd", "a zstd archive"),
    (257, b"ustar", "a tar archive"),
    (0, b"\x93NUMPY", "a NumPy array"),
    (0, b"\x89HDF\r\n", "an HDF5 file"),
    (0, b"PAR1", "a Parquet file"),
    (0, b"SQLite format 3\0", "an SQLite database"),
    (0, b"\0\x05\x16\x07", "macOS metadata (AppleDouble) of another file"),
    (0, b"\x1a\x45\xdf\xa3", "a Matroska or WebM video"),
    (8, b"AVI ", "an AVI video"),
    (8, b"WAVE", "a WAVE sound"),
    (0, b"ID3", "an MP3 sound"),
    (0, b"OggS", "an Ogg file"),
    (0, b"\x7fELF", "a program"),
    (0, b"MZ", "a program"),
)
_TEXTS = (
    (rb"(?is)\s*(<\?xml.*)?(<!--.*?-->\s*)?(<!doctype svg|<svg\b)", "no decoder for SVG in Pillow"),
    (
        rb"(?is)\s*(<!--.*?-->\s*)*(<!doctype html|<html|<head|<body|<script|<meta|<title)",
        "an HTML page in place of an image",
    ),
    (rb"(?i)\s*<\?xml", "an XML document in place of an image"),
    (rb"\s*[{\[]", "JSON or other text in place of an image"),
    (rb"data:image/|/9j/|iVBORw0KGgo|R0lGOD|UklGR", "an image as base64 text; decode it"),
)
_CONTROL = re.compile(rb"[\x00-\x08\x0e-\x1a\x1c-\x1f\x7f]")
_PNM = re.compile(rb"P[1-6fy]\s+(#[^\n]*\n\s*)*\d")


@functools.cache
def _acceptors() -> Mapping[str, Callable[[bytes], bool | str] | None]:
    """Return the functions by which Pillow tells each format from a file's first bytes.

    Imports the plugins, so that which formats are known does not depend on what else was imported before; not when the
    module is imported, because it takes 40 ms that runs on other data need not.
    """
    from PIL import (  # noqa: F401
        AvifImagePlugin,
        BmpImagePlugin,
        GifImagePlugin,
        IcoImagePlugin,
        Jpeg2KImagePlugin,
        JpegImagePlugin,
        PngImagePlugin,
        PpmImagePlugin,
        TiffImagePlugin,
        WebPImagePlugin,
    )

    return MappingProxyType({name: Image.OPEN[name][1] for name in FORMATS})


def registered() -> tuple[str, ...]:
    """Return those of `FORMATS` that this Pillow has a plugin for; Image.open fails on the name of another."""
    if Image.OPEN.keys() >= _acceptors().keys():
        return FORMATS
    return tuple(name for name in FORMATS if name in Image.OPEN)


def describe_foreign(head: bytes) -> str | None:
    """Say what a file is by its first bytes, where Pillow does not decode it; None where it may be one of `FORMATS`."""
    if head[4:8] == b"ftyp" and len(head) >= _MIN_HEAD:
        return _describe_boxes(head)
    for at, magic, name in _UNDECODED:
        if head.startswith(magic, at):
            return f"no decoder for {name} in Pillow"
    for at, magic, description in _OTHER_KINDS:
        if head.startswith(magic, at):
            return description
    if head.startswith(b"\0\0\2\0") and head[4:6] not in (b"", b"\0\0"):
        return "a Windows cursor"
    # TGA has no first bytes of its own, only a header that is plausible or not.
    has_kinds = len(head) >= 18 and head[1] <= 1 and head[2] in (1, 2, 3, 9, 10, 11) and head[16] in (8, 15, 16, 24, 32)
    if has_kinds and b"\0\0" not in (head[12:14], head[14:16]):
        return "a TGA image"
    return _describe_text(head)


def explain_refusal(file: BinaryIO) -> str:
    """Say in words why Image.open made no image of a file."""
    file.seek(0)
    head = file.read(_HEAD)
    description = describe_foreign(head)
    if description is not None:
        return description
    if len(head) < _MIN_HEAD:
        return f"only {len(head)} byte{'s' * (len(head) > 1)}, too few for an image"
    for name, accept in _acceptors().items():
        verdict = accept is None or accept(head[:16])
        if isinstance(verdict, str) or (verdict and name not in Image.OPEN):  # a plugin without its library says so
            return f"no decoder for {name} in this Pillow"
        if verdict:
            return _explain_header(name, file)
    if is_cut_short(file):
        return "truncated"
    if not head.strip(b"\0"):
        return "only zero bytes at its beginning; copy it anew"
    return f"of no image format that is read (begins with {head[:8].hex(' ')}); {', '.join(NAMES)} are read"


def _explain_header(name: str, file: BinaryIO) -> str:
    """Ask the plugin of a format again for its reason, which Image.open drops."""
    factory, reason = Image.OPEN[name][0], ""
    assert callable(factory)
    file.seek(0)
    try:
        factory(file, "")
    except DECODER_ERRORS as error:
        reason = str(error)
    is_at_end = file.tell() >= file.seek(0, os.SEEK_END)
    if (is_at_end and name in _READ_IN_ORDER) or is_cut_short(file):
        return "truncated"
    return f"damaged, or of a kind of {name} that Pillow does not read ({reason if reason else 'no reason given'})"


def _describe_boxes(head: bytes) -> str | None:
    """Say what an ISO media file is by its brands; None where it is AVIF."""
    size = min(struct.unpack(">I", head[:4])[0], len(head))
    brands = [head[8:12]]
    brands += [head[at : at + 4] for at in range(16, size - 3, 4)]  # the four bytes between are a version
    if any(brand.startswith(b"avi") for brand in brands):
        return None
    if brands[0] == b"crx ":
        return "no decoder for Canon RAW in Pillow"
    for pattern, name in _HEIF_BRANDS:
        if any(map(pattern.fullmatch, brands)):
            return f"no decoder for {name} in Pillow"
    if any(map(_VIDEO_BRANDS.fullmatch, brands)):
        return "an MPEG-4 or QuickTime video"
    return f"an ISO media file of brand {head[8:12]!a}, not an image that is read"


def _describe_text(head: bytes) -> str | None:
    """Say what kind of text a file is; None where it is none, as far as its first bytes tell."""
    if head.startswith((b"\xff\xfe", b"\xfe\xff")) and _is_text(head[: len(head) // 2 * 2], "utf-16"):
        return "text in place of an image"
    if _CONTROL.search(head) or _PNM.match(head):
        return None
    for pattern, description in _TEXTS:
        if re.match(pattern, head.removeprefix(b"\xef\xbb\xbf")):  # a byte order mark of UTF-8
            return description
    if len(head) < _MIN_HEAD:  # "GIF8" may be text or an image
        return None
    if not head.strip():
        return "only spaces in place of an image"
    # In an encoding of one byte a character, text may have any bytes; of a binary file, a third would be ASCII.
    ascii_share = sum(byte < 0x80 for byte in head) / len(head)
    is_text = _is_text(head[:-3], "utf-8") or ascii_share > 0.8  # the last three bytes may be half a character
    return "text in place of an image" if is_text else None


def _is_text(head: bytes, encoding: str) -> bool:
    try:
        text = head.decode(encoding)
    except UnicodeDecodeError:
        return False
    return text.isprintable() or not _CONTROL.search(text.encode())
