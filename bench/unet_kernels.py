"""Where the time of a UNet call goes in ONNX Runtime, kernel by kernel, on one core, beside what that core can do.

    python bench/unet_kernels.py --rows 64
    python bench/unet_kernels.py --rows 8 --model medium-model     # tools/random_model.py medium medium-model

One share of a batch, as a thread has it (`engine/ort.py`), by ONNX Runtime's own profiler, median of some calls.
GFLOP/s are what the kernel itself does, by its shapes, so operations that the export saves do not count; the peaks are
measured before and after on the same core, the larger of both is taken. One line of JSON.
"""

from __future__ import annotations

import json
import math
import statistics
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch

from d4m_fast.engine.model import Model, open_model
from d4m_fast.export.hoist import hoist_context
from d4m_fast.export.to_onnx import export_onnx, opset_of
from d4m_fast.measure.peak import measure_peak

Shape = list[int]


def exported(model: Model, folder: Path) -> tuple[Path, Path]:
    """The UNet and what it makes of the prompts."""
    file, context = folder / "unet.onnx", folder / "unet.context.onnx"
    sizes, opset = model.sizes(model.resolution), opset_of("onnx", "unet")
    export_onnx(model.path, "unet", file, sizes=sizes, opset=opset, metadata={}, for_ort=True)
    hoist_context(file, context)
    return file, context


def opened(file: Path, profile: Path | None = None) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    options.add_session_config_entry("session.set_denormal_as_zero", "1")
    if profile is not None:
        options.enable_profiling, options.profile_file_prefix = True, str(profile)
    return onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])


def inputs(model: Model, context: Path, rows: int) -> dict[str, Any]:
    """Of one call with guidance: two rows per sample."""
    sizes, rng = model.sizes(model.resolution), np.random.default_rng(0)
    session = opened(context)
    states = rng.standard_normal((rows, sizes["tokens"], sizes["width_text"]), dtype=np.float32)
    made = session.run(None, {"hidden_states": states})
    found = {output.name: value for output, value in zip(session.get_outputs(), made, strict=True)}
    sample = rng.standard_normal((rows // 2, sizes["channels"], sizes["h"], sizes["w"]), dtype=np.float32)
    return {**found, "sample": sample, "timestep": np.array(500)}


def operations(kernel: str, shapes: list[Shape], result: Shape) -> float:
    """Multiplications and additions of a product, by its shapes; 0 of what is no product."""
    if kernel == "Conv":
        return 2.0 * math.prod(result) * math.prod(shapes[1][1:])
    if kernel in ("Gemm", "MatMul", "FusedMatMul", "FusedGemm"):
        return 2.0 * math.prod(result) * shapes[0][-1]
    if kernel == "MultiHeadAttention":
        return 4.0 * math.prod(shapes[0]) * shapes[1][-2]
    return 0.0


def kernels(trace: Path) -> list[dict[str, Any]]:
    return [
        event for event in json.loads(trace.read_text()) if event.get("cat") == "Node" and "op_name" in event["args"]
    ]


def shapes_of(event: dict[str, Any], name: str) -> list[Shape]:
    return [shape for entry in event["args"][name] for shape in entry.values()]


def summed(events: list[dict[str, Any]], calls: int) -> dict[str, dict[str, float]]:
    """Per kernel: milliseconds of a call (the median over calls of each node, summed), nodes, and GFLOP/s."""
    nodes: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for event in events:
        nodes[event["name"]].append(event)
    table: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0, 0.0])
    for found in nodes.values():
        kernel = found[0]["args"]["op_name"]
        spent = statistics.median(event["dur"] for event in found[-calls:]) / 1e3
        (result, *_) = shapes_of(found[0], "output_type_shape")
        work = operations(kernel, shapes_of(found[0], "input_type_shape"), result)
        table[kernel] = [a + b for a, b in zip(table[kernel], (spent, 1, work / 1e9), strict=True)]
    ranked = sorted(table.items(), key=lambda entry: -entry[1][0])
    return {
        kernel: {"ms": round(ms, 2), "nodes": int(count), "gflops": round(1e3 * work / ms) if work else 0}
        for kernel, (ms, count, work) in ranked
    }


@click.command(help=__doc__)
@click.option("--model", "name", default="bundled", show_default=True)
@click.option("--rows", default=64, show_default=True, help="Two per image.")
@click.option("--calls", default=7, show_default=True)
def main(name: str, rows: int, calls: int) -> None:
    model, cpu = open_model(name), torch.device("cpu")
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        file, context = exported(model, folder)
        feed, peak = inputs(model, context, rows), measure_peak(cpu, torch.float32)
        session = opened(file, folder / "trace")
        for _ in range(2 + calls):
            session.run(None, feed)
        trace = Path(session.end_profiling())
        peak = peak.or_better(measure_peak(cpu, torch.float32))
        table = summed(kernels(trace), calls)
    peaks = {"matrix_product": round(peak.matrix_product), "convolution": round(peak.convolution)}
    total = sum(kernel["ms"] for kernel in table.values())
    gflops = sum(kernel["ms"] * kernel["gflops"] for kernel in table.values()) / total
    whole = {"ms": round(total, 1), "gflops": round(gflops), "of_convolution": round(gflops / peak.convolution, 3)}
    click.echo(json.dumps({"model": Path(name).name, "rows": rows, **whole, "peak": peaks, "kernels": table}))


if __name__ == "__main__":
    main()
