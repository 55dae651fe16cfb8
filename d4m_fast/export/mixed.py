"""fp32 ONNX to a mixed graph: fp16 by default, fp32 where fp16 would lose too much, explicit Casts between.

TensorRT is always strongly typed since version 11 (its migration guide): the types written here are those that run.
Its parser refuses `Attention` with a softmax_precision, so an fp32 softmax takes an opset below 23, where it is a node.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from d4m_fast.engine.finite import HALF_MAX
from d4m_fast.errors import ModelError
from d4m_fast.export.attention import DOMAIN, OPERATOR, ort_attention_schema
from d4m_fast.export.onnx_files import EXTERNAL_BYTES, weight_bytes
from d4m_fast.export.onnx_graph import (
    FLOAT,
    HALF,
    activations,
    computes,
    convert_weight,
    has_type,
    load_graph,
    read_weight,
)
from d4m_fast.storage.files import refusing, write_bytes

if TYPE_CHECKING:
    import onnx_ir as ir
    from onnx.defs import OpSchema

_INLINE_BYTES = 1024  # shape constants stay in the graph, where shape inference sees them
_NORMALISATIONS = (
    "BatchNormalization GroupNormalization InstanceNormalization LayerNormalization RMSNormalization LpNormalization "
    "ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMean ReduceProd ReduceSum ReduceSumSquare"
)
# Operators that stay in fp32 whatever they read, with the reason.
_FP32_OPERATORS = {
    **dict.fromkeys(_NORMALISATIONS.split(), "normalisation"),
    **dict.fromkeys(("Softmax", "LogSoftmax"), "softmax"),
    **dict.fromkeys(("Exp", "Log", "Pow", "Sin", "Cos", "Sqrt", "Reciprocal"), "transcendental"),
    **dict.fromkeys(("ConstantOfShape", "EyeLike", "RandomNormal", "RandomUniform"), "typed by its attributes"),
}


@dataclass(frozen=True)
class MixedReport:
    """Counts of a conversion.

    `fp32_nodes` has a reason for each node kept in fp32; `casts` are those inserted; `largest_fp16_activation` is the
    largest calibrated |x| of the values that exist in fp16, 0 where there is none.
    """

    fp16_nodes: int
    fp32_nodes: dict[str, str]
    casts: int
    largest_fp16_activation: float
    largest_fp16_tensor: str


def to_mixed_precision(
    source: Path,
    target: Path,
    maxima: Mapping[str, float],
    *,
    limit: float = 16_000.0,
    external_bytes: int = EXTERNAL_BYTES,
) -> MixedReport:
    """Write the model with fp16 inputs, outputs and weights, and fp32 where a reason of `MixedReport` applies.

    Names stay. Weights of more than `external_bytes` go to `<target's name>.data`; each is rounded while it is written.

    Args:
        maxima: of every float32 value, as `activation_maxima` gives them.
        limit: nodes that touch an activation above it run in fp32.

    Raises:
        ModelError: control flow, unknown operators, a value without a maximum, an input or output beyond fp16.
        PreflightError: the disk refuses.
    """
    model = load_graph(source)
    _require_maxima(model.graph, maxima)
    plan = _TypePlan(model, _fp32_nodes(model.graph, maxima, limit))
    _retype_weights(model.graph, plan)
    casts = _retype_values(model.graph, plan)
    _write(model, target, external_bytes)
    return _report(model.graph, plan, casts, maxima)


def _require_maxima(graph: ir.Graph, maxima: Mapping[str, float]) -> None:
    interface = {*graph.inputs, *graph.outputs}
    for value in activations(graph):
        if not has_type(value, FLOAT):
            continue
        if value.name not in maxima:
            raise ModelError(f"{value.name}: no maximum; calibrate the model that is converted")
        if value in interface and maxima[value.name] > HALF_MAX:
            raise ModelError(f"{value.name}: reaches {maxima[value.name]:,.6g}, which fp16 cannot carry")


def _fp32_nodes(graph: ir.Graph, maxima: Mapping[str, float], limit: float) -> dict[ir.Node, str]:
    """Return the nodes that stay in fp32, with reasons; one that only looks at a tensor has no precision."""
    large_weights = _weights_beyond_fp16(graph)
    reasons = _angle_nodes(graph)
    for node in graph:
        if computes(node, FLOAT):
            reason = _fp32_reason(node, maxima, limit, large_weights)
            if reason is not None:
                reasons[node] = reason
    return reasons


def _angle_nodes(graph: ir.Graph) -> dict[ir.Node, str]:
    """Return all nodes that lead to Sin and Cos."""
    # A timestep becomes an angle of up to 999 radians, which rounded to fp16 is off by up to a quarter.
    reasons: dict[ir.Node, str] = {}
    for node in reversed(list(graph)):
        readers: list[ir.Node] = []
        for value in node.outputs:
            readers += value.consumers()
        leads_to_angle = any(reader.op_type in ("Sin", "Cos") or reader in reasons for reader in readers)
        if leads_to_angle and computes(node, FLOAT):
            reasons[node] = "angle"
    return reasons


def _weights_beyond_fp16(graph: ir.Graph) -> dict[ir.Value, float]:
    maxima: dict[ir.Value, float] = {}
    for value in graph.initializers.values():
        if has_type(value, FLOAT) and value.const_value is not None and value.const_value.size:
            # Without a copy of the weights, which abs() would make.
            largest = read_weight(value.const_value, lambda array: max(float(array.max()), -float(array.min())))
            if not largest <= HALF_MAX:
                maxima[value] = largest
    return maxima


def _fp32_reason(
    node: ir.Node, maxima: Mapping[str, float], limit: float, large_weights: Mapping[ir.Value, float]
) -> str | None:
    if node.op_type in _FP32_OPERATORS:
        return _FP32_OPERATORS[node.op_type]
    for value in node.inputs:
        if value is not None and value in large_weights:
            return f"weight {value.name} reaches {large_weights[value]:,.6g}"
    largest = 0.0
    for value in (*node.inputs, *node.outputs):
        if value is not None and has_type(value, FLOAT) and value.name and not value.is_initializer():
            largest = max(largest, maxima[value.name])
    return f"activation {largest:,.6g} above the limit" if largest > limit else None


class _TypePlan:
    """Type in which each node reads each input and writes each result, decided before any changes."""

    def __init__(self, model: ir.Model, fp32_nodes: dict[ir.Node, str]) -> None:
        # Before anything changes, because `computes` and `has_type` read the types that are there.
        self.fp32_nodes = fp32_nodes
        self.reads: dict[tuple[ir.Node, int], int] = {}
        self.writes: dict[ir.Value, int] = {}
        for node in model.graph:
            schema = _schema(node, model.opset_imports)
            # A node that only looks at a tensor, or casts it to integers, takes either type: it reads what is there.
            takes_either = not computes(node, FLOAT)
            dtype = FLOAT if node in fp32_nodes else HALF
            for index, value in enumerate(node.inputs):
                admits_half = has_type(value, FLOAT) and _admits_half(schema, schema.inputs, index)
                if has_type(value, FLOAT) and not (takes_either and admits_half):
                    self.reads[node, index] = dtype if admits_half else FLOAT
            for index, value in enumerate(node.outputs):
                if has_type(value, FLOAT):
                    self.writes[value] = dtype if _admits_half(schema, schema.outputs, index) else FLOAT


def _schema(node: ir.Node, opsets: Mapping[str, int]) -> OpSchema:
    from onnx import defs

    if (node.domain, node.op_type) == (DOMAIN, OPERATOR):
        return ort_attention_schema()
    try:
        return defs.get_schema(node.op_type, opsets[node.domain], node.domain)
    except (defs.SchemaError, KeyError) as error:
        raise ModelError(f"{node.name}: unknown operator {node.domain}:{node.op_type}") from error


def _admits_half(schema: OpSchema, formals: Any, index: int) -> bool:
    """Whether an input's or output's type is a variable that may be float16; the last formal may be variadic."""
    variable = formals[min(index, len(formals) - 1)].type_str
    allowed = {c.type_param_str: c.allowed_type_strs for c in schema.type_constraints}
    return "tensor(float16)" in allowed.get(variable, ())


def _retype_weights(graph: ir.Graph, plan: _TypePlan) -> None:
    """Give each weight the type of its readers; where readers differ, there are two of it."""
    import onnx_ir as ir

    # A list, because the loop adds initialisers.
    for value in list(graph.initializers.values()):
        if not has_type(value, FLOAT):
            continue
        fp32_uses = [use for use in value.uses() if plan.reads.get((use.node, use.idx)) == FLOAT]
        if len(fp32_uses) == len(value.uses()) and not value.is_graph_output():
            continue
        if fp32_uses:
            fp32_copy = ir.Value(name=f"{value.name}.fp32", type=value.type, shape=value.shape)
            fp32_copy.const_value = value.const_value
            graph.register_initializer(fp32_copy)
            for use in fp32_uses:
                use.node.replace_input_with(use.idx, fp32_copy)
        value.const_value = convert_weight(value.const_value, HALF)
        value.type = ir.TensorType(ir.DataType.FLOAT16)


def _retype_values(graph: ir.Graph, plan: _TypePlan) -> int:
    """Give each value the type its producer writes, and cast it for readers of the other; returns the casts."""
    import onnx_ir as ir

    nodes, casts = list(graph), dict[tuple[ir.Value, int], ir.Value]()
    # What comes in and what nodes write; readers of the other type are given casts below.
    for value in graph.inputs:
        if has_type(value, FLOAT) and not value.is_initializer():
            value.type = ir.TensorType(ir.DataType.FLOAT16)
    for value, dtype in plan.writes.items():
        value.type = ir.TensorType(ir.DataType(dtype))
    for (node, index), dtype in plan.reads.items():
        read = node.inputs[index]
        if read is not None and read.dtype != dtype:
            if (read, dtype) not in casts:  # one cast for all readers
                graph.insert_before(node, cast := _cast(read, dtype))
                casts[read, dtype] = cast.outputs[0]
            node.replace_input_with(index, casts[read, dtype])
    for index, value in enumerate(graph.outputs):
        if value in plan.writes and has_type(value, FLOAT):
            graph.outputs[index] = _cast_output(graph, value, casts)
    # Casts of the source write the types of their results, which have changed; those that nothing reads go.
    for node in nodes:
        result = node.outputs[0]
        if node.op_type == "Cast" and result.dtype is not None:
            node.attributes["to"] = ir.AttrInt64("to", result.dtype)
            if not result.uses() and not result.is_graph_output():
                graph.remove(node, safe=True)
    return len(casts)


def _cast_output(graph: ir.Graph, value: ir.Value, casts: dict[tuple[ir.Value, int], ir.Value]) -> ir.Value:
    """Cast an output that is computed in fp32, and hand its name to the cast."""
    name = value.name
    if (value, HALF) not in casts:
        graph.append(cast := _cast(value, HALF))
        casts[value, HALF] = cast.outputs[0]
    value.name, casts[value, HALF].name = f"{name}.fp32", name
    return casts[value, HALF]


def _cast(value: ir.Value, dtype: int) -> ir.Node:
    """Return a cast of the value to another type."""
    import onnx_ir as ir

    # Of a value that is itself cast, from what it is cast from: fp32 by way of fp16 would be rounded.
    producer = value.producer()
    origin = producer.inputs[0] if producer is not None and producer.op_type == "Cast" else value
    name = f"{value.name}.{'fp16' if dtype == HALF else 'fp32'}"
    result = ir.Value(name=name, type=ir.TensorType(ir.DataType(dtype)), shape=value.shape)
    return ir.node("Cast", [origin], {"to": dtype}, outputs=[result], name=f"cast.{name}")


def _write(model: ir.Model, target: Path, external_bytes: int) -> None:
    import onnx_ir as ir

    # The data file first: a model that is there has its weights.
    with refusing(target):
        if weight_bytes(model) > external_bytes:
            data = f"{target.name}.data"
            ir.external_data.unload_from_model(model, target.parent, data, size_threshold_bytes=_INLINE_BYTES)
        else:
            ir.external_data.load_to_model(model)
    write_bytes(target, ir.to_proto(model).SerializeToString())


def _report(graph: ir.Graph, plan: _TypePlan, casts: int, maxima: Mapping[str, float]) -> MixedReport:
    largest_name, largest = "", 0.0
    for value in activations(graph):
        name = str(value.name).removesuffix(".fp16")  # a cast has the maximum of what it casts
        if has_type(value, HALF) and maxima.get(name, 0.0) > largest:
            largest_name, largest = name, maxima[name]
    fp16_nodes = {node for node, _ in plan.reads if node not in plan.fp32_nodes and computes(node, HALF)}
    fp32_nodes = {str(node.name): reason for node, reason in plan.fp32_nodes.items()}
    return MixedReport(len(fp16_nodes), fp32_nodes, casts, largest, largest_name)
