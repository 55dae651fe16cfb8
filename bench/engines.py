"""Generation with the reference preset on every engine: images per second, in one process, the engines taking turns.

    for batch in 1 16 64; do python bench/engines.py --batches $batch >> engines.jsonl; done
    python bench/engines.py --batches 128,256 >> engines.jsonl
    python tools/random_model.py medium medium-model
    python bench/engines.py --model medium-model --steps 4 --strength 0.5 --batches 1,4,8,16 >> engines.jsonl
    python bench/engines.py --table engines.jsonl

Whole images, noise to pixels, prompts embedded beforehand where the engine allows it: of the bundled model, or, with 4
steps at strength 0.5, three UNet calls and one decode of another. Rows: (a)
diffusers' pipeline, one image per call; (b) diffusers' pipeline on a batch; (c) our loop on PyTorch; (d) our loop on
ONNX Runtime; (e) our loop on torch.compile, with a minute of compiling per batch before the clock starts. A line is one
row in one round: the engines take turns, each after one short run of its own shape; (a) and the matrix product's peak
are measured in every round, for ratios within it. `--table` prints the medians over all rounds of a file.
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import click
import torch

from d4m_fast.allocator import keep_freed_memory
from d4m_fast.config.distill import NEGATIVE_PROMPT
from d4m_fast.engine.denoise import denoise
from d4m_fast.engine.finite import FiniteCheck
from d4m_fast.engine.generate import PromptTable
from d4m_fast.engine.model import Model, open_model
from d4m_fast.engine.networks import Networks, open_networks
from d4m_fast.engine.ort import open_ort
from d4m_fast.engine.schedule import Schedule, open_schedule
from d4m_fast.engine.signature import COMPONENTS
from d4m_fast.export.hoist import hoist_context
from d4m_fast.export.to_onnx import export_onnx, opset_of
from d4m_fast.sources.records import ClassInfo

CPU = torch.device("cpu")
PAUSE = 0.1  # seconds, for the threads of the last engine to go to sleep
SHORT = (2, 1.0)  # steps and strength of the warm-up: two UNet calls and a decode
ONE = "(a) diffusers, one image per call"
COLUMNS = {  # of the table; (a) stands in the line of batch 1
    ONE: "diffusers' pipeline",
    "(b) diffusers, batched": "diffusers' pipeline",
    "(c) our loop, PyTorch": "our loop, PyTorch",
    "(e) our loop, torch.compile": "our loop, torch.compile",
    "(d) our loop, ONNX Runtime": "our loop, ONNX Runtime",
}
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
    check, classes = FiniteCheck(), [ClassInfo(i, str(i), prompt) for i, prompt in enumerate(prompts)]
    noised = schedule.signal * latents + schedule.noise * torch.randn_like(latents)
    clean = denoise(noised, table(classes, 8.0), networks.unet, schedule, 8.0, check=check)
    pixels = networks.vae_decoder(clean, check)
    check.read()([(info, 0) for info in classes])
    return pixels


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
        found["(e) our loop, torch.compile"] = open_networks(model.path, CPU, torch.float32, compiled=True)
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


def alternate(rows: dict[str, Make], rounds: int) -> Iterator[dict[str, float]]:
    """Seconds of each row, round by round."""
    for _ in range(rounds):
        taken = {}
        for name, make in rows.items():
            time.sleep(PAUSE)
            taken[name] = seconds(make)
        yield taken


def rows_of(
    model: Model, pipeline: Any, ours: dict[str, Networks], batch: int, steps: int, strength: float
) -> dict[str, Make]:
    """What is timed at a batch; (a) is one image."""
    schedule = open_schedule(model.path, steps, strength)
    latents, prompts = torch.randn(batch, *model.latent_shape(model.resolution)), ["shirt"] * batch
    tables = {name: PromptTable(networks, NEGATIVE_PROMPT) for name, networks in ours.items()}
    one = {ONE: partial(by_diffusers, pipeline, latents[:1], prompts[:1], steps, strength)}
    many = {"(b) diffusers, batched": partial(by_diffusers, pipeline, latents, prompts, steps, strength)}
    loops = {n: partial(by_us, net, schedule, tables[n], latents, prompts) for n, net in ours.items()}
    return {**one, **(many if batch > 1 else {}), **loops}


def lines(rows: dict[str, Make], batch: int, rounds: int, flops: float) -> Iterator[dict[str, Any]]:
    """One per row and round; the peak and (a) are those of the same round."""
    for taken in alternate(rows, rounds):
        peak = matrix_peak()
        rates = {name: (1 if name == ONE else batch) / spent for name, spent in taken.items()}
        for name, rate in rates.items():
            gflops = rate * flops / 1e9
            row = {"row": name, "batch": 1 if name == ONE else batch, "images_per_second": rate, "gflops": gflops}
            yield {**row, "ratio": rate / rates[ONE], "share_of_matrix_product": gflops / peak}


def table(file: Path, model: str) -> str:
    """Return a model's medians over rounds as Markdown: images/s, times (a), and share of the matrix product's peak."""
    cells: dict[tuple[int, str], list[dict[str, Any]]] = {}
    for line in map(json.loads, file.read_text().splitlines()):
        if line["model"] == model:
            cells.setdefault((line["batch"], COLUMNS[line["row"]]), []).append(line)
    names = list(dict.fromkeys(COLUMNS.values()))
    lines = [f"| batch | {' | '.join(names)} | rounds |", "|---" * (2 + len(names)) + "|"]
    for batch in sorted({batch for batch, _ in cells}):
        shown = (cell(cells.get((batch, name), [])) for name in names)
        rounds = min(len(found) for (size, _), found in cells.items() if size == batch)
        lines.append(f"| {batch} | {' | '.join(shown)} | {rounds} |")
    return "\n".join(lines)


def cell(rounds: list[dict[str, Any]]) -> str:
    """Return one row's medians at a batch."""
    if not rounds:
        return ""
    rate, ratio, share = (
        statistics.median(line[name] for line in rounds)
        for name in ("images_per_second", "ratio", "share_of_matrix_product")
    )
    return f"{rate:.2f} ({ratio:.2f}, {100 * share:.0f} %)"


