"""From options to figures: open the model, count, calculate."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from d4m_fast.config import DistillConfig
from d4m_fast.engine.compatibility import read_configs
from d4m_fast.engine.schedule import open_schedule
from d4m_fast.evaluation.students import DEFAULT_WIDTH, STUDENTS
from d4m_fast.measure.flops import Traced, model_path, trace, trace_model
from d4m_fast.measure.gpus import GPUS
from d4m_fast.planning.calibrate import Build, read_profile
from d4m_fast.planning.cost import Figure, PlanRequest, plan_figures

_TAKEN = ("images", "classes", "ipc", "gpus", "precision", "epochs", "student_size", "students", "stored_labels")


def calculate(options: Mapping[str, Any], settings: DistillConfig) -> tuple[PlanRequest, list[Figure], Build | None]:
    """The checked request, its figures, and what building the engine took if a profile tells.

    Args:
        options: those of `d4m-fast plan`, the dataset's size in.
        settings: of generation.

    Raises:
        D4MError: the first thing that is wrong.
    """
    gpu, profile = GPUS[options["gpu"]], options["calibrate"]
    shares, build = (
        ({}, None) if profile is None else read_profile(profile, gpu, options["engine"], options["precision"])
    )
    model, revision = options["model"], options["revision"]
    shapes = trace_model(model, options["resolution"], revision)
    path = model_path(model, revision)
    schedule = open_schedule(
        path,
        settings.steps,
        settings.strength,
        scheduler=settings.scheduler,
        interval=settings.interval,
    )
    request = PlanRequest(
        **{name: options[name] for name in _TAKEN},
        calls=len(schedule.steps),
        guided_calls=0 if read_configs(path).embeds_guidance else schedule.guided_calls(settings.guidance),
        image_size=shapes.resolution if options["image_size"] is None else options["image_size"],
        gpu=gpu,
    )
    student = trace_student(options["student"], options["student_size"], options["classes"])
    return request, plan_figures(request, shapes, student, shares), build


def trace_student(name: str, side: int, classes: int) -> Traced:
    """Trace one image through a student."""
    with torch.device("meta"), torch.inference_mode():
        student = STUDENTS[name].build(classes, side, DEFAULT_WIDTH).eval()
        return trace(student, lambda: student(torch.zeros(1, 3, side, side)))
