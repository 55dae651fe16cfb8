"""ONNX files as all steps of the export write them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

EXTERNAL_BYTES = 1 << 30
"""Weights above this go to a file of their own; a protobuf cannot hold 2 GB."""


def save_model(model: Any, path: Path) -> None:
    """Write a model as `path`, and large weights as `path`.data beside it."""
    import onnx_ir as ir

    ir.save(model, path, external_data=f"{path.name}.data" if weight_bytes(model) > EXTERNAL_BYTES else None)


def weight_bytes(model: Any) -> int:
    """Return the bytes of all weights, as they would be written."""
    weights = [value.const_value for value in model.graph.initializers.values()]
    return sum(weight.nbytes for weight in weights if weight is not None)
