"""Grey of more than 8 bits: scaled to what a picture shows, or refused where no range makes a picture of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from decoding import reason, written
from image_variants import HEIGHT, WIDTH, grey, tiff
from PIL import Image, TiffImagePlugin

from d4m_fast.sources.decode import decode


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_grey_without_a_number_is_refused(tmp_path: Path, value: float) -> None:
    values = grey().astype(np.float32)
    values[3, 4] = value
    path = written(tmp_path / "image.tif", tiff(values.tobytes(), bits=32, sample=3))
    assert reason(path).startswith("NaN or infinity among its grey values; ")


FAR: dict[str, tuple[np.ndarray, float]] = {
    "no data": (grey().astype(np.float32), -9999),
    "no data, of shares": ((grey() / 255).astype(np.float32), -9999),
    "lowest float": (grey().astype(np.float32), float(np.finfo(np.float32).min)),
    "hot": (grey().astype(np.float32), 1e6),
    "hot, of shares": ((grey() / 255).astype(np.float32), 250),
    "hot, a short": (grey().astype(np.float32), 65535),
    "fill of 16 bits": (grey().astype(np.int16), -32768),
    "fill of 32 bits": (grey().astype(np.int32), 2**31 - 1),
    "fill of a short in 32 bits": (grey().astype(np.int32), 65535),
}


@pytest.mark.parametrize("name", FAR)
@pytest.mark.parametrize("rows", [0, 7], ids=["one pixel", "many rows"])
def test_a_value_far_from_the_others_is_no_part_of_the_picture(tmp_path: Path, name: str, rows: int) -> None:
    """Refused, or black where the file declares it, with the others as if it were not there."""
    values, far = FAR[name]
    far_values, blank = values.copy(), np.zeros(values.shape, bool)
    blank[:rows], blank[-1, -1] = True, True
    far_values[blank] = far
    kind = {"f": 3, "i": 2}[values.dtype.kind]
    data = tiff(far_values.tobytes(), bits=8 * values.itemsize, sample=kind)
    said = reason(written(tmp_path / "far.tif", data))
    assert "among grey values of" in said and said.startswith(f"{far:g}"), said
    declared = TiffImagePlugin.ImageFileDirectory_v2()
    declared[42113] = f"{far:.17g}"
    if values.dtype == np.int16:
        return  # Pillow does not write them
    Image.fromarray(far_values).save(tmp_path / "declared.tif", tiffinfo=declared)
    values[blank] = values[8, 8]
    whole = tiff(values.tobytes(), bits=8 * values.itemsize, sample=kind)
    expected = np.array(decode(written(tmp_path / "whole.tif", whole)))
    expected[blank] = 0
    np.testing.assert_array_equal(np.asarray(decode(tmp_path / "declared.tif")), expected)


@pytest.mark.parametrize("value", ["nan", "-9999", "no number", ""])
def test_nan_that_is_declared_is_black(tmp_path: Path, value: str) -> None:
    values = (grey() / 255).astype(np.float32)
    values[3, 4] = np.nan
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    tags[42113] = value
    Image.fromarray(values).save(tmp_path / "image.tif", tiffinfo=tags)
    if value == "nan":
        assert np.asarray(decode(tmp_path / "image.tif"))[3, 4].tolist() == [0, 0, 0]
    else:
        assert reason(tmp_path / "image.tif").startswith("NaN")


def test_an_image_without_any_data_is_left_out(tmp_path: Path) -> None:
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    tags[42113] = "-9999"
    Image.fromarray(np.full((4, 4), -9999, np.float32)).save(tmp_path / "image.tif", tiffinfo=tags)
    assert "declared to be without data" in reason(tmp_path / "image.tif")


@pytest.mark.parametrize("kind", [np.int32, np.float32])
@pytest.mark.parametrize("values", [(0, 1000), (0, 255), (-5, 5), (250, 251, 255, 0)], ids=str)
def test_drawings_of_few_greys_are_read(tmp_path: Path, kind: type, values: tuple[int, ...]) -> None:
    if kind is np.float32 and len(values) > 2:
        pytest.skip("told apart from a fault by its type alone")
    Image.fromarray(np.resize(values, (8, 8)).astype(kind)).save(tmp_path / "image.tif")
    assert len(np.unique(np.asarray(decode(tmp_path / "image.tif")))) == len(values)


@pytest.mark.parametrize("value", [0, 1, 70_000, -5])
def test_one_value_everywhere_is_one_grey(tmp_path: Path, value: int) -> None:
    values = np.full((HEIGHT, WIDTH), value, np.int32)
    pixels = np.asarray(decode(written(tmp_path / "image.tif", tiff(values.tobytes(), bits=32, sample=2))))
    assert len(np.unique(pixels)) == 1


@pytest.mark.parametrize(
    ("kind", "high", "white"),
    [
        (np.float32, 1.0, 255),
        (np.float32, 1.0001, 255),
        (np.float32, 0.5, 128),
        (np.float32, 300.0, 255),
        (np.float32, 2.0, 255),
        (np.int32, 100, 100),
        (np.int32, 256, 255),
        (np.int32, 4095, 255),
        (np.int32, 40_000, 156),
        (np.int32, 70_000, 255),
    ],
)
def test_wide_grey_is_never_nearly_black(tmp_path: Path, kind: type, high: float, white: int) -> None:
    """A picture from 0 to `high`, at its brightest; the usual range next above may be far too wide."""
    values: np.ndarray = np.linspace(0, high, 64).reshape(8, 8).astype(kind)
    Image.fromarray(values).save(tmp_path / "grey.tif")
    assert np.asarray(decode(tmp_path / "grey.tif")).max() == white
