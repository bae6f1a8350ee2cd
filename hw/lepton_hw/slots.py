"""When each rescale of a vector takes the lanes of the output stage: a static schedule.

A *slot* is the `groups` cycles in which the lanes work through the N channels of a vector. Vectors start in
frames of one slot, or of four when a residual is added:

    slot of the frame   0: SUMS (or WINDOW)    1 to 3: OWN, RESIDUAL, ADD in some order, of earlier vectors

Results wait in buffers of one vector, so each must be used before that of the next vector, a frame later,
takes its place. With 16 lanes of 16 (one cycle a slot) that gives, in cycles after the vector's own start:

    SUMS 0 ... RESIDUAL 10, OWN 11 ... ADD 21 ... final value 31

The sum of a window is rescaled in slot 0 of a later frame, in which no vector may start.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

__all__ = ["RESIDUAL_FRAME", "SlotSchedule", "Work", "slot_schedule"]

RESIDUAL_FRAME = 4
"""Slots of a frame when a residual is added."""


class Work(enum.IntEnum):
    """What a slot is for; docs/architecture.md calls them A to E."""

    SUMS = 0  # A: sum + bias
    OWN = 1  # B: the requantized sum
    RESIDUAL = 2  # C: the residual
    ADD = 3  # D: both together
    WINDOW = 4  # E: sum of a pooling window


@dataclass(frozen=True)
class SlotSchedule:
    """Distance, in slots, from a vector's SUMS to its other slots.

    Attributes:
        own, residual, add: of a vector with residual.
        window_plain, window_residual: from a window's last vector to WINDOW, without and with residual; the
            latter is a multiple of the frame.
    """

    own: int
    residual: int
    add: int
    window_plain: int
    window_residual: int


def slot_schedule(groups: int, rescaled: int, clamped: int) -> SlotSchedule:
    """The schedule with the earliest result.

    Arguments:
        groups: cycles a slot.
        rescaled: cycles from a group's turn to the turn that can use its rescaled value.
        clamped: the same for its clamped value.
    """
    frame = RESIDUAL_FRAME * groups

    def in_time(use: int, made: int, after: int) -> bool:
        """Whether a value made in slot `made` is ready, and not yet overwritten, in slot `use`."""
        return after <= (use - made) * groups < after + frame

    horizon = 4 * RESIDUAL_FRAME + 2 * -(-(rescaled + clamped) // groups)
    candidates = [
        (add, own, residual)
        for own in range(1, horizon)
        if in_time(own, 0, clamped)
        for add in range(own, horizon)
        if in_time(add, own, rescaled)
        for residual in range(1, add)
        if in_time(add, residual, rescaled) and len({0, own % 4, residual % 4, add % 4}) == 4
    ]
    add, own, residual = min(candidates)
    window = -(-(add * groups + clamped) // frame) * RESIDUAL_FRAME
    return SlotSchedule(own, residual, add, -(-clamped // groups), window)
