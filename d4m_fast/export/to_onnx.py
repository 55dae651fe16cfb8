"""PyTorch to ONNX: one network, fp32, with a batch axis that is checked to be free."""

from __future__ import annotations

import contextlib
import logging
import math
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch

from d4m_fast.engine.libraries import first_cause, one_line
from d4m_fast.engine.modules import load_module
from d4m_fast.engine.signature import BATCH, COMPONENTS, SAMPLES, SIGNATURES, Component
from d4m_fast.engine.unet import UnetModule
from d4m_fast.errors import ModelError, PreflightError
from d4m_fast.export.attention import use_ort_attention
from d4m_fast.export.fold import fold_upsampling

_OPSETS: Mapping[str, Mapping[Component, int]] = MappingProxyType(
    {
        "onnx": dict.fromkeys(COMPONENTS, 20),
        "tensorrt": {"text_encoder": 23, "unet": 23, "vae_encoder": 22, "vae_decoder": 22},
    }
)
EXTERNAL_BYTES = 1 << 30
"""Weights above this go to a file of their own; a protobuf cannot hold 2 GB."""
EXAMPLE_BATCH = 3  # neither 1, which torch.export would freeze, nor the 2 of guidance


@dataclass(frozen=True, slots=True)
class OnnxReport:
    """What was written.

    Attributes:
        operators: how many nodes of each kind.
        elements_per_row: of the largest activation, per row of the batch.
    """

    opset: int
    operators: dict[str, int]
    elements_per_row: int


def opset_of(engine: str, component: Component) -> int:
    """The operators to export in, by what runs them.

    ONNX Runtime's CPU provider has fast kernels for attention and group normalisation as plain operators, which opset
    20 gives. TensorRT keeps the native `Attention` of opset 23 one layer and refuses to build it without a fused
    kernel; for the one attention of a VAE, whose head is as wide as its features, it has none, so there it stays plain.
    """
    return _OPSETS[engine][component]


def export_onnx(
    model: Path,
    component: Component,
    path: Path,
    *,
    sizes: Mapping[str, int],
    opset: int,
    static_batch: int | None = None,
    metadata: Mapping[str, str],
    for_ort: bool = False,
) -> OnnxReport:
    """Write one network as `path`, and `path`.data beside it where the weights are large.

    Args:
        sizes: lengths of the axes (`Model.sizes`).
        static_batch: fix the network to so many samples, and the UNet to guidance; None leaves both free.
        metadata: kept in the file.
        for_ort: with ONNX Runtime's own operator for the UNet's attention, and enlarging folded into convolutions.

    Raises:
        PreflightError: onnx or onnxscript is missing.
        ModelError: the network cannot be exported, or the exporter froze the batch.
    """
    require_onnx()
    module = load_module(model, component, torch.float32)
    if for_ort and isinstance(module, UnetModule):  # diffusers' other blocks have attention that does more
        use_ort_attention(module.unet)
    program = _trace(module, component, sizes, opset, static_batch)
    graph = program.model.graph
    graph.name = component
    _forget_origin(program.model)
    program.model.metadata_props.update(metadata)
    _check(graph, component, sizes, static_batch, path)
    if for_ort:
        fold_upsampling(program.model)
    _save(program.model, path)
    rows = _samples(static_batch) * SIGNATURES[component].halves
    return OnnxReport(opset, _operators(graph), _elements_per_row(program, rows))


def require_onnx() -> None:
    """Refuse without the packages that export needs.

    Raises:
        PreflightError: names the extra that has them.
    """
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise PreflightError(
            "export needs onnx and onnxscript: pip install 'd4m-fast[cpu]', or 'd4m-fast[gpu]' beside an NVIDIA GPU"
        ) from error


