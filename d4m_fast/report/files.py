"""The report on the disk."""

from __future__ import annotations

from pathlib import Path

from d4m_fast.storage import files

NAME = "report.html"


def write_report(path: Path, html: str) -> Path:
    """Write a report, whole or not at all; below a directory it is called `report.html`. Returns where it is.

    Raises:
        PreflightError: no space, no permission, a read-only file system.
    """
    file = path / NAME if path.is_dir() else path
    # A name of a class that is not UTF-8 has no other way into a page.
    files.write_bytes(file, html.encode("utf-8", "backslashreplace"))
    return file
