"""Surroundings of a call from Python: what the command line does to its own process, a library must not."""

from __future__ import annotations

import contextlib
import logging
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from typing import TypeVar

from d4m_fast.endings import ending_of
from d4m_fast.errors import D4MError, PreflightError
from d4m_fast.flow.progress import Listener, Sized
from d4m_fast.preflight import require_machine

T = TypeVar("T")
Progress = Callable[[str, int, int], object]
"""Called with a stage, and how many of how many of its items are done: first with 0, then after each."""
log = logging.getLogger(__name__)
# PyTorch's random numbers, Python's filters of warnings and the libraries' verbosity are the process's: two calls that
# each put them back would put back the other's.
_ONE_CALL = threading.RLock()


class Callback(Listener):
    """Listener that calls a function, if there is one; lines go to the log of `d4m_fast.api`."""

    def __init__(self, progress: Progress | None) -> None:
        self._progress = progress

    def track(self, stage: str, items: Sized[T]) -> Iterator[T]:
        self._tell(stage, 0, len(items))
        for done, item in enumerate(items, 1):
            yield item
            self._tell(stage, done, len(items))

    def say(self, line: str) -> None:
        log.info(line)

    def warn(self, line: str) -> None:
        log.warning(line)

    def _tell(self, stage: str, done: int, total: int) -> None:
        if self._progress is not None and total > 0:
            self._progress(stage, done, total)


@contextlib.contextmanager
def library_call() -> Iterator[None]:
    """Do a call's work as a library does: the caller's settings come back, and foreseen errors are ours.

    PyTorch's number of threads and its random numbers are as before afterwards, whatever happens; nothing is printed.
    Calls from several threads wait for each other.

    Raises:
        D4MError: of whatever class; of an error of the system, the line that the command line would end with.
    """
    _require_utf8()
    require_machine()
    with _ONE_CALL, foreseen(), _restored(), _silent_downloads():
        yield


def _require_utf8() -> None:
    """Refuse another encoding of file names, with which class names, and so prompts, would be of the wrong letters."""
    encoding = sys.getfilesystemencoding()
    if encoding != "utf-8":
        raise PreflightError(f"Python takes file names for {encoding}; start it with PYTHONUTF8=1")


@contextlib.contextmanager
def foreseen() -> Iterator[None]:
    """Turn errors of the system and of a machine at its end into ours; defects pass as they are."""
    try:
        yield
    except D4MError:
        raise
    except (ImportError, MemoryError, OSError, RuntimeError) as error:
        ending = ending_of(error)
        if ending is None:
            raise
        kind = PreflightError if ending.code == PreflightError.exit_code else D4MError
        raise kind(ending.line.removeprefix("error: ")) from error


@contextlib.contextmanager
def _restored() -> Iterator[None]:
    """Give PyTorch its number of threads back, and its random numbers."""
    import torch

    threads = torch.get_num_threads()
    with torch.random.fork_rng(devices=[]):
        try:
            yield
        finally:
            torch.set_num_threads(threads)


@contextlib.contextmanager
def _silent_downloads() -> Iterator[None]:
    """Draw no bars of the hub's downloads; who set HF_HUB_DISABLE_PROGRESS_BARS=0 has asked for them."""
    with warnings.catch_warnings():
        # In a notebook without ipywidgets tqdm warns when it is first imported, of bars that nobody draws here.
        warnings.simplefilter("ignore")
        from huggingface_hub import constants
        from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    if are_progress_bars_disabled() or constants.HF_HUB_DISABLE_PROGRESS_BARS is False:
        yield
        return
    disable_progress_bars()
    try:
        yield
    finally:
        enable_progress_bars()
