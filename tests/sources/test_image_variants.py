"""Every variant of `image_variants` beside Pillow's own conversion, torchvision's, and the picture that was stored."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from driving import ROOT, load_tool
from exactness import record
from image_variants import Variant, variants
from PIL import Image, ImageOps
from torchvision.io import decode_image

from d4m_fast.sources.decode import decode, has_more_frames

FOLDER = ROOT / "docs" / "images"
VARIANTS = variants()


def by_pillow(path: Path) -> np.ndarray | str:
    """Its picture, or why it refuses the file."""
    try:
        with Image.open(path) as image:
            return np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    except ValueError as error:
        return f"refused ({error})"


def by_torchvision(data: bytes) -> np.ndarray | str:
    """Its picture, or that it reads no such file."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The image decoding", DeprecationWarning)
        try:
            pixels = decode_image(torch.frombuffer(bytearray(data), dtype=torch.uint8), "RGB", True)
        except RuntimeError:
            return "not read"
    if pixels.ndim == 4:
        pixels = pixels[0]
    if pixels.dtype == torch.uint16:
        pixels = pixels.to(torch.int64).mul(255).add(0x7FFF).div(0xFFFF, rounding_mode="floor").to(torch.uint8)
    return np.asarray(pixels.permute(1, 2, 0))


def difference(ours: np.ndarray, other: np.ndarray | str | None) -> int | str | None:
    """The largest of any pixel; in words where there is nothing to compare."""
    if not isinstance(other, np.ndarray):
        return other
    if ours.shape != other.shape:
        return "another shape"
    return int(np.abs(ours.astype(int) - other.astype(int)).max())


@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS.keys())
def test_a_variant_is_what_others_read(variant: Variant, tmp_path: Path) -> None:
    path = tmp_path / "image"
    path.write_bytes(variant.data)
    ours = np.asarray(decode(path))
    row = {
        "pillow": difference(ours, by_pillow(path)),
        "torchvision": difference(ours, by_torchvision(variant.data)),
        "truth": difference(ours, variant.truth),
        "note": variant.note,
    }
    record("variants", {variant.name: row})
    assert row["truth"] in (None, 0)
    check(row["pillow"], variant.pillow)
    if row["torchvision"] != "not read":
        check(row["torchvision"], variant.torchvision)


def check(measured: int | str | None, allowed: int | None) -> None:
    """Within what is allowed, or another picture where another is expected."""
    if allowed is None:
        assert measured != 0
    else:
        assert isinstance(measured, int)
        assert measured <= allowed


def test_enough_variants_are_compared_with_each() -> None:
    """At least 60 with Pillow, half of them with the stored picture and a third with torchvision, too."""
    table = rows()
    assert len(table) >= 60
    assert sum(row["truth"] == 0 for row in table.values()) > len(table) // 2
    assert sum(row["torchvision"] == 0 for row in table.values()) > len(table) // 3


@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS.keys())
def test_first_frames_are_known(variant: Variant, tmp_path: Path) -> None:
    (tmp_path / "image").write_bytes(variant.data)
    several = "animated" in variant.name or "two pages" in variant.name
    assert has_more_frames(decode(tmp_path / "image")) == several


def rows() -> dict[str, Any]:
    value: dict[str, Any] = json.loads((FOLDER / "variants.json").read_text(encoding="utf-8"))
    return value


@pytest.fixture(scope="module")
def renderer() -> ModuleType:
    return load_tool("render_images")


def test_the_page_is_what_the_files_say(renderer: ModuleType) -> None:
    assert (ROOT / "docs" / "images.md").read_text(encoding="utf-8") == renderer.render(FOLDER)


def test_the_file_has_the_variants_of_the_tests() -> None:
    assert set(rows()) == set(VARIANTS)


def test_another_file_is_another_page(renderer: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "intro.md").write_text("# Images")
    (tmp_path / "variants.json").write_text((FOLDER / "variants.json").read_text().replace("not read", "2"))
    assert renderer.render(tmp_path) != renderer.render(FOLDER)
