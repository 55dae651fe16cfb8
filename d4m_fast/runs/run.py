"""The run directory: distilled images, how each was made, and what is done.

images/<class>/<index:05d>.png   an ImageFolder root (.jpg, .webp)
prototypes/<class id>.safetensors
groups/<group>.json              commit records, written last, the only truth about what is done
config.json  plan.json           what was asked for, and how it was split
manifest.jsonl  quarantine.jsonl  summary.json  preview.png   derived when the run is complete
"""

from __future__ import annotations

import json
import os
import stat
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from d4m_fast.config.choices import ImageFormat
from d4m_fast.errors import RunDirectoryError
from d4m_fast.fingerprints import fingerprint
from d4m_fast.flow.stopwatch import Stopwatch
from d4m_fast.flow.stream import Stream
from d4m_fast.flow.workers import Workers
from d4m_fast.runs import preview
from d4m_fast.runs.commit import files_of, is_of, read_of_run, read_record, write_of_run, write_record
from d4m_fast.runs.image_files import FORMATS, to_bytes
from d4m_fast.runs.latents import Failure
from d4m_fast.runs.plan import Group, Plan
from d4m_fast.runs.records import Prototypes, Sample
from d4m_fast.storage import files
from d4m_fast.storage.locks import LOCK_FILES
from d4m_fast.storage.state import (
    CONFIG,
    HEAD_BYTES,
    PLAN,
    SUMMARY,
    json_lines,
    read_state,
    require_state,
    write_state,
)

# Decide whether a run starts or goes on, or where its inputs lie; what these are is told by their hashes.
INESSENTIAL = frozenset(
    {"max_bad_fraction", "data", "model", "revision", "prompts", "allow_unknown_prompts", "artifacts"}
)
WRITERS = 4  # threads; most of their time is the disk's
QUEUED = 128  # images that may wait for them


