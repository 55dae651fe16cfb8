"""Exported networks on disk, each set with the certificate that says what it is and how near it is to PyTorch.

<artifacts>/engines/<model hash>/<engine>-<precision>-<resolution>[-batch<N>][-<compute capabilities>]/
    text_encoder.onnx  vae_encoder.onnx  unet.onnx  vae_decoder.onnx   and .data beside those that are large
    text_encoder.engine  ...                                           TensorRT's, and .engine.log of their builds
    certificate.json                                                   written last

A set that failed its own check lies beside it under the same name with `.rejected` at the end.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from d4m_fast.config.choices import ExportedEngine
from d4m_fast.engine.signature import COMPONENTS, Component
from d4m_fast.errors import DamageError, ModelError
from d4m_fast.fingerprints import fingerprint
from d4m_fast.runs.exports import CERTIFICATE_FILE, digests, folder_of
from d4m_fast.storage.state import CERTIFICATE, read_state

REJECTED = ".rejected"
_FIELDS = {
    *("status", "reasons", "unverified", "files", "versions", "speed", "device"),
    *("model_sha256", "engine", "precision", "resolution", "static_batch", "targets"),
}
ELEMENTS = 2**31 - 1
Status = Literal["certified", "rejected", "unverified"]


@dataclass(frozen=True, slots=True)
class Key:
    """What a set of exported networks is for.

    Attributes:
        static_batch: in images, None for any number.
        targets: compute capabilities ("sm89") of TensorRT engines.
    """

    model_sha256: str
    engine: str
    precision: str
    resolution: int
    static_batch: int | None = None
    targets: tuple[str, ...] = ()

    @property
    def folder(self) -> str:
        batch = () if self.static_batch is None else (f"batch{self.static_batch}",)
        return "-".join((self.engine, self.precision, str(self.resolution), *batch, *self.targets))

    def path(self, artifacts: Path) -> Path:
        return folder_of(artifacts, self.model_sha256) / self.folder


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
    def engine(self) -> ExportedEngine:
        engine: ExportedEngine = self.certificate["engine"]
        return engine

    @property
    def key(self) -> Key:
        c = self.certificate
        return Key(
            c["model_sha256"], c["engine"], c["precision"], c["resolution"], c["static_batch"], tuple(c["targets"])
        )

    @property
    def speed(self) -> float | None:
        """Images per second over PyTorch's, measured when it was exported; None where it could not run."""
        speed: float | None = None if self.certificate["speed"] is None else self.certificate["speed"]["ratio"]
        return speed

    @property
    def sha256(self) -> str:
        return fingerprint(self.certificate["files"])

    @property
    def bytes(self) -> int:
        return sum(entry["bytes"] for entry in self.certificate["files"].values())

    def onnx(self, component: Component) -> Path:
        return self.path / f"{component}.onnx"

    def most_rows(self, component: Component) -> int:
        """Rows of one call, so that no activation has 2^31 elements: kernels count them in 32 bits."""
        return max(1, ELEMENTS // int(self.certificate["components"][component]["elements_per_row"]))

    def static_rows(self, component: Component) -> int | None:
        """Rows the file takes, where it takes no other number."""
        rows: int | None = self.certificate["components"][component]["static_rows"]
        return rows

    def check(self, model_sha256: str, device: str) -> None:
        """Refuse to run anything but what was certified, on the device and under the versions it was certified with.

        Args:
            device: as `runtime.device_name` has it.

        Raises:
            ModelError: rejected, unverified, of another model, other versions or another device.
            DamageError: a file's bytes changed.
        """
        self.check_status(device)
        self.check_files(model_sha256)

    def check_status(self, device: str, *, unverified: bool = False) -> None:
        """The part of `check` that reads no files; `unverified` lets that status pass."""
        found, again = self.certificate, "run d4m-fast export again"
        if self.status == "unverified" and not unverified:
            why, again = "; ".join(found["unverified"]), "run d4m-fast export --certify on the GPU it is for"
            raise ModelError(f"{self.path}: unverified, so it is not run; {why}; {again}")
        if self.status == "rejected":
            raise ModelError(f"{self.path}: rejected, so it is not run; {'; '.join(found['reasons'])}; {again}")
        if found["device"] != device:
            raise ModelError(f"{self.path}: certified on {found['device']}, this is {device}; {again} here")

    def check_files(self, model_sha256: str) -> None:
        """The part of `check` that holds wherever the set was made.

        Raises:
            ModelError: made from another model, or under other versions.
            DamageError: a file's bytes changed.
        """
        found, again = self.certificate, "run d4m-fast export again"
        self.check_bytes(model_sha256)
        now = versions(*found["versions"])
        for name, version in found["versions"].items():
            if now[name] != version:
                raise ModelError(f"{self.path}: certified with {name} {version}, this is {now[name]}; {again}")

    def check_bytes(self, model_sha256: str) -> None:
        """The part of `check_files` that holds under any versions."""
        found, again = self.certificate, "run d4m-fast export again"
        if found["model_sha256"] != model_sha256:
            raise ModelError(f"{self.path}: made from another model; {again}")
        if digests(self.path, found["files"]) != found["files"]:
            raise DamageError(f"{self.path}: its files are not those that were certified; {again}")


def find(key: Key, artifacts: Path) -> Artifact | None:
    """The set for a key, unchecked; None if none was exported."""
    return _read(key.path(artifacts))


def exports_of(model_sha256: str, precision: str, resolution: int, artifacts: Path) -> list[Artifact]:
    """The sets of a model that `distill` may choose from, unchecked."""
    folders = sorted(folder_of(artifacts, model_sha256).glob(f"*/{CERTIFICATE_FILE}"))
    found = [_read(folder.parent) for folder in folders if not folder.parent.name.endswith(REJECTED)]
    return [a for a in found if a is not None and (a.key.precision, a.key.resolution) == (precision, resolution)]


def catalogue(artifacts: Path) -> list[Artifact]:
    """All sets below an artifacts directory, rejected ones included."""
    folders = sorted((artifacts / "engines").glob(f"*/*/{CERTIFICATE_FILE}"))
    return [artifact for folder in folders if (artifact := _read(folder.parent)) is not None]


def versions(*packages: str) -> dict[str, str]:
    return {name: _version(name) for name in packages}


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _read(path: Path) -> Artifact | None:
    file = path / CERTIFICATE_FILE
    certificate = read_state(file, CERTIFICATE)
    if certificate is None:
        return None
    if not certificate.keys() >= _FIELDS or certificate["components"].keys() != set(COMPONENTS):
        raise CERTIFICATE.damage(file, "fields are missing")
    return Artifact(path, certificate)
