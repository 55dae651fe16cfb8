"""Diffusion-based dataset distillation (D4M, Su et al., CVPR 2024), fast and reproducible.

import d4m_fast

run = d4m_fast.distill(ipc=10)
dataset = d4m_fast.load(run)
result = d4m_fast.evaluate(run)
"""

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from d4m_fast.api.distilling import distill as distill
    from d4m_fast.api.evaluating import Evaluation as Evaluation
    from d4m_fast.api.evaluating import evaluate as evaluate
    from d4m_fast.api.loading import LabelledImages as LabelledImages
    from d4m_fast.api.loading import SoftLabelledImages as SoftLabelledImages
    from d4m_fast.api.loading import load as load
    from d4m_fast.api.runs import Run as Run
    from d4m_fast.api.runs import open_run as open_run
    from d4m_fast.config.distill import DistillConfig as DistillConfig
    from d4m_fast.config.evaluate import EvaluateConfig as EvaluateConfig
    from d4m_fast.config.launch import LaunchConfig as LaunchConfig
    from d4m_fast.errors import D4MError as D4MError
    from d4m_fast.errors import DamageError as DamageError
    from d4m_fast.errors import DataError as DataError
    from d4m_fast.errors import ModelError as ModelError
    from d4m_fast.errors import NonFiniteError as NonFiniteError
    from d4m_fast.errors import OutOfMemoryError as OutOfMemoryError
    from d4m_fast.errors import PreflightError as PreflightError
    from d4m_fast.errors import RunDirectoryError as RunDirectoryError
    from d4m_fast.errors import SetAsideError as SetAsideError
    from d4m_fast.errors import UsageError as UsageError
else:
    # Imported when they are asked for (PEP 562): the libraries take seconds, and `d4m-fast --help` needs none.
    _HOMES = {
        "api.distilling": ("distill",),
        "api.evaluating": ("Evaluation", "evaluate"),
        "api.loading": ("LabelledImages", "SoftLabelledImages", "load"),
        "api.runs": ("Run", "open_run"),
        "config.distill": ("DistillConfig",),
        "config.evaluate": ("EvaluateConfig",),
        "config.launch": ("LaunchConfig",),
        "errors": (
            *("D4MError", "DamageError", "DataError", "ModelError", "NonFiniteError", "OutOfMemoryError"),
            *("PreflightError", "RunDirectoryError", "SetAsideError", "UsageError"),
        ),
    }
    __all__ = ["__version__", *(name for names in _HOMES.values() for name in names)]

    def __getattr__(name: str) -> Any:
        import importlib

        for home, names in _HOMES.items():
            if name in names:
                return getattr(importlib.import_module(f"d4m_fast.{home}"), name)
        raise AttributeError(f"module 'd4m_fast' has no attribute {name!r}")

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