def models(file: Path) -> list[str]:
    """Return the models of a file, in its order."""
    return list(dict.fromkeys(json.loads(line)["model"] for line in file.read_text().splitlines()))


@click.command(help=__doc__)
@click.option("--batches", default="1,16,64,128,256", show_default=True)
@click.option("--model", "name", default="bundled", show_default=True)
@click.option("--steps", default=50, show_default=True)
@click.option("--strength", default=0.7, show_default=True)
@click.option("--rounds", default=5, show_default=True)
@click.option("--compiled/--no-compiled", default=True, show_default=True, help="With torch.compile: a minute a batch.")
@click.option("--table", "shown", type=click.Path(path_type=Path), help="Print such a file's tables, instead.")
@torch.inference_mode()
def main(
    batches: str,
    name: str,
    steps: int,
    strength: float,
    rounds: int,
    compiled: bool,
    shown: Path | None,
) -> None:
    if shown is not None:
        for found in models(shown):
            click.echo(f"{found}\n{table(shown, found)}\n")
        return
    keep_freed_memory()
    model = open_model(name)
    pipeline, flops = diffusers_pipeline(model), flops_per_image(model, open_schedule(model.path, steps, strength))
    with tempfile.TemporaryDirectory() as folder:
        ours = engines(model, Path(folder), compiled)
        for batch in map(int, batches.split(",")):
            for make in rows_of(model, pipeline, ours, batch, *SHORT).values():
                make()
            for line in lines(rows_of(model, pipeline, ours, batch, steps, strength), batch, rounds, flops):
                click.echo(json.dumps({"model": Path(name).name, "steps": steps, "strength": strength, **line}))


if __name__ == "__main__":
    main()
