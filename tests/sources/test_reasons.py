"""What a file is said to be that no image is read from."""

from __future__ import annotations

import base64
import gzip
import struct
from pathlib import Path

import numpy as np
import pytest
from decoding import reason, written
from image_variants import HEIGHT, WIDTH, picture, saved, tiff, variants

from d4m_fast.errors import DataError
from d4m_fast.sources.decode import decode

TEXTS = (
    *(b"Permission denied", b"P6 is a chipset", b"P1 text follows here", b"PNG file goes here", b"Page not found"),
    *(
        b"GIF of a cat, sleeping",
        b"BMW is a car, too",
        b"RIFF is a format",
        b"MM is a beginning",
        b"../../data/img.png",
    ),
    *("Zugriff verweigert: große Datei".encode(form) for form in ("utf-8", "latin-1", "utf-16")),
)


def boxed(major: bytes, *brands: bytes) -> bytes:
    body = b"ftyp" + major + bytes(4) + b"".join(brands)
    return struct.pack(">I", 4 + len(body)) + body + bytes(200)


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (boxed(b"heic", b"mif1", b"heic"), "no decoder for HEIC in Pillow"),
        (boxed(b"mif1", b"heic", b"miaf"), "no decoder for HEIC in Pillow"),
        (b"\xff\x0a" + bytes(50), "no decoder for JPEG XL in Pillow"),
        (b"\0\0\0\x0cJXL \r\n\x87\n" + bytes(50), "no decoder for JPEG XL in Pillow"),
        (b"II\xbc\x01" + bytes(50), "no decoder for JPEG XR in Pillow"),
        (b"v/1\x01" + bytes(50), "no decoder for OpenEXR in Pillow"),
        (
            b'<?xml version="1.0"?>\n<!-- a -->\n<svg xmlns="http://www.w3.org/2000/svg"/>',
            "no decoder for SVG in Pillow",
        ),
        (b"<svg width='4'></svg>", "no decoder for SVG in Pillow"),
        (b"II*\0\x10\0\0\0CR\x02\0" + bytes(50), "no decoder for Canon RAW in Pillow"),
        (boxed(b"crx ", b"crx ", b"isom"), "no decoder for Canon RAW in Pillow"),
        (b"FUJIFILMCCD-RAW 0201" + bytes(50), "no decoder for Fujifilm RAW in Pillow"),
        (bytes(128) + b"DICM" + bytes(50), "no decoder for DICOM in Pillow"),
        (b"\n<!DOCTYPE html><html><body>404</body></html>", "an HTML page in place of an image"),
        (b"\xef\xbb\xbf<HTML>", "an HTML page in place of an image"),
        (b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', "an XML document in place of an image"),
        (b'{"error": "not found"}', "JSON or other text in place of an image"),
        ("Zugriff verweigert: große Datei".encode(), "text in place of an image"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "a Git LFS pointer in place of an image"),
        (b"%PDF-1.7\n%\xe2\xe3", "a PDF document"),
        (b"8BPS\0\x01" + bytes(50), "a Photoshop document"),
        (b"qoif" + bytes(50), "a QOI image"),
        (b"PK\x03\x04" + bytes(50), "a ZIP archive"),
        (b"\x1f\x8b\x08" + bytes(50), "a gzip archive"),
        (b"\x93NUMPY\x01\0" + bytes(50), "a NumPy array"),
        (boxed(b"isom", b"mp41"), "an MPEG-4 or QuickTime video"),
        (b"\0\x05\x16\x07\0\x02\0\0Mac OS X" + bytes(50), "macOS metadata"),
        (bytes(5000), "only zero bytes at its beginning"),
        (b"\x9c\x01\x02\x03\xfe\xfd\xfc\xfb\xfa\0\0\0", "of no image format that is read (begins with 9c 01 02 03 fe"),
        *(
            (boxed(brand, b"mif1", b"miaf"), "no decoder for HEIF")
            for brand in (b"avci", b"vvic", b"evbi", b"jpeg", b"j2ki")
        ),
        *((boxed(brand, b"miaf"), "no decoder for HEIF in Pillow") for brand in (b"mif1", b"msf1", b"mif2", b"1pic")),
        (boxed(b"avif", b"mif1", b"miaf"), "damaged, or of a kind of AVIF that Pillow does not read"),
        (boxed(b"zzzz"), "an ISO media file of brand b'zzzz'"),
        *((boxed(brand), "an MPEG-4 or QuickTime video") for brand in (b"M4A ", b"3gp6", b"iso6", b"qt  ", b"mp42")),
        (saved(picture(), "TGA"), "a TGA image"),
        (saved(picture(), "TGA", compression="tga_rle"), "a TGA image"),
        (saved(picture().convert("L"), "TGA"), "a TGA image"),
        (saved(picture().quantize(16), "TGA"), "a TGA image"),
        (b"\0\0\2\0\1\0" + bytes(40), "a Windows cursor"),
        *((text, "text in place of an image") for text in TEXTS),
        *((bytes([byte]) * n, f"only {n} byte") for byte in b" \nx\0\xff" for n in (1, 2, 11)),
        (b" \r\n\t" * 4, "only spaces in place of an image"),
        (b"PF\n2 2\n-1.0\n" + bytes(48), "no decoder for colour PFM in Pillow"),
        (b"P7\nWIDTH 2\nHEIGHT 2\nDEPTH 3\nMAXVAL 255\nENDHDR\n" + bytes(12), "no decoder for PAM in Pillow"),
        (b"<!-- a --><html>", "an HTML page in place of an image"),
        (gzip.compress(saved(picture(), "JPEG")), "a gzip archive"),
        *((base64.b64encode(saved(picture(), form)), "an image as base64 text") for form in ("JPEG", "PNG", "WEBP")),
        (b"data:image/png;base64,AAAA", "an image as base64 text"),
        (saved(picture(), "JPEG").decode("utf-8", "replace").encode(), "a file whose bytes were replaced"),
        (saved(picture(), "PNG").replace(b"\r\n", b"\n"), "a PNG image whose line ends were changed"),
        (b"HTTP/1.1 200 OK\r\n\r\n" + saved(picture(), "PNG"), "the answer of a server"),
        (tiff(bytes(8 * WIDTH * HEIGHT), bits=64, sample=3), "damaged, or of a kind of TIFF that Pillow does not read"),
    ],
)
def test_what_a_file_is_that_is_left_out(tmp_path: Path, data: bytes, expected: str) -> None:
    assert reason(written(tmp_path / "photo.jpg", data)).startswith(expected)


# Cuts that no container tells: a number of text is a shorter number, and what is cut is not of the first picture.
UNTOLD = {"PGM as text": 1}


@pytest.mark.parametrize("name", [name for name in variants() if "orientation" not in name])
def test_a_cut_file_is_cut_short_or_the_same_picture(tmp_path: Path, name: str) -> None:
    """At each of the first lengths, and around the end, where containers keep directories and marks."""
    whole = variants()[name].data
    pixels = np.asarray(decode(written(tmp_path / "whole", whole)))
    around = (*range(1, 65), *range(65, len(whole), len(whole) // 20 + 1), *range(max(1, len(whole) - 40), len(whole)))
    for length in around:
        path = written(tmp_path / "cut", whole[:length])
        try:
            cut = np.asarray(decode(path))
        except DataError as error:
            said = str(error).removeprefix(f"{path}: ")
            assert said == "truncated" or (length < 12 and said.startswith(f"only {length} byte")), length
        else:
            assert np.array_equal(cut, pixels) or len(whole) - length <= UNTOLD.get(name, 0), length
