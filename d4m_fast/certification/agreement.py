"""Agreement of an engine with fp32 on the CPU: network by network, image by image, and into whose memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch

from d4m_fast.certification.engines import DTYPES, Engine
from d4m_fast.certification.reference import Reference, batches
from d4m_fast.certification.request import Request
from d4m_fast.certification.step import Check, Findings
from d4m_fast.engine.eager import open_eager
from d4m_fast.engine.networks import Networks
from d4m_fast.engine.runtime import Runtime, clone
from d4m_fast.engine.signature import COMPONENTS, SIGNATURES, Component
from d4m_fast.export.limits import LIMITS, half_verdict, verdict
from d4m_fast.export.probe import final_images
from d4m_fast.export.workload import GUIDANCE
from d4m_fast.measure import parity


def agree(engine: Engine, networks: Networks, reference: Reference, request: Request) -> Findings:
    """Compare every recorded call, the ends of each network's at other batches, and the final images."""
    # torch.compile would compile each size anew.
    sizes = () if engine.kind == "compiled" else batches(request.images)
    parities: dict[Component, list[parity.Parity]] = {}
    worst_errors, mistyped = {}, []
    for component in COMPONENTS:
        runtime = networks.runtime(component)
        parities[component] = _compare(component, runtime, reference, sizes)
        worst_errors[component] = parity.largest(call.relative_l2 for call in parities[component])
        if runtime.dtype != DTYPES[engine.precision]:
            mistyped.append(component)
    images = final_images(request.workload, reference.probe.prototypes, networks, batch=request.images)
    decibels = parity.psnr(reference.probe.images, images)
    limits = LIMITS[engine.precision]
    errors = _half_errors(engine, parities, reference, request, sizes)
    reasons = verdict(parities, decibels, images, limits) + half_verdict(errors)
    checks = (
        Check(f"tensors are {engine.precision}", not mistyped, f"others: {', '.join(mistyped)}" if mistyped else ""),
        Check(f"within the limits of {engine.precision}", not reasons, "; ".join(reasons)),
        _check_outputs(networks, reference),
    )
    figures: dict[str, Any] = {
        "relative_l2": worst_errors,
        "psnr_worst": min(decibels),
        "images": len(images),
        "limits": asdict(limits),
        "half": {component: asdict(of_network) for component, of_network in errors.items()},
        "parity": {component: parity.to_json(calls) for component, calls in parities.items()},
    }
    return Findings(checks, figures)


def _compare(
    component: Component, runtime: Runtime, reference: Reference, sizes: tuple[int, ...]
) -> list[parity.Parity]:
    exact = reference.networks.runtime(component)
    return parity.compare(component, exact, runtime, reference.probe.calls[component], sizes, GUIDANCE)


def _half_errors(
    engine: Engine,
    comparisons: Mapping[Component, Sequence[parity.Parity]],
    reference: Reference,
    request: Request,
    sizes: tuple[int, ...],
) -> dict[Component, parity.HalfErrors]:
    """Compare with PyTorch's own half precision, on the same device and calls; nothing for fp32.

    `torch-fp16` is that half precision: beside it, it only has to answer as one opened anew; the rest is the ceilings'.
    """
    if engine.precision == "fp32":
        return {}
    errors: dict[Component, parity.HalfErrors] = {}
    for component, ours in comparisons.items():
        half = open_eager(request.model.path, component, request.device, torch.float16)  # one in memory at a time
        rows = max(map(SIGNATURES[component].rows, reference.probe.calls[component]))
        errors[component] = parity.half_errors(ours, _compare(component, half, reference, sizes), rows)
    return errors


def _check_outputs(networks: Networks, reference: Reference) -> Check:
    """Check that outputs belong to the caller, and not to a buffer that the next call writes to."""
    overwritten = []
    for component in COMPONENTS:
        runtime, calls = networks.runtime(component), reference.probe.calls[component]
        outputs = runtime(calls[0])
        before = clone(outputs)
        # Reversed, so that the inputs differ even where only one call was recorded.
        runtime({name: x.flip(0) if x.ndim else x for name, x in calls[-1].items()})
        if not all(torch.equal(x, before[name]) for name, x in outputs.items()):
            overwritten.append(component)
    detail = f"overwritten by the next call: {', '.join(overwritten)}" if overwritten else ""
    return Check("outputs stay as they are", not overwritten, detail)
