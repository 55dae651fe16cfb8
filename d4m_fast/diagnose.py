"""Report of what is installed here, and which engines can run."""

from __future__ import annotations

import os
import platform
from typing import Any

import torch

from d4m_fast import __version__
from d4m_fast.engine.artifacts import installed_versions
from d4m_fast.engine.engines import ENGINES
from d4m_fast.engine.runtime import resolve_device
from d4m_fast.errors import PreflightError

LIBRARIES = (
    *("torch", "torchvision", "diffusers", "transformers", "safetensors", "numpy", "pillow", "click", "rich"),
    *("onnx", "onnxruntime", "onnxruntime-gpu", "onnxscript", "tensorrt-cu13", "tensorrt-rtx-cu13-libs"),
    *("cupy-cuda13x", "ray", "pyarrow", "webdataset", "datasets"),
)


def diagnose() -> dict[str, Any]:
    """Return versions, None for what is not installed; devices; and for each engine whether it runs, and why not."""
    device, versions = resolve_device("auto"), installed_versions(*LIBRARIES)
    engines = dict[str, dict[str, Any]]()
    for name, engine in ENGINES.items():
        try:
            engines[name] = {"available": True, "reason": engine.describe(device)}
        except PreflightError as error:
            engines[name] = {"available": False, "reason": str(error)}
    return {
        "d4m-fast": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "libraries": {name: versions.get(name) for name in LIBRARIES},
        "devices": ["cpu", *map(torch.cuda.get_device_name, range(torch.cuda.device_count()))],
        "device": str(device),
        "engines": engines,
    }
