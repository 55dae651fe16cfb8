"""The PyTorch runtime keeps to the table of names and axes that every runtime shares."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from d4m_fast.engine.eager import open_eager
from d4m_fast.engine.signature import SIGNATURES, Component

# Of the tiny model: two images of 16 pixels, latents of 8, prompts of 24 tokens.
INPUTS = {
    "input_ids": torch.ones(2, 24, dtype=torch.int64),
    "pixels": torch.zeros(2, 3, 16, 16),
    "sample": torch.zeros(2, 4, 8, 8),
    "timestep": torch.tensor(1),
    "hidden_states": torch.zeros(2, 24, 16),
    "latents": torch.zeros(2, 4, 8, 8),
}


@pytest.mark.parametrize("component", SIGNATURES)
def test_inputs_and_outputs_are_the_tables(tiny_model: Path, component: Component) -> None:
    signature = SIGNATURES[component]
    runtime = open_eager(tiny_model, component, torch.device("cpu"), torch.float32)
    outputs = runtime({name: INPUTS[name] for name in signature.inputs})
    assert list(outputs) == list(signature.outputs)
    for name, axes in signature.outputs.items():
        assert outputs[name].ndim == len(axes)
        assert outputs[name].shape[0] == 2
    assert all(INPUTS[name].ndim == len(axes) for name, axes in signature.inputs.items())
