"""The run directory: distilled images, the record of how each was made, and the progress of the run.

images/<class>/<index:05d>.png   an ImageFolder root (.jpg, .webp)
prototypes/<class id>.safetensors
groups/<group>.json              commit records, written last: a group is done when its record is there
groups/<group>.lease-<number>    who works on a group now (storage/leases.py); gone when the run is finished
logs/                            of the worker processes, where there are several
config.json  plan.json           the configuration, and how the work is split
manifest.jsonl  quarantine.jsonl  summary.json  preview.png   derived when the run is complete
"""

from __future__ import annotations

import os
import stat
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from d4m_fast.config.choices import ImageFormat
from d4m_fast.errors import PreflightError, RunDirectoryError
from d4m_fast.fingerprints import fingerprint
from d4m_fast.flow.stopwatch import Stopwatch
from d4m_fast.flow.stream import Stream
from d4m_fast.flow.workers import Workers
from d4m_fast.runs import preview
from d4m_fast.runs.claims import Claims, sweep_leases
from d4m_fast.runs.commit import (
    files_of,
    is_of,
    read_of_run,
    read_record,
    record_file,
    recorded_units,
    write_of_run,
    write_record,
)
from d4m_fast.runs.identity import differences, essence
from d4m_fast.runs.image_files import FORMATS, to_bytes
from d4m_fast.runs.latents import Failure
from d4m_fast.runs.plan import Group, Plan
from d4m_fast.runs.records import Prototypes, Sample
from d4m_fast.storage import files
from d4m_fast.storage.lease_files import holders
from d4m_fast.storage.locks import LOCK_FILES
from d4m_fast.storage.state import (
    CONFIG,
    PLAN,
    SUMMARY,
    json_lines,
    read_state,
    write_state,
)

LOGS = "logs"
WRITERS = 4  # threads; most of their time is the disk's
QUEUED = 128  # images that may wait for the writers


