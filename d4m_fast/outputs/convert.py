"""Conversion of a finished run on one page: open, write what is missing, mark complete."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, BinaryIO

from d4m_fast import __version__
from d4m_fast.config.choices import OutputForm
from d4m_fast.config.convert import ConvertConfig
from d4m_fast.config.distill import DistillConfig
from d4m_fast.errors import UsageError
from d4m_fast.flow.progress import Listener
from d4m_fast.flow.stopwatch import Stopwatch
from d4m_fast.flow.stream import Stream
from d4m_fast.flow.workers import Workers
from d4m_fast.outputs.finished_run import FinishedRun, open_finished, require_run
from d4m_fast.outputs.form import Form, Shard
from d4m_fast.outputs.forms import FORMS
from d4m_fast.runs.output_files import OUTPUTS, FileSum, OutputDirectory
from d4m_fast.storage import files
from d4m_fast.storage.locks import locked

WRITERS = 4  # threads, a file each; reading, hashing and writing let one another run
QUEUED = 64  # files that may wait for the writers


def require_form(form: OutputForm) -> None:
    """Refuse a form whose library is missing.

    Raises:
        PreflightError: it is not installed.
    """
    FORMS[form].versions()


def derive(path: Path, name: OutputForm, progress: Listener) -> dict[str, Any] | None:
    """Put a finished run into the form that `distill` was asked for, in the run; None for what it holds already.

    Errors are those of `convert`.
    """
    if name == DistillConfig.output:
        return None
    return convert(path, name, path / OUTPUTS / name, ConvertConfig(), progress)


def convert(path: Path, name: OutputForm, out: Path, config: ConvertConfig, progress: Listener) -> dict[str, Any]:
    """Put a finished run into another form, as far as that is not done; returns what is there then.

    Every image's bytes are compared with the run's manifest while they are read. Files of an output that is not
    complete are kept, and the others made; a complete one is left as it is.

    Args:
        path: of the run.
        name: of the form.

    Raises:
        UsageError: an option that the form does not take, or a place inside the run's own folders.
        DataError, RunDirectoryError: no such run, one that is not finished, or `out` holds something else.
        DamageError: an image is not what the manifest says.
        PreflightError: no room, no permission, a missing library.
    """
    form = FORMS[name]
    versions = {"d4m-fast": __version__, **form.versions()}
    require_run(path)
    _require_outside(path, out)
    with locked(path, read_only=True):
        run = form.arranged(open_finished(path), config)
        options = {setting: value for setting, value in asdict(config).items() if setting in form.settings}
        origin = {"form": name, "run": run.fingerprint, "manifest_sha256": run.manifest_sha256, "options": options}
        shards = form.shards(run, config)
        with locked(files.make_directory(out)):
            output = OutputDirectory(out, origin, versions)
            missing = [shard for shard in shards if not _is_done(output, shard)]
            if missing or not _is_whole(output):
                _require_room(output, run, form)
                output.begin()
                progress.follow("convert", _write(output, run, form, shards))
                _finish(output, run, form, config)
            return _result(path, out, name, run, output)


def _require_outside(run: Path, out: Path) -> None:
    """Refuse a place in a run for which `verify` would take what is there for foreign."""
    inside = out.resolve()
    if inside.is_relative_to(run.resolve()) and not inside.is_relative_to((run / OUTPUTS).resolve()):
        raise UsageError(f"--out {out}: lies in the run itself; choose another, or one in {run / OUTPUTS}")


def _is_done(output: OutputDirectory, shard: Shard) -> bool:
    """Return whether a shard has its name, and the size that is recorded, or known beforehand."""
    file_sum = output.files.get(shard.name) if shard.sum is None else shard.sum
    return file_sum is not None and output.is_present(shard.name, file_sum)


def _is_whole(output: OutputDirectory) -> bool:
    """Return whether the record says that all is there, and all that it names is."""
    return output.complete and all(output.is_present(*item) for item in output.files.items())


def _require_room(output: OutputDirectory, run: FinishedRun, form: Form) -> None:
    size = sum(image.bytes + form.overhead for image in run.images)
    present = files.bytes_on_disk(output.path)
    files.require_room(files.Need(output.path, max(0, size - present), "the output's files"))


def _write(output: OutputDirectory, run: FinishedRun, form: Form, shards: Sequence[Shard]) -> Stream[object]:
    """Write the shards that are missing, several at a time, and record them in their order; yields each image."""

    def write_shard(shard: Shard) -> tuple[Shard, FileSum | None]:
        """Write a shard; of one that is there already, return no sum."""
        if _is_done(output, shard):
            return shard, None

        def write(file: BinaryIO) -> None:
            form.write(file, shard, run)

        # The names of files whose sums are known beforehand are synced all together, before the output is complete.
        return shard, output.write(shard.name, write, sync_name=shard.sum is None)

    def images() -> Iterator[object]:
        with Workers(Stopwatch()) as workers:
            written = workers.map(
                write_shard, Stream(len(shards), shards), threads=WRITERS, depth=QUEUED, name="convert"
            )
            for shard, file_sum in written:
                if file_sum is not None and shard.sum is None:
                    output.record(shard.name, file_sum)
                yield from shard.images

    return Stream(len(run.images), images())


def _finish(output: OutputDirectory, run: FinishedRun, form: Form, config: ConvertConfig) -> None:
    """Write the documents, and mark the output complete."""
    for name, data in form.documents(run, config, output.files).items():

        def write(file: BinaryIO, data: bytes = data) -> None:
            file.write(data)

        output.record(name, output.write(name, write))
    if form.images_in is not None:
        for distilled_class in run.classes:
            files.sync_directory(output.path / distilled_class.folder)
        files.sync_directory(output.path)
    output.finish(len(run.images), form.images_in)


def _result(path: Path, out: Path, name: OutputForm, run: FinishedRun, output: OutputDirectory) -> dict[str, Any]:
    size = sum(file_sum["bytes"] for file_sum in output.files.values())
    count = len(output.files)
    if FORMS[name].images_in is not None:
        size += sum(image.bytes for image in run.images)
        count += len(run.images)
    return {
        "run": str(path),
        "form": name,
        "out": str(out),
        "images": len(run.images),
        "classes": len(run.classes),
        "files": count,
        "bytes": size,
    }
