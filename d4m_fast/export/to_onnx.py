"""PyTorch to ONNX: one network, fp32, with a batch axis that is checked to be free."""

from __future__ import annotations

import contextlib
import logging
import math
import warnings
from collections import Counter
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
from d4m_fast.export.onnx_files import save_model

_OPSETS: Mapping[str, Mapping[Component, int]] = MappingProxyType(
    {
        "onnx": dict.fromkeys(COMPONENTS, 20),
        "tensorrt": {"text_encoder": 23, "unet": 23, "vae_encoder": 22, "vae_decoder": 22},
    }
)
_LOGGERS = ("torch.onnx", "onnxscript", "onnx_ir", "torch.export")
EXAMPLE_BATCH = 3  # neither 1, which torch.export would freeze, nor the 2 of guidance


@dataclass(frozen=True, slots=True)
class OnnxReport:
    """Facts of a written ONNX file.

    Attributes:
        operators: how many nodes of each kind.
        elements_per_row: of the largest activation, per row of the batch.
    """

    opset: int
    operators: dict[str, int]
    elements_per_row: int


def opset_of(engine: str, component: Component) -> int:
    """Return the version of ONNX's operators to export in, by what runs them.

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
    from onnx_ir.passes.common import ClearMetadataAndDocStringPass

    module = load_module(model, component, torch.float32)
    if for_ort and isinstance(module, UnetModule):  # diffusers' other blocks have attention that does more
        use_ort_attention(module.unet)
    program = _trace(module, component, sizes, opset, static_batch)
    graph = program.model.graph
    graph.name = component
    # The exporter's stack traces have the paths of this machine: with them, no two installations would agree.
    ClearMetadataAndDocStringPass()(program.model)
    program.model.metadata_props.update(metadata)
    # Before folding, so that the graph is still the exporter's.
    _require_shapes(graph, component, sizes, static_batch, path)
    if for_ort:
        fold_upsampling(program.model)
    path.with_name(f"{path.name}.data").unlink(missing_ok=True)  # of an earlier export with larger weights
    save_model(program.model, path)
    rows = _samples(static_batch) * SIGNATURES[component].halves
    operators = Counter(node.op_type for node in graph)
    return OnnxReport(opset, dict(sorted(operators.items())), _elements_per_row(program, rows))


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
    batch_axis = {} if static_batch is not None else {0: torch.export.Dim.DYNAMIC}
    examples, dynamic = [], {}
    for name in signature.inputs:
        shape = signature.shape(name, sizes, samples * signature.halves, samples=samples)
        is_integer = name in signature.integers
        examples.append(torch.ones(shape, dtype=torch.int64) if is_integer else torch.zeros(shape))
        dynamic[name] = batch_axis if name in signature.batched else {}
    with _without_advice(), torch.no_grad():
        try:
            program = torch.onnx.export(
                module,
                tuple(examples),
                dynamo=True,
                input_names=list(signature.inputs),
                output_names=list(signature.outputs),
                opset_version=opset,
                dynamic_shapes=dynamic,
                verbose=False,
            )
        except (torch.onnx.errors.OnnxExporterError, RuntimeError) as error:
            raise ModelError(f"{component} cannot be exported to ONNX ({one_line(first_cause(error))})") from error
    if program is None:  # which its type allows
        raise ModelError(f"{component}: the exporter returned nothing")
    return program


def _samples(static_batch: int | None) -> int:
    return EXAMPLE_BATCH if static_batch is None else static_batch


def _require_shapes(
    graph: Any, component: Component, sizes: Mapping[str, int], static_batch: int | None, path: Path
) -> None:
    """Refuse a graph whose axes are not the ones asked for: exporters have frozen the batch without a word."""
    signature = SIGNATURES[component]
    batch_lengths = {SAMPLES: static_batch, BATCH: None if static_batch is None else static_batch * signature.halves}
    for value in (*graph.inputs, *graph.outputs):
        axes = signature.inputs.get(value.name, signature.outputs.get(value.name))
        if axes is None:
            raise ModelError(f"{path}: the exporter named a tensor {value.name}")
        for axis, length in zip(axes, value.shape, strict=True):
            expected = batch_lengths[axis] if axis in batch_lengths else sizes[axis]
            if (length if isinstance(length, int) else None) != expected:
                asked_for = "any number" if expected is None else expected
                raise ModelError(
                    f"{path}: axis {axis} of {value.name} is {length} in the graph, asked for was {asked_for}"
                )


def _elements_per_row(program: Any, rows: int) -> int:
    """Return the elements of the largest activation, by the shapes of the trace of `rows` rows."""
    largest = 0
    for node in program.exported_program.graph.nodes:
        if node.op == "call_function":
            results = node.meta.get("val")
            for tensor in results if isinstance(results, tuple | list) else (results,):
                if isinstance(tensor, torch.Tensor):
                    largest = max(largest, math.prod(map(_length, tensor.shape)))
    return largest // rows


def _length(axis: int | torch.SymInt) -> int:
    """Return the length of an axis in the trace: a symbol stands for the example's."""
    return axis if isinstance(axis, int) else int(str(axis.node.hint))


@contextlib.contextmanager
def _without_advice() -> Iterator[None]:
    """Silence the exporter, whose advice is about its own internals."""
    loggers = list(map(logging.getLogger, _LOGGERS))
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
