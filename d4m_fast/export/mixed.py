"""fp32 ONNX to a mixed graph: fp16 by default, fp32 where fp16 would lose too much, explicit Casts between.

TensorRT is always strongly typed since version 11 (its migration guide): the types written here are those that run.
Its parser refuses `Attention` with a softmax_precision, so an fp32 softmax takes an opset below 23, where it is a node.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from d4m_fast.errors import ModelError
from d4m_fast.export.attention import DOMAIN, OPERATOR, ort_attention_schema
from d4m_fast.storage.files import refusing, write_bytes

if TYPE_CHECKING:
    import onnx_ir as ir
    from onnx.defs import OpSchema

HALF_MAX = 65504.0
_INLINE_BYTES = 1024  # shape constants stay in the graph, where shape inference sees them
_FLOAT, _HALF = 1, 10  # onnx.TensorProto's numbers, which onnx_ir.DataType equals
_REASONS = {
    "normalisation": "BatchNormalization GroupNormalization InstanceNormalization LayerNormalization RMSNormalization "
    "LpNormalization ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMean ReduceProd ReduceSum ReduceSumSquare",
    "softmax": "Softmax LogSoftmax",
    "transcendental": "Exp Log Pow Sin Cos Sqrt Reciprocal",
    "typed by its attributes": "ConstantOfShape EyeLike RandomNormal RandomUniform",
}
_MEASURES = {"max": "ReduceMax", "sum": "ReduceSum"}
_WIDE_OPS = {operator: reason for reason, operators in _REASONS.items() for operator in operators.split()}


@dataclass(frozen=True)
class MixedReport:
    """What a conversion made.

    `fp32_nodes` has a reason for each node kept in fp32; `casts` are those inserted; `largest_fp16_activation` is the
    largest calibrated |x| of the values that exist in fp16, 0 where there is none.
    """

    fp16_nodes: int
    fp32_nodes: dict[str, str]
    casts: int
    largest_fp16_activation: float
    largest_fp16_tensor: str


def activation_maxima(
    onnx: Path, inputs: Iterable[Mapping[str, np.ndarray[Any, Any]]], *, threads: int
) -> dict[str, float]:
    """The largest |x| of each float32 value, graph inputs included, over some inputs, on the CPU.

    A value that is NaN or infinite anywhere counts as infinite, an empty one as 0. Only scalars leave the graph.

    Raises ModelError for control flow and functions, ValueError for no inputs.
    """
    import onnx_ir as ir
    from onnxruntime import InferenceSession, SessionOptions

    model = _load(onnx)
    names = [str(value.name) for value in list(_values(model.graph)) if _measure(model.graph, value)]
    options = SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = threads, 3
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(onnx.resolve().parent))
    session = InferenceSession(ir.to_proto(model).SerializeToString(), options, providers=["CPUExecutionProvider"])
    fetched = [f"{kind}.{name}" for kind in _MEASURES for name in names]
    peaks = [_peaks(np.array(session.run(fetched, dict(feed))).reshape(2, -1)) for feed in inputs]
    if not peaks:
        raise ValueError("activations need at least one input")
    return dict(zip(names, np.max(peaks, axis=0).tolist(), strict=True))


def _peaks(found: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """ONNX Runtime's ReduceMax skips NaN (unless it comes first), its sum does not; the former is -inf of nothing."""
    return np.where(np.isnan(found).any(axis=0), np.inf, np.maximum(found[0], 0.0))


def _measure(graph: ir.Graph, value: ir.Value) -> bool:
    """Make `max.x` and `sum.x` of |x| outputs, if x is a float32."""
    import onnx_ir as ir

    if not _is(value, _FLOAT):
        return False
    magnitude = ir.node("Abs", [value])
    graph.append(magnitude)
    for kind, operator in _MEASURES.items():
        found = ir.Value(name=f"{kind}.{value.name}", type=value.type, shape=ir.Shape([]))
        graph.append(ir.node(operator, magnitude.outputs, {"keepdims": 0}, outputs=[found]))
        graph.outputs.append(found)
    return True


