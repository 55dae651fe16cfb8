"""Calibration: the largest value that each tensor of an ONNX graph takes on real inputs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from d4m_fast.export.onnx_graph import FLOAT, activations, has_type, load_graph

if TYPE_CHECKING:
    import onnx_ir as ir

_MEASURES = {"max": "ReduceMax", "sum": "ReduceSum"}


def activation_maxima(
    onnx: Path, inputs: Iterable[Mapping[str, np.ndarray[Any, Any]]], *, threads: int
) -> dict[str, float]:
    """Return the largest |x| of each float32 value, graph inputs included, over some inputs, on the CPU.

    A value that is NaN or infinite anywhere counts as infinite, an empty one as 0. Only scalars leave the graph.

    Raises ModelError for control flow and functions, ValueError for no inputs.
    """
    import onnx_ir as ir
    from onnxruntime import InferenceSession, SessionOptions

    model = load_graph(onnx)
    # A list, because measuring a value adds nodes to the graph.
    values = [value for value in activations(model.graph) if has_type(value, FLOAT)]
    for value in values:
        _add_measures(model.graph, value)
    options = SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = threads, 3  # errors only
    # The model comes as bytes, so that ONNX Runtime would not know where its weights lie.
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(onnx.resolve().parent))
    session = InferenceSession(ir.to_proto(model).SerializeToString(), options, providers=["CPUExecutionProvider"])
    names = [str(value.name) for value in values]
    measures: list[str] = []  # all maxima, then all sums
    for kind in _MEASURES:
        measures += [f"{kind}.{name}" for name in names]
    peaks = []
    for feed in inputs:
        maxima, sums = np.array(session.run(measures, dict(feed))).reshape(2, -1)
        # ReduceMax skips NaN (unless it comes first), the sum does not. The maximum of nothing is -inf.
        not_a_number = np.isnan(maxima) | np.isnan(sums)
        peaks.append(np.where(not_a_number, np.inf, np.maximum(maxima, 0.0)))
    if not peaks:
        raise ValueError("activations need at least one input")
    return dict(zip(names, np.max(peaks, axis=0).tolist(), strict=True))


def _add_measures(graph: ir.Graph, value: ir.Value) -> None:
    """Add `max.x` and `sum.x`, of |x|, to the graph's outputs."""
    import onnx_ir as ir

    magnitude = ir.node("Abs", [value])
    graph.append(magnitude)
    for kind, operator in _MEASURES.items():
        measure = ir.Value(name=f"{kind}.{value.name}", type=value.type, shape=ir.Shape([]))
        graph.append(ir.node(operator, magnitude.outputs, {"keepdims": 0}, outputs=[measure]))
        graph.outputs.append(measure)
