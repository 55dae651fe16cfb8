"""The surroundings that every test gets, whatever the shell, the terminal and the user that start the tests have.

Children inherit ignored signals, the mask of blocked ones, the umask and all variables: they are set right once, in the
process that starts the children, so that no test has to.
"""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from unittest import mock

# A child of a shell without job control (`nohup make test &`) has the first two ignored; one that ignores SIGCHLD
# never learns the exit codes of its own children.
SIGNALS = (signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGALRM, signal.SIGCHLD)

# What the machine needs to be found and what the tests themselves ask for. Everything else (language, terminal,
# colours, caches, libraries' switches, this package's own) is a user's setting, and no test reads it.
KEPT = re.compile(
    r"PATH|TMPDIR|TEMP|TMP|USER|LOGNAME|VIRTUAL_ENV|SYSTEMROOT|CC|CXX"
    r"|(LD|DYLD|CUDA|NVIDIA|PYENV|PYTEST|COV|COVERAGE)_\w+"
    r"|PYTHON(PATH|HOME|HASHSEED|DONTWRITEBYTECODE|PYCACHEPREFIX)"
    r"|D4M_(SHARED|EXACTNESS|CHANGES)"
)


def plain_environment(environment: Mapping[str, str], home: str) -> dict[str, str]:
    """The variables of KEPT, an empty home directory, and UTF-8 in children whatever the language."""
    kept = {name: value for name, value in environment.items() if KEPT.fullmatch(name)}
    return {**kept, "HOME": home, "PYTHONUTF8": "1"}


@contextmanager
def plain_surroundings(home: str) -> Iterator[None]:
    """Plain variables, signals and umask in this process and its children; the caller's come back at the end."""
    with ExitStack() as stack:
        stack.enter_context(mock.patch.dict(os.environ, plain_environment(os.environ, home), clear=True))
        stack.callback(os.umask, os.umask(0o022))
        stack.enter_context(_signals())
        yield


@contextmanager
def _signals() -> Iterator[None]:
    """Children get the defaults; what this process was told to ignore, it still ignores."""
    ignored = [number for number in SIGNALS if signal.getsignal(number) == signal.SIG_IGN]
    for number in ignored:
        # A handler is reset to the default when a program is started; "ignored" would be inherited.
        signal.signal(number, signal.SIG_DFL if number == signal.SIGCHLD else _do_nothing)
    blocked = signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        for number in ignored:
            signal.signal(number, signal.SIG_IGN)


def _do_nothing(*_: object) -> None:
    pass
