"""A vector that is written and read group by group."""

from __future__ import annotations

from amaranth.hdl import Module, Signal
from amaranth.lib import wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

__all__ = ["GroupBuffer", "group_bits"]


def group_bits(groups: int) -> int:
    """Bits of a group's number; one even if there is nothing to number, as Verilog has no wires of none."""
    return max(1, (groups - 1).bit_length())


class GroupBuffer(wiring.Component):
    """Holds `groups` groups of `width` bits: a register when there is one group, else a small memory.

    Arguments:
        width: bits of a group.
        groups: power of two.
        reads: read ports, `read_group_0`, `read_data_0` and so on.

    Members:
        write, write_group, write_data: readable from the next cycle on.
        read_group_<i>, read_data_<i>: the group's bits, in the same cycle.
    """

    def __init__(self, width: int, groups: int, *, reads: int = 1) -> None:
        self._width, self._groups, self._reads = width, groups, reads
        number = group_bits(groups)
        members = {"write": In(1), "write_group": In(number), "write_data": In(width)}
        for i in range(reads):
            members |= {f"read_group_{i}": In(number), f"read_data_{i}": Out(width)}
        super().__init__(members)

    def elaborate(self, platform: object) -> Module:
        m = Module()
        if self._groups == 1:
            value = Signal(self._width, reset_less=True)
            with m.If(self.write):
                m.d.sync += value.eq(self.write_data)
            m.d.comb += [getattr(self, f"read_data_{i}").eq(value) for i in range(self._reads)]
            return m
        m.submodules.memory = memory = Memory(shape=self._width, depth=self._groups, init=[])
        write = memory.write_port()
        m.d.comb += [
            write.en.eq(self.write),
            write.addr.eq(self.write_group),
            write.data.eq(self.write_data),
        ]
        for i in range(self._reads):
            read = memory.read_port(domain="comb")
            m.d.comb += [
                read.addr.eq(getattr(self, f"read_group_{i}")),
                getattr(self, f"read_data_{i}").eq(read.data),
            ]
        return m
