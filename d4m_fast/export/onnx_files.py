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
    total = 0
    for value in model.graph.initializers.values():
        if value.const_value is not None:
            total += value.const_value.nbytes
    return total
