"""Treatment of diffusers' and transformers' messages: errors in one line, advice kept off the user's terminal."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator

import click
import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError

from d4m_fast.errors import ModelError, wants_of_machine

LONGEST_CAUSE = 400  # characters; PyTorch names every weight that does not fit, on a line each
# What diffusers and transformers raise at what they cannot work with; their errors have no base of their own.
LIBRARY_ERRORS = (
    *(ArithmeticError, AssertionError, AttributeError, EOFError, ImportError, LookupError),
    *(OSError, RuntimeError, TypeError, ValueError),
    *(SafetensorError, StrictDataclassError),
)


def one_line(error: BaseException) -> str:
    """Return all that an error says, on one line without colours; the cause often stands on its second or third."""
    text = " ".join(click.unstyle(str(error)).split())
    message = text if text.count(" ") > 1 else f"{type(error).__name__}: {text}".removesuffix(": ")
    return message if len(message) <= LONGEST_CAUSE else f"{message[:LONGEST_CAUSE]}..."


def first_cause(error: BaseException) -> BaseException:
    """Return the error at the bottom of a chain: PyTorch's exporter wraps what went wrong in pages of advice."""
    while error.__cause__ is not None:
        error = error.__cause__
    return error


@contextlib.contextmanager
def refusing(subject: str) -> Iterator[None]:
    """Turn what a library raises into one line, `subject` and the cause in brackets, and keep its advice quiet.

    Our own errors pass, and so do those of a machine that lacks memory, threads or open files.

    Raises:
        ModelError: the library raised something.
    """
    try:
        with quiet_libraries():
            yield
    except torch.OutOfMemoryError:
        raise
    except LIBRARY_ERRORS as error:
        if wants_of_machine(error):
            raise
        raise ModelError(f"{subject} ({one_line(error)})") from error
    except BaseException as error:
        if type(error) is not Exception:
            raise
        # The tokenizers library, written in Rust, raises Exception itself at a file that it cannot read.
        raise ModelError(f"{subject} ({one_line(error)})") from error


@contextlib.contextmanager
def quiet_libraries() -> Iterator[None]:
    """Keep the libraries' loading bars, deprecations and advice off the terminal, so that only our own line shows."""
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    levels = {library: library.get_verbosity() for library in (diffusers_logging, transformers_logging)}
    bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    for library in levels:
        library.set_verbosity_error()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for library, level in levels.items():
            library.set_verbosity(level)
        if bars:
            transformers_logging.enable_progress_bar()