def to_mixed_precision(
    source: Path, target: Path, maxima: Mapping[str, float], *, limit: float = 16_000.0, external_bytes: int = 1 << 30
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
    model = _load(source)
    _check(model.graph, maxima)
    plan = _Plan(model, _wide_nodes(model, maxima, limit))
    _retype_weights(model.graph, plan)
    casts = _retype_values(model.graph, plan)
    _write(model, target, external_bytes)
    return _report(model.graph, plan, casts, maxima)


def _report(graph: ir.Graph, plan: _Plan, casts: int, maxima: Mapping[str, float]) -> MixedReport:
    names = [str(value.name).removesuffix(".fp16") for value in _values(graph) if _is(value, _HALF)]
    halves = {"": 0.0} | {name: maxima[name] for name in names if name in maxima}
    largest = max(halves, key=halves.__getitem__)
    narrow = {node for node, _ in plan.reads if node not in plan.wide and _computes(node, _HALF)}
    wide = {str(node.name): reason for node, reason in plan.wide.items()}
    return MixedReport(len(narrow), wide, casts, halves[largest], largest)


def _load(path: Path) -> ir.Model:
    """The model with typed values, constants as initialisers, and weights left on disk where they are external."""
    import onnx_ir as ir
    from onnx_ir.passes import common

    model = ir.load(path)
    if model.functions or any(model.graph.subgraphs()):
        raise ModelError(f"{path}: control flow and functions have no mixed-precision form; export it without them")
    common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    if any(value.dtype is None for value in _values(model.graph)):
        common.ShapeInferencePass()(model)
    for node in model.graph:
        node.name = node.name if node.name else node.outputs[0].name
    return model


def _values(graph: ir.Graph) -> Iterator[ir.Value]:
    """Inputs and results, without the weights."""
    yield from (value for value in graph.inputs if not value.is_initializer())
    for node in graph:
        yield from (value for value in node.outputs if value.name)


def _is(value: ir.Value | None, dtype: int) -> bool:
    return value is not None and value.dtype == dtype


def _computes(node: ir.Node, dtype: int) -> bool:
    """Whether the node makes a value of that type, or compares some; one that only looks at one (Shape) does not."""
    return any(_is(v, dtype) for v in node.outputs) or sum(_is(v, dtype) for v in node.inputs) > 1


def _check(graph: ir.Graph, maxima: Mapping[str, float]) -> None:
    interface = {*graph.inputs, *graph.outputs}
    for value in (value for value in _values(graph) if _is(value, _FLOAT)):
        if value.name not in maxima:
            raise ModelError(f"{value.name}: no maximum; calibrate the model that is converted")
        if value in interface and maxima[value.name] > HALF_MAX:
            raise ModelError(f"{value.name}: reaches {maxima[value.name]:,.6g}, which fp16 cannot carry")


def _wide_nodes(model: ir.Model, maxima: Mapping[str, float], limit: float) -> dict[ir.Node, str]:
    """The nodes that stay in fp32, with reasons; one that only looks at a tensor has no precision."""
    heavy = {value: size for value, size in _weight_maxima(model.graph) if not size <= HALF_MAX}
    reasons = {node: _reason(node, maxima, limit, heavy) for node in model.graph if _computes(node, _FLOAT)}
    return _angles(model.graph) | {node: reason for node, reason in reasons.items() if reason is not None}


def _reason(node: ir.Node, maxima: Mapping[str, float], limit: float, heavy: Mapping[ir.Value, float]) -> str | None:
    if node.op_type in _WIDE_OPS:
        return _WIDE_OPS[node.op_type]
    for value in node.inputs:
        if value is not None and value in heavy:
            return f"weight {value.name} reaches {heavy[value]:,.6g}"
    touched = [v for v in (*node.inputs, *node.outputs) if v is not None and _is(v, _FLOAT) and not v.is_initializer()]
    largest = max((maxima[str(value.name)] for value in touched if value.name), default=0.0)
    return f"activation {largest:,.6g} above the limit" if largest > limit else None


def _angles(graph: ir.Graph) -> dict[ir.Node, str]:
    """What leads to Sin and Cos: an angle of 999 radians rounded to fp16 is off by up to a quarter."""
    found: dict[ir.Node, str] = {}
    for node in reversed(list(graph)):
        readers = {reader for value in node.outputs for reader in value.consumers()}
        if _computes(node, _FLOAT) and any(r.op_type in ("Sin", "Cos") or r in found for r in readers):
            found[node] = "angle"
    return found


def _weight_maxima(graph: ir.Graph) -> Iterator[tuple[ir.Value, float]]:
    for value in graph.initializers.values():
        if _is(value, _FLOAT) and value.const_value is not None and value.const_value.size:
            yield value, _read(value.const_value, lambda array: max(float(array.max()), -float(array.min())))


def _read(tensor: Any, use: Callable[[np.ndarray[Any, Any]], Any]) -> Any:
    """What `use` makes of the values; a weight in a file of its own is unmapped afterwards."""
    import onnx_ir as ir

    result = use(tensor.numpy())
    if isinstance(tensor, ir.ExternalTensor):
        tensor.release()
    return result


class _Plan:
    """Which type each node reads at which input, and which each result is written in, decided before any changes."""

    def __init__(self, model: ir.Model, wide: dict[ir.Node, str]) -> None:
        self.wide = wide
        self.reads: dict[tuple[ir.Node, int], int] = {}
        self.writes: dict[ir.Value, int] = {}
        for node in model.graph:
            self._add(node, _schema(node, model.opset_imports))

    def _add(self, node: ir.Node, schema: OpSchema) -> None:
        """What only looks at a tensor, or casts it to integers, takes either type: it reads what is there."""
        either = not _computes(node, _FLOAT)
        typed = _FLOAT if node in self.wide else _HALF
        for index, value in enumerate(node.inputs):
            admits = _is(value, _FLOAT) and _admits_half(schema, schema.inputs, index)
            if _is(value, _FLOAT) and not (either and admits):
                self.reads[node, index] = typed if admits else _FLOAT
        for index, value in enumerate(node.outputs):
            if _is(value, _FLOAT):
                self.writes[value] = typed if _admits_half(schema, schema.outputs, index) else _FLOAT


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


def _retype_weights(graph: ir.Graph, plan: _Plan) -> None:
    """Weights in the type of their readers, in both where readers differ."""
    import onnx_ir as ir

    for value in [v for v in graph.initializers.values() if _is(v, _FLOAT)]:
        wide = [use for use in value.uses() if plan.reads.get((use.node, use.idx)) == _FLOAT]
        if len(wide) == len(value.uses()) and not value.is_graph_output():
            continue
        if wide:
            kept = ir.Value(name=f"{value.name}.fp32", type=value.type, shape=value.shape)
            kept.const_value = value.const_value
            graph.register_initializer(kept)
            for use in wide:
                use.node.replace_input_with(use.idx, kept)
        value.const_value = _rounded(value.const_value)
        value.type = ir.TensorType(ir.DataType.FLOAT16)


def _rounded(tensor: Any) -> ir.LazyTensor:
    """The tensor in fp16, made anew each time it is asked for."""
    import onnx_ir as ir

    def convert() -> ir.Tensor:
        return ir.Tensor(_read(tensor, lambda array: array.astype(np.float16)), name=tensor.name)

    return ir.LazyTensor(convert, dtype=ir.DataType.FLOAT16, shape=tensor.shape, name=tensor.name)


def _retype_values(graph: ir.Graph, plan: _Plan) -> int:
    """Give each value the type its producer writes and cast where a reader wants the other; the number of casts."""
    import onnx_ir as ir

    nodes, made = list(graph), dict[tuple[ir.Value, int], ir.Value]()
    inputs = {value: _HALF for value in graph.inputs if _is(value, _FLOAT) and not value.is_initializer()}
    for value, dtype in (inputs | plan.writes).items():
        value.type = ir.TensorType(ir.DataType(dtype))
    for (node, index), dtype in plan.reads.items():
        read = node.inputs[index]
        if read is not None and read.dtype != dtype:
            if (read, dtype) not in made:
                graph.insert_before(node, cast := _cast(read, dtype))
                made[read, dtype] = cast.outputs[0]
            node.replace_input_with(index, made[read, dtype])
    for index, value in enumerate(graph.outputs):
        if value in plan.writes and _is(value, _FLOAT):
            graph.outputs[index] = _cast_output(graph, value, made)
    for node in nodes:
        _settle(graph, node)
    return len(made)


def _cast_output(graph: ir.Graph, value: ir.Value, made: dict[tuple[ir.Value, int], ir.Value]) -> ir.Value:
    """An output that is computed in fp32 hands its name to its cast."""
    name = value.name
    if (value, _HALF) not in made:
        graph.append(cast := _cast(value, _HALF))
        made[value, _HALF] = cast.outputs[0]
    value.name, made[value, _HALF].name = f"{name}.fp32", name
    return made[value, _HALF]


def _settle(graph: ir.Graph, node: ir.Node) -> None:
    """Casts of the source go to the type of their result, or away if it is not read."""
    import onnx_ir as ir

    result = node.outputs[0]
    if node.op_type == "Cast" and result.dtype is not None:
        node.attributes["to"] = ir.AttrInt64("to", result.dtype)
        if not result.uses() and not result.is_graph_output():
            graph.remove(node, safe=True)


def _cast(value: ir.Value, dtype: int) -> ir.Node:
    """The value in another type; of a value that is itself cast, from what it is cast from."""
    import onnx_ir as ir

    producer = value.producer()
    origin = producer.inputs[0] if producer is not None and producer.op_type == "Cast" else value
    name = f"{value.name}.{'fp16' if dtype == _HALF else 'fp32'}"
    made = ir.Value(name=name, type=ir.TensorType(ir.DataType(dtype)), shape=value.shape)
    return ir.node("Cast", [origin], {"to": dtype}, outputs=[made], name=f"cast.{name}")


def _write(model: ir.Model, target: Path, external_bytes: int) -> None:
    """The data file first: a model that is there has its weights."""
    import onnx_ir as ir

    tensors = [v.const_value for v in model.graph.initializers.values() if v.const_value is not None]
    with refusing(target):
        if sum(tensor.nbytes for tensor in tensors) > external_bytes:
            data = f"{target.name}.data"
            ir.external_data.unload_from_model(model, target.parent, data, size_threshold_bytes=_INLINE_BYTES)
        else:
            ir.external_data.load_to_model(model)
    write_bytes(target, ir.to_proto(model).SerializeToString())
