"""Which image formats are read, and what a file is that cannot be."""

from __future__ import annotations

import functools
import re
import struct
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import BinaryIO

from PIL import Image

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "DIB", "PPM", "TIFF", "GIF", "AVIF", "JPEG2000", "ICO")
NAMES = (*FORMATS, "MPO")  # whose files are JPEG files
EXTENSIONS = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".apng", ".webp", ".bmp", ".dib"),
    *(".ppm", ".pgm", ".pbm", ".pnm", ".pfm", ".tif", ".tiff", ".gif", ".avif", ".avifs"),
    *(".jp2", ".j2k", ".jpc", ".jpf", ".jpx", ".j2c", ".ico"),
)

# Extensions of images that no Pillow decodes, for whoever lists files and leaves these out.
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

_HEAD = 4096
_HEIF_BRANDS = frozenset({b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs"})
_VIDEO_BRANDS = frozenset({b"isom", b"iso2", b"mp41", b"mp42", b"qt  ", b"M4V ", b"avc1", b"3gp4", b"3gp5", b"dash"})
_UNDECODED = (  # offset, first bytes, name
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
    (0, b"\0\0\2\0", "a Windows cursor"),
    (0, b"SIMPLE  =", "a FITS image"),
    (0, b"/* XPM */", "an XPM image"),
    (0, b"\x01\xda", "an SGI image"),
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
    (rb"(?i)\s*(<!doctype html|<html|<head|<body|<script|<meta|<title)", "an HTML page in place of an image"),
    (rb"(?i)\s*<\?xml", "an XML document in place of an image"),
    (rb"\s*[{\[]", "JSON or other text in place of an image"),
)
_CONTROL = re.compile(rb"[\x00-\x08\x0e-\x1a\x1c-\x1f\x7f]")


@functools.cache
def _acceptors() -> Mapping[str, Callable[[bytes], bool | str] | None]:
    """How Pillow tells each format by a file's first bytes.

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
    """Those of `FORMATS` that this Pillow has a plugin for; Image.open fails on the name of another."""
    if Image.OPEN.keys() >= _acceptors().keys():
        return FORMATS
    return tuple(name for name in FORMATS if name in Image.OPEN)


def describe_foreign(head: bytes) -> str | None:
    """What a file is by its first bytes, where Pillow does not decode it; None where it may be one of `FORMATS`."""
    if head[4:8] == b"ftyp":
        return _name_boxed(head)
    named = next((name for at, magic, name in _UNDECODED if head.startswith(magic, at)), None)
    if named is not None:
        return f"no decoder for {named} in Pillow"
    other = next((words for at, magic, words in _OTHER_KINDS if head.startswith(magic, at)), None)
    return _name_text(head) if other is None else other


def explain_unidentified(file: BinaryIO) -> str:
    """Why Image.open identified no format, in words."""
    file.seek(0)
    head = file.read(_HEAD)
    foreign = describe_foreign(head)
    if foreign is not None:
        return foreign
    for name, accept in _acceptors().items():
        verdict = accept is None or accept(head[:16])
        if isinstance(verdict, str) or (verdict and name not in Image.OPEN):  # a plugin without its library says so
            return f"no decoder for {name} in this Pillow"
        if verdict:
            return f"damaged, or of a kind of {name} that Pillow does not read ({_refusal(Image.OPEN[name][0], file)})"
    if not head.strip(b"\0"):
        return "only zero bytes at its beginning; copy it anew"
    return f"of no known image format (begins with {head[:8].hex(' ')}); {', '.join(NAMES)} are read"


def _refusal(factory: object, file: BinaryIO) -> str:
    """What a plugin says of a file that Image.open has offered it in vain."""
    assert callable(factory)
    file.seek(0)
    try:
        factory(file, "")
    except (SyntaxError, IndexError, TypeError, struct.error) as error:  # what Image.open passes over
        return str(error)
    return "no reason given"


def _name_boxed(head: bytes) -> str | None:
    size = min(struct.unpack(">I", head[:4])[0], len(head))
    brands = [head[8:12], *(head[at : at + 4] for at in range(16, size - 3, 4))]
    if any(brand.startswith(b"avi") for brand in brands):
        return None
    if _HEIF_BRANDS & set(brands):
        return "no decoder for HEIC in Pillow"
    if brands[0] == b"crx ":
        return "no decoder for Canon RAW in Pillow"
    if _VIDEO_BRANDS & set(brands):
        return "an MPEG-4 or QuickTime video"
    return None


def _name_text(head: bytes) -> str | None:
    if _CONTROL.search(head) or not head.strip() or head[:1] in b"P\x89\xff":
        return None
    named = next((words for pattern, words in _TEXTS if re.match(pattern, head.removeprefix(b"\xef\xbb\xbf"))), None)
    if named is not None or _is_utf8(head):
        return named if named is not None else "text in place of an image"
    return None


def _is_utf8(head: bytes) -> bool:
    try:
        head[:-3].decode()  # the last character may be cut
    except UnicodeDecodeError:
        return False
    return True
