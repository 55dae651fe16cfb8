"""`d4m-fast`, and `python -m d4m_fast`."""

from __future__ import annotations

import contextlib
import os
import sys
from typing import NoReturn


def run() -> NoReturn:
    """The command line, in an interpreter that takes names of files for UTF-8, whatever the locale."""
    if sys.getfilesystemencoding() != "utf-8" and not sys.flags.utf8_mode and sys.executable:
        _start_again()
    from d4m_fast.cli import main

    main()


def _start_again() -> None:
    """Replace this process; returns where that is refused, and names are then read as the locale says.

    The encoding cannot be changed later: class names, and so prompts, would be of the wrong letters. The flag outranks
    PYTHONUTF8=0, and the variable is for the processes that are started.
    """
    arguments = [sys.executable, "-X", "utf8", *sys.orig_argv[1:]]
    with contextlib.suppress(OSError):
        os.execve(sys.executable, arguments, {**os.environ, "PYTHONUTF8": "1"})


if __name__ == "__main__":
    run()
