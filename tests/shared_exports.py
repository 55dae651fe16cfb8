"""One trace per network: what PyTorch's exporter made of a module is kept for the next test that exports the same.

The exporter takes five seconds of a network of a few thousand weights, and some twenty tests export the same ones. The
key has all that a trace depends on; everything after the trace (checks, folding, files, comparisons) is done each time.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch

PLAIN = (bool, int, float, str, tuple, type(None))


class SharedExports:
    """Stands for `torch.onnx.export`."""

    def __init__(self, export: Callable[..., Any]) -> None:
        self._export = export
        self._kept: dict[tuple[str, ...], SimpleNamespace] = {}

    def __call__(self, module: Any, args: Any = (), *more: Any, **options: Any) -> Any:
        if more or not isinstance(module, torch.nn.Module):  # to a file, or of a program
            return self._export(module, args, *more, **options)
        key = (_described(module), _digest(module), str([(x.shape, x.dtype) for x in args]), str(options))
        if key not in self._kept:
            program = self._export(module, args, **options)
            self._kept[key] = SimpleNamespace(model=program.model, exported_program=program.exported_program)
        kept = self._kept[key]
        # The caller names, folds and saves its own copy.
        return SimpleNamespace(model=kept.model.clone(), exported_program=kept.exported_program)


def _described(module: torch.nn.Module) -> str:
    """Layers, configs and processors of attention: what decides the operations, beside the weights."""
    parts = [repr(module)]
    for name, part in module.named_modules():
        fields = {
            key: value
            for key, value in vars(part).items()
            if not key.startswith("_") and key != "name_or_path" and isinstance(value, PLAIN)
        }
        processor = type(getattr(part, "processor", None))
        parts.append(f"{name} {type(part)} {fields} {processor} {_config(part)}")
    return "\n".join(parts)


def _config(part: Any) -> dict[str, Any]:
    """Without the folder that it was read from."""
    config = getattr(part, "config", {})
    fields = dict(config) if isinstance(config, dict) else config.to_dict()
    return {key: value for key, value in fields.items() if key != "_name_or_path"}


def _digest(module: torch.nn.Module) -> str:
    digest = hashlib.sha256()
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
