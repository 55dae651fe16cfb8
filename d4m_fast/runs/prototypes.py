"""The prototypes that a run keeps, and the real image nearest to each, read with their checksums."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load

from d4m_fast.fingerprints import fingerprint
from d4m_fast.runs.commit import read_of_run, read_record, record_file
from d4m_fast.runs.identity import essence
from d4m_fast.runs.plan import Plan
from d4m_fast.storage import files
from d4m_fast.storage.state import CONFIG, GROUP, PLAN, require_state


@dataclass(frozen=True, slots=True)
class ClassPrototypes:
    """Prototypes of one class, by the file that they are in.

    Attributes:
        nearest: origin of the real image nearest to each, in the order of the distilled images.
        file: of safetensors, with its recorded SHA-256.
    """

    nearest: tuple[str, ...]
    file: Path
    sha256: str

    def centroids(self) -> np.ndarray:
        """Return the prototypes, (k, C, h, w) float32, scaled by the VAE's scaling factor.

        Raises:
            DamageError: the file is missing, or not what was written.
        """
        with GROUP.reading(self.file):
            data = files.read_regular(self.file)
        if hashlib.sha256(data).hexdigest() != self.sha256:
            raise GROUP.damage(self.file, "its SHA-256 is another than recorded")
        try:
            return load(data)["centroids"]
        except (SafetensorError, KeyError) as error:  # the checksum fits, so another program wrote it
            raise GROUP.damage(self.file, f"it holds no prototypes ({error})") from error


@dataclass(frozen=True, slots=True)
class RunPrototypes:
    """Prototypes of a run, and what was recorded of the run itself.

    Attributes:
        identity: all that the bytes of the run depend on, as in its config.json.
        by_folder: the prototypes of each class, by the name of the class's folder.
    """

    run: Path
    identity: Mapping[str, Any]
    plan: Plan
    by_folder: Mapping[str, ClassPrototypes]

    @property
    def options(self) -> Mapping[str, Any]:
        """The options that the run was made with, every default resolved."""
        options: Mapping[str, Any] = self.identity["options"]
        return options


def read_prototypes(run: Path) -> RunPrototypes:
    """Read the records of a finished run; no prototype is loaded.

    Raises:
        DamageError: a record is missing or is not what was written.
    """
    identity = require_state(run / "config.json", CONFIG)
    config = fingerprint(essence(identity))
    saved_plan = read_of_run(run / "plan.json", PLAN, config)
    if saved_plan is None:
        raise PLAN.damage(run / "plan.json", "it is missing")
    plan, by_folder = Plan.from_json(saved_plan), dict[str, ClassPrototypes]()
    for group in plan.groups:
        record = read_record(run, group.id, config)
        if record is None:
            raise GROUP.damage(record_file(run, group.id), "it is missing")
        by_folder.update(_of_record(run, record))
    return RunPrototypes(run, identity, plan, by_folder)


def _of_record(run: Path, record: Mapping[str, Any]) -> dict[str, ClassPrototypes]:
    nearest, class_ids = dict[str, list[str]](), dict[str, int]()
    for row in sorted(record["images"], key=lambda row: row["index"]):
        folder = PurePosixPath(row["file"]).parent.name
        nearest.setdefault(folder, []).append(row["nearest"])
        class_ids[folder] = row["class_id"]
    stored = {int(PurePosixPath(row["file"]).stem): row for row in record["prototypes"]}
    by_folder = {}
    for folder, origins in nearest.items():
        row = stored[class_ids[folder]]
        by_folder[folder] = ClassPrototypes(tuple(origins), run / row["file"], row["sha256"])
    return by_folder