def _trace(
    module: torch.nn.Module, component: Component, sizes: Mapping[str, int], opset: int, static_batch: int | None
) -> Any:
    signature, samples = SIGNATURES[component], _samples(static_batch)
    shapes = {
        name: signature.shape(name, sizes, samples * signature.halves, samples=samples) for name in signature.inputs
    }
    free = {} if static_batch is not None else {0: torch.export.Dim.DYNAMIC}
    dynamic = {name: free if name in signature.batched else {} for name in signature.inputs}
    with _quiet(), torch.no_grad():
        try:
            program = torch.onnx.export(
                module,
                tuple(_example(name, shape, component) for name, shape in shapes.items()),
                dynamo=True,
                input_names=list(signature.inputs),
                output_names=list(signature.outputs),
                opset_version=opset,
                dynamic_shapes=dynamic,
                verbose=False,
            )
        except (torch.onnx.errors.OnnxExporterError, RuntimeError) as error:
            raise ModelError(f"{component} cannot be exported to ONNX ({one_line(first_cause(error))})") from error
    if program is None:
        raise ModelError(f"{component}: the exporter returned nothing")
    return program


def _samples(static_batch: int | None) -> int:
    return EXAMPLE_BATCH if static_batch is None else static_batch


def _example(name: str, shape: tuple[int, ...], component: Component) -> torch.Tensor:
    if name in SIGNATURES[component].integers:
        return torch.ones(shape, dtype=torch.int64)
    return torch.zeros(shape)


def _check(graph: Any, component: Component, sizes: Mapping[str, int], static_batch: int | None, path: Path) -> None:
    """Exporters have frozen the batch without a word: read what the graph says."""
    signature = SIGNATURES[component]
    fixed = {SAMPLES: static_batch, BATCH: None if static_batch is None else static_batch * signature.halves}
    for value in (*graph.inputs, *graph.outputs):
        axes = signature.inputs.get(value.name, signature.outputs.get(value.name))
        if axes is None:
            raise ModelError(f"{path}: the exporter named a tensor {value.name}")
        for axis, length in zip(axes, value.shape, strict=True):
            wanted = fixed[axis] if axis in fixed else sizes[axis]
            if (length if isinstance(length, int) else None) != wanted:
                said = "any number" if wanted is None else wanted
                raise ModelError(f"{path}: axis {axis} of {value.name} is {length} in the graph, asked for was {said}")


def _forget_origin(model: Any) -> None:
    """Take out the exporter's stack traces: with the paths of this machine, no two installations would agree."""
    from onnx_ir.passes.common import ClearMetadataAndDocStringPass

    ClearMetadataAndDocStringPass()(model)


def _save(model: Any, path: Path) -> None:
    import onnx_ir

    weights = sum(value.const_value.nbytes for value in model.graph.initializers.values())
    external = f"{path.name}.data" if weights > EXTERNAL_BYTES else None
    path.with_name(f"{path.name}.data").unlink(missing_ok=True)
    onnx_ir.save(model, path, external_data=external)


def _elements_per_row(program: Any, rows: int) -> int:
    """Elements of the largest activation, by the shapes of the trace of `rows` rows."""
    nodes = [node for node in program.exported_program.graph.nodes if node.op == "call_function"]
    values = [value for node in nodes for value in _tensors(node.meta.get("val"))]
    return max(math.prod(_length(n) for n in value.shape) for value in values) // rows


def _tensors(value: Any) -> list[torch.Tensor]:
    several = value if isinstance(value, tuple | list) else [value]
    return [x for x in several if isinstance(x, torch.Tensor)]


def _length(axis: int | torch.SymInt) -> int:
    """Of an axis in the trace: a symbol stands for the example's length."""
    return axis if isinstance(axis, int) else int(str(axis.node.hint))


def _operators(graph: Any) -> dict[str, int]:
    counts: dict[str, int] = {}
    for node in graph:
        counts[node.op_type] = counts.get(node.op_type, 0) + 1
    return dict(sorted(counts.items()))


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The exporter's advice is about its own internals."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir", "torch.export")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
