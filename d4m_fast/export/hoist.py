"""Keys and values that a UNet computes of its prompts alone, taken out of it: every step of a schedule has the same.

unet.onnx           sample, timestep, hidden_states -> noise     becomes     sample, timestep, context... -> noise
unet.context.onnx                                                            hidden_states -> context...
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from d4m_fast.engine.ort import PROMPTS
from d4m_fast.export.onnx_files import save_model
from d4m_fast.storage.files import refusing

if TYPE_CHECKING:
    import onnx_ir as ir


def hoist_context(path: Path, target: Path) -> list[str]:
    """Split an exported UNet; rewrites `path`, writes `target`, returns the names of the tensors between them.

    Raises:
        PreflightError: the disk refuses.
    """
    import onnx_ir as ir
    from onnx_ir.passes import common

    step, context = ir.load(path), ir.load(path)  # two models, each of which loses the other's half
    names = _context_names(step.graph)
    _read_as_inputs(step.graph, names)
    results = _results(context.graph)
    context.graph.outputs[:] = [results[name] for name in names]
    context.graph.name = f"{step.graph.name}_context"
    with refusing(path), tempfile.TemporaryDirectory(dir=path.parent, prefix=".hoist-") as folder:
        for model, file in ((context, target), (step, path)):
            common.RemoveUnusedNodesPass()(model)
            inputs, weights = model.graph.inputs, model.graph.initializers
            inputs[:] = [value for value in inputs if value.uses() and value.name not in weights]
            save_model(model, Path(folder) / file.name)
        # In the order of their names: the context is there before the step that needs it.
        for file in sorted(Path(folder).iterdir()):
            os.replace(file, path.parent / file.name)
    return names


def _context_names(graph: ir.Graph) -> list[str]:
    """Return the names of the values computed of the prompts and constants alone that some other node reads."""
    constants = set(graph.initializers.values())
    of_prompts = {value for value in graph.inputs if value.name == PROMPTS}
    computed: list[ir.Value] = []
    producers: set[ir.Node] = set()
    for node in graph:  # in topological order, so that what a node reads is sorted already
        inputs = {value for value in node.inputs if value is not None}
        if inputs <= constants:
            constants.update(node.outputs)
        elif inputs <= constants | of_prompts:
            of_prompts.update(node.outputs)
            computed += node.outputs
            producers.add(node)
    return [str(value.name) for value in computed if not producers.issuperset(value.consumers())]


def _read_as_inputs(graph: ir.Graph, names: list[str]) -> None:
    """Let values of these names come in as inputs, in place of the prompts."""
    import onnx_ir as ir

    results = _results(graph)
    for name in names:
        computed = results[name]
        graph_input = ir.Value(name=name, type=computed.type, shape=computed.shape)
        computed.name = f"{name}.unused"
        for use in list(computed.uses()):
            use.node.replace_input_with(use.idx, graph_input)
        graph.inputs.append(graph_input)
    graph.inputs[:] = [value for value in graph.inputs if value.name != PROMPTS]


def _results(graph: ir.Graph) -> dict[str, ir.Value]:
    results: dict[str, ir.Value] = {}
    for node in graph:
        for value in node.outputs:
            results[str(value.name)] = value
    return results
