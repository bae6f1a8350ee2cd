"""The static schedule of the output stage's lanes."""

from __future__ import annotations

import pytest

from lepton_hw.output_stage import CLAMPED, RESCALED
from lepton_hw.slots import slot_schedule


@pytest.mark.parametrize("groups", [1, 2, 4, 8, 16, 32])
def test_schedule(groups):
    """Values are used when made and not yet overwritten by the next vector's; no slot is used twice."""
    rescaled, clamped = RESCALED + 1, CLAMPED + 1
    schedule = slot_schedule(groups, rescaled, clamped)
    frame = 4 * groups
    for use, made, after in (
        (schedule.own, 0, clamped),
        (schedule.add, schedule.own, rescaled),
        (schedule.add, schedule.residual, rescaled),
        (schedule.window_residual, schedule.add, clamped),
    ):
        assert after <= (use - made) * groups < after + frame
    assert sorted({0, schedule.own % 4, schedule.residual % 4, schedule.add % 4}) == [0, 1, 2, 3]
    assert schedule.window_residual % 4 == 0
    assert clamped <= schedule.window_plain * groups < clamped + groups
