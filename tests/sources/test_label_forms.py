"""Every form of label file in docs/data.md."""

from __future__ import annotations

from pathlib import Path

import pytest
from label_forms import ACCEPTED, REFUSED, LabelForm

from d4m_fast.errors import DataError
from d4m_fast.sources.labels import resolve_prompts


def write(form: LabelForm, folder: Path) -> str:
    file = folder / "labels"
    file.write_bytes(form.content.encode() if isinstance(form.content, str) else form.content)
    return str(file)


@pytest.mark.parametrize("form", ACCEPTED, ids=lambda form: form.name)
def test_prompts_are_paired_with_their_classes(tmp_path: Path, form: LabelForm) -> None:
    assert resolve_prompts(form.folders, None, write(form, tmp_path)) == list(form.outcome)


@pytest.mark.parametrize("form", REFUSED, ids=lambda form: form.name)
def test_what_cannot_be_paired_is_refused(tmp_path: Path, form: LabelForm) -> None:
    assert isinstance(form.outcome, str)
    with pytest.raises(DataError, match=form.outcome) as refusal:
        resolve_prompts(form.folders, None, write(form, tmp_path))
    assert str(refusal.value).startswith(str(tmp_path / "labels"))
    assert "\n" not in str(refusal.value)
