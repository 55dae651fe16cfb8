"""What the tests of exactness found, kept for docs/exactness.md where `D4M_EXACTNESS` names a folder."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any


def record(table: str, rows: dict[str, Any]) -> None:
    """Put rows into the table's file, in place of those of the same name; sorted, so that reruns compare."""
    folder = os.environ.get("D4M_EXACTNESS")
    if folder is None:
        return
    file = Path(folder) / f"{table}.json"
    known = json.loads(file.read_text()) if file.is_file() else {}
    file.write_text(json.dumps(dict(sorted({**known, **rows}.items())), indent=1) + "\n")
