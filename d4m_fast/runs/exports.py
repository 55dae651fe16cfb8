"""Sets of exported networks on the disk: their places, and checks that their files are as they were certified."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from d4m_fast.errors import DamageError
from d4m_fast.fingerprints import fingerprint
from d4m_fast.storage import files
from d4m_fast.storage.state import CERTIFICATE, read_state

CERTIFICATE_FILE = "certificate.json"


def folder_of(artifacts: Path, model_sha256: str) -> Path:
    """Return the folder of a model's sets, each of which is a folder in it."""
    return artifacts / "engines" / model_sha256[:16]


def digests(path: Path, names: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Return size and SHA-256 of files in a set; one that is missing, or no regular file, has size -1.

    Raises:
        PreflightError: one may not be read, or not now.
    """
    sizes_and_sums: dict[str, dict[str, Any]] = {}
    for name in names:
        try:
            with files.open_regular(path / name) as stream:
                sha256 = hashlib.file_digest(stream, "sha256").hexdigest()
                sizes_and_sums[name] = {"bytes": stream.tell(), "sha256": sha256}
        except OSError as error:
            files.refuse_machine_error(path / name, error)
            sizes_and_sums[name] = {"bytes": -1, "sha256": ""}
    return sizes_and_sums


def damaged_files(artifacts: Path, model_sha256: str, set_sha256: str) -> Iterator[tuple[Path, str]]:
    """Yield the files of a model's set that are not as certified, and its damaged certificates, with the reason.

    Args:
        set_sha256: fingerprint of the files that the certificate lists.
    """
    for folder in files.entries(folder_of(artifacts, model_sha256)):
        path = folder / CERTIFICATE_FILE
        try:
            certificate = read_state(path, CERTIFICATE)
        except DamageError as error:
            yield path, error.reason
            continue
        certified = {} if certificate is None else certificate["files"]
        if fingerprint(certified) == set_sha256:
            for name, digest in digests(folder, certified).items():
                if digest != certified[name]:
                    yield folder / name, "not what was certified"
