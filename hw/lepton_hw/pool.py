"""Reduces the values of a pooling window to one."""

from __future__ import annotations

from amaranth.hdl import Module, Mux, Signal, signed
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from .group_buffer import GroupBuffer, group_bits
from .isa import PoolMode

__all__ = ["WINDOW_SUM_BITS", "Pool"]

WINDOW_SUM_BITS = 24  # 255 * 255 taps of int8
_LOWEST = -128  # the maximum over no tap


class Pool(wiring.Component):
    """Window reduction of `lanes` channels at a time, `groups` groups of them in turn.

    Members:
        mode: isa.PoolMode.
        minimum, maximum: clamp of MAX's result.
        valid: there is a value, or the end of a window.
        group: the group it belongs to.
        values: int8.
        inside: the values count.
        last: the window is over.
        results: int8; in NONE and MAX the window's value, when `last`, in the same cycle.
        sum_group, sums: in SUM the sums of the last window, from the cycle after on, until the group's next
            value.
    """

    def __init__(self, lanes: int, groups: int) -> None:
        self._lanes, self._groups = lanes, groups
        super().__init__(
            {
                "mode": In(PoolMode),
                "minimum": In(signed(8)),
                "maximum": In(signed(8)),
                "valid": In(1),
                "group": In(group_bits(groups)),
                "values": In(data.ArrayLayout(signed(8), lanes)),
                "inside": In(1),
                "last": In(1),
                "results": Out(data.ArrayLayout(signed(8), lanes)),
                "sum_group": In(group_bits(groups)),
                "sums": Out(data.ArrayLayout(signed(WINDOW_SUM_BITS), lanes)),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        state = data.ArrayLayout(signed(WINDOW_SUM_BITS), self._lanes)
        m.submodules.window = window = GroupBuffer(state.size, self._groups, reads=2)
        before, after = data.View(state, window.read_data_0), data.View(state, window.write_data)
        m.d.comb += [
            window.read_group_0.eq(self.group),
            window.read_group_1.eq(self.sum_group),
            window.write_group.eq(self.group),
            window.write.eq(self.valid & (self.mode != PoolMode.NONE)),
            self.sums.eq(data.View(state, window.read_data_1)),
        ]

        fresh = Signal(init=1)  # the next value is the first of a window
        with m.If(self.valid & (self.group == self._groups - 1)):
            m.d.sync += fresh.eq(self.last)

        for i in range(self._lanes):
            value = self.values[i]
            held, greatest = Signal(signed(8), name=f"held_{i}"), Signal(signed(8), name=f"greatest_{i}")
            total = Signal(signed(WINDOW_SUM_BITS), name=f"total_{i}")
            m.d.comb += [
                held.eq(Mux(fresh, _LOWEST, before[i][:8].as_signed())),
                greatest.eq(Mux(self.inside & (value > held), value, held)),
                total.eq(Mux(fresh, 0, before[i]) + Mux(self.inside, value, 0)),
                after[i].eq(Mux(self.mode == PoolMode.SUM, total, greatest)),
            ]
            with m.If(self.mode == PoolMode.NONE):
                m.d.comb += self.results[i].eq(Mux(self.inside, value, _LOWEST))
            with m.Elif(greatest < self.minimum):
                m.d.comb += self.results[i].eq(self.minimum)
            with m.Elif(greatest > self.maximum):
                m.d.comb += self.results[i].eq(self.maximum)
            with m.Else():
                m.d.comb += self.results[i].eq(greatest)
        return m
