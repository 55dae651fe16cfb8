"""Calculate the figures of a plan from its options: open the model, count its operations, multiply."""

from __future__ import annotations

import torch

from d4m_fast.config.evaluate import EvaluateConfig
from d4m_fast.config.plan import PlanConfig
from d4m_fast.engine.compatibility import read_configs
from d4m_fast.engine.schedule import open_schedule
from d4m_fast.evaluation.students import build_student
from d4m_fast.measure.flops import Traced, model_path, trace, trace_model
from d4m_fast.measure.gpus import GPUS
from d4m_fast.planning.calibrate import Build, read_profile
from d4m_fast.planning.cost import Figure, PlanRequest, Share, plan_figures

_FROM_CONFIG = ("images", "classes", "ipc", "gpus", "precision", "epochs", "student_size", "students", "stored_labels")


def calculate(config: PlanConfig) -> tuple[PlanRequest, list[Figure], Build | None]:
    """Return the checked request, its figures, and what building the engine took if a profile tells.

    Args:
        config: with the numbers of images and classes in.

    Raises:
        D4MError: the first thing that is wrong.
    """
    gpu, shares, build = GPUS[config.gpu], dict[str, Share](), None
    if config.calibrate is not None:
        shares, build = read_profile(config.calibrate, gpu, config.engine, config.precision)
    shapes = trace_model(config.model, config.resolution, config.revision)
    path = model_path(config.model, config.revision)
    schedule = open_schedule(path, config.steps, config.strength, scheduler=config.scheduler, interval=config.interval)
    request = PlanRequest(
        **{name: getattr(config, name) for name in _FROM_CONFIG},
        calls=len(schedule.steps),
        guided_calls=0 if read_configs(path).embeds_guidance else schedule.guided_calls(config.guidance),
        image_size=shapes.resolution if config.image_size is None else config.image_size,
        gpu=gpu,
    )
    student = trace_student(config.student, config.student_size, request.classes)
    return request, plan_figures(request, shapes, student, shares), build


def trace_student(name: str, side: int, classes: int) -> Traced:
    """Trace one image through a student.

    Raises:
        UsageError: nobody knows the student, or it does not take images of this size.
    """
    # Built with its weights, unlike the models: torchvision's RegNets cannot be built without any.
    student = build_student(name, classes=classes, image_size=side, width=EvaluateConfig.width).eval().to("meta")
    with torch.device("meta"), torch.inference_mode():
        return trace(student, lambda: student(torch.zeros(1, 3, side, side)))
