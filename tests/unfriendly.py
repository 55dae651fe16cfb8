"""Become a program as an unfriendly parent starts it: signals ignored and blocked, an umask that hides what it writes.

python unfriendly.py PROGRAM ARGUMENT ...
"""

from __future__ import annotations

import os
import signal
import sys

IGNORED = (signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGHUP, signal.SIGCHLD)


def main() -> None:
    for number in IGNORED:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    os.umask(0o077)
    os.execv(sys.argv[1], sys.argv[1:])


if __name__ == "__main__":
    main()
