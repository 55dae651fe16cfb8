"""`d4m_fast.distill`, and the run that it and `d4m-fast distill` make."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Unpack

from d4m_fast.api.runs import Run
from d4m_fast.api.signatures import with_options_of
from d4m_fast.api.surroundings import Callback, Progress, library_call
from d4m_fast.config.distill import DistillConfig
from d4m_fast.config.keywords import DistillOptions
from d4m_fast.config.launch import LaunchConfig
from d4m_fast.config.values import config_from
from d4m_fast.console import class_lines
from d4m_fast.errors import require
from d4m_fast.flow.progress import Listener
from d4m_fast.flow.stopwatch import Stopwatch


@with_options_of(DistillConfig)
def distill(
    config: DistillConfig | None = None,
    *,
    out: str | os.PathLike[str] | None = None,
    artifacts: str | os.PathLike[str] | None = None,
    launch: LaunchConfig | None = None,
    progress: Progress | None = None,
    **options: Unpack[DistillOptions],
) -> Run:
    """Distill a dataset: encode, cluster, generate, write. The same call again goes on where the last one stopped.

    It makes the bytes that `d4m-fast distill` makes of the same options. Images that could not be read are left out,
    up to `max_bad_fraction` of all; `summary["quarantined"]` has their number.

    Args:
        config: what the options change; the defaults when omitted.
        out: run directory; runs/<config hash> when omitted.
        artifacts: where latents are kept; the user's cache when omitted.
        launch: how many processes work on the run; this one alone when omitted.
        progress: called with (stage, done, total) of the stages "encode" and "distill", those that have something to
            do, first with done = 0. An exception of it ends the call.
        options: fields of `DistillConfig`; a preset brings its own settings.

    Raises:
        D4MError: one line that says what is wrong; what is committed stays.
    """
    request = config_from(DistillConfig, config, options)
    with library_call():
        summary = finish_run(
            request,
            LaunchConfig() if launch is None else launch,
            None if out is None else Path(os.fspath(out)),
            None if artifacts is None else Path(os.fspath(artifacts)),
            Callback(progress),
        )
    return Run(Path(summary["run"]))


def finish_run(
    config: DistillConfig, launch: LaunchConfig, out: Path | None, artifacts: Path | None, listener: Listener
) -> dict[str, Any]:
    """Do what is missing of a run, and return its summary with the run's place; arguments are those of `distill`.

    Raises:
        D4MError: why it cannot go on.
    """
    watch = Stopwatch()
    with watch("import"):
        import diffusers.schedulers  # noqa: F401  # what `prepare` reads the schedule off

        from d4m_fast.job import default_artifacts, prepare, require_disk
        from d4m_fast.launch.launch import launched
        from d4m_fast.outputs.convert import derive, require_form
    require_form(config.output)
    require(
        launch.shard is None or config.output == "imagefolder",
        "--output: a shard is not the whole run; merge the shards, and d4m-fast convert the result",
    )
    cache = default_artifacts() if artifacts is None else artifacts
    with watch("open"):
        job = prepare(config, artifacts=cache, run=out)
    listener.say(f"engine: {job.engine_reason}")
    listener.say(f"preset: {job.preset_line}")
    for line in class_lines(job.source):
        listener.say(line)
    if job.model.weights_line:
        listener.say(f"weights: {job.model.weights_line}")
    run = job.default_run() if out is None else out
    require_disk(job, run, cache)
    summary = launched(job, launch, run, cache, watch, listener)
    output = derive(run, config.output, listener)
    # Where it lies now: one that was moved has the old path on record.
    return {**summary, "run": str(run), "output": output}
