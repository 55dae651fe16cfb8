"""Image files to decode, and the reasons for which they are refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from d4m_fast.errors import DataError
from d4m_fast.sources.decode import decode


def reason(path: Path) -> str:
    """Return why an image file is refused."""
    with pytest.raises(DataError) as raised:
        decode(path)
    return str(raised.value).removeprefix(f"{path}: ")


def written(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path
