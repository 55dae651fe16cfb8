"""The arithmetic of an fp16 graph on a CPU, for certificates.

ONNX Runtime's CPU provider computes fp16 nodes in fp32 and drops the rounding between them, so that running an fp16
graph there is too kind and never overflows. The twin is the same graph in fp32 with every value that would be fp16
rounded by a pair of casts, which ONNX Runtime keeps: fp16 with fp32 sums inside a node, as tensor cores have it.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from d4m_fast.storage.files import refusing

if TYPE_CHECKING:
    import onnx_ir as ir

_FLOAT, _HALF = 1, 10  # onnx.TensorProto's numbers
EXTERNAL_BYTES = 1 << 30


def write_twin(mixed: Path, target: Path) -> None:
    """Write the twin of an fp16 graph, with the same inputs and outputs.

    Raises:
        PreflightError: the disk refuses.
    """
    import onnx_ir as ir

    model = ir.load(mixed)
    made = [value for node in model.graph for value in node.outputs if value.dtype == ir.DataType.FLOAT16]
    given = [value for value in model.graph.inputs if value.dtype == ir.DataType.FLOAT16]
    for value in [*made, *given]:
        _round(model.graph, value)
    for value in model.graph.initializers.values():
        if value.dtype == ir.DataType.FLOAT16 and value.const_value is not None:
            value.const_value = _widened(value.const_value)
            value.type = ir.TensorType(ir.DataType.FLOAT)
    weights = sum(v.const_value.nbytes for v in model.graph.initializers.values() if v.const_value is not None)
    with refusing(target):
        ir.save(model, target, external_data=f"{target.name}.data" if weights > EXTERNAL_BYTES else None)


def _round(graph: ir.Graph, value: ir.Value) -> None:
    """Cast a value to fp16 and back, for all its readers."""
    import onnx_ir as ir

    producer, uses = value.producer(), list(value.uses())
    down = ir.node("Cast", [value], {"to": _HALF})
    up = ir.node("Cast", [down.outputs[0]], {"to": _FLOAT})
    for node, kind in ((down, ir.DataType.FLOAT16), (up, ir.DataType.FLOAT)):
        node.outputs[0].type = ir.TensorType(kind)
    if producer is None:
        graph.insert_before(next(iter(graph)), [down, up])
    else:
        graph.insert_after(producer, [down, up])
        value.type = ir.TensorType(ir.DataType.FLOAT)
        if producer.op_type == "Cast":
            producer.attributes["to"] = ir.AttrInt64("to", _FLOAT)
    for use in uses:
        use.node.replace_input_with(use.idx, up.outputs[0])
    for index, output in enumerate(graph.outputs):
        if output is value:  # the rounded one is the output, under its name
            value.name, down.outputs[0].name = f"{value.name}.exact", value.name
            graph.outputs[index] = down.outputs[0]


def _widened(tensor: Any) -> ir.LazyTensor:
    """The tensor in fp32, made anew each time it is asked for."""
    import onnx_ir as ir

    def convert() -> ir.Tensor:
        return ir.Tensor(tensor.numpy().astype(np.float32), name=tensor.name)

    return ir.LazyTensor(convert, dtype=ir.DataType.FLOAT, shape=tensor.shape, name=tensor.name)
