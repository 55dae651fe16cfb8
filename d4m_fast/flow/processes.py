"""Start of processes beside a caller's own program."""

from __future__ import annotations

import sys
import types
from multiprocessing.process import BaseProcess
from unittest import mock


def start_apart(process: BaseProcess) -> None:
    """Start a spawned process without what the caller's main module does.

    It would first run the file of `__main__`, which may be a user's script without a guard, again.
    """
    with mock.patch.dict(sys.modules, {"__main__": types.ModuleType("__main__")}):
        process.start()
