"""The arithmetic of an fp16 graph on a CPU, for certificates.

ONNX Runtime's CPU provider computes fp16 nodes in fp32 and drops the rounding between them, so that running an fp16
graph there is too kind and never overflows. The rounded graph is the same graph in fp32 with every value that would be
fp16 rounded by a pair of casts, which ONNX Runtime keeps: fp16 with fp32 sums inside a node, as tensor cores have it.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from d4m_fast.export.onnx_files import save_model
from d4m_fast.export.onnx_graph import FLOAT, HALF, convert_weight
from d4m_fast.storage.files import refusing

if TYPE_CHECKING:
    import onnx_ir as ir


def write_rounded(mixed: Path, target: Path) -> None:
    """Write an fp16 graph in fp32 with rounded values, and the same inputs and outputs.

    Raises:
        PreflightError: the disk refuses.
    """
    import onnx_ir as ir

    model = ir.load(mixed)
    # All values before any is rounded, which adds nodes with fp16 values of their own.
    values: list[ir.Value] = []
    for node in model.graph:
        values += node.outputs
    values.extend(model.graph.inputs)  # which refuses +
    for value in values:
        if value.dtype == ir.DataType.FLOAT16:
            _round(model.graph, value)
    for value in model.graph.initializers.values():
        if value.dtype == ir.DataType.FLOAT16 and value.const_value is not None:
            value.const_value = convert_weight(value.const_value, FLOAT)
            value.type = ir.TensorType(ir.DataType.FLOAT)
    with refusing(target):
        save_model(model, target)


def _round(graph: ir.Graph, value: ir.Value) -> None:
    """Cast a value to fp16 and back, for all its readers."""
    import onnx_ir as ir

    producer, uses = value.producer(), list(value.uses())
    down = ir.node("Cast", [value], {"to": HALF})
    up = ir.node("Cast", [down.outputs[0]], {"to": FLOAT})
    down.outputs[0].type = ir.TensorType(ir.DataType.FLOAT16)
    up.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
    if producer is None:
        graph.insert_before(next(iter(graph)), [down, up])
    else:
        graph.insert_after(producer, [down, up])
        value.type = ir.TensorType(ir.DataType.FLOAT)
        if producer.op_type == "Cast":  # to fp16: now to fp32, and the rounding follows
            producer.attributes["to"] = ir.AttrInt64("to", FLOAT)
    for use in uses:
        use.node.replace_input_with(use.idx, up.outputs[0])
    for index, output in enumerate(graph.outputs):
        if output is value:  # the rounded one is the output, under its name
            value.name, down.outputs[0].name = f"{value.name}.exact", value.name
            graph.outputs[index] = down.outputs[0]