class RunDirectory:
    """Opened once per process, under the run's lock (`files.locked`); nothing is written before `begin`.

    Raises:
        RunDirectoryError: the directory holds a run of another config; the message names the differences.
    """

    def __init__(self, path: Path, identity: Mapping[str, Any]) -> None:
        self.path = path
        self.fingerprint = fingerprint(essence(identity))
        self._kept: dict[int, dict[str, Any]] = {}  # files of prototypes whose group is not committed yet
        self._committed: set[int] | None = None  # not looked for yet
        saved_identity = read_state(path / "config.json", CONFIG)
        if saved_identity is None:
            _refuse_foreign(path)
        else:
            _refuse_other(path, essence(saved_identity), essence(identity))
        self._identity = identity

    def begin(self) -> None:
        """Write what the run is, and make its directories, as far as they are not there.

        Only once the networks were tried: a directory that holds the config of a model that did not load could not be
        used for the same model, repaired.
        """
        config = self.path / "config.json"
        if not config.exists():
            write_state(config, CONFIG, self._identity)
        files.sweep(self.path)
        for name in ("images", "prototypes", "groups"):
            files.make_directory(self.path / name)

    def saved_plan(self) -> Plan | None:
        """The plan this run was started with; None if it starts now."""
        saved = read_of_run(self.path / "plan.json", PLAN, self.fingerprint)
        return None if saved is None else Plan.from_json(saved)

    def save_plan(self, plan: Plan) -> None:
        write_of_run(self.path / "plan.json", PLAN, self.fingerprint, plan.to_json())

    def committed(self, plan: Plan) -> set[int]:
        """Groups that are done.

        Those that had lost a file when they were asked for first are not among them, nor are those with other classes
        than the plan has, which was lost then and made anew.
        """
        if self._committed is None:
            self._committed = {group.id for group in plan.groups if self._is_committed(group)}
        return self._committed

    def _is_committed(self, group: Group) -> bool:
        record = read_record(self.path, group.id, self.fingerprint)
        return record is not None and is_of(record, group) and all(map(self._present, files_of(record)))

    def _rows(self, plan: Plan) -> Iterator[dict[str, Any]]:
        """Of all images, in the order of their groups; one record in memory at a time."""
        for group in plan.groups:
            record = read_record(self.path, group.id, self.fingerprint)
            yield from () if record is None else record["images"]

    def _present(self, row: Mapping[str, Any]) -> bool:
        """With one call of the system: large runs ask for tens of thousands of files when they go on."""
        try:
            found = os.stat(f"{self.path}/{row['file']}")
        except OSError as error:
            if error.errno in files.MACHINE_ERRORS:
                raise
            return False
        return stat.S_ISREG(found.st_mode) and found.st_size == row["bytes"]

    def finished(self) -> dict[str, Any] | None:
        """The summary of a run whose images are all there; None if there is something left to do."""
        plan, summary = self.saved_plan(), read_of_run(self.path / "summary.json", SUMMARY, self.fingerprint)
        if plan is None or summary is None or plan.without(self.committed(plan)):
            return None
        return self._here(summary)

    def save_prototypes(self, prototypes: Stream[Prototypes]) -> Stream[Prototypes]:
        """Save each class's prototypes on their way through."""

        def items() -> Iterator[Prototypes]:
            for p in prototypes:
                self._kept[p.info.id] = self._save_class_prototypes(p)
                yield p

        return Stream(len(prototypes), items())

    def write(
        self, samples: Stream[Sample], plan: Plan, groups: Sequence[Group], form: ImageFormat, workers: Workers
    ) -> Stream[dict[str, Any]]:
        """Write images as they come, several at a time; commit a group once all of its images are on the disk.

        `samples` come group by group, in the order of `groups`, as many per class; what comes out are their rows of
        the manifest.
        """
        each = len(samples) // max(sum(len(group.classes) for group in groups), 1)

        def items() -> Iterator[dict[str, Any]]:
            save = partial(self._save_image, form)
            saved = iter(workers.map(save, samples, threads=WRITERS, depth=QUEUED, name="write"))
            for group in groups:
                started, rows = time.monotonic(), []
                for _ in range(len(group.classes) * each):
                    rows.append(next(saved))
                    yield rows[-1]
                self._commit(group, plan, rows, time.monotonic() - started)

        return Stream(len(samples), items())

    def finish(self, plan: Plan, failures: list[Failure], first_frames: int, watch: Stopwatch) -> dict[str, Any]:
        """Derive the merged files, `summary.json` last; returns the summary.

        Args:
            plan: all of whose groups are committed.
            failures: the real images that were left out.
            first_frames: how many animated images gave their first frame only.
            watch: the seconds of this process, per stage and per queue.
        """
        manifest, images = self._write_manifest(plan)
        quarantined = [
            {"class_id": f.item.class_id, "index": f.item.rank, "origin": f.item.origin, "reason": f.reason}
            for f in failures
        ]
        summary = {
            "images": images.total(),
            "classes": len(images),
            "quarantined": len(failures),
            "first_frames": first_frames,
            "seconds": {stage: round(spent, 3) for stage, spent in watch.seconds.items()},
            "waits": {queue: round(spent, 3) for queue, spent in watch.waits.items()},
            "sha256_of": {
                "manifest.jsonl": manifest,
                "quarantine.jsonl": files.write_bytes(self.path / "quarantine.jsonl", json_lines(quarantined)),
                "preview.png": self._write_preview(plan),
            },
        }
        write_of_run(self.path / "summary.json", SUMMARY, self.fingerprint, summary)
        return self._here(summary)

    def _here(self, summary: dict[str, Any]) -> dict[str, Any]:
        """A summary with the run's place in it, which changes when it is moved."""
        return {"run": str(self.path), **summary}

    def _write_manifest(self, plan: Plan) -> tuple[str, Counter[int]]:
        """Its SHA-256, and the images of each class."""
        images = Counter[int]()

        def counted() -> Iterator[dict[str, Any]]:
            for row in self._rows(plan):
                images[row["class_id"]] += 1
                yield row

        return files.write_bytes(self.path / "manifest.jsonl", json_lines(counted())), images

    def _write_preview(self, plan: Plan) -> str:
        """Its SHA-256."""
        shown = ((self.path / row["file"], row["prompt"]) for row in self._rows(plan) if row["index"] < preview.COLUMNS)
        return files.write_bytes(self.path / "preview.png", to_bytes(np.asarray(preview.contact_sheet(shown)), "png"))

    def _save_class_prototypes(self, p: Prototypes) -> dict[str, Any]:
        from safetensors.numpy import save

        data = save({"centroids": p.centroids, "sizes": p.sizes, "inertia_share": p.inertia_share})
        name = f"prototypes/{p.info.id:05d}.safetensors"
        return {"file": name, "bytes": len(data), "sha256": files.write_bytes(self.path / name, data)}

    def _save_image(self, form: ImageFormat, sample: Sample) -> dict[str, Any]:
        """The directory is synced with its group."""
        folder = files.make_directory(self.path / "images" / sample.info.folder)
        file = folder / f"{sample.index:05d}{FORMATS[form].suffix}"
        data = to_bytes(sample.pixels, form)
        digest = files.write_bytes(file, data, sync_name=False)
        return {**_provenance(sample), "file": str(file.relative_to(self.path)), "bytes": len(data), "sha256": digest}

    def _commit(self, group: Group, plan: Plan, rows: list[dict[str, Any]], seconds: float) -> None:
        for folder in sorted({(self.path / row["file"]).parent for row in rows}):
            files.sync_directory(folder)
        files.sync_directory(self.path / "images")
        record = {
            "group": group.id,
            "batch_size": group.batch_size,
            "decode_batch": group.decode_batch,
            "out_of_memory": [entry for entry in plan.out_of_memory if entry["group"] == group.id],
            "seconds": round(seconds, 3),
            "images": rows,
            "prototypes": [self._kept.pop(class_id) for class_id in group.classes if class_id in self._kept],
        }
        write_record(self.path, self.fingerprint, record)
        self.committed(plan).add(group.id)


