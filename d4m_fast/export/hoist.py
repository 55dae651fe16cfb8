"""What a UNet computes of its prompts alone, taken out of it: keys and values are the same in every step of a schedule.

unet.onnx           sample, timestep, hidden_states -> noise     becomes     sample, timestep, context... -> noise
unet.context.onnx                                                            hidden_states -> context...
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from d4m_fast.storage.files import refusing

if TYPE_CHECKING:
    import onnx_ir as ir

SOURCE = "hidden_states"
EXTERNAL_BYTES = 1 << 30


def hoist_context(path: Path, target: Path) -> list[str]:
    """Split an exported UNet; rewrites `path`, writes `target`, returns the names of the tensors between them.

    Raises:
        PreflightError: the disk refuses.
    """
    import onnx_ir as ir

    step, context = ir.load(path), ir.load(path)
    names = [str(value.name) for value in _crossing(step.graph)]
    _read_as_inputs(step.graph, names)
    _end_at(context.graph, names)
    context.graph.name = f"{step.graph.name}_context"
    with refusing(path), tempfile.TemporaryDirectory(dir=path.parent, prefix=".hoist-") as folder:
        for model, file in ((context, target), (step, path)):
            _save(model, Path(folder) / file.name)
        for made in sorted(Path(folder).iterdir()):
            os.replace(made, path.parent / made.name)
    return names


def _crossing(graph: ir.Graph) -> list[ir.Value]:
    """Values made of the prompts and constants alone that something else reads."""
    fixed = set(graph.initializers.values())
    prompts = {value for value in graph.inputs if value.name == SOURCE}
    for node in graph:
        read = {value for value in node.inputs if value is not None}
        if read <= fixed:
            fixed.update(node.outputs)
        elif read <= fixed | prompts:
            prompts.update(node.outputs)
    made = [value for node in graph for value in node.outputs if value in prompts]
    inside = {value.producer() for value in made}
    return [value for value in made if any(reader not in inside for reader in value.consumers())]


def _read_as_inputs(graph: ir.Graph, names: list[str]) -> None:
    """What is made elsewhere comes in under its name."""
    import onnx_ir as ir

    values = {value.name: value for node in graph for value in node.outputs}
    for name in names:
        made = values[name]
        given = ir.Value(name=name, type=made.type, shape=made.shape)
        made.name = f"{name}.unused"
        for use in list(made.uses()):
            use.node.replace_input_with(use.idx, given)
        graph.inputs.append(given)
    kept = [value for value in graph.inputs if value.name != SOURCE]
    graph.inputs[:] = kept


def _end_at(graph: ir.Graph, names: list[str]) -> None:
    values = {value.name: value for node in graph for value in node.outputs}
    graph.outputs[:] = [values[name] for name in names]


def _save(model: ir.Model, path: Path) -> None:
    """Without what nothing reads any more; large weights in a file beside it."""
    import onnx_ir as ir
    from onnx_ir.passes import common

    common.RemoveUnusedNodesPass()(model)
    model.graph.inputs[:] = [v for v in model.graph.inputs if v.uses() and v.name not in model.graph.initializers]
    weights = sum(v.const_value.nbytes for v in model.graph.initializers.values() if v.const_value is not None)
    ir.save(model, path, external_data=f"{path.name}.data" if weights > EXTERNAL_BYTES else None)
