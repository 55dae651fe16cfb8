"""Generation with the reference preset on every engine: images per second, in one process, the engines taking turns.

    python bench/engines.py --batches 1,16,64,128,256
    python tools/random_model.py medium /tmp/medium
    python bench/engines.py --model /tmp/medium --steps 4 --strength 0.5 --batches 1,4,8,16

Whole images, noise to pixels, prompts embedded beforehand where the engine allows it: of the bundled model, or, with 4
steps at strength 0.5, three UNet calls and one decode of another. Rows: (a)
diffusers' pipeline, one image per call; (b) diffusers' pipeline on a batch; (c) our loop on PyTorch; (d) our loop on
ONNX Runtime; (e) our loop on torch.compile. Each figure is the median of the rounds. The matrix product's peak is
measured in the same run.
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import click
import torch

from d4m_fast.allocator import keep_freed_memory
from d4m_fast.config import NEGATIVE_PROMPT
from d4m_fast.engine.eager import open_eager
from d4m_fast.engine.generate import PromptTable, denoise
from d4m_fast.engine.model import Model, open_model
from d4m_fast.engine.networks import Networks, open_networks
from d4m_fast.engine.ort import open_ort
from d4m_fast.engine.schedule import Schedule, open_schedule
from d4m_fast.engine.signature import COMPONENTS
from d4m_fast.export.hoist import hoist_context
from d4m_fast.export.to_onnx import export_onnx, opset_of

CPU = torch.device("cpu")
PAUSE = 0.1  # seconds, for the threads of the last engine to go to sleep
Make = Callable[[], object]


def diffusers_pipeline(model: Model) -> Any:
    from diffusers import StableDiffusionImg2ImgPipeline

    pipeline = StableDiffusionImg2ImgPipeline.from_pretrained(model.path, dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def by_diffusers(pipeline: Any, latents: torch.Tensor, prompts: list[str], steps: int, strength: float) -> object:
    return pipeline(
        prompt=prompts,
        image=latents,
        strength=strength,
        guidance_scale=8,
        num_inference_steps=steps,
        negative_prompt=[NEGATIVE_PROMPT] * len(prompts),
        generator=[torch.Generator().manual_seed(i) for i in range(len(prompts))],
        output_type="np",
    ).images


def by_us(
    networks: Networks, schedule: Schedule, table: PromptTable, latents: torch.Tensor, prompts: list[str]
) -> object:
    states = table(prompts, 8.0)
    noised = schedule.signal * latents + schedule.noise * torch.randn_like(latents)
    return networks.vae_decoder(denoise(noised, states, networks.unet, schedule, 8.0))


def exported(model: Model, folder: Path) -> Networks:
    sizes = model.sizes(model.resolution)
    for component in COMPONENTS:
        file = folder / f"{component}.onnx"
        opset = opset_of("onnx", component)
        export_onnx(model.path, component, file, sizes=sizes, opset=opset, metadata={}, for_ort=True)
    hoist_context(folder / "unet.onnx", folder / "unet.context.onnx")
    eager = open_networks(model.path, CPU, torch.float32)
    return eager.with_runtimes(lambda c: open_ort(folder / f"{c}.onnx", c, sizes, CPU, threads=torch.get_num_threads()))


def engines(model: Model, folder: Path, compiled: bool) -> dict[str, Networks]:
    eager = open_networks(model.path, CPU, torch.float32)
    found = {"(c) our loop, PyTorch": eager, "(d) our loop, ONNX Runtime": exported(model, folder)}
    if compiled:
        compile_all = eager.with_runtimes(lambda c: open_eager(model.path, c, CPU, torch.float32, compiled=True))
        found["(e) our loop, torch.compile"] = compile_all
    return found


def matrix_peak(side: int = 2048, rounds: int = 7) -> float:
    """GFLOP/s of a square fp32 matrix product."""
    a, b = torch.randn(side, side), torch.randn(side, side)
    return 2 * side**3 / min(seconds(lambda: torch.mm(a, b)) for _ in range(rounds)) / 1e9


def seconds(make: Make) -> float:
    start = time.perf_counter()
    make()
    return time.perf_counter() - start


def flops_per_image(model: Model, schedule: Schedule) -> float:
    """Counted by PyTorch on the UNet and the decoder: two UNet rows per step, one decoding."""
    from torch.utils.flop_counter import FlopCounterMode

    networks, sizes = open_networks(model.path, CPU, torch.float32), model.sizes(model.resolution)
    latents = torch.zeros(2, sizes["channels"], sizes["h"], sizes["w"])
    states = torch.zeros(2, sizes["tokens"], sizes["width_text"])
    with FlopCounterMode(display=False) as unet:
        networks.unet(latents, torch.tensor(1), states, 1.0)
    with FlopCounterMode(display=False) as decoder:
        networks.vae_decoder(latents[:1])
    return float(len(schedule.steps) * unet.get_total_flops() + decoder.get_total_flops())


def alternate(rows: dict[str, Make], rounds: int) -> dict[str, float]:
    """Median seconds of each row; the first round warms up."""
    taken: dict[str, list[float]] = {name: [] for name in rows}
    for _ in range(1 + rounds):
        for name, make in rows.items():
            time.sleep(PAUSE)
            taken[name].append(seconds(make))
    return {name: statistics.median(values[1:]) for name, values in taken.items()}


@click.command(help=__doc__)
@click.option("--batches", default="1,16,64,128,256", show_default=True)
@click.option("--model", "name", default="bundled", show_default=True)
@click.option("--steps", default=50, show_default=True)
@click.option("--strength", default=0.7, show_default=True)
@click.option("--rounds", default=5, show_default=True)
@click.option("--compiled/--no-compiled", default=True, show_default=True, help="With torch.compile: a minute a batch.")
@torch.inference_mode()
def main(batches: str, name: str, steps: int, strength: float, rounds: int, compiled: bool) -> None:
    keep_freed_memory()
    model = open_model(name)
    schedule = open_schedule(model.path, steps, strength)
    pipeline, flops, peak = diffusers_pipeline(model), flops_per_image(model, schedule), matrix_peak()
    with tempfile.TemporaryDirectory() as folder:
        ours = engines(model, Path(folder), compiled)
        tables = {name: PromptTable(networks, NEGATIVE_PROMPT) for name, networks in ours.items()}
        base = 0.0
        for batch in map(int, batches.split(",")):
            latents, prompts = torch.randn(batch, *model.latent_shape(model.resolution)), ["shirt"] * batch
            rows: dict[str, Make] = {
                "(b) diffusers, batched": partial(by_diffusers, pipeline, latents, prompts, steps, strength),
                **{n: partial(by_us, net, schedule, tables[n], latents, prompts) for n, net in ours.items()},
            }
            if batch == 1:
                rows = {"(a) diffusers, one image per call": rows.pop("(b) diffusers, batched"), **rows}
            for label, spent in alternate(rows, rounds).items():
                rate = batch / spent
                base = rate if label.startswith("(a)") else base
                gflops = rate * flops / 1e9
                row = {"row": label, "batch": batch, "images_per_second": rate, "ratio": rate / base if base else None}
                click.echo(json.dumps({**row, "gflops": gflops, "share_of_matrix_product": gflops / peak}))


if __name__ == "__main__":
    main()