def _provenance(sample: Sample) -> dict[str, Any]:
    return {
        "class_id": sample.info.id,
        "index": sample.index,
        "prompt": sample.info.prompt,
        "seed": sample.seed,
        "cluster_size": sample.cluster_size,
        "inertia_share": sample.inertia_share,
        "nearest": sample.nearest,
    }


def _refuse_other(path: Path, found: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    differences = list(_differences(found, wanted))
    if differences:
        raise RunDirectoryError(f"{path}: holds another run ({'; '.join(differences)}); choose another --out")


def _differences(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> Iterator[str]:
    for name in sorted({*found, *wanted}):
        old, new = found.get(name), wanted.get(name)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            yield from _differences(old, new)
        elif old != new:
            yield f"{name}: {json.dumps(old)} there, {json.dumps(new)} now"


def _refuse_foreign(path: Path) -> None:
    strangers = [p.name for p in path.iterdir() if p.name not in LOCK_FILES and not p.name.startswith(files.TEMPORARY)]
    if strangers:
        raise RunDirectoryError(f"{path}: not empty and not a run of ours ({strangers[0]}); choose another --out")


def essence(identity: Mapping[str, Any]) -> dict[str, Any]:
    """An identity without what changes no byte of the result."""
    kept = {name: value for name, value in identity.items() if name not in INESSENTIAL}
    return {name: essence(value) if isinstance(value, Mapping) else value for name, value in kept.items()}


def is_run(path: Path) -> bool:
    """Whether a directory is a run of ours, by the head of its config.

    Raises:
        PreflightError: it cannot be told.
    """
    try:
        with files.open_regular(path / "config.json") as file:
            return CONFIG.heads(file.read(HEAD_BYTES))
    except OSError as error:
        files.refuse_machine_error(path / "config.json", error)
        return False


def options_of(run: Path) -> dict[str, Any]:
    """The options a run was begun with; none if the directory is not a run of ours, or not there.

    Raises:
        DamageError: they are not what was written.
    """
    options: dict[str, Any] = require_state(run / "config.json", CONFIG)["options"] if is_run(run) else {}
    return options


def require_finished(path: Path) -> None:
    """Of a run of ours; any other directory is its owner's business.

    Raises:
        RunDirectoryError: something is left to do.
    """
    if options_of(path) and not (path / "summary.json").is_file():
        raise RunDirectoryError(f"{path}: this run is not finished; d4m-fast verify prints the command that goes on")


def source_of(run: Path) -> str | None:
    """What a run was made from, as given to `--data`; None if the directory is not a run of ours."""
    return options_of(run).get("data")
