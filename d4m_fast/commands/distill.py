"""`d4m-fast distill`: options, the run, and what came of it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, get_args

import click

from d4m_fast.config import DistillConfig, Engine
from d4m_fast.console import Progress, distilled_lines, say, say_classes, say_result, say_weights
from d4m_fast.errors import EXIT_QUARANTINED
from d4m_fast.options import THREADS, auto_or_number, chosen, generation, of_config, shared


@click.command()
@of_config("--data", str, "'bundled', or a directory: an ImageFolder, IDX or CIFAR files.")
@of_config("--model", str, "'bundled', a directory in diffusers format, or a hub id.")
@of_config("--revision", str, "Commit, tag or branch of a model from the hub.  [default: main, recorded as a commit]")
@of_config("--ipc", click.IntRange(min=1), "Images per class.")
@of_config("--classes", str, "Only these ids, ranges or folder names, comma-separated; ids stay those of the full set.")
@click.option("--out", type=click.Path(path_type=Path), help="Run directory.  [default: runs/<config hash>]")
@click.option("--artifacts", type=click.Path(path_type=Path), help="Where latents are kept.  [default: user cache]")
@generation
@of_config("--kmeans", click.Choice(["auto", "gram", "direct", "minibatch"]), "minibatch is the official code's.")
@of_config("--kmeans-on", click.Choice(["cpu", "gpu"]), "gpu: CuPy kernels, on --device; not yet run on one by us.")
@of_config("--prototype", click.Choice(["mean", "medoid"]), "Cluster mean, or the real latent nearest to it.")
@of_config("--latent", click.Choice(["sample", "mean"]), "Draw from the VAE's posterior, or take its mean.")
@of_config("--resolution", click.IntRange(min=1), "Side of encoded and generated images.  [default: the model's]")
@of_config("--image-size", click.IntRange(min=1), "Side of the written images.  [default: the resolution]")
@of_config("--format", click.Choice(["png", "jpeg", "webp"]), "png is lossless; jpeg (4:4:4) and webp have quality 95.")
@of_config("--prompts", str, "'official', or a file of prompts.  [default: class names]")
@of_config("--allow-unknown-prompts/--no-allow-unknown-prompts", bool, "Prompts the model says it does not know, too.")
@of_config("--negative-prompt", str, "Prompt to be guided away from.")
@of_config("--seed", int, "Seed of the run.")
@of_config(
    "--batch-size", auto_or_number, "Most images per batch of generation; auto: by memory, and probed in long runs."
)
@of_config("--threads", THREADS, "CPU threads.  [default: one per core]")
@of_config("--engine", click.Choice(get_args(Engine)), "What computes the networks.")
@of_config("--precision", click.Choice(["auto", "fp32", "fp16"]), "auto: fp16 on GPUs, fp32 on CPUs.")
@of_config("--compile/--no-compile", bool, "UNet and VAE through torch.compile; for --engine torch.")
@of_config("--device", str, "auto, cpu, cuda or cuda:1.")
@of_config(
    "--max-bad-fraction",
    click.FloatRange(0, 1, max_open=True),
    "Unreadable images tolerated, as a part of all.",
)
@shared
def distill(out: Path | None, artifacts: Path | None, as_json: bool, quiet: bool, **options: Any) -> None:
    """Distill a dataset: encode, cluster, generate, write. A re-run goes on where the last one stopped.

    \b
    d4m-fast distill
    d4m-fast distill --data imagenet/train --model stable-diffusion-v1-5 --ipc 50 --image-size 224 --out in1k-50
    """
    from d4m_fast.flow.stopwatch import Stopwatch

    config, watch = DistillConfig.of_preset(**chosen(options)), Stopwatch()
    with watch("import"):
        import diffusers.schedulers  # noqa: F401  # what `prepare` reads the schedule off

        from d4m_fast import pipeline
        from d4m_fast.job import default_artifacts, prepare, require_disk
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
    summary = pipeline.distill(job, run, cache, watch, Progress(quiet))
    summary = {**summary, "run": str(run)}  # where it lies now: one that was moved has the old path on record
    say_result(summary, as_json, lambda: distilled_lines(summary))
    if summary["quarantined"]:
        sys.exit(EXIT_QUARANTINED)
