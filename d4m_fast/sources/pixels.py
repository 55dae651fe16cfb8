"""Convert Pillow's images to 8-bit RGB, upright and with wide grey values scaled, by the rules of docs/images.md."""

from __future__ import annotations

import struct
from types import MappingProxyType

import numpy as np
from PIL import ExifTags, Image

_BITS_PER_SAMPLE, _PHOTOMETRIC, _SAMPLE_FORMAT = 258, 262, 339  # tags of TIFF
_WHITE_IS_ZERO = 0  # photometric interpretation of TIFF
_UNSIGNED, _SIGNED = 1, 2  # sample formats of TIFF
_SHORT = 0xFFFF
_OVERSHOOT = 1.02  # of filters and rounding, clipped
_NO_DATA = 42113  # tag of TIFF, from GDAL: the value of pixels that show nothing, in ASCII
_WIDEST_GAP = 192  # of 256 greys, between two values of one picture
_FAULTY_SHARE = 0.01  # of the pixels, at most, are a sensor's faults; more are a part of the picture
_NOMINAL_TOPS = (1, 0xFF, _SHORT)  # of floating point; of integers, all but the first

# Pillow has these in ImageOps.exif_transpose, which also writes the EXIF back, and fails where that is damaged.
_TURNS = MappingProxyType(
    {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_270,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_90,
    }
)
# The infos of an image that getexif reads.
_TURNING = frozenset({"exif", "xmp", "XML:com.adobe.xmp", "Raw profile type exif"})
# What getexif raises on damaged EXIF and XMP.
_EXIF_ERRORS = (SyntaxError, ValueError, TypeError, LookupError, ArithmeticError, OSError, AssertionError, struct.error)


class UnscalableError(Exception):
    """Raised for grey values that no range makes a picture of; the text says why."""


def to_rgb(image: Image.Image) -> Image.Image:
    """Return a loaded image as 8-bit RGB, turned as its orientation says, transparency dropped.

    Raises:
        UnscalableError: grey values that are NaN or infinite, or of which a few lie far from the others.
    """
    rgb = _convert(image)
    turn = _TURNS.get(_orientation(image))
    return rgb if turn is None else rgb.transpose(turn)


def _convert(image: Image.Image) -> Image.Image:
    """Return an image as 8-bit RGB, not yet turned."""
    if image.mode == "RGB" and image.format == "JPEG":  # most images, and what a conversion does is a copy
        return image
    if image.mode.startswith(("I", "F")) or _sample_format(image) == _SIGNED:
        return _from_wide_grey(image)
    if image.mode == "La":  # premultiplied, which Pillow converts to LA only
        image = image.convert("LA")
    image.info.pop("transparency", None)  # has no part in the conversion, but can make it fail
    return image.convert("RGB")


def _orientation(image: Image.Image) -> int:
    """Return the orientation that EXIF or XMP gives.

    It is 1, upright, where there is none, it cannot be read, or Pillow has turned the image already (TIFF).
    """
    if _TURNING.isdisjoint(image.info):
        return 1
    try:
        value = image.getexif().get(ExifTags.Base.Orientation, 1)
    except _EXIF_ERRORS:
        return 1
    return value if isinstance(value, int) else 1


def _from_wide_grey(image: Image.Image) -> Image.Image:
    values = np.asarray(image)
    if values.dtype == np.int32 and _sample_format(image) == _UNSIGNED:
        values = values.view(np.uint32)  # Pillow has no mode for them
    elif values.dtype == np.uint8:
        values = values.view(np.int8)  # nor for these
    blank = _blank_pixels(image, values)
    if _without_blank(values, blank).size == 0:
        raise UnscalableError("all its pixels are declared to be without data (GDAL_NODATA)")
    if image.mode.startswith("I;16"):
        bits = 12 if _tag(image, _BITS_PER_SAMPLE, 16) == 12 else 16
        table = _scale(np.arange(_SHORT + 1, dtype=np.float64), 0, (1 << bits) - 1)
        grey = table[values]
    else:
        grey = _spread(image, values, blank)
    if _tag(image, _PHOTOMETRIC, 1) == _WHITE_IS_ZERO:  # Pillow inverts 8 bits and fewer only
        np.subtract(0xFF, grey, out=grey)
    if blank is not None:
        grey[blank] = 0
    return Image.fromarray(grey).convert("RGB")


