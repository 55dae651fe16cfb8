"""Does an engine compute what the CPU computes in fp32: network by network, image by image, and into whose memory."""

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
from d4m_fast.engine.runtime import Runtime, Tensors
from d4m_fast.engine.signature import COMPONENTS, SIGNATURES, Component
from d4m_fast.export.judge import GUIDANCE
from d4m_fast.export.probe import final_images
from d4m_fast.measure import parity


def agree(engine: Engine, networks: Networks, reference: Reference, request: Request) -> Findings:
    """Compare every recorded call, the ends of each network's at other batches, and the final images."""
    sized = () if engine.kind == "compiled" else batches(request.images)  # each size would be compiled anew
    found = {component: _compare(component, networks.runtime(component), reference, sized) for component in COMPONENTS}
    sizes = {"resolution": request.resolution, "batch": request.images}
    images = final_images(reference.probe.prototypes, networks, request.schedule, guidance=GUIDANCE, **sizes)
    decibels = parity.psnr(reference.probe.images, images)
    limits = parity.LIMITS[engine.precision]
    errors = _half_errors(engine, found, reference, request, sized)
    reasons = parity.verdict(found, decibels, images, limits) + parity.half_verdict(errors)
    kept = [c for c in COMPONENTS if not _keeps(networks.runtime(c), reference.probe.calls[c])]
    checks = (
        _precision(engine, networks),
        Check(f"within the limits of {engine.precision}", not reasons, "; ".join(reasons)),
        Check("outputs stay as they are", not kept, f"overwritten by the next call: {', '.join(kept)}" if kept else ""),
    )
    figures: dict[str, Any] = {
        "relative_l2": {c: parity.largest(p.relative_l2 for p in found[c]) for c in COMPONENTS},
        "psnr_worst": min(decibels),
        "images": len(images),
        "limits": parity.limits_to_json(limits),
        "half": {component: asdict(of_network) for component, of_network in errors.items()},
        "parity": {c: parity.to_json(found[c]) for c in COMPONENTS},
    }
    return Findings(checks, figures)


def _compare(
    component: Component, runtime: Runtime, reference: Reference, sized: tuple[int, ...]
) -> list[parity.Parity]:
    exact = reference.networks.runtime(component)
    return parity.compare(component, exact, runtime, reference.probe.calls[component], sized, GUIDANCE)


def _half_errors(
    engine: Engine,
    comparisons: Mapping[Component, Sequence[parity.Parity]],
    reference: Reference,
    request: Request,
    sized: tuple[int, ...],
) -> dict[Component, parity.HalfErrors]:
    """Beside PyTorch's own half precision, on the same device and calls; nothing for fp32.

    `torch-fp16` is that half precision: beside it, it only has to answer as one opened anew; the rest is the ceilings'.
    """
    if engine.precision == "fp32":
        return {}
    errors: dict[Component, parity.HalfErrors] = {}
    for component, ours in comparisons.items():
        half = open_eager(request.model.path, component, request.device, torch.float16)  # one in memory at a time
        rows = max(SIGNATURES[component].rows(call) for call in reference.probe.calls[component])
        errors[component] = parity.half_errors(ours, _compare(component, half, reference, sized), rows)
    return errors


def _precision(engine: Engine, networks: Networks) -> Check:
    wrong = [c for c in COMPONENTS if networks.runtime(c).dtype != DTYPES[engine.precision]]
    return Check(f"tensors are {engine.precision}", not wrong, f"others: {', '.join(wrong)}" if wrong else "")


def _keeps(runtime: Runtime, calls: list[Tensors]) -> bool:
    """Whether a call's outputs belong to the caller, or to a buffer that the next call writes to."""
    first = runtime(calls[0])
    before = {name: x.clone() for name, x in first.items()}
    runtime({name: _other(x) for name, x in calls[-1].items()})
    return all(torch.equal(x, before[name]) for name, x in first.items())


def _other(x: torch.Tensor) -> torch.Tensor:
    """Of the same shape; not the same, even where there was one call only."""
    return x.flip(0) if x.ndim else x
