"""Delay triangles at the edges of the systolic array."""

from __future__ import annotations

from collections.abc import Sequence

from amaranth.hdl import Module, Signal
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

__all__ = ["Skew"]

REGISTER_BITS = 64
"""Neighbouring elements share registers of up to this width: a simulator moves it as fast as a byte."""


class Skew(wiring.Component):
    """Delays every element of a vector by a number of cycles of its own.

    Arguments:
        width: bits of an element.
        delays: cycles for each element; they rise or fall along the vector.

    Members:
        input, output: the vector.

    Raises:
        ValueError: delays that are negative, or neither rise nor fall.
    """

    def __init__(self, width: int, delays: Sequence[int]) -> None:
        delays = list(delays)
        if not delays or min(delays) < 0 or delays not in (sorted(delays), sorted(delays, reverse=True)):
            raise ValueError(f"delays must be at least 0 and rise or fall along the vector, not {delays}")
        self._width, self._delays = width, delays
        layout = data.ArrayLayout(width, len(delays))
        super().__init__({"input": In(layout), "output": Out(layout)})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        width, share = self._width, max(1, REGISTER_BITS // self._width)
        for begin in range(0, len(self._delays), share):
            delays = dict(enumerate(self._delays[begin : begin + share], begin))
            present = self.input.as_value()[width * begin : width * (begin + len(delays))]
            low = begin  # element at the low end of `present`
            for cycle in range(max(delays.values()) + 1):
                for i, delay in delays.items():
                    if delay == cycle:
                        m.d.comb += self.output[i].eq(present[width * (i - low) : width * (i - low + 1)])
                waiting = [i for i, delay in delays.items() if delay > cycle]
                if waiting:
                    delayed = Signal(
                        width * len(waiting), name=f"elements_{waiting[0]}_delay_{cycle + 1}", reset_less=True
                    )
                    start = width * (waiting[0] - low)
                    m.d.sync += delayed.eq(present[start : start + len(delayed)])
                    present, low = delayed, waiting[0]
        return m
