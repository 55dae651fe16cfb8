"""ONNX graphs as calibration and conversion read them: values with types, weights one at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from d4m_fast.errors import ModelError

if TYPE_CHECKING:
    import onnx_ir as ir

FLOAT, HALF = 1, 10  # onnx.TensorProto's numbers, which onnx_ir.DataType equals
Result = TypeVar("Result")


def load_graph(path: Path) -> ir.Model:
    """Read a model with typed values and named nodes, constants as initialisers; external weights stay on disk.

    Raises:
        ModelError: it has control flow or functions.
    """
    import onnx_ir as ir
    from onnx_ir.passes import common

    model = ir.load(path)
    if model.functions or any(model.graph.subgraphs()):
        raise ModelError(f"{path}: control flow and functions have no mixed-precision form; export it without them")
    common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    if any(value.dtype is None for value in activations(model.graph)):
        common.ShapeInferencePass()(model)
    for node in model.graph:
        node.name = node.name if node.name else node.outputs[0].name
    return model


def activations(graph: ir.Graph) -> Iterator[ir.Value]:
    """Yield inputs and results, without the weights."""
    for value in graph.inputs:
        if not value.is_initializer():
            yield value
    for node in graph:
        for value in node.outputs:
            if value.name:  # an optional result that nothing reads has none
                yield value


def has_type(value: ir.Value | None, dtype: int) -> bool:
    return value is not None and value.dtype == dtype


def computes(node: ir.Node, dtype: int) -> bool:
    """Whether the node makes a value of that type, or compares some; one that only looks at one (Shape) does not."""
    makes_one = any(has_type(value, dtype) for value in node.outputs)
    return makes_one or sum(has_type(value, dtype) for value in node.inputs) > 1


def convert_weight(tensor: Any, dtype: int) -> ir.LazyTensor:
    """Return the tensor in another float type, converted anew each time its values are read."""
    import onnx_ir as ir

    element_type = ir.DataType(dtype)

    def convert() -> ir.Tensor:
        return ir.Tensor(read_weight(tensor, lambda array: array.astype(element_type.numpy())), name=tensor.name)

    return ir.LazyTensor(convert, dtype=element_type, shape=tensor.shape, name=tensor.name)


def read_weight(tensor: Any, use: Callable[[np.ndarray[Any, Any]], Result]) -> Result:
    """Return what `use` makes of a weight's values; a weight in a file of its own is unmapped afterwards."""
    import onnx_ir as ir

    result = use(tensor.numpy())
    if isinstance(tensor, ir.ExternalTensor):
        tensor.release()
    return result
