"""Keep from stderr what Pillow and its libraries print beside the errors that they raise."""

from __future__ import annotations

import ctypes
import logging
import re
import warnings

from PIL import _imaging

_LOGGER = logging.getLogger("PIL")
_FILTER = ("ignore", None, Warning, re.compile(r"PIL\."), 0)  # as it stands in warnings.filters
# libtiff prints its errors, of which Pillow raises an exception, too, and Pillow has no option for that. The symbol is
# looked up in what Pillow's module is linked with; a Pillow that hides it keeps printing.
_SET_LIBTIFF_HANDLER = getattr(ctypes.CDLL(_imaging.__file__), "TIFFSetErrorHandler", None)


def quiet_pillow() -> None:
    """Leave Pillow's warnings, logged errors and libtiff's output out, in all threads, and until the process ends.

    They are about metadata, or are raised as exceptions besides. A lasting filter stands here because
    `warnings.catch_warnings` is not safe in threads; it is put back wherever somebody has removed it.
    """
    if _FILTER not in warnings.filters:
        warnings.filterwarnings("ignore", module=_FILTER[3].pattern)
    if not _LOGGER.handlers:  # without one, Python prints its errors
        _LOGGER.addHandler(logging.NullHandler())
    if _SET_LIBTIFF_HANDLER is not None:
        _SET_LIBTIFF_HANDLER(None)
