"""The table of engines, and the places that follow it."""

from __future__ import annotations

from typing import get_args

import pytest
import torch
from click import Choice

from d4m_fast.certification.engines import Kind
from d4m_fast.certification.render import LABELS
from d4m_fast.commands.distill import distill
from d4m_fast.commands.export import export
from d4m_fast.commands.plan import plan
from d4m_fast.config.choices import Engine, EngineName, ExportedEngine
from d4m_fast.engine.engines import ENGINES
from d4m_fast.engine.signature import COMPONENTS
from d4m_fast.errors import PreflightError
from d4m_fast.export.to_onnx import opset_of


def test_the_types_name_what_the_table_has() -> None:
    exported = [name for name, engine in ENGINES.items() if engine.exported]
    assert list(ENGINES) == list(get_args(EngineName))
    assert exported == list(get_args(ExportedEngine))
    assert get_args(Engine) == ("auto", *ENGINES)


@pytest.mark.parametrize(("command", "names"), [(distill, Engine), (plan, Engine), (export, ExportedEngine)])
def test_commands_offer_them(command: object, names: object) -> None:
    (option,) = (parameter for parameter in command.params if parameter.name == "engine")  # type: ignore[attr-defined]
    assert isinstance(option.type, Choice)
    assert tuple(option.type.choices) == get_args(names)


def test_certificates_have_a_label_for_each() -> None:
    assert set(LABELS) == set(get_args(Kind))


@pytest.mark.parametrize("name", get_args(ExportedEngine))
def test_export_knows_the_opset_of_each(name: ExportedEngine) -> None:
    assert all(opset_of(name, component) >= 20 for component in COMPONENTS)


@pytest.mark.parametrize("name", ENGINES)
def test_engines_built_for_gpus_refuse_cpus(name: EngineName) -> None:
    if not ENGINES[name].built_per_gpu:
        ENGINES[name].require_device(torch.device("cpu"))
        return
    with pytest.raises(PreflightError, match=f"--engine {name} needs an NVIDIA GPU"):
        ENGINES[name].require_device(torch.device("cpu"))
