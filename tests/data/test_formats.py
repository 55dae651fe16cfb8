"""What is said of files that are left out, and what does not keep an image from being read."""

from __future__ import annotations

import base64
import gzip
import io
import os
import socket
import struct
import subprocess
import sys
import time
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from driving import ROOT, environment
from image_variants import HEIGHT, WIDTH, grey, picture, png, rgb, saved, tiff, variants
from PIL import AvifImagePlugin, Image, TiffImagePlugin, WebPImagePlugin, features

from d4m_fast.data.decode import decode
from d4m_fast.data.formats import EXTENSIONS, NAMES, WITHOUT_DECODER
from d4m_fast.errors import DataError

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
ROWS = [row.tobytes() for row in rgb(picture())]
SIZE = (WIDTH, HEIGHT)
XMP = '<x:xmpmeta xmlns:tiff="http://ns.adobe.com/tiff/1.0/"><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'


def reason(path: Path) -> str:
    with pytest.raises(DataError) as raised:
        decode(path)
    return str(raised.value).removeprefix(f"{path}: ")


def written(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


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


LZW = {"compression": "tiff_lzw"}


def without_avif(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(AvifImagePlugin, "SUPPORTED", False)


def without_webp(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(WebPImagePlugin, "SUPPORTED", False)


def without_codec(name: str) -> Callable[[pytest.MonkeyPatch], None]:
    return lambda monkeypatch: monkeypatch.delattr(f"PIL.Image.core.{name}_decoder")


def without_plugin(name: str) -> Callable[[pytest.MonkeyPatch], None]:
    return lambda monkeypatch: monkeypatch.delitem(Image.OPEN, name)


@pytest.mark.parametrize(
    ("remove", "form", "options", "expected"),
    [
        (without_avif, "AVIF", {}, "no decoder for AVIF in this Pillow"),
        (without_webp, "WEBP", {}, "no decoder for WEBP in this Pillow"),
        (without_codec("jpeg2k"), "JPEG2000", {}, "no decoder for JPEG 2000 in this Pillow"),
        (
            without_codec("libtiff"),
            "TIFF",
            {"compression": "tiff_lzw"},
            "no decoder for compressed TIFF in this Pillow",
        ),
        (without_codec("jpeg"), "JPEG", {}, "no decoder for JPEG in this Pillow"),
        (without_codec("zip"), "PNG", {}, "no decoder for PNG in this Pillow"),
        (without_plugin("AVIF"), "AVIF", {}, "no decoder for AVIF in this Pillow"),
        (without_plugin("GIF"), "GIF", {}, "no decoder for GIF in this Pillow"),
        (without_plugin("ICO"), "ICO", {}, "no decoder for ICO in this Pillow"),
    ],
)
def test_a_pillow_without_the_decoder(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    remove: Callable[[pytest.MonkeyPatch], None],
    form: str,
    options: dict[str, str],
    expected: str,
) -> None:
    image = written(tmp_path / "image", saved(picture(), form, **options))
    other = written(tmp_path / "other", saved(picture(), "BMP"))
    decode(image)
    remove(monkeypatch)
    assert reason(image) == expected
    decode(other)


def test_a_pillow_without_colour_management(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lab = written(tmp_path / "lab.tif", saved(picture().convert("LAB"), "TIFF"))
    decode(lab)
    monkeypatch.setitem(sys.modules, "PIL.ImageCms", None)
    monkeypatch.delattr("PIL.ImageCms")
    assert reason(lab).startswith("needs what this Pillow was built without (")


def test_every_decoder_is_here() -> None:
    """Or the variants would be left out, not read."""
    assert all(features.check(name) for name in ("jpg", "jpg_2000", "zlib", "libtiff", "webp", "avif", "littlecms2"))


def test_extensions_are_pillows_own() -> None:
    Image.init()
    assert set(EXTENSIONS) == {e for e, form in Image.registered_extensions().items() if form in NAMES}
    assert not set(EXTENSIONS) & set(WITHOUT_DECODER)


@pytest.mark.parametrize("kind", ["directory", "named pipe", "socket", "device"])
def test_only_files_are_opened(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "image.png"
    if kind == "directory":
        path.mkdir()
    elif kind == "named pipe":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    else:
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(path))
    started = time.monotonic()
    assert reason(path) == f"is a {kind}, not a file"
    assert time.monotonic() - started < 1


@pytest.mark.parametrize("suffix", ["jpg", "txt"])
def test_a_name_decides_nothing(tmp_path: Path, suffix: str) -> None:
    path = written(tmp_path / f"image.{suffix}", saved(picture(), "PNG"))
    assert np.array_equal(np.asarray(decode(path)), rgb(picture()))


def png_with(*before: tuple[bytes, bytes]) -> bytes:
    return png(SIZE, 8, 2, ROWS, *before)


LARGE = zlib.compress(bytes(3_000_000))


@pytest.mark.parametrize(
    "chunks",
    [
        [(b"zTXt", b"Comment\0\0" + LARGE)],
        [(b"iTXt", b"Comment\0\x01\0\0\0" + LARGE)],
        [(b"iCCP", b"profile\0\0" + LARGE)],
        [(b"iTXt", b"XML:com.adobe.xmp\0\x01\0\0\0" + LARGE)],
        [(b"zTXt", b"Raw profile type exif\0\0" + LARGE)],
        [(b"tEXt", b"Comment\0" + bytes([65]) * 1_000_000)] * 70,
    ],
)
def test_large_text_costs_no_png(tmp_path: Path, chunks: list[tuple[bytes, bytes]]) -> None:
    data = png_with(*chunks)
    with pytest.raises(ValueError, match="MAX_TEXT"), Image.open(io.BytesIO(data)) as image:
        image.load()
    assert np.array_equal(np.asarray(decode(written(tmp_path / "image.png", data))), rgb(picture()))


def test_text_after_the_pixels_costs_none_either(tmp_path: Path) -> None:
    body = b"zTXt" + b"Comment\0\0" + LARGE
    chunk = struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))
    data = saved(picture(), "PNG")
    path = written(tmp_path / "image.png", data[:-12] + chunk + data[-12:])
    assert np.array_equal(np.asarray(decode(path)), rgb(picture()))


def test_an_orientation_beside_large_text_is_seen(tmp_path: Path) -> None:
    xmp = (b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + XMP.encode())
    path = written(tmp_path / "image.png", png_with((b"zTXt", b"Comment\0\0" + LARGE), xmp))
    assert np.array_equal(np.asarray(decode(path)), np.rot90(rgb(picture()), -1))


@pytest.mark.parametrize("form", ["JPEG", "WEBP", "AVIF", "TIFF"])
def test_an_orientation_in_xmp_is_applied_once(tmp_path: Path, form: str) -> None:
    options = {"tiffinfo": {700: XMP.encode()}} if form == "TIFF" else {"xmp": XMP.encode()}
    path = written(tmp_path / "image", saved(picture(), form, **options))
    assert decode(path).size == (HEIGHT, WIDTH)


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize(
    "exif",
    [
        b"Exif\0\0garbage that is no TIFF",
        b"Exif\0\0",
        b"Exif\0\0II*\0\x08\0\0\0\xff\xff",
        b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x02\0\x40\0\0\0\xff\xff\xff\x7f\0\0\0\0",
        b"Exif\0\0MM\0*\xff\xff\xff\xff",
        b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x63\0\0\0\0\0\0\0",
        b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x02\0\x04\0\0\0abc\0\0\0\0\0",
    ],
    ids=["no TIFF", "empty", "cut", "far away", "no directory", "orientation 99", "orientation abc"],
)
def test_damaged_exif_costs_no_image(tmp_path: Path, form: str, exif: bytes) -> None:
    path = written(tmp_path / "image", saved(picture(), form, exif=exif))
    assert decode(path).size == SIZE


@pytest.mark.parametrize("inner", ["png", "bitmap"])
def test_an_icon_larger_than_its_list_says_is_not_decoded(tmp_path: Path, inner: str) -> None:
    if inner == "png":
        image = png((12_000, 12_000), 1, 0, [bytes(1)])
    else:
        image = struct.pack("<IiiHHIIiiII", 40, 12_000, 24_000, 1, 24, 0, 0, 0, 0, 0, 0)
    entry = struct.pack("<BBBBHHII", 16, 16, 0, 0, 1, 24, len(image), 22)
    path = written(tmp_path / "image.ico", struct.pack("<HHH", 0, 1, 1) + entry + image)
    assert reason(path) == "too many pixels (limit 100,000,000)"


WARNING_FILES: dict[str, Callable[[], bytes]] = {
    "palette.png": lambda: saved(picture().quantize(16), "PNG", transparency=bytes(range(16))),
    "exif.jpg": lambda: saved(
        picture(),
        "JPEG",
        exif=b"Exif\0\0II*\0\x08\0\0\0\x02\0\x1a\x01\x05\0\x01\0\0\0\xf0\0\0\0\x12\x01\x03\0\x01\0\0\0\x01\0\0\0",
    ),
    "animation.png": lambda: png_with((b"acTL", bytes(8))),
    "bomb.png": lambda: png((9_500, 9_500), 1, 0, [bytes(1188)] * 9_500),
    "samples.tif": lambda: tiff(bytes(4 * WIDTH * HEIGHT), bits=8).replace(
        struct.pack("<HHII", 277, 4, 1, 1), struct.pack("<HHII", 277, 4, 1, 5000)
    ),
    "tag.tif": lambda: tiff(bytes(WIDTH * HEIGHT), bits=8).replace(
        struct.pack("<HHII", 339, 4, 1, 1), struct.pack("<HHII", 700, 1, 1 << 30, 8)
    ),
}


@pytest.mark.parametrize("options", [[], ["-W", "error"], ["-W", "always"]], ids=" ".join)
def test_nothing_of_pillows_reaches_stderr(tmp_path: Path, options: list[str]) -> None:
    """In threads too; and no image is lost for a warning, even where the user has turned warnings into errors."""
    for name, make in WARNING_FILES.items():
        written(tmp_path / name, make())
    script = (
        "import sys, pathlib\n"
        "from concurrent.futures import ThreadPoolExecutor\n"
        "from d4m_fast.data.decode import decode\n"
        "from d4m_fast.errors import DataError\n"
        "def tried(path):\n"
        "    try: return path.name, decode(path).mode\n"
        "    except DataError as error: return path.name, 'left out'\n"
        "paths = sorted(pathlib.Path(sys.argv[1]).iterdir()) * 3\n"
        "with ThreadPoolExecutor(4) as pool: print(sorted(set(pool.map(tried, paths))))\n"
    )
    ran = subprocess.run(
        [sys.executable, *options, "-c", script, str(tmp_path)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=environment(),
        check=False,
    )
    expected = [(name, "left out" if name == "samples.tif" else "RGB") for name in sorted(WARNING_FILES)]
    assert (ran.stdout.strip(), ran.stderr, ran.returncode) == (str(expected), "", 0)


@pytest.mark.parametrize("name", sorted(WARNING_FILES.keys() - {"samples.tif"}))
def test_these_files_do_warn(name: str) -> None:
    """Or the test above could not fail."""
    with pytest.warns(Warning), Image.open(io.BytesIO(WARNING_FILES[name]())) as image:
        image.convert("RGB")
        image.getexif()


def test_a_tiff_without_strips_for_its_last_rows_is_truncated(tmp_path: Path) -> None:
    data = tiff(bytes(WIDTH * HEIGHT), bits=8)
    length, rows = struct.pack("<HHII", 257, 4, 1, HEIGHT), struct.pack("<HHII", 257, 4, 1, 2 * HEIGHT)
    assert reason(written(tmp_path / "image.tif", data.replace(length, rows))) == "truncated"


def test_the_thumbnail_of_a_camera_file_is_not_taken_for_the_image(tmp_path: Path) -> None:
    """As NEF and DNG files are laid out; their own first picture is a small copy."""
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    tags[254], tags[330] = 1, 8
    path = written(tmp_path / "image.tif", saved(picture(), "TIFF", tiffinfo=tags))
    assert reason(path).startswith("no decoder for camera RAW in Pillow")


def planar(bits: int, strips: int) -> bytes:
    """An uncompressed TIFF of 4x4 pixels whose three colours lie one after the other."""
    plane = 4 * 4 * bits // 8
    start = 8 + 2 + 12 * 10 + 4
    lists = struct.pack(
        f"<3H{strips}I{strips}I",
        bits,
        bits,
        bits,
        *range(start + 64, start + 64 + strips * plane, plane),
        *[plane] * strips,
    )
    offsets = start + 6 if strips > 1 else start + 64
    sizes = start + 6 + 4 * strips if strips > 1 else plane
    tags = [
        *((256, 4, 1, 4), (257, 4, 1, 4), (258, 3, 3, start), (259, 3, 1, 1), (262, 3, 1, 2)),
        *((273, 4, strips, offsets), (277, 3, 1, 3), (278, 4, 1, 4), (279, 4, strips, sizes), (284, 3, 1, 2)),
    ]
    directory = struct.pack("<H", len(tags)) + b"".join(struct.pack("<HHII", *tag) for tag in tags) + bytes(4)
    return b"II*\0\x08\0\0\0" + directory + lists.ljust(64, b"\0") + bytes(range(3 * plane))


@pytest.mark.parametrize(
    ("bits", "strips", "reason"),
    [(16, 3, "planes of more than 8 bits"), (8, 1, "truncated")],
)
def test_planes_that_pillow_reads_wrongly_are_left_out(tmp_path: Path, bits: int, strips: int, reason: str) -> None:
    with pytest.raises(DataError, match=reason):
        decode(written(tmp_path / "image.tif", planar(bits, strips)))


@pytest.mark.parametrize("halved", [True, False])
def test_raw_ycbcr_of_halved_colour_is_left_out(tmp_path: Path, halved: bool) -> None:
    """The tag is one of the file's last, of 2 shorts."""
    data = planar(8, 1).replace(struct.pack("<HHII", 284, 3, 1, 2), struct.pack("<HHIHH", 530, 3, 2, *[1 + halved] * 2))
    data = data.replace(struct.pack("<HHII", 262, 3, 1, 2), struct.pack("<HHII", 262, 3, 1, 6))
    path = written(tmp_path / "image.tif", data)
    if halved:
        assert reason(path).startswith("uncompressed YCbCr of halved colour")
    else:
        assert decode(path).size == (4, 4)


def test_a_palette_is_not_made_up(tmp_path: Path) -> None:
    data = png(SIZE, 8, 3, [row.tobytes() for row in grey()])
    assert "without a palette" in reason(written(tmp_path / "image.png", data))


def test_planes_of_8_bits_are_read(tmp_path: Path) -> None:
    pixels = np.asarray(decode(written(tmp_path / "image.tif", planar(8, 3))))
    np.testing.assert_array_equal(pixels, np.arange(48, dtype=np.uint8).reshape(3, 4, 4).transpose(1, 2, 0))


def test_a_reduced_copy_is_not_taken_for_the_image(tmp_path: Path) -> None:
    pages = [Image.new("RGB", (side, side)) for side in (4, 16)]
    pages[0].save(tmp_path / "image.tif", save_all=True, append_images=pages[1:], tiffinfo={254: 1})
    with pytest.raises(DataError, match="a reduced copy of another page"):
        decode(tmp_path / "image.tif")
