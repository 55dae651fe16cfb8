"""The table of the forms of output."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from d4m_fast.config.choices import OutputForm
from d4m_fast.outputs.form import Form
from d4m_fast.outputs.imagefolder import ImageFolder
from d4m_fast.outputs.parquet import Parquet
from d4m_fast.outputs.webdataset import WebDataset

FORMS: Mapping[OutputForm, Form] = MappingProxyType(
    {"imagefolder": ImageFolder(), "webdataset": WebDataset(), "parquet": Parquet()}
)
