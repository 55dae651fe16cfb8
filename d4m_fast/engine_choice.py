"""Choice of the engine that a run's networks are computed by."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from d4m_fast.config.choices import Engine
from d4m_fast.config.distill import DistillConfig
from d4m_fast.engine.artifacts import Artifact
from d4m_fast.engine.engines import ENGINES
from d4m_fast.engine.model import Model
from d4m_fast.engine.runtime import device_name
from d4m_fast.engine.schedule import Schedule
from d4m_fast.errors import D4MError, DamageError, ModelError, PreflightError

Exports = Callable[[], Sequence[Artifact]]
"""Lists the exports of a model at a resolution and precision; called only where they are asked for."""


def engine_for(
    config: DistillConfig,
    exports: Exports,
    model: Model,
    device: torch.device,
    schedule: Schedule,
    saved: Engine | None,
) -> tuple[Artifact | None, str]:
    """Return the exported networks to run on, None for PyTorch, and why, for the log.

    Args:
        saved: the engine of a run that is there already.

    Raises:
        D4MError: an engine was asked for by name, or the run was begun with it, and it cannot be used.
    """
    if config.compile:
        return None, "torch, through torch.compile"
    artifact, reason = choose_engine(config.engine, exports, model, device, saved)
    if artifact is not None and not schedule.whole_timesteps:
        first = next(step.timestep for step in schedule.steps if not isinstance(step.timestep, int))
        cause = f"the schedule has timestep {first:g}, between two noise levels, and exported networks take whole ones"
        if config.engine != "auto":
            raise ModelError(f"--engine {config.engine}: {cause}; use --engine torch or another --scheduler")
        return None, f"torch; {cause}"
    return artifact, reason


def choose_engine(
    requested: Engine,
    exports: Callable[[], Sequence[Artifact]],
    model: Model,
    device: torch.device,
    saved: Engine | None,
) -> tuple[Artifact | None, str]:
    """Return the exported networks to run on, None for PyTorch, and why, for the log.

    "auto" keeps the engine that a run has saved; else it takes the certified export that was the fastest when it
    was made, if that was faster than PyTorch.

    Raises:
        D4MError: an engine was asked for by name, or the run was begun with it, and it cannot be used.
    """
    automatic = requested == "auto" and saved is None
    engine = saved if requested == "auto" and saved is not None else requested
    if engine == "torch":
        return None, "torch"
    if engine != "auto":
        ENGINES[engine].require_device(device)
    sets = [artifact for artifact in exports() if engine in ("auto", artifact.engine)]
    if automatic and not sets:
        return None, "torch"
    if not sets:
        raise ModelError(f"--engine {engine}: this model is not exported at this resolution; run d4m-fast export first")
    # One that was not timed counts as fast as PyTorch.
    ranked = sorted(sets, key=lambda artifact: -1.0 if artifact.speed is None else -artifact.speed)
    usable, refusals = _usable(ranked, model, device)
    if not usable and not automatic:
        raise refusals[0]
    if not usable:
        return None, f"torch; the {ranked[0].engine} export cannot be used ({refusals[0]})"
    faster = f"{usable[0].speed:.2f} times PyTorch's images per second when it was exported"
    if automatic and usable[0].speed is not None and usable[0].speed < 1:
        return None, f"torch; {usable[0].engine} had {faster}"
    count = usable[0].certificate["images"]["count"]
    return usable[0], f"{usable[0].engine}, certified on {count} images; {faster}"


def _usable(sets: Sequence[Artifact], model: Model, device: torch.device) -> tuple[list[Artifact], list[D4MError]]:
    """Return the sets that may be run here, and why the others may not."""
    usable, refusals = list[Artifact](), list[D4MError]()
    for artifact in sets:
        try:
            engine = ENGINES[artifact.engine]
            engine.require_device(device)
            engine.require_library(device, artifact.certificate["library"])
            artifact.check(model.sha256, device_name(device))
            usable.append(artifact)
        except (ModelError, PreflightError, DamageError) as error:
            refusals.append(error)
    return usable, refusals
