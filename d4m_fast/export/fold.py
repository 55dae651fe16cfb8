"""Convolutions of enlarged images without the enlarging: the same sums from fewer products.

A 3x3 convolution of an image enlarged twofold to nearest neighbours reads each pixel of the small image up to four
times with different weights. Summing those weights first leaves, for each of the four positions of a large pixel in a
small one, a 2x2 convolution of the small image: 4 products per output where there were 9.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import onnx_ir as ir

# Rows (or columns) of the 3x3 kernel that fall on the same small pixel, for the first and the second large pixel in it.
_MERGED_ROWS = (((0,), (1, 2)), ((0, 1), (2,)))
# Nearest neighbours as PyTorch's exporter writes them.
_MODES = {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
_PLAIN_3X3: dict[str, Any] = {"pads": (1, 1, 1, 1), "strides": (1, 1), "dilations": (1, 1), "group": 1}


def fold_upsampling(model: ir.Model) -> int:
    """Rewrite each nearest-neighbour doubling that one 3x3 convolution reads; returns how many there were."""
    count = 0
    for node in list(model.graph):
        readers = list(node.outputs[0].consumers())
        if _is_doubling(node) and len(readers) == 1 and _is_plain_3x3(readers[0]):
            _replace(model.graph, node, readers[0])
            count += 1
    return count


def _is_doubling(node: ir.Node) -> bool:
    """Whether a node enlarges to nearest neighbours, twofold along height and width."""
    if node.op_type != "Resize":
        return False
    scales = node.inputs[2] if len(node.inputs) > 2 else None
    if scales is None or scales.const_value is None:
        return False
    modes = {name: node.attributes[name].as_string() for name in _MODES if name in node.attributes}
    return bool(scales.const_value.numpy().tolist() == [1, 1, 2, 2] and modes == _MODES)


def _is_plain_3x3(node: ir.Node) -> bool:
    """Whether a node is a 3x3 convolution of `_PLAIN_3X3`, whose weights are known."""
    if node.op_type != "Conv":
        return False
    weight = node.inputs[1]
    if weight is None or weight.const_value is None or weight.const_value.shape[2:] != (3, 3):
        return False
    return all(np.array_equal(node.attributes[name].value, value) for name, value in _PLAIN_3X3.items())


def _replace(graph: ir.Graph, resize: ir.Node, conv: ir.Node) -> None:
    """Put four 2x2 convolutions of the small image in the place of a doubling and of the convolution after it."""
    import onnx_ir as ir

    small, (weight, *bias) = resize.inputs[0], conv.inputs[1:]
    # One 2x2 convolution of the small image for each position of a large pixel in a small one.
    phases = []
    for row in (0, 1):
        for column in (0, 1):
            array, name = _merged(weight, row, column), f"{conv.name}.phase{row}{column}"
            kernel = ir.Value(name=name, type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape(array.shape))
            kernel.const_value = ir.Tensor(array, name=name)
            graph.register_initializer(kernel)
            attributes = {"pads": [1 - row, 1 - column, row, column], "kernel_shape": [2, 2]}
            phases.append(ir.node("Conv", [small, kernel, *bias], attributes, name=f"{conv.name}.{row}{column}"))
    stacked = ir.node("Concat", [phase.outputs[0] for phase in phases], {"axis": 1}, name=f"{conv.name}.phases")
    # The four results are interleaved into the large image.
    woven = ir.node("DepthToSpace", stacked.outputs, {"blocksize": 2, "mode": "DCR"}, name=f"{conv.name}.woven")
    result = conv.outputs[0]
    for node in (*phases, stacked, woven):
        for value in node.outputs:
            value.type = result.type
    woven.outputs[0].shape = result.shape
    graph.insert_before(conv, [*phases, stacked, woven])
    result_name = result.name  # kept, since outputs are found by it
    for use in list(result.uses()):
        use.node.replace_input_with(use.idx, woven.outputs[0])
    for index, output in enumerate(graph.outputs):
        if output is result:
            graph.outputs[index] = woven.outputs[0]
    graph.remove([conv, resize], safe=True)
    woven.outputs[0].name = result_name


def _merged(weight: Any, row: int, column: int) -> np.ndarray[Any, Any]:
    """Return (out, in, 2, 2): the kernel's weights summed over what falls on one small pixel."""
    kernel = weight.const_value.numpy().astype(np.float64)  # rounded to fp32 once, after the sums
    rows = np.stack([kernel[:, :, list(indices), :].sum(axis=2) for indices in _MERGED_ROWS[row]], axis=2)
    merged = np.stack([rows[:, :, :, list(indices)].sum(axis=3) for indices in _MERGED_ROWS[column]], axis=3)
    return np.ascontiguousarray(merged.astype(np.float32))
