"""Exported networks on disk, each set with the certificate that says what it is and how near it is to PyTorch.

<artifacts>/engines/<model hash>/<engine>-<precision>-<resolution>[-batch<N>]/
    text_encoder.onnx  vae_encoder.onnx  unet.onnx  vae_decoder.onnx   and .data beside those that are large
    certificate.json                                                   written last

A set that failed its own check lies beside it under the same name with `.rejected` at the end.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from d4m_fast.config import fingerprint
from d4m_fast.data import files
from d4m_fast.engine.signature import COMPONENTS, Component
from d4m_fast.errors import DamageError, ModelError

CERTIFICATE = "certificate.json"
REJECTED = ".rejected"
Status = Literal["certified", "rejected", "unverified"]


@dataclass(frozen=True, slots=True)
class Key:
    """What a set of exported networks is for; `static_batch` is in images, None for any number."""

    model_sha256: str
    engine: str
    precision: str
    resolution: int
    static_batch: int | None = None

    def path(self, artifacts: Path) -> Path:
        batch = "" if self.static_batch is None else f"-batch{self.static_batch}"
        return (
            artifacts / "engines" / self.model_sha256[:16] / f"{self.engine}-{self.precision}-{self.resolution}{batch}"
        )


@dataclass(frozen=True, slots=True)
class Artifact:
    """A set of exported networks whose certificate has been read; `check` says whether it may be run."""

    path: Path
    certificate: Mapping[str, Any]

    @property
    def status(self) -> Status:
        status: Status = self.certificate["status"]
        return status

    @property
    def speed(self) -> float:
        """Images per second over PyTorch's, measured when it was exported."""
        return float(self.certificate["speed"]["ratio"])

    @property
    def sha256(self) -> str:
        return fingerprint(self.certificate["files"])

    @property
    def bytes(self) -> int:
        return sum(entry["bytes"] for entry in self.certificate["files"].values())

    def file(self, component: Component) -> Path:
        return self.path / f"{component}.onnx"

    def static_rows(self, component: Component) -> int | None:
        """Rows the file takes, where it takes no other number."""
        rows: int | None = self.certificate["components"][component]["static_rows"]
        return rows

    def check(self, model_sha256: str, device: str) -> None:
        """Refuse to run anything but what was certified, under the versions it was certified with.

        Raises:
            ModelError: rejected, unverified, of another model, other versions or another kind of device.
            DamageError: a file's bytes changed.
        """
        found, again = self.certificate, "run d4m-fast export again"
        if self.status != "certified":
            raise ModelError(f"{self.path}: {self.status}, so it is not run; {'; '.join(found['reasons'])}; {again}")
        if found["model_sha256"] != model_sha256:
            raise ModelError(f"{self.path}: made from another model; {again}")
        if found["device"] != device:
            raise ModelError(f"{self.path}: certified on a {found['device']}, this is a {device}; use --engine torch")
        now = versions(*found["versions"])
        for name, version in found["versions"].items():
            if now[name] != version:
                raise ModelError(f"{self.path}: certified with {name} {version}, this is {now[name]}; {again}")
        if digests(self.path, found["files"]) != found["files"]:
            raise DamageError(f"{self.path}: its files are not those that were certified; {again}")


def find(key: Key, artifacts: Path) -> Artifact | None:
    """The set for a key, unchecked; None if none was exported."""
    return _read(key.path(artifacts))


def catalogue(artifacts: Path) -> list[Artifact]:
    """All sets below an artifacts directory, rejected ones included."""
    folders = sorted((artifacts / "engines").glob(f"*/*/{CERTIFICATE}"))
    return [artifact for folder in folders if (artifact := _read(folder.parent)) is not None]


def digests(path: Path, names: Mapping[str, Any] | list[str]) -> dict[str, dict[str, Any]]:
    """Size and SHA-256 of files in a set; a missing one has size -1."""
    return {name: _digest(path / name) for name in names}


def versions(*packages: str) -> dict[str, str]:
    return {name: _version(name) for name in packages}


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _read(path: Path) -> Artifact | None:
    file = path / CERTIFICATE
    if not file.is_file():
        return None
    certificate = files.read_json(file)
    parts = certificate.get("components", {}) if isinstance(certificate, dict) else {}
    if not {"status", "files", "versions"} <= certificate.keys() or parts.keys() != set(COMPONENTS):
        raise DamageError(f"{file}: not a certificate; remove {path} and run d4m-fast export again")
    return Artifact(path, certificate)


def _digest(file: Path) -> dict[str, Any]:
    if not file.is_file():
        return {"bytes": -1, "sha256": ""}
    with file.open("rb") as opened:
        return {"bytes": file.stat().st_size, "sha256": hashlib.file_digest(opened, "sha256").hexdigest()}