def _spread(image: Image.Image, values: np.ndarray, blank: np.ndarray | None) -> np.ndarray:
    """Return values of a type whose range files do not fill as grey, by the range of those that are not blank."""
    image_values = _without_blank(values, blank)
    if image_values.dtype == np.float32 and not np.isfinite(image_values).all():
        raise UnscalableError("NaN or infinity among its grey values; declare it as GDAL_NODATA, or save it without")
    low, high = _grey_range(image, image_values)
    grey = _scale(np.nan_to_num(values.astype(np.float64), copy=False), low, high)
    usual_range = (0, 1) if image.mode == "F" else (0, 0xFF)  # in which nothing is far away
    if not _is_ppm(image) and (low, high) != usual_range:
        _require_no_outlier(image_values, _without_blank(grey, blank))
    return grey


def _require_no_outlier(values: np.ndarray, grey: np.ndarray) -> None:
    """Refuse a picture pressed into few greys by a mark for missing data, or by a sensor's faults."""
    used_greys = np.flatnonzero(np.bincount(grey.ravel(), minlength=0x100))
    gaps = np.diff(used_greys)
    if gaps.size == 0 or gaps.max() <= _WIDEST_GAP:
        return
    is_dark = grey <= used_greys[gaps.argmax()]
    sides = values[is_dark], values[~is_dark]
    # The outliers are all of one value, or else the fewer ones.
    outliers, picture = sorted(sides, key=lambda side: (side.min() < side.max(), side.size))
    are_faults = outliers.min() == outliers.max() or outliers.size < _FAULTY_SHARE * values.size
    if picture.min() < picture.max() and are_faults:
        raise UnscalableError(
            f"{outliers[0]:g} among grey values of {picture.min():g} to {picture.max():g}, which would all look alike;"
            " declare it as GDAL_NODATA, or save it without"
        )


def _blank_pixels(image: Image.Image, values: np.ndarray) -> np.ndarray | None:
    """Return where a TIFF has the value that it declares to stand for no data; None where it declares none."""
    tags = getattr(image, "tag_v2", None)
    declared = None if tags is None else tags.get(_NO_DATA)
    try:
        value = float(str(declared).strip(" \0"))
    except ValueError:
        return None
    if np.isnan(value):
        return np.asarray(np.isnan(values))
    with np.errstate(over="ignore"):  # of float32, the largest double is infinity
        return np.asarray(values == (np.float32(value) if values.dtype == np.float32 else value))


def _without_blank(values: np.ndarray, blank: np.ndarray | None) -> np.ndarray:
    return values if blank is None else values[~blank]


def _scale(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """Return float64 values between two as uint8, which are black and white; overwrites the values to save memory."""
    values -= low
    values *= 0xFF / (high - low)
    np.clip(np.rint(values, out=values), 0, 0xFF, out=values)
    return values.astype(np.uint8)


def _grey_range(image: Image.Image, values: np.ndarray) -> tuple[float, float]:
    """Return the values that become black and white: the narrowest usual range of all, else lowest and highest.

    A wider one than the narrowest counts only where it is half filled: 0...4095 would be nearly black in 0...65535.
    """
    if _is_ppm(image):
        return 0, _SHORT  # Pillow has scaled them to it
    low, high = float(values.min()), float(values.max())
    tops = _NOMINAL_TOPS if image.mode == "F" else _NOMINAL_TOPS[1:]
    top = next((top for top in tops if high <= _OVERSHOOT * top), None)
    if low >= 0 and top is not None and (top == tops[0] or high > top / 2):
        return 0, top
    return low, high if high > low else low + 1


def _is_ppm(image: Image.Image) -> bool:
    return image.format == "PPM" and image.mode == "I"


def _sample_format(image: Image.Image) -> int | None:
    """Return the sample format of a TIFF of one channel; None of other images."""
    if image.format != "TIFF" or len(image.getbands()) > 1:
        return None
    return _tag(image, _SAMPLE_FORMAT, _UNSIGNED)


def _tag(image: Image.Image, tag: int, default: int) -> int:
    """Return the first value of a TIFF tag."""
    tags = getattr(image, "tag_v2", None)
    if tags is None:
        return default
    value = tags.get(tag, default)
    return int(value[0] if isinstance(value, tuple) else value)
