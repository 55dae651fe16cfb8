"""Sets of exported networks on disk, each with the certificate that says how near its results are to PyTorch's.

<artifacts>/engines/<model hash>/<engine>-<precision>-<resolution>[-batch<N>][-<compute capabilities>]/
    text_encoder.onnx  vae_encoder.onnx  unet.onnx  vae_decoder.onnx   and .data beside those that are large
    text_encoder.engine  ...                                           TensorRT's, and .engine.log of their builds
    certificate.json                                                   written last, so that its presence means "whole"

A set that failed the comparison lies beside it under the same name with `.rejected` at the end.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from d4m_fast.config.choices import ExportedEngine
from d4m_fast.engine.signature import COMPONENTS, Component
from d4m_fast.errors import DamageError, ModelError
from d4m_fast.fingerprints import fingerprint
from d4m_fast.runs.exports import CERTIFICATE_FILE, digests, folder_of
from d4m_fast.storage.state import CERTIFICATE, read_state

# Ending of the folder of a set that is not near enough to PyTorch; its files stay there to be looked at.
REJECTED = ".rejected"
# A certificate without one of these is damaged.
_FIELDS = {
    *("status", "reasons", "unverified", "files", "versions", "speed", "device"),
    *("model_sha256", "engine", "precision", "resolution", "static_batch", "targets"),
}
# Most elements of one activation: CUDA kernels count them in 32 bits.
ELEMENTS = 2**31 - 1
EXPORT_AGAIN = "run d4m-fast export again"
_NOT_INSTALLED = "not installed"
Status = Literal["certified", "rejected", "unverified"]


@dataclass(frozen=True, slots=True)
class Key:
    """Model, engine, precision and sizes that a set of exported networks is for.

    Attributes:
        static_batch: number of images of every call; None for any number.
        targets: compute capabilities ("sm89") of the GPUs that TensorRT engines were built for.
    """

    model_sha256: str
    engine: str
    precision: str
    resolution: int
    static_batch: int | None = None
    targets: tuple[str, ...] = ()

    @property
    def folder(self) -> str:
        """Name of the set's folder, below the model's."""
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
        certificate = self.certificate
        return Key(
            certificate["model_sha256"],
            certificate["engine"],
            certificate["precision"],
            certificate["resolution"],
            certificate["static_batch"],
            tuple(certificate["targets"]),
        )

    @property
    def speed(self) -> float | None:
        """Images per second over PyTorch's, measured when it was exported; None where it could not run."""
        speed = self.certificate["speed"]
        return None if speed is None else float(speed["ratio"])

    @property
    def sha256(self) -> str:
        return fingerprint(self.certificate["files"])

    @property
    def bytes(self) -> int:
        return sum(entry["bytes"] for entry in self.certificate["files"].values())

    def onnx(self, component: Component) -> Path:
        return self.path / f"{component}.onnx"

    def most_rows(self, component: Component) -> int:
        """Return the most rows of one call with which no activation has more than `ELEMENTS`."""
        return max(1, ELEMENTS // int(self.certificate["components"][component]["elements_per_row"]))

    def static_rows(self, component: Component) -> int | None:
        """Return the number of rows the file is fixed to; None where it takes any."""
        rows: int | None = self.certificate["components"][component]["static_rows"]
        return rows

    def check(self, model_sha256: str, device: str) -> None:
        """Refuse to run anything but what was certified, on the device and under the versions it was certified with.

        Args:
            device: its name, from `runtime.device_name`.

        Raises:
            ModelError: rejected, unverified, of another model, other versions or another device.
            DamageError: a file's bytes changed.
        """
        self.check_status(device)  # first, because it is free, and to read all files takes seconds
        self.check_files(model_sha256)

    def check_status(self, device: str, *, unverified: bool = False) -> None:
        """Check only what needs no reading of the files; `unverified` lets that status pass."""
        certificate = self.certificate
        if self.status == "unverified" and not unverified:
            reasons = "; ".join(certificate["unverified"])
            advice = "run d4m-fast export --certify on the GPU it is for"
            raise ModelError(f"{self.path}: unverified, so it is not run; {reasons}; {advice}")
        if self.status == "rejected":
            reasons = "; ".join(certificate["reasons"])
            raise ModelError(f"{self.path}: rejected, so it is not run; {reasons}; {EXPORT_AGAIN}")
        if certificate["device"] != device:
            raise ModelError(
                f"{self.path}: certified on {certificate['device']}, this is {device}; {EXPORT_AGAIN} here"
            )

    def check_files(self, model_sha256: str) -> None:
        """Check only what does not depend on the device: the model, the files and the libraries' versions.

        Raises:
            ModelError: made from another model, or under other versions.
            DamageError: a file's bytes changed.
        """
        self.check_bytes(model_sha256)
        for name, version in self.certificate["versions"].items():
            installed = installed_version(name)
            if installed != version:
                raise ModelError(f"{self.path}: certified with {name} {version}, this is {installed}; {EXPORT_AGAIN}")

    def check_bytes(self, model_sha256: str) -> None:
        """Check only the model and the files, under any versions of the libraries."""
        certificate = self.certificate
        if certificate["model_sha256"] != model_sha256:
            raise ModelError(f"{self.path}: made from another model; {EXPORT_AGAIN}")
        if digests(self.path, certificate["files"]) != certificate["files"]:
            raise DamageError(f"{self.path}: its files are not those that were certified; {EXPORT_AGAIN}")


def find(key: Key, artifacts: Path) -> Artifact | None:
    """Return the set for a key, unchecked; None if none was exported."""
    return _read(key.path(artifacts))


def exports_of(model_sha256: str, precision: str, resolution: int, artifacts: Path) -> list[Artifact]:
    """Return the sets of a model that `distill` may choose from, unchecked."""
    certificates = folder_of(artifacts, model_sha256).glob(f"*/{CERTIFICATE_FILE}")
    accepted = (file for file in certificates if not file.parent.name.endswith(REJECTED))
    exports = []
    for artifact in _read_all(accepted):
        if (artifact.key.precision, artifact.key.resolution) == (precision, resolution):
            exports.append(artifact)
    return exports


def catalogue(artifacts: Path) -> list[Artifact]:
    """Return all sets below an artifacts directory, rejected ones included."""
    return list(_read_all((artifacts / "engines").glob(f"*/*/{CERTIFICATE_FILE}")))


def versions(*packages: str) -> dict[str, str]:
    return {name: installed_version(name) for name in packages}


def installed_versions(*packages: str) -> dict[str, str]:
    """Return the versions of those packages that are installed."""
    return {name: version for name, version in versions(*packages).items() if version != _NOT_INSTALLED}


def installed_version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return _NOT_INSTALLED


def _read_all(certificates: Iterable[Path]) -> Iterator[Artifact]:
    """Yield the sets of these certificates, in the order of their paths."""
    for file in sorted(certificates):
        artifact = _read(file.parent)
        if artifact is not None:  # removed since it was listed
            yield artifact


def _read(path: Path) -> Artifact | None:
    file = path / CERTIFICATE_FILE
    certificate = read_state(file, CERTIFICATE)
    if certificate is None:
        return None
    if not certificate.keys() >= _FIELDS or certificate["components"].keys() != set(COMPONENTS):
        raise CERTIFICATE.damage(file, "fields are missing")
    return Artifact(path, certificate)
