"""The comparison itself: every kind of faulty runtime must be found out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch

from d4m_fast.engine.eager import open_eager
from d4m_fast.engine.model import open_model
from d4m_fast.engine.runtime import InPieces, Runtime, Tensors
from d4m_fast.engine.signature import COMPONENTS, SIGNATURES, Component
from d4m_fast.export.limits import HALF_RATIO, LIMITS, Limits, activation_verdict, half_verdict, verdict
from d4m_fast.measure.parity import (
    IDENTICAL_PSNR,
    HalfErrors,
    Parity,
    compare,
    first_images,
    half_errors,
    psnr,
    resized,
    unguided,
)

Fault = Callable[[Runtime, Tensors, Tensors], Tensors]
FP32, FP16 = LIMITS["fp32"], LIMITS["fp16"]
IMAGES = np.full((2, 4, 4, 3), 128, np.uint8)


class Faulty:
    """A runtime with something wrong; `fault` sees this call's inputs and the last call's outputs."""

    def __init__(self, runtime: Runtime, fault: Fault) -> None:
        self._runtime, self._fault = runtime, fault
        self._last: Tensors = {}
        self.device, self.dtype = runtime.device, runtime.dtype

    def __call__(self, inputs: Mapping[str, torch.Tensor]) -> Tensors:
        outputs = self._fault(self._runtime, dict(inputs), self._last)
        self._last = self._runtime(inputs)
        return outputs


def swapped_halves(runtime: Runtime, inputs: Tensors, last: Tensors) -> Tensors:
    return {"noise": torch.cat(runtime(inputs)["noise"].chunk(2)[::-1])}


def permuted_batch(runtime: Runtime, inputs: Tensors, last: Tensors) -> Tensors:
    return {"noise": runtime(inputs)["noise"].roll(1, 0)}


def stale_buffer(runtime: Runtime, inputs: Tensors, last: Tensors) -> Tensors:
    fits = last and last["noise"].shape[0] == inputs["hidden_states"].shape[0]
    return last if fits else runtime(inputs)


def shifted_timestep(runtime: Runtime, inputs: Tensors, last: Tensors) -> Tensors:
    return runtime({**inputs, "timestep": inputs["timestep"] + 20})


def overflow(runtime: Runtime, inputs: Tensors, last: Tensors) -> Tensors:
    noise = runtime(inputs)["noise"].clone()
    noise[0, 0, 0, 0] = torch.nan
    return {"noise": noise}


def half(runtime: Runtime, inputs: Tensors, last: Tensors) -> Tensors:
    return {"noise": runtime({n: x.half().float() if x.is_floating_point() else x for n, x in inputs.items()})["noise"]}


def correct(runtime: Runtime, inputs: Tensors, last: Tensors) -> Tensors:
    return runtime(inputs)


@pytest.fixture(scope="module")
def unet(tiny_model: Path) -> Runtime:
    return open_eager(tiny_model, "unet", torch.device("cpu"), torch.float32)


def calls(tiny_model: Path) -> list[Tensors]:
    sizes, generator = open_model(str(tiny_model)).sizes(16), torch.Generator().manual_seed(0)
    signature = SIGNATURES["unet"]

    def random(name: str) -> torch.Tensor:
        return torch.randn(signature.shape(name, sizes, 4, samples=2), generator=generator)

    return [
        {"sample": random("sample"), "timestep": torch.tensor(t), "hidden_states": random("hidden_states")}
        for t in (701, 361, 1)
    ]


@pytest.mark.parametrize("fault", [swapped_halves, permuted_batch, stale_buffer, shifted_timestep, overflow, half])
def test_a_faulty_runtime_is_rejected(unet: Runtime, tiny_model: Path, fault: Fault) -> None:
    found = compare("unet", unet, Faulty(unet, fault), calls(tiny_model), (1, 2, 7), 8.0)
    assert verdict({"unet": found}, [IDENTICAL_PSNR], IMAGES, FP32)


def test_nan_in_the_second_output_alone_is_seen(tiny_model: Path) -> None:
    """The log-variance, which no image of the comparison is made from."""
    encoder = open_eager(tiny_model, "vae_encoder", torch.device("cpu"), torch.float32)

    def spoiled(runtime: Runtime, inputs: Tensors, last: Tensors) -> Tensors:
        found = runtime(inputs)
        return {**found, "logvar": torch.full_like(found["logvar"], torch.nan)}

    pixels = [{"pixels": torch.rand(2, 3, 16, 16)}]
    found = compare("vae_encoder", encoder, Faulty(encoder, spoiled), pixels, (1, 2), 8.0)
    assert verdict({"vae_encoder": found}, [IDENTICAL_PSNR], IMAGES, FP32)


def test_a_correct_one_is_not(unet: Runtime, tiny_model: Path) -> None:
    found = compare("unet", unet, Faulty(unet, correct), calls(tiny_model), (1, 2, 7), 8.0)
    assert verdict({"unet": found}, [IDENTICAL_PSNR], IMAGES, FP32) == []
    assert [p.batch for p in found] == [2, 2, 2, *[1, 1, 2, 2, 7, 7] * 2]
    assert [p.timestep for p in found] == [701, 361, 1, *[701] * 6, *[1] * 6]


@pytest.mark.parametrize("fault", [swapped_halves, permuted_batch, stale_buffer, shifted_timestep, overflow, correct])
def test_a_faulty_fp16_runtime_is_rejected(unet: Runtime, tiny_model: Path, fault: Fault) -> None:
    """The correct one too: it answers in fp32."""
    half, asked = open_eager(tiny_model, "unet", torch.device("cpu"), torch.float16), calls(tiny_model)
    ours, pytorch = (compare("unet", unet, runtime, asked, (1, 2, 7), 8.0) for runtime in (Faulty(unet, fault), half))
    reasons = verdict({"unet": ours}, [IDENTICAL_PSNR], IMAGES, FP16)
    assert reasons + half_verdict({"unet": half_errors(ours, pytorch, 4)})


@pytest.mark.parametrize("fault", [swapped_halves, permuted_batch, stale_buffer, shifted_timestep, overflow])
def test_a_faulty_runtime_is_further_off_than_pytorchs_own_half(unet: Runtime, tiny_model: Path, fault: Fault) -> None:
    """Of which each fault is made here."""
    half, asked = open_eager(tiny_model, "unet", torch.device("cpu"), torch.float16), calls(tiny_model)
    right, wrong = (compare("unet", unet, r, asked, (1, 2, 7), 8.0) for r in (half, Faulty(half, fault)))
    assert half_verdict({"unet": half_errors(right, right, 4)}) == []
    assert "PyTorch's own half" in half_verdict({"unet": half_errors(wrong, right, 4)})[0]


def test_fp16_is_judged_by_other_limits(unet: Runtime, tiny_model: Path) -> None:
    found = compare("unet", unet, Faulty(unet, half), calls(tiny_model), (1, 2, 7), 8.0)
    assert verdict({"unet": found}, [40.0], IMAGES, FP16) == []
    assert "after guidance" in verdict({"unet": found}, [40.0], IMAGES, Limits(0.0, 1.0, 1e-9, 30.0))[0]


def test_guidance_multiplies_the_error(unet: Runtime, tiny_model: Path) -> None:
    found = compare("unet", unet, Faulty(unet, half), calls(tiny_model), (2,), 8.0)
    assert all(p.guided_l2 is not None and p.guided_l2 > p.relative_l2 for p in found[:3])
    assert [p.guided_l2 for p in found[3:]] == [None] * 4


def test_some_images_of_both_halves(tiny_model: Path) -> None:
    (whole, *_) = calls(tiny_model)
    part = first_images("unet", whole, 1)
    assert torch.equal(part["sample"], whole["sample"][[0]])
    assert torch.equal(part["hidden_states"], whole["hidden_states"][[0, 2]])
    assert torch.equal(part["timestep"], whole["timestep"])


def test_some_images_of_a_call_with_fewer() -> None:
    pixels = {"pixels": torch.rand(1, 3, 16, 16)}
    assert torch.equal(first_images("vae_encoder", pixels, 2)["pixels"], pixels["pixels"])


@pytest.mark.parametrize("component", COMPONENTS)
def test_fp16_against_pytorchs_own(component: Component) -> None:
    def reasons(ours: float, guided: float | None = None) -> list[str]:
        return half_verdict({component: HalfErrors(ours, 1e-3, guided, 4e-3, 4, 36)})

    assert reasons(HALF_RATIO * 1e-3, HALF_RATIO * 4e-3) == []
    assert reasons(2e-3) == [
        f"{component}: relative L2 0.002, the limit is 1.75 times PyTorch's own half precision's 0.001"
    ]
    assert "relative L2 0.008 after guidance" in reasons(1e-3, 8e-3)[0]
    assert len(reasons(np.nan, np.nan)) == 2


@pytest.mark.parametrize("broken", [np.nan, np.inf])
def test_where_pytorchs_own_overflows_the_ceilings_are_left(broken: float) -> None:
    def calls_of(*errors: float) -> list[Parity]:
        return [Parity(2, 1, error, error, 4 * error) for error in errors]

    ours = calls_of(2e-3, 3e-3)
    errors = half_errors(ours, calls_of(1e-3, broken), 4)
    assert errors == HalfErrors(3e-3, None, 12e-3, None, 4, 2)
    assert half_verdict({"unet": errors}) == []
    assert verdict({"unet": ours}, [40.0], IMAGES, FP16) == []
    assert [len(verdict({"unet": calls_of(e)}, [40.0], IMAGES, FP16)) for e in (0.024, 0.026, 0.11, np.nan)] == [
        0,
        1,
        2,
        2,
    ]
    assert half_errors(calls_of(1e-3, np.nan, 2e-3), ours, 4).ours != 2e-3  # NaN is worse than any number


def test_a_network_without_guidance_has_no_errors_after_it() -> None:
    errors = half_errors([Parity(2, None, 1e-3, 1e-3, None)], [Parity(2, None, 1e-3, 1e-3, None)], 2)
    assert errors == HalfErrors(1e-3, 1e-3, None, None, 2, 1)
    assert half_verdict({"vae_decoder": errors}) == []


def test_values_near_the_end_of_fp16_are_rejected() -> None:
    assert activation_verdict({"unet": 20.0}) == []
    assert activation_verdict({"unet": 20.0, "vae_decoder": 16_000.0}) == [
        "vae_decoder: an fp16 activation of 16000, the limit is 16000"
    ]


def test_bad_images_are_rejected() -> None:
    black = IMAGES.copy()
    black[1] = 0
    assert "dB" in verdict({}, [60.0, 49.9], IMAGES, FP32)[0]
    assert verdict({}, [float("nan")], IMAGES, FP32)
    assert verdict({}, [60.0], black, FP32) == ["a black image"]


def test_psnr_is_scikit_images_definition() -> None:
    other = IMAGES.copy()
    other[1] += 2
    assert psnr(IMAGES, other) == [IDENTICAL_PSNR, pytest.approx(20 * np.log10(255 / 2))]


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("halves", [1, 2])
@pytest.mark.parametrize("samples", [1, 2, 3, 4, 5])
def test_batches_are_cut_and_padded(unet: Runtime, tiny_model: Path, samples: int, halves: int, exact: bool) -> None:
    seen: list[tuple[int, int]] = []

    def watch(runtime: Runtime, inputs: Tensors, last: Tensors) -> Tensors:
        seen.append((len(inputs["sample"]), len(inputs["hidden_states"])))
        return runtime(inputs)

    guided = resized("unet", calls(tiny_model)[0], samples)
    wanted = guided if halves == 2 else unguided(guided)
    batched = InPieces(Faulty(unet, watch), SIGNATURES["unet"], 4, exact=exact)
    torch.testing.assert_close(batched(wanted), unet(wanted), atol=1e-6, rtol=1e-5)
    if exact:
        assert set(seen) == {(2, 4)}
    assert max(rows for _, rows in seen) <= 4


@pytest.mark.parametrize("samples", [1, 3])
def test_both_halves_see_the_same_samples(unet: Runtime, tiny_model: Path, samples: int) -> None:
    """Half as many samples as rows is what each sample given twice is."""
    call = resized("unet", calls(tiny_model)[1], samples)
    twice = {**call, "sample": torch.cat([call["sample"]] * 2)}
    torch.testing.assert_close(unet(call), unet(twice), atol=1e-6, rtol=1e-5)
