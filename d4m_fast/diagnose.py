"""Report of what is installed here, and which engines can run."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from typing import Any

import torch

from d4m_fast import __version__
from d4m_fast.engine.engines import ENGINES, EngineSpec
from d4m_fast.engine.runtime import resolve_device
from d4m_fast.errors import PreflightError

LIBRARIES = (
    *("torch", "torchvision", "diffusers", "transformers", "safetensors", "numpy", "pillow", "click", "rich"),
    *("onnx", "onnxruntime", "onnxruntime-gpu", "onnxscript", "tensorrt-cu13", "tensorrt-rtx-cu13-libs"),
    *("cupy-cuda13x", "ray", "pyarrow", "webdataset", "datasets"),
)


def diagnose() -> dict[str, Any]:
    """Return versions, None for what is not installed; devices; and for each engine whether it runs, and why not."""
    device = resolve_device("auto")
    return {
        "d4m-fast": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "libraries": {name: _version(name) for name in LIBRARIES},
        "devices": ["cpu", *map(torch.cuda.get_device_name, range(torch.cuda.device_count()))],
        "device": str(device),
        "engines": {name: _readiness(engine, device) for name, engine in ENGINES.items()},
    }


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _readiness(engine: EngineSpec, device: torch.device) -> dict[str, Any]:
    try:
        return {"available": True, "reason": engine.describe(device)}
    except PreflightError as error:
        return {"available": False, "reason": str(error)}
