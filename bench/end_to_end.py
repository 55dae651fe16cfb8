"""`distill` from end to end against the time of its UNet and VAE calls alone, in one process, taking turns.

    python bench/end_to_end.py --classes 0-2 --rounds 5

"alone" makes the calls that the run's plan says, of the same networks on random tensors: nothing is read, clustered,
seeded, written or waited for. Both open their networks anew in each round; imports come before both and are given
apart. A run's time is that of `prepare` and of everything after it, into empty directories.
"""

from __future__ import annotations

import json
import math
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import click

from d4m_fast.config.distill import DistillConfig

STARTED = time.perf_counter()


def distilled(config: DistillConfig, folder: Path) -> dict[str, Any]:
    """A run's summary, with the seconds of all of it."""
    from d4m_fast import pipeline
    from d4m_fast.console import Progress
    from d4m_fast.flow.stopwatch import Stopwatch
    from d4m_fast.job import prepare

    before = time.perf_counter()
    job = prepare(config, artifacts=folder / "artifacts", run=folder / "run")
    summary = pipeline.distill(job, folder / "run", folder / "artifacts", Stopwatch(), Progress(quiet=True))
    return {**summary, "wall": time.perf_counter() - before}


def alone(config: DistillConfig, folder: Path) -> float:
    """Seconds of the same networks' calls, batch by batch as the run's plan has them."""
    import torch

    from d4m_fast.engine.schedule import open_schedule
    from d4m_fast.job import prepare
    from d4m_fast.runs.plan import Plan

    job = prepare(config, artifacts=folder / "artifacts", run=folder / "run")
    plan = Plan.from_json(json.loads((folder / "run" / "plan.json").read_text()))
    schedule = open_schedule(job.model.path, config.steps, config.strength)
    before = time.perf_counter()
    networks, shape, side = job.open_networks(), job.latent_shape, job.resolution
    timesteps = torch.tensor([step.timestep for step in schedule.steps])
    with torch.inference_mode():
        for start in range(0, len(job.source.items), plan.encode_batch):
            networks.vae_encoder(torch.randn(min(plan.encode_batch, len(job.source.items) - start), 3, side, side))
        for group in plan.groups:
            states = torch.randn(2 * group.batch_size, job.model.tokens, job.model.width_text)
            for _ in range(math.ceil(len(group.classes) * config.ipc / group.batch_size)):
                latents = torch.randn(group.batch_size, *shape)
                for timestep in timesteps:
                    networks.unet(latents, timestep, states, config.guidance)
                for part in torch.split(latents, group.decode_batch):
                    networks.vae_decoder(part)
    return time.perf_counter() - before


@click.command(help=__doc__)
@click.option("--classes", help="Of the bundled images.  [default: all]")
@click.option("--ipc", default=50, show_default=True)
@click.option("--rounds", default=5, show_default=True)
@click.option("--warm/--no-warm", default=True, show_default=True, help="An unmeasured small run first.")
def main(classes: str | None, ipc: int, rounds: int, warm: bool) -> None:
    from d4m_fast import pipeline  # noqa: F401

    imports = time.perf_counter() - STARTED
    config = DistillConfig(ipc=ipc, classes=classes, engine="torch")
    ratios = []
    if warm:
        with tempfile.TemporaryDirectory() as folder:
            distilled(DistillConfig(ipc=1, classes="0", engine="torch"), Path(folder))
    for _ in range(rounds):
        with tempfile.TemporaryDirectory() as folder:
            summary = distilled(config, Path(folder))
            calls = alone(config, Path(folder))
        ratios.append(summary["wall"] / calls)
        row = {"images": summary["images"], "wall": summary["wall"], "alone": calls, "ratio": ratios[-1]}
        times = {"seconds": summary["seconds"], "waits": summary["waits"], "imports": imports}
        click.echo(json.dumps({**row, **times}))
    click.echo(json.dumps({"rounds": rounds, "median_ratio": statistics.median(ratios)}))


if __name__ == "__main__":
    main()
