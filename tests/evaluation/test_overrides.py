"""Fields of a protocol that are changed, and those that follow from them."""

from __future__ import annotations

import pytest

from d4m_fast.errors import UsageError
from d4m_fast.evaluation.overrides import OVERRIDABLE, overridden
from d4m_fast.evaluation.protocols import PROTOCOLS


def test_nothing_changed_is_the_protocol() -> None:
    assert overridden(PROTOCOLS["fkd"], {}) is PROTOCOLS["fkd"]


def test_changes_stand_in_the_name() -> None:
    changed = overridden(PROTOCOLS["rded"], {"lr": "0.1", "batch_size": "7"})
    assert changed.name == "rded[batch_size=7,lr=0.1]"
    assert (changed.lr_of("alexnet"), changed.batch_for(50)) == (0.1, 7)


def test_test_images_keep_their_part() -> None:
    changed = overridden(PROTOCOLS["fkd"], {"resolution": "64"})
    assert (changed.resolution, changed.test_resize) == (64, 73)
    assert overridden(PROTOCOLS["fkd"], {"resolution": "64", "test_resize": "64"}).test_resize == 64
    assert overridden(PROTOCOLS["small"], {"resolution": "64"}).test_resize is None


def test_no_labels_are_stored_that_nobody_reads() -> None:
    assert overridden(PROTOCOLS["fkd"], {"epochs": "2"}).stored_epochs == 2
    assert overridden(PROTOCOLS["small"], {"epochs": "40"}).stored_epochs == 10
    assert overridden(PROTOCOLS["fkd"], {"epochs": "2", "stored_epochs": "5"}).stored_epochs == 5


@pytest.mark.parametrize("name", OVERRIDABLE)
@pytest.mark.parametrize("value", ["-1", "nan", "inf", "1e300", "x", "", "0x10", "1e10"])
def test_values_that_are_none_are_refused(name: str, value: str) -> None:
    with pytest.raises(UsageError, match=f"--override {name}={value}: (must be|not a number)"):
        overridden(PROTOCOLS["rded"], {name: value})


@pytest.mark.parametrize("name", OVERRIDABLE)
def test_every_field_can_be_changed(name: str) -> None:
    value = 32 if name == "test_resize" else 1
    field = getattr(overridden(PROTOCOLS["small"], {name: str(value)}), name)
    assert field in (value, {"": value}, ((1, value),))
