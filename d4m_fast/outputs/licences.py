"""Licences of the models that images are generated with, as the Hugging Face hub names them."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from d4m_fast.sources.dataset import BUNDLED

UNKNOWN = "unknown"
# Of the models' own pages on the hub. A directory has no page: nothing in it says where its weights are from.
_OF_MODELS: Mapping[str, str] = MappingProxyType(
    {
        BUNDLED: "mit",
        "CompVis/stable-diffusion-v1-4": "creativeml-openrail-m",
        "runwayml/stable-diffusion-v1-5": "creativeml-openrail-m",
        "stable-diffusion-v1-5/stable-diffusion-v1-5": "creativeml-openrail-m",
        "stabilityai/stable-diffusion-2-1-base": "openrail++",
        "stabilityai/stable-diffusion-2-base": "openrail++",
    }
)


def licence_of(options: Mapping[str, Any]) -> str:
    """Return the licence of the model in a run's options, or `UNKNOWN`."""
    return _OF_MODELS.get(options["model"], UNKNOWN)
