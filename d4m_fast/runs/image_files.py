"""Formats that distilled images are written in."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
from PIL import Image, features

from d4m_fast.config.choices import ImageFormat
from d4m_fast.errors import PreflightError

HEADERS = 1024  # bytes of a file beside its pixels, at most
BLOCK = 4096  # bytes in which a file system gives out room


@dataclass(frozen=True, slots=True)
class FileFormat:
    """A format with Pillow's name and options for it."""

    pillow: str
    suffix: str
    options: Mapping[str, Any]


FORMATS: Mapping[ImageFormat, FileFormat] = MappingProxyType(
    {
        "png": FileFormat("PNG", ".png", {}),  # lossless
        "jpeg": FileFormat("JPEG", ".jpg", {"quality": 95, "subsampling": 0}),  # colour at full resolution
        "webp": FileFormat("WEBP", ".webp", {"quality": 95, "method": 4}),
    }
)
PILLOW_OF = MappingProxyType({form.suffix: form.pillow for form in FORMATS.values()})
_CODECS: Mapping[ImageFormat, str] = {"png": "zlib", "jpeg": "jpg", "webp": "webp"}


def to_bytes(pixels: np.ndarray, form: ImageFormat) -> bytes:
    """Return the bytes of the file of an image (H, W, 3) uint8."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, FORMATS[form].pillow, **FORMATS[form].options)
    return buffer.getvalue()


def most_bytes(side: int) -> int:
    """Return the bytes that the file of an image of this side takes on a disk, at most."""
    blocks = math.ceil(((3 * side + 1) * side + HEADERS) / BLOCK)  # PNG adds a byte to each row
    return blocks * BLOCK


def require_format(form: ImageFormat) -> None:
    """Refuse a format this Pillow was built without.

    Raises:
        PreflightError: it was.
    """
    if not features.check(_CODECS[form]):
        raise PreflightError(f"--format {form}: this Pillow was built without it; use --format png")
