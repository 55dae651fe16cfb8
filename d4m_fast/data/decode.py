"""Real image files to 8-bit RGB, and what is wrong with those that cannot be."""

from __future__ import annotations

import errno
import os
import stat
import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from d4m_fast.errors import DataError, PreflightError

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "PPM", "TIFF")
MAX_PIXELS = 100_000_000  # 300 MB once decoded

# What Pillow's decoders are known to raise on damaged files.
_DECODER_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    LookupError,
    ArithmeticError,
    EOFError,
    MemoryError,
    NotImplementedError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
    Warning,  # Pillow's, where the user has turned warnings into errors
)

# The machine's troubles, not the file's: what is refused now may be read tomorrow, so no image is left out for them.
_PASSING = frozenset(
    {
        *(errno.EACCES, errno.EPERM, errno.EIO, errno.ESTALE, errno.EMFILE, errno.ENFILE, errno.ENOMEM),
        *(errno.EBUSY, errno.EAGAIN, errno.ETIMEDOUT, errno.ENOTCONN, errno.EHOSTDOWN, errno.ECONNRESET),
    }
)


def decode(path: Path) -> Image.Image:
    """The image as 8-bit RGB, as torchvision's default loader gives it, except that 16-bit grey is scaled, not clipped.

    Raises:
        DataError: "PATH: reason", when the file is missing, empty, damaged, too large, or not an image.
        PreflightError: the system would not let it be read.
    """
    try:
        _check_file(path)
        with Image.open(path, formats=FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                raise Image.DecompressionBombError
            return _to_rgb(image)
    except _DECODER_ERRORS as error:
        if isinstance(error, OSError) and error.errno in _PASSING:
            raise PreflightError(
                f"{_text(path)}: cannot be read ({error.strerror}); mend that, or remove the image, and run again"
            ) from error
        raise DataError(f"{_text(path)}: {_reason(error)}") from error


def _check_file(path: Path) -> None:
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):  # opening a pipe would wait for ever
        raise OSError(None, "not a file")
    if status.st_size == 0:
        raise EOFError("zero bytes")


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):
        return _from_16_bits(np.asarray(image))
    if image.mode == "F":
        raise ValueError("floating-point pixels")
    image.load()
    image.info.pop("transparency", None)  # has no part in the conversion but a warning
    return image.convert("RGB")


def _from_16_bits(grey: np.ndarray) -> Image.Image:
    values = grey.astype(np.int64)
    if values.min() < 0 or values.max() > 0xFFFF:
        raise ValueError("grey values beyond 16 bits")
    return Image.fromarray(((values * 255 + 0x7FFF) // 0xFFFF).astype(np.uint8)).convert("RGB")


def _reason(error: BaseException) -> str:
    if isinstance(error, (Image.DecompressionBombError, Image.DecompressionBombWarning)):
        return f"too many pixels (limit {MAX_PIXELS:,})"
    if isinstance(error, UnidentifiedImageError):
        return f"not an image ({', '.join(FORMATS)})"
    if isinstance(error, OSError) and error.strerror is not None:
        return f"unreadable ({error.strerror})"
    if "truncat" in str(error).lower() or "not enough image data" in str(error):
        return "truncated"
    return "zero bytes" if str(error) == "zero bytes" else f"damaged ({error or type(error).__name__})"


def _text(path: Path) -> str:
    """The path as text that can be written as UTF-8, whatever bytes the name has."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")
