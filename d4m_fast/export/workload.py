"""A small run of the reference preset, which PyTorch and every exported engine repeat to be compared."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from d4m_fast.config.certify import CertifyConfig
from d4m_fast.config.export import ExportConfig
from d4m_fast.config.generation import PRESETS
from d4m_fast.engine.model import Model, open_model
from d4m_fast.engine.schedule import Schedule, open_schedule
from d4m_fast.sources.dataset import open_source
from d4m_fast.sources.entries import INDEXES
from d4m_fast.sources.records import Source

REFERENCE = PRESETS["reference"]
GUIDANCE = REFERENCE.guidance


@dataclass(frozen=True)
class Workload:
    """Model, real images and schedule that engines are compared on, at one resolution."""

    model: Model
    source: Source
    schedule: Schedule
    resolution: int


def open_workload(config: ExportConfig | CertifyConfig, artifacts: Path) -> Workload:
    """Open the model and the data that the config names, and the reference preset's schedule.

    Raises:
        D4MError: the first thing that is wrong.
    """
    model = open_model(config.model, config.revision)
    resolution = model.resolution if config.resolution is None else config.resolution
    model.latent_shape(resolution)  # refuses a resolution that does not fit the networks
    schedule = open_schedule(model.path, REFERENCE.steps, REFERENCE.strength)
    # The cache of exports is no class of the data, wherever it is.
    source = open_source(config.data, prompts_needed=False, own=[artifacts], indexes=artifacts / INDEXES)
    return Workload(model, source, schedule, resolution)
