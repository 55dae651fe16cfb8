"""NaN and infinity from any network: the run stops in one line, nothing of that batch is kept, and a re-run goes on."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from driving import Finished, Ran, products, refused, tree
from models import write_model

from d4m_fast.engine.finite import require_half_range
from d4m_fast.engine.networks import Networks
from d4m_fast.engine.runtime import Runtime, Tensors
from d4m_fast.engine.signature import COMPONENTS, SIGNATURES, Component
from d4m_fast.errors import ModelError, NonFiniteError
from d4m_fast.job import Job

Distill = Callable[..., Ran]
VALUES = {"NaN": torch.nan, "infinity": torch.inf, "minus infinity": -torch.inf}


class Spoiled:
    """A runtime whose `call`-th answer has one value that is no number, in one channel of one row."""

    def __init__(self, runtime: Runtime, output: str, value: float, call: int, row: int) -> None:
        self._runtime, self._output, self._value = runtime, output, value
        self._call, self._row, self._calls = call, row, 0
        self.device, self.dtype = runtime.device, runtime.dtype

    def __call__(self, inputs: Mapping[str, torch.Tensor]) -> Tensors:
        outputs = {name: x.clone() for name, x in self._runtime(inputs).items()}
        if self._calls == self._call:
            row = outputs[self._output][self._row]
            row[(-1,) * row.ndim] = self._value
        self._calls += 1
        return outputs


Spoil = Callable[..., None]


@pytest.fixture
def spoil(monkeypatch: pytest.MonkeyPatch) -> Spoil:
    """Spoil an answer of one network in the runs that follow, or none."""
    opened = Job.open_networks

    def apply(output: str = "", value: float = torch.nan, call: int = 0, row: int = 0) -> None:
        def open_networks(self: Job) -> Networks:
            networks = opened(self)

            def open_runtime(name: Component) -> Runtime:
                runtime = networks.runtime(name)
                return Spoiled(runtime, output, value, call, row) if output in SIGNATURES[name].outputs else runtime

            return networks.with_runtimes(open_runtime)

        monkeypatch.setattr(Job, "open_networks", open_networks)

    return apply


def committed(run: Path) -> int:
    """Images that a record says are done."""
    return sum(len(json.loads(file.read_text())["images"]) for file in run.glob("groups/*.json"))


@pytest.mark.parametrize("value", VALUES)
@pytest.mark.parametrize(
    ("component", "call", "row", "said"),
    [
        # Batches of two images: 6 images, in 3 batches; 3 UNet calls a batch, at timesteps 501, 251 and 1.
        ("unet", 0, 0, ("class apple (id 0), image 0", "timestep 501")),
        ("unet", 5, 3, ("class bread (id 1), image 1", "timestep 1")),  # the conditional half of the second image
        ("vae_decoder", 2, 1, ("class cloud (id 2), image 1",)),
        ("text_encoder", 1, 0, ("class apple ('apple')",)),
        ("text_encoder", 0, 0, ("the negative prompt",)),
    ],
)
def test_generation_stops_and_goes_on(
    component: Component,
    call: int,
    row: int,
    said: tuple[str, ...],
    value: str,
    distill: Distill,
    spoil: Spoil,
    tmp_path: Path,
) -> None:
    run = tmp_path / "run"
    (output,) = SIGNATURES[component].outputs
    spoil(output, VALUES[value], call, row)
    refused(distill("--batch-size", 2, "--quiet"), 1, f"{component}: ", *said, "--precision fp32", "another --engine")
    batches = {"unet": call // 3, "vae_decoder": call, "text_encoder": 0}[component]
    assert committed(run) == 2 * batches
    assert len(tree(run, "images/**/*.png")) == 2 * batches
    spoil()
    assert distill("--batch-size", 2, "--quiet").code == 0
    assert distill("--batch-size", 2, "--quiet", "--out", tmp_path / "clean").code == 0
    assert products(run) == products(tmp_path / "clean")


@pytest.mark.parametrize("value", VALUES)
@pytest.mark.parametrize("output", ["mean", "logvar"])
def test_encoding_stops_and_goes_on(
    output: str, value: str, distill: Distill, spoil: Spoil, tmp_path: Path, finished: Finished
) -> None:
    spoil(output, VALUES[value], 0, 7)
    ran = distill("--quiet")
    if (output, value) == ("logvar", "minus infinity"):
        assert ran.code == 0  # a deviation of 0, which is a number
        return
    refused(ran, 1, "vae_encoder: ", "bread/1.jpg (class id 1)")
    assert not tree(tmp_path / "run", "images/**/*.png")
    spoil()
    assert distill("--quiet").code == 0
    assert products(tmp_path / "run") == products(finished.run)


@pytest.mark.parametrize("component", COMPONENTS)
def test_a_network_that_never_returns_a_number_is_found_before_encoding(
    component: Component, distill: Distill, tmp_path: Path, tiny_model: Path
) -> None:
    """Weights of NaN, by the trial: there is no run yet, and no latents."""
    from safetensors.torch import load_file, save_file

    model = write_model(tmp_path / "model")
    part, stem = {"text_encoder": ("text_encoder", "model")}.get(
        component, (component.split("_")[0], "diffusion_pytorch_model")
    )
    file = model / part / f"{stem}.safetensors"
    side = {"vae_encoder": "encoder", "vae_decoder": "decoder"}.get(component, "")
    weights = {
        name: torch.full_like(x, torch.nan) if name.startswith(side) and x.is_floating_point() else x
        for name, x in load_file(file).items()
    }
    save_file(weights, file, metadata={"format": "pt"})
    refused(distill("--model", model), 1, f"{component}", "no finite number")
    assert not (tmp_path / "run" / "config.json").exists()
    assert not (tmp_path / "art").exists()


@pytest.mark.parametrize(("factor", "said"), [(1e7, "65504"), (1e-9, "scaling_factor")])
def test_latents_that_fp16_cannot_keep(factor: float, said: str, distill: Distill, tmp_path: Path) -> None:
    model = write_model(tmp_path / "model", vae={"scaling_factor": factor})
    refused(distill("--model", model), 1, "vae_encoder: ", "apple/", "vae/config.json", said)
    assert not tree(tmp_path / "run", "images/**/*.png")
    assert not list(tmp_path.glob("art/latents/*/index.json"))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_latent_that_is_no_number(value: float) -> None:
    latents = np.ones((2, 4, 2, 2), np.float32)
    latents[1, 3, 1, 1] = value
    with pytest.raises(NonFiniteError, match="second"):
        require_half_range(latents, ["first", "second"])


@pytest.mark.parametrize("value", [65_505.0, -1e5, 6e-5])
def test_a_latent_out_of_range(value: float) -> None:
    with pytest.raises(ModelError, match="first"):
        require_half_range(np.full((1, 4, 2, 2), value, np.float32), ["first"])


@pytest.mark.parametrize("value", [65_504.0, -65_504.0, 6.2e-5, 0.0, 1.0])
def test_a_latent_in_range(value: float) -> None:
    require_half_range(np.full((1, 4, 2, 2), value, np.float32), ["first"])