class RunDirectory:
    """A run on the disk, opened once per process and under its lock (`locks.locked`); `begin` writes first.

    The lock is needed to begin, to plan, to change the plan and to finish; several processes write images meanwhile.

    Raises:
        RunDirectoryError: the directory holds a run of another config; the message names the differences.
    """

    def __init__(self, path: Path, identity: Mapping[str, Any]) -> None:
        self.path = path
        self.fingerprint = fingerprint(essence(identity))
        self._prototype_rows: dict[int, dict[str, Any]] = {}  # of classes whose group is not committed yet
        self._committed: set[int] | None = None  # not looked for yet
        saved_identity = read_state(path / "config.json", CONFIG)
        if saved_identity is None:
            for entry in path.iterdir():
                # Before a run begins, d4m-fast makes no other files.
                if entry.name not in (*LOCK_FILES, LOGS) and not entry.name.startswith(files.TEMPORARY):
                    raise RunDirectoryError(
                        f"{path}: not empty and not a run of ours ({entry.name}); choose another --out"
                    )
        else:
            changes = list(differences(essence(saved_identity), essence(identity)))
            if changes:
                raise RunDirectoryError(f"{path}: holds another run ({'; '.join(changes)}); choose another --out")
        self._identity = identity

    def begin(self) -> None:
        """Write the run's identity, and make its directories, as far as they are not there.

        To be called once the networks were tried: a directory that holds the config of a model that did not load could
        not be used for the same model after it is repaired.
        """
        config = self.path / "config.json"
        # First, because a directory that has other files but no config is refused as not a run.
        if not config.exists():
            write_state(config, CONFIG, self._identity)
        files.sweep(self.path, lambda: bool(holders(self.path / "groups")))
        for name in ("images", "prototypes", "groups"):
            files.make_directory(self.path / name)

    def saved_plan(self) -> Plan | None:
        """Return the plan that this run was started with; None if it starts now."""
        saved = read_of_run(self.path / "plan.json", PLAN, self.fingerprint)
        return None if saved is None else Plan.from_json(saved)

    def save_plan(self, plan: Plan) -> None:
        write_of_run(self.path / "plan.json", PLAN, self.fingerprint, plan.to_json())

    def require_plan(self) -> Plan:
        """Return the plan of a run that was begun.

        Raises:
            DamageError: somebody has removed it.
        """
        plan = self.saved_plan()
        if plan is None:
            raise PLAN.damage(self.path / "plan.json", "it is missing")
        return plan

    def committed(self, plan: Plan, *, look: bool = True) -> set[int]:
        """Return the ids of the groups that are committed.

        The files are looked for in the first call only, under the run's lock. Groups that have lost a file by then are
        not among them, nor are those with other classes than the plan, which they have where the plan was lost and made
        anew; their records are removed, or nobody could commit them.

        Args:
            look: False where another process has just looked; records are then taken at their word.
        """
        if self._committed is None and not look:
            self._committed = recorded_units(path.name for path in files.entries(self.path / "groups"))
        if self._committed is None:
            committed = set[int]()
            for group in plan.groups:
                record = read_record(self.path, group.id, self.fingerprint)
                if record is None:
                    continue
                if is_of(record, group) and all(map(self._is_present, files_of(record))):
                    committed.add(group.id)
                else:
                    files.remove(record_file(self.path, group.id))
            self._committed = committed
        return self._committed

    def _rows(self, plan: Plan) -> Iterator[dict[str, Any]]:
        """Yield the rows of all images, in the order of their groups; one record is in memory at a time."""
        for group in plan.groups:
            record = read_record(self.path, group.id, self.fingerprint)
            if record is not None:
                yield from record["images"]

    def _is_present(self, row: Mapping[str, Any]) -> bool:
        # A string and one system call: runs that go on look for tens of thousands of files.
        try:
            status = os.stat(f"{self.path}/{row['file']}")
        except OSError as error:
            if error.errno in files.MACHINE_ERRORS:
                raise
            return False
        return stat.S_ISREG(status.st_mode) and status.st_size == row["bytes"]

    def finished(self) -> dict[str, Any] | None:
        """Return the summary of a run whose images are all there; None if there is something left to do."""
        plan, summary = self.saved_plan(), self.saved_summary()
        if plan is None or summary is None or plan.without(self.committed(plan)):
            return None
        return summary

    def saved_summary(self) -> dict[str, Any] | None:
        """Return the summary that says that a run is finished; None where none was written."""
        summary = read_of_run(self.path / "summary.json", SUMMARY, self.fingerprint)
        return None if summary is None else self._with_place(summary)

    def save_prototypes(self, prototypes: Stream[Prototypes]) -> Stream[Prototypes]:
        """Save each class's prototypes on their way through."""

        def items() -> Iterator[Prototypes]:
            for class_prototypes in prototypes:
                self._prototype_rows[class_prototypes.info.id] = self._save_class_prototypes(class_prototypes)
                yield class_prototypes

        return Stream(len(prototypes), items())

    def write(
        self,
        samples: Stream[Sample],
        plan: Plan,
        claims: Claims,
        images_of: Callable[[Group], int],
        form: ImageFormat,
        workers: Workers,
    ) -> Stream[dict[str, Any]]:
        """Write images as they come, several at a time; commit a group once all of its images are on the disk.

        `samples` come group by group, as many as `images_of` says. Returns their rows of the manifest.
        """

        def items() -> Iterator[dict[str, Any]]:
            save = partial(self._save_image, form, claims)
            start, rows = time.monotonic(), list[dict[str, Any]]()
            for row in workers.map(save, samples, threads=WRITERS, depth=QUEUED, name="write"):
                rows.append(row)
                yield row
                group = claims.group_of(row["class_id"])
                if len(rows) == images_of(group):  # so that no group is committed short
                    self._commit(group, plan, claims, rows, time.monotonic() - start)
                    start, rows = time.monotonic(), []

        return Stream(len(samples), items())

    def finish(self, plan: Plan, failures: list[Failure], first_frames: int, watch: Stopwatch) -> dict[str, Any]:
        """Derive the merged files, `summary.json` last; returns the summary.

        Args:
            plan: all of whose groups are committed.
            failures: the real images that were left out.
            first_frames: number of animated images that gave their first frame only.
            watch: the seconds of this process, per stage and per queue.
        """
        files.sweep(self.path)
        sweep_leases(self.path / "groups")
        manifest_sha256, image_counts = self._write_manifest(plan)
        summary = {
            "images": image_counts.total(),
            "classes": len(image_counts),
            "quarantined": len(failures),
            "first_frames": first_frames,
            "seconds": {stage: round(seconds, 3) for stage, seconds in watch.seconds.items()},
            "waits": {queue: round(seconds, 3) for queue, seconds in watch.waits.items()},
            "sha256_of": {
                "manifest.jsonl": manifest_sha256,
                "quarantine.jsonl": self._write_quarantine(failures),
                "preview.png": self._write_preview(plan),
            },
        }
        # Last, because a run with a summary counts as finished.
        write_of_run(self.path / "summary.json", SUMMARY, self.fingerprint, summary)
        return self._with_place(summary)

    def _with_place(self, summary: dict[str, Any]) -> dict[str, Any]:
        """Return a summary with the run's place in it, which is not in the file because a run may be moved."""
        return {"run": str(self.path), **summary}

    def _write_manifest(self, plan: Plan) -> tuple[str, Counter[int]]:
        """Write the rows of all images; return the file's SHA-256 and the number of images of each class."""
        image_counts = Counter[int]()

        def count_rows() -> Iterator[dict[str, Any]]:
            for row in self._rows(plan):
                image_counts[row["class_id"]] += 1
                yield row

        return files.write_bytes(self.path / "manifest.jsonl", json_lines(count_rows())), image_counts

    def _write_quarantine(self, failures: Iterable[Failure]) -> str:
        """Write the images that were left out, with the reasons; return the file's SHA-256."""
        rows = []
        for failure in failures:
            item = failure.item
            row = {"class_id": item.class_id, "index": item.rank, "origin": item.origin, "reason": failure.reason}
            rows.append(row)
        return files.write_bytes(self.path / "quarantine.jsonl", json_lines(rows))

    def _write_preview(self, plan: Plan) -> str:
        """Write the contact sheet; return the file's SHA-256."""

        def labelled_files() -> Iterator[tuple[Path, str]]:
            for row in self._rows(plan):
                if row["index"] < preview.COLUMNS:
                    yield self.path / row["file"], row["prompt"]

        sheet = np.asarray(preview.contact_sheet(labelled_files()))
        return files.write_bytes(self.path / "preview.png", to_bytes(sheet, "png"))

    def _save_class_prototypes(self, prototypes: Prototypes) -> dict[str, Any]:
        from safetensors.numpy import save

        names = ("centroids", "sizes", "inertia_share")
        data = save({name: getattr(prototypes, name) for name in names})
        file = f"prototypes/{prototypes.info.id:05d}.safetensors"
        return {"file": file, "bytes": len(data), "sha256": files.write_bytes(self.path / file, data)}

    def _save_image(self, form: ImageFormat, claims: Claims, sample: Sample) -> dict[str, Any]:
        """Write an image, whose directory is synced with its group; return its row of the manifest.

        One of a group that another process has taken over is not written: it may be committed already.
        """
        folder = files.make_directory(self.path / "images" / sample.info.folder)
        file = folder / f"{sample.index:05d}{FORMATS[form].suffix}"
        data = to_bytes(sample.pixels, form)
        group = claims.group_of(sample.info.id)
        sha256 = ""
        if claims.may_write(group.id):
            try:
                sha256 = files.write_bytes(file, data, sync_name=False)
            except PreflightError:
                if claims.holds(group.id):  # else the half-written file was swept, after the run was finished
                    raise
        # Of a class with fewer images than prototypes, each prototype is one of them, in turn.
        few = sample.class_images
        small_class = {} if few is None else {"class_images": few, "prototype": sample.index % few}
        return {
            "class_id": sample.info.id,
            "index": sample.index,
            "prompt": sample.info.prompt,
            "seed": sample.seed,
            "cluster_size": sample.cluster_size,
            "inertia_share": sample.inertia_share,
            "nearest": sample.nearest,
            "file": str(file.relative_to(self.path)),
            "bytes": len(data),
            "sha256": sha256,
            **small_class,
        }

    def _commit(self, group: Group, plan: Plan, claims: Claims, rows: list[dict[str, Any]], seconds: float) -> None:
        """Commit a group, unless another process has taken it over: then its record, or the other's work, stands."""
        # The names of the images must be durable before the record that says that they are there.
        for folder in sorted({(self.path / row["file"]).parent for row in rows}):
            files.sync_directory(folder)
        files.sync_directory(self.path / "images")
        prototypes = []
        for class_id in group.classes:
            if class_id in self._prototype_rows:
                prototypes.append(self._prototype_rows.pop(class_id))
        record = {
            "group": group.id,
            "batch_size": group.batch_size,
            "decode_batch": group.decode_batch,
            "out_of_memory": [entry for entry in plan.out_of_memory if entry["group"] == group.id],
            "seconds": round(seconds, 3),
            "images": rows,
            "prototypes": prototypes,
        }
        if all(row["sha256"] for row in rows) and claims.holds(group.id):
            write_record(self.path, self.fingerprint, record)
            self.committed(plan).add(group.id)
        claims.end(group.id)
