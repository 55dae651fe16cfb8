"""Stable Diffusion 1.5's sizes on a CPU, random weights: export, comparison, fp16 and TensorRT builds; time and memory.

    PYTHONPATH=tools python bench/real_size.py WORK --out bench/real_size.jsonl

Each step runs in a process of its own, whose peak memory is the operating system's figure. A step that is in --out
already is left out, so that the command goes on where it was stopped. WORK needs 20 GB.

Steps per network: `export` (fp32 ONNX), `compare` (one call of it in ONNX Runtime and in PyTorch, on random
numbers of latents' scale), `half` (fp16 with the maxima of that call), `build` (TensorRT for RTX, SM80 and SM89).
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import torch

from d4m_fast.engine.eager import open_eager
from d4m_fast.engine.model import Model, open_model
from d4m_fast.engine.ort import open_ort
from d4m_fast.engine.runtime import Tensors
from d4m_fast.engine.signature import COMPONENTS, SIGNATURES, Component
from d4m_fast.engine.trt_api import load_trt
from d4m_fast.export.calibration import activation_maxima
from d4m_fast.export.mixed import to_mixed_precision
from d4m_fast.export.to_onnx import export_onnx, opset_of
from d4m_fast.export.to_trt import BuildOptions, build_engine, ranges
from d4m_fast.measure.parity import compare

CPU = torch.device("cpu")
RESOLUTION = 512
TARGETS = ("sm80", "sm89")
MOST = {"unet": 32, "vae_encoder": 8, "vae_decoder": 8, "text_encoder": 16}
Row = dict[str, Any]


def call_of(model: Model, component: Component) -> Tensors:
    """Both halves of guidance for the UNet, one row for the others."""
    torch.manual_seed(0)
    signature, sizes = SIGNATURES[component], model.sizes(RESOLUTION)
    shapes = {name: signature.shape(name, sizes, signature.halves, samples=1) for name in signature.inputs}
    call = {name: torch.randn(shape) for name, shape in shapes.items() if name not in signature.integers}
    known = {"timestep": torch.tensor(701), "input_ids": torch.arange(sizes["tokens"])[None] + 1000}
    return {name: known[name] if name in signature.integers else call[name] for name in signature.inputs}


def export(model: Model, component: Component, work: Path) -> Row:
    path = work / f"{component}.onnx"
    report = export_onnx(
        model.path, component, path, sizes=model.sizes(RESOLUTION), opset=opset_of("tensorrt", component), metadata={}
    )
    return {
        "bytes": sum(f.stat().st_size for f in work.glob(f"{path.name}*")),
        "elements_per_row": report.elements_per_row,
        "attentions": report.operators.get("Attention", 0),
        "opset": report.opset,
    }


def compared(model: Model, component: Component, work: Path) -> Row:
    """Max-abs and relative L2 of ONNX Runtime against PyTorch, both in fp32."""
    call = call_of(model, component)
    expected = open_eager(model.path, component, CPU, torch.float32)(call)
    path, threads = work / f"{component}.onnx", torch.get_num_threads()
    ort = open_ort(path, component, model.sizes(RESOLUTION), CPU, threads=threads)
    (found,) = compare(component, lambda _: expected, ort, [call], (), 8.0)  # type: ignore[arg-type]
    return {"max_abs": found.max_abs, "relative_l2": found.relative_l2, "guided_l2": found.guided_l2}


def half(model: Model, component: Component, work: Path) -> Row:
    source, target = work / f"{component}.onnx", work / f"{component}.fp16.onnx"
    feed = {name: x.numpy() for name, x in call_of(model, component).items()}
    report = to_mixed_precision(source, target, activation_maxima(source, [feed], threads=torch.get_num_threads()))
    return {
        "bytes": sum(f.stat().st_size for f in work.glob(f"{target.name}*")),
        "largest_fp16_activation": report.largest_fp16_activation,
        "fp32_nodes": len(report.fp32_nodes),
        "fp16_nodes": report.fp16_nodes,
    }


def build(model: Model, component: Component, work: Path) -> Row:
    import onnx

    source = work / f"{component}.fp16.onnx"
    nodes = onnx.load(source, load_external_data=False).graph.node
    exported = json.loads((work / f"{component}.export.json").read_text())
    most = min(MOST[component], (2**31 - 1) // exported["elements_per_row"])
    report = build_engine(
        load_trt("tensorrt-rtx"),
        source,
        work / f"{component}.engine",
        component,
        model.sizes(RESOLUTION),
        ranges(most, None),
        BuildOptions("fp16", TARGETS),
        attentions=sum(node.op_type == "Attention" for node in nodes),
        say=lambda phase: None,
    )
    return {
        "bytes": report.bytes,
        "attentions": report.attentions,
        "targets": TARGETS,
        "most_rows": most,
        "build_seconds": report.seconds,
    }


STEPS: dict[str, Callable[[Model, Component, Path], Row]] = {
    "export": export,
    "compare": compared,
    "half": half,
    "build": build,
}


def in_a_process(step: str, component: Component, work: Path) -> Row:
    """The step's figures with its wall time and the peak memory of its process."""
    result, start = work / f"{component}.{step}.json", time.monotonic()
    arguments = [sys.executable, __file__, str(work), "--step", step, "--component", component]
    child = os.spawnv(os.P_NOWAIT, sys.executable, arguments)
    _, status, usage = os.wait4(child, 0)
    if status:
        raise SystemExit(f"{step} of {component} failed")
    figures: Row = json.loads(result.read_text())
    return {
        "component": component,
        "step": step,
        "seconds": time.monotonic() - start,
        "peak_bytes": usage.ru_maxrss * 1024,
        **figures,
    }


@click.command(help=__doc__)
@click.argument("work", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), default="bench/real_size.jsonl", show_default=True)
@click.option("--step", type=click.Choice(list(STEPS)), hidden=True)
@click.option("--component", type=click.Choice(COMPONENTS), hidden=True)
def main(work: Path, out: Path, step: str | None, component: Component | None) -> None:
    model_path = work / "model"
    if step is not None and component is not None:
        figures = STEPS[step](open_model(str(model_path)), component, work)
        (work / f"{component}.{step}.json").write_text(json.dumps(figures))
        return
    if not (model_path / "model_index.json").is_file():
        from random_model import write

        write(model_path, "sd15")
    done = [json.loads(line) for line in out.read_text().splitlines()] if out.is_file() else []
    known = {(row["component"], row["step"]) for row in done}
    for part in ("text_encoder", "unet", "vae_decoder", "vae_encoder"):
        for name in STEPS:
            if (part, name) not in known:
                with out.open("a") as file:
                    file.write(json.dumps(in_a_process(name, part, work)) + "\n")


if __name__ == "__main__":
    main()
