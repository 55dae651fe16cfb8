from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image, JpegImagePlugin, features

from d4m_fast.config import ImageFormat
from d4m_fast.errors import PreflightError
from d4m_fast.runs.image_files import FORMATS, most_bytes, require_format, to_bytes

NAMES: list[ImageFormat] = ["png", "jpeg", "webp"]


def noise(side: int) -> np.ndarray:
    return np.random.default_rng(side).integers(0, 256, (side, side, 3), np.uint8)


def smooth(side: int) -> np.ndarray:
    coarse = Image.fromarray(noise(4)).resize((side, side), Image.Resampling.BICUBIC)
    return np.asarray(coarse)


def opened(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).astype(int)


def test_png_loses_nothing() -> None:
    assert (opened(to_bytes(noise(33), "png")) == noise(33)).all()


@pytest.mark.parametrize("form", ["jpeg", "webp"])
def test_the_others_lose_little(form: ImageFormat) -> None:
    """40 dB on smooth colours."""
    pixels = smooth(64)
    error = ((opened(to_bytes(pixels, form)) - pixels) ** 2).mean()
    assert 0 < error < 255**2 / 10**4


def test_jpeg_keeps_colour_at_full_resolution() -> None:
    with Image.open(io.BytesIO(to_bytes(noise(16), "jpeg"))) as image:
        assert JpegImagePlugin.get_sampling(image) == 0  # 4:4:4


@pytest.mark.parametrize("form", NAMES)
@pytest.mark.parametrize("side", [4, 32, 224, 512])
def test_no_file_is_larger_than_planned(form: ImageFormat, side: int) -> None:
    """Random pixels cannot be compressed."""
    assert len(to_bytes(noise(side), form)) <= most_bytes(side)
    assert most_bytes(side) % 4096 == 0


@pytest.mark.parametrize("form", NAMES)
def test_files_are_what_their_names_say(form: ImageFormat) -> None:
    with Image.open(io.BytesIO(to_bytes(noise(8), form))) as image:
        assert image.format == FORMATS[form].pillow
        assert Image.registered_extensions()[FORMATS[form].suffix] == image.format


def test_a_pillow_without_the_format_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    require_format("webp")
    monkeypatch.setattr(features, "check", lambda name: name != "webp")
    with pytest.raises(PreflightError, match="--format webp: this Pillow was built without it"):
        require_format("webp")
    require_format("jpeg")
