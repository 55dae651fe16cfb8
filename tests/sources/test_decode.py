import struct
import zlib
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngImageFile

from d4m_fast.errors import DataError, PreflightError
from d4m_fast.sources import decode


def picture(size: tuple[int, int] = (5, 4), seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8))


def pixels(image: Image.Image) -> np.ndarray:
    assert image.mode == "RGB"
    return np.asarray(image)


def png(width: int, height: int, data: bytes = b"") -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "P", "1", "CMYK"])
def test_modes_become_rgb_as_in_torchvision(tmp_path: Path, mode: str) -> None:
    path = tmp_path / ("image.jpg" if mode == "CMYK" else "image.png")
    image = picture((16, 16)).convert(mode)
    if mode == "P":
        image.info["transparency"] = b"\0\x80"  # Pillow would warn about it for every such file
    image.save(path)
    with Image.open(path) as stored:
        assert stored.mode == mode
        assert ("transparency" in stored.info) == (mode == "P")
        stored.info.pop("transparency", None)
        expected = pixels(stored.convert("RGB"))
    assert np.array_equal(pixels(decode.decode(path)), expected)


@pytest.mark.parametrize("name", ["grey.png", "grey.tif", "grey.pgm"])
def test_16_bit_grey_is_scaled_and_not_clipped(tmp_path: Path, name: str) -> None:
    grey = np.array([[0, 128, 129, 257], [30000, 40000, 65406, 65535]], np.uint16)
    Image.fromarray(grey).save(tmp_path / name)
    read = pixels(decode.decode(tmp_path / name))
    assert np.array_equal(read[..., 0], np.rint(grey / 257).astype(np.uint8))
    assert (read == read[..., :1]).all()


def jpeg(tmp_path: Path) -> bytes:
    picture((64, 64)).save(tmp_path / "whole.jpg")
    return (tmp_path / "whole.jpg").read_bytes()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "zero bytes"),
        (b"just some text", "text in place of an image"),
        (b"GIF89a" + bytes(40), "truncated"),
        (b"GIF89a" + bytes(40) + b";", "damaged, or of a kind of GIF that Pillow does not read"),
        (png(10_001, 10_000), "too many pixels"),
        (png(60_000, 60_000), "too many pixels"),
        (png(2_000_000_000, 2_000_000_000), "too many pixels"),
        (png(64, 64, bytes(100)), "truncated|damaged"),
        (png(64, 64, bytes(64 * 193))[:60], "truncated|damaged"),
        (b"BM" + bytes(8), "only 10 bytes, too few for an image"),
        (b"BM" + bytes(10), "truncated"),
        (b"P5\n64 64\n255\nabc", "truncated"),
    ],
)
def test_bad_files_give_a_reason(tmp_path: Path, content: bytes, reason: str) -> None:
    (tmp_path / "bad.jpg").write_bytes(content)
    with pytest.raises(DataError, match=rf"bad\.jpg: ({reason})"):
        decode.decode(tmp_path / "bad.jpg")


@pytest.mark.parametrize("share", [0.9, 0.5])
def test_truncated_jpeg(tmp_path: Path, share: float) -> None:
    whole = jpeg(tmp_path)
    (tmp_path / "bad.jpg").write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(DataError, match=r"bad\.jpg: truncated"):
        decode.decode(tmp_path / "bad.jpg")


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".bmp", ".ppm", ".tif"])
def test_random_damage_never_escapes_as_another_error(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"image{suffix}"
    picture((24, 24)).save(path)
    whole = np.frombuffer(path.read_bytes(), np.uint8)
    rng = np.random.default_rng(0)
    for _ in range(60):
        damaged = whole[: rng.integers(1, len(whole) + 1)].copy()
        damaged[rng.integers(0, min(len(damaged), 200), 4)] = rng.integers(0, 256, 4)
        path.write_bytes(damaged.tobytes())
        try:
            assert decode.decode(path).mode == "RGB"
        except DataError as error:
            assert str(error).startswith(f"{path}: ")


NO_ROOM = (MemoryError(), RuntimeError("can't start new thread"), OSError("out of memory error"))


@pytest.mark.parametrize("said", NO_ROOM, ids=repr)
def test_an_image_that_gets_no_memory_is_not_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: Exception
) -> None:
    """Nor is another machine's result made without it."""

    def fail(*_: object, **__: object) -> None:
        raise said

    picture().save(tmp_path / "image.png")
    monkeypatch.setattr(Image, "open", fail)
    monkeypatch.setattr(decode, "MAX_PIXELS", 1 << 60)
    with pytest.raises(PreflightError, match=r"image\.png: cannot be read"):
        decode.decode(tmp_path / "image.png")


def test_a_file_whose_sizes_are_absurd_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """There is room, whatever the decoder says."""
    picture().save(tmp_path / "image.png")
    monkeypatch.setattr(PngImageFile, "load", mock.Mock(side_effect=OSError("out of memory error")))
    with pytest.raises(DataError, match=r"image\.png: damaged \(out of memory error\)"):
        decode.decode(tmp_path / "image.png")
