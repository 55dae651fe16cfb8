"""Comparison of a table with the scheduler it was read off: step by step on random tensors, and over a whole run."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from d4m_fast.engine.stepping import Step, Stepper, combine

# Parts of the largest number in a step's result, float32: what another order of a sum's terms may change.
STEP_TOLERANCE = 1e-6
# Parts of the largest number in a run's result: the rounding of up to 50 steps, of more by the square root of their
# number. Stable Diffusion 1.5's PNDM has 6e-7, sigmas of 80 have up to 2e-5.
RUN_TOLERANCE = 2e-6
# Steepness of the stand-ins for the UNet: guidance makes it steep in either direction.
GAINS = (1.0, 3.0, -3.0)
# Sizes of the random tensors: a latent's, and one so large that whatever clips, clips.
SCALES = (1.0, 1e6)
ADDS_NOISE = "it adds noise of its own"


def difference(steps: Sequence[Step], stepper: Stepper, signal: float, noise: float) -> str | None:
    """Return why a table does not give the scheduler's results, in a few words; None where it does.

    Both take every step on random tensors, and then run with stand-ins for the UNet. Two kinds amplify what no stand-in
    shows but steep networks do: inversions, which go up the noise levels, and networks that predict the sample, whose
    small differences are divided by small noise levels.

    Args:
        signal, noise: coefficients of the start.

    Raises:
        ValueError: the scheduler's own result is not finite.
    """
    reason = _nonlinearity(steps, stepper)
    if reason is not None:
        return reason
    is_inversion = steps[-1].timestep > steps[0].timestep
    predicts_sample = stepper.scheduler.config.get("prediction_type") == "sample"
    clean, gaussian = torch.randn(2, 1, 4, 8, 8, generator=torch.Generator().manual_seed(2))
    start = signal * clean + noise * gaussian
    tolerance = RUN_TOLERANCE * max(1.0, len(steps) / 50) ** 0.5
    amplifies = is_inversion or predicts_sample
    if amplifies or any(_run_difference(steps, stepper, start, gain) > tolerance for gain in GAINS):
        return "it amplifies rounding"
    return None


def _nonlinearity(steps: Sequence[Step], stepper: Stepper) -> str | None:
    """Step the scheduler beside the table, on random tensors; returns at which step they differ, None if at none.

    Raises:
        ValueError: the scheduler's own result is not finite.
    """
    for scale in SCALES:
        generator = torch.Generator().manual_seed(1)
        stepping = stepper.begin([torch.Generator().manual_seed(i) for i in range(2)])
        samples = [scale * torch.randn(2, 4, 4, 4, generator=generator)]
        outputs: list[torch.Tensor] = []
        for i, step in enumerate(steps):
            outputs.append(scale * torch.randn(2, 4, 4, 4, generator=generator))
            scaled = stepping.scale(samples[i], i)
            samples.append(stepping.step(outputs[i], i, samples[i]))
            if not is_finite(scaled, samples[-1]):
                raise ValueError(f"its step at timestep {step.timestep:g} is not finite")
            if any(j > i for j, _ in (*step.samples, *step.outputs)):
                return ADDS_NOISE  # the probe met a number that no earlier sample or output accounts for
            same_input = near(step.input_scale * samples[i], scaled)
            if not same_input or not near(combine(step, samples, outputs), samples[-1]):
                return f"its step at timestep {step.timestep:g} is no fixed sum of samples and predictions"
    return None


def _run_difference(steps: Sequence[Step], stepper: Stepper, start: torch.Tensor, gain: float) -> float:
    """Run table and scheduler from `start` with a stand-in for the UNet; returns how far their ends differ at most.

    The difference is in parts of the largest number there or of 1.
    """

    def predict(scaled: torch.Tensor, step: Step) -> torch.Tensor:
        return torch.tanh(gain * scaled.roll(1, -1) * (1 + step.timestep / 1000))

    samples, outputs = [start], list[torch.Tensor]()  # the table's
    stepping, sample = stepper.begin([torch.Generator()]), start  # the scheduler's own
    for i, step in enumerate(steps):
        sample = stepping.step(predict(stepping.scale(sample, i), step), i, sample)
        outputs.append(predict(step.input_scale * samples[i], step))
        samples.append(combine(step, samples, outputs))
    return float((samples[-1] - sample).abs().max() / sample.abs().max().clamp(min=1))


def require_reproducible(stepper: Stepper) -> None:
    """Refuse a scheduler whose noise comes from elsewhere than the generators it is given.

    Raises:
        ValueError: two passes with equal generators differ.
    """
    passes = []
    for seed in range(2):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)  # so that noise of PyTorch's own generator differs between the passes
            stepping = stepper.begin([torch.Generator().manual_seed(5)])
            sample = torch.ones(1, 4, 4, 4)
            for i in range(len(stepper.timesteps)):
                sample = stepping.step(torch.full_like(sample, 0.5), i, sample)
        passes.append(sample)
    if not torch.equal(*passes):
        raise ValueError("it draws noise that no generator of an image fixes")


def near(ours: torch.Tensor, theirs: torch.Tensor) -> bool:
    """Return whether two results of one step differ by no more than another order of its sums changes."""
    return bool((ours - theirs).abs().max() <= STEP_TOLERANCE * theirs.abs().max())


def is_finite(*tensors: torch.Tensor) -> bool:
    """Return whether no number of these tensors is NaN or infinite."""
    return all(bool(x.isfinite().all()) for x in tensors)
