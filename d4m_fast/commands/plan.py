"""`d4m-fast plan`: what a run costs, before it is run."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from d4m_fast.config.fields import Group
from d4m_fast.config.generation import SETTINGS, UNPROVEN
from d4m_fast.config.plan import IMAGENET_CLASSES, IMAGENET_IMAGES, PlanConfig
from d4m_fast.console import lines_of, say_result
from d4m_fast.options import command, config_of, option, options_of


@command
@options_of(PlanConfig)
@option("--explain", group=Group.OUTPUT, is_flag=True, help="The formula of every figure.")
def plan(as_json: bool, quiet: bool, explain: bool, **options: Any) -> None:
    """Calculate a run's FLOPs, hours, disk, memory and batches on given GPUs. Nothing is measured, nothing loaded.

    Parameters and operations are counted by tracing the model's networks. Hours are a range, from 15% to 50% of the
    GPU's peak, until a profile says better.

    \b
    Examples:
      d4m-fast plan --model sd15 --images 1281167 --classes 1000 --ipc 50 --gpu h100
      d4m-fast plan --ipc 10 --gpu a100 --gpus 8 --explain
    """
    from d4m_fast.planning import tables
    from d4m_fast.planning.calculate import calculate

    config = _with_counts(config_of(PlanConfig, options))
    request, figures, build = calculate(config)
    value = {**tables.to_json(request, figures, build), "engine": config.engine, "model": config.model}
    value["generation"] = {name: getattr(config, name) for name in ("preset", *SETTINGS, "unproven")}
    proof = f", preset {config.preset}: {UNPROVEN}" if config.unproven else ""
    machine = f"{request.gpus} x {request.gpu.name} ({request.gpu.source}), {request.precision}"
    engine = "" if config.engine == "auto" else f", {config.engine}"
    head = f"{config.model} on {machine}{engine}{proof}"
    say_result(value, as_json, lambda: [head, *lines_of(tables.table(figures, explain)), tables.build_text(build)])


def _with_counts(config: PlanConfig) -> PlanConfig:
    """Return the config with the dataset's size in, counted or as given."""
    if config.data is None:
        return replace(
            config,
            images=IMAGENET_IMAGES if config.images is None else config.images,
            classes=IMAGENET_CLASSES if config.classes is None else config.classes,
        )
    from d4m_fast.sources.dataset import open_source

    source = open_source(config.data, prompts_needed=False)
    return replace(config, data=None, images=len(source.items), classes=len(source.classes))
