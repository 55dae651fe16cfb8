"""`d4m-fast distill`: options, the run, and what came of it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from d4m_fast.config.distill import DistillConfig
from d4m_fast.config.fields import Group
from d4m_fast.config.launch import LaunchConfig
from d4m_fast.console import Progress, distilled_lines, say, say_classes, say_result, say_weights
from d4m_fast.errors import EXIT_QUARANTINED, require
from d4m_fast.options import PATH, command, config_of, option, options_of


@command
@options_of(DistillConfig)
@options_of(LaunchConfig)
@option("--out", group=Group.EVERYDAY, type=PATH, help="Run directory.  [default: runs/<config hash>]")
@option("--artifacts", group=Group.OUTPUT, type=PATH, help="Where latents are kept.  [default: user cache]")
def distill(out: Path | None, artifacts: Path | None, as_json: bool, quiet: bool, **options: Any) -> None:
    """Distill a dataset: encode, cluster, generate, write. A re-run goes on where the last one stopped.

    \b
    Examples:
      d4m-fast distill
      d4m-fast distill --classes 1,8 --ipc 1 --steps 5 --out runs/two-images
      d4m-fast distill --data imagenet/train --model stable-diffusion-v1-5 --ipc 50 --image-size 224 --out in1k-50
    """
    from d4m_fast.flow.stopwatch import Stopwatch

    # Before the imports, which take seconds: a wrong option is answered at once.
    config, launch, watch = config_of(DistillConfig, options), config_of(LaunchConfig, options), Stopwatch()
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
    if not quiet:
        say(f"engine: {job.engine_reason}")
        say(f"preset: {job.preset_line}")
        say_classes(job.source)
    say_weights(job.model.weights_line, quiet)
    run = job.default_run() if out is None else out
    require_disk(job, run, cache)
    summary = launched(job, launch, run, cache, watch, Progress(quiet))
    output = derive(run, config.output, Progress(quiet))
    # Where it lies now: one that was moved has the old path on record.
    summary = {**summary, "run": str(run), "output": output}
    say_result(summary, as_json, lambda: distilled_lines(summary))
    if summary["quarantined"]:
        sys.exit(EXIT_QUARANTINED)
