"""What is said of files that are left out, and what does not keep an image from being read."""

from __future__ import annotations

import io
import os
import socket
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from decoding import reason, written
from driving import ROOT, environment
from image_variants import HEIGHT, WIDTH, grey, picture, png, rgb, saved, tiff
from own_time import own_seconds
from PIL import AvifImagePlugin, Image, TiffImagePlugin, WebPImagePlugin, features

from d4m_fast.errors import DataError
from d4m_fast.sources.decode import decode
from d4m_fast.sources.formats import EXTENSIONS, NAMES, WITHOUT_DECODER

ROWS = [row.tobytes() for row in rgb(picture())]
SIZE = (WIDTH, HEIGHT)
XMP = '<x:xmpmeta xmlns:tiff="http://ns.adobe.com/tiff/1.0/"><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'


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
    started = own_seconds()
    assert reason(path) == f"is a {kind}, not a file"
    assert own_seconds() - started < 1


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
        "from d4m_fast.sources.decode import decode\n"
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
