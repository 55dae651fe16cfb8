"""diffusers and transformers as guests: their errors in one line, their advice kept off the user's terminal."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator

LONGEST_CAUSE = 400  # characters; PyTorch names every weight that does not fit, on a line each
LIBRARY_ERRORS = (
    *(ArithmeticError, AssertionError, AttributeError, ImportError, LookupError),
    *(OSError, RuntimeError, TypeError, ValueError),
)
"""What diffusers and transformers raise at what they cannot work with; their errors have no base of their own."""


def one_line(error: BaseException) -> str:
    """Return all that an error says, on one line; the cause often stands on its second or third."""
    text = " ".join(str(error).split())
    said = text if text.count(" ") > 1 else f"{type(error).__name__}: {text}".removesuffix(": ")
    return said if len(said) <= LONGEST_CAUSE else f"{said[:LONGEST_CAUSE]}..."


@contextlib.contextmanager
def quiet_libraries() -> Iterator[None]:
    """Keep the libraries' loading bars, deprecations and advice off the terminal: our one line is all that is said."""
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    levels = [(library, library.get_verbosity()) for library in (diffusers_logging, transformers_logging)]
    bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    for library, _ in levels:
        library.set_verbosity_error()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for library, level in levels:
            library.set_verbosity(level)
        if bars:
            transformers_logging.enable_progress_bar()
