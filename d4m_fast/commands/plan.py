"""`d4m-fast plan`: what a run costs, before it is run."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import click

from d4m_fast.config import SETTINGS, UNPROVEN, DistillConfig, Engine
from d4m_fast.console import lines_of, say_result
from d4m_fast.errors import UsageError
from d4m_fast.options import chosen, generation, of_config, shared


@click.command()
@click.option(
    "--model", default="sd15", show_default=True, help="'sd15' (shapes only), 'bundled', a directory, or a hub id."
)
@click.option("--revision", help="Commit, tag or branch of a model from the hub.  [default: main]")
@click.option("--data", help="A dataset to count, instead of --images and --classes.")
@click.option("--images", type=click.IntRange(min=1), help="Real images.  [default: 1281167, ImageNet-1K's]")
@click.option("--classes", type=click.IntRange(min=1), help="How many.  [default: 1000]")
@of_config("--ipc", click.IntRange(min=1), "Images per class.")
@generation
@click.option("--resolution", type=click.IntRange(min=1), help="Side of generated images.  [default: the model's]")
@click.option("--image-size", type=click.IntRange(min=1), help="Side of written images.  [default: the resolution]")
@click.option(
    "--engine",
    type=click.Choice(get_args(Engine)),
    default="auto",
    show_default=True,
    help="Whose rows of --calibrate count; auto: the fastest's.",
)
@click.option("--precision", type=click.Choice(["fp16", "fp32"]), default="fp16", show_default=True)
@click.option("--gpu", type=click.Choice(["h100", "h200", "a100", "l40s"]), default="h100", show_default=True)
@click.option("--gpus", type=click.IntRange(min=1), default=1, show_default=True, help="How many of them.")
@click.option("--student", type=click.Choice(["resnet18", "convnet3"]), default="resnet18", show_default=True)
@click.option("--student-size", type=click.IntRange(32, 4096), default=224, show_default=True, help="Pixels of a side.")
@click.option("--epochs", type=click.IntRange(min=1), default=300, show_default=True, help="Of a student's training.")
@click.option("--students", type=click.IntRange(min=1), default=3, show_default=True, help="How many are trained.")
@click.option("--stored-labels", is_flag=True, help="Soft labels of every epoch kept on the disk, fp16.")
@click.option("--calibrate", type=click.Path(path_type=Path), help="A profile's JSON, or certify.json.")
@click.option("--explain", is_flag=True, help="The formula of every figure.")
@shared
def plan(as_json: bool, quiet: bool, explain: bool, **options: Any) -> None:
    """Calculate a run's FLOPs, hours, disk, memory and batches on given GPUs. Nothing is measured, nothing loaded.

    Parameters and operations are counted by tracing the model's networks. Hours are a range, from 15% to 50% of the
    GPU's peak, until a profile says better.

    \b
    d4m-fast plan --model sd15 --images 1281167 --classes 1000 --ipc 50 --gpu h100
    d4m-fast plan --ipc 10 --gpu a100 --gpus 8 --explain
    """
    from d4m_fast.planning import tables
    from d4m_fast.planning.calculate import calculate

    options = chosen(options)
    settings = DistillConfig.of_preset(**{name: options[name] for name in ("preset", *SETTINGS)})
    request, figures, build = calculate(_counted(options), settings)
    value = {**tables.to_json(request, figures, build), "engine": options["engine"], "model": options["model"]}
    value["generation"] = {name: getattr(settings, name) for name in ("preset", *SETTINGS, "unproven")}
    proof = f", preset {settings.preset}: {UNPROVEN}" if settings.unproven else ""
    machine = f"{request.gpus} x {request.gpu.name} ({request.gpu.source}), {request.precision}"
    head = f"{options['model']} on {machine}{_of(options['engine'])}{proof}"
    say_result(value, as_json, lambda: [head, *lines_of(tables.table(figures, explain)), tables.build_text(build)])


def _of(engine: str) -> str:
    return "" if engine == "auto" else f", {engine}"


def _counted(options: dict[str, Any]) -> dict[str, Any]:
    """The options with the dataset's size in, counted or as given."""
    data, images, classes = options.pop("data"), options["images"], options["classes"]
    if data is None:
        return {
            **options,
            "images": 1281167 if images is None else images,
            "classes": 1000 if classes is None else classes,
        }
    if images is not None or classes is not None:
        raise UsageError("--data counts images and classes itself; leave --images and --classes out, or --data")
    from d4m_fast.sources.dataset import open_source

    source = open_source(data, prompts_needed=False)
    return {**options, "images": len(source.items), "classes": len(source.classes)}
