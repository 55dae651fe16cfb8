"""The denoising loop: a schedule's steps on one batch, from the noised prototypes to clean latents."""

from __future__ import annotations

import torch

from d4m_fast.engine.finite import FiniteCheck
from d4m_fast.engine.memory import host_empty, to_device
from d4m_fast.engine.networks import Unet
from d4m_fast.engine.schedule import Schedule
from d4m_fast.engine.stepping import combine


@torch.inference_mode()
def denoise(
    noised: torch.Tensor,
    states: torch.Tensor,
    unet: Unet,
    schedule: Schedule,
    guidance: float,
    *,
    generators: list[torch.Generator] | None = None,
    check: FiniteCheck | None = None,
) -> torch.Tensor:
    """Run a schedule's steps on x_0 = `noised` (B, C, h, w); returns x_S, clean and scaled.

    Steps are sums with the table's coefficients, or diffusers' scheduler's own where no table equals it.

    Args:
        states: hidden states of the prompts for a guided call; a step without guidance runs on their conditional half.
        generators: one for each image, in the state after x_0 was drawn, for schedulers that add noise of their own.
        check: gets what the UNet returns in every step.
    """
    predict = _Prediction(noised, states, unet, schedule, guidance, FiniteCheck() if check is None else check)
    if schedule.stepper is not None:
        stepping, sample = schedule.stepper.begin(generators), noised
        for i in range(len(schedule.stepper.timesteps)):
            sample = stepping.step(predict(stepping.scale(sample, i), i), i, sample)
        return sample
    samples, outputs = {0: noised}, dict[int, torch.Tensor]()
    sample_uses, output_uses = schedule.last_use()
    for i, step in enumerate(schedule.steps):
        # Most schedules scale nothing, and then no copy is made.
        scaled = samples[i] if step.input_scale == 1 else samples[i] * step.input_scale
        outputs[i] = predict(scaled, i)
        samples[i + 1] = combine(step, samples, outputs)
        # What no later step reads is dropped: kept, it would be a latent of memory per step.
        samples = {j: x for j, x in samples.items() if j == i + 1 or sample_uses.get(j, -1) > i}
        outputs = {j: e for j, e in outputs.items() if output_uses.get(j, -1) > i}
    return samples[len(schedule.steps)]


class _Prediction:
    """The noise that the guided UNet predicts in step i of a schedule."""

    def __init__(
        self,
        noised: torch.Tensor,
        states: torch.Tensor,
        unet: Unet,
        schedule: Schedule,
        guidance: float,
        check: FiniteCheck,
    ) -> None:
        self._guided = states, guidance
        self._conditional = states[-len(noised) :], 1.0  # the negative prompts' half comes first
        self._unet, self._steps, self._check = unet, schedule.steps, check
        # All timesteps are copied at once, so that no step waits for a copy of its own.
        timesteps = schedule.timesteps
        self._timesteps = to_device(
            host_empty(tuple(timesteps.shape), timesteps.dtype, noised.device).copy_(timesteps), noised.device
        )

    def __call__(self, scaled: torch.Tensor, i: int) -> torch.Tensor:
        step = self._steps[i]
        output = self._unet(scaled, self._timesteps[i], *(self._guided if step.guided else self._conditional))
        self._check.add("unet", output, step.timestep)
        return output
