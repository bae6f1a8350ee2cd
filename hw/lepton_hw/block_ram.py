"""A memory that becomes block RAM and nothing else."""

from __future__ import annotations

from amaranth.hdl import Module, Signal
from amaranth.lib import memory, wiring
from amaranth.lib.wiring import In

from .interfaces import VectorRead

__all__ = ["BlockRAM"]


class BlockRAM(wiring.Component):
    """One read and one write port; a read of a word that is being written gives undefined data.

    `lib.memory`'s own synchronous read port promises the old data in that case. Block RAMs do not, so yosys
    adds a comparison and a bypass as wide as a word (ECP5, 64 bits: 88 LUTs, 139 flip-flops). An asynchronous
    port with a register behind it, and the attribute `no_rw_check`, promise nothing.

    Arguments:
        width: bits a word.
        depth: words, at least 2.
        granularity: bits that a bit of `write_enable` stands for; divides `width`. By default all.

    Members:
        read: latency 1; the data stays until the next read.
        write_enable, write_address, write_data: the parts of a word to write.

    Raises:
        ValueError: an argument that is not allowed.
    """

    latency = 1
    """Cycles from `read.enable` to `read.data`."""

    def __init__(self, width: int, depth: int, *, granularity: int | None = None) -> None:
        granularity = granularity or width
        if width < 1 or width % granularity:
            raise ValueError(f"granularity must divide the width, {width}; {granularity} does not")
        if depth < 2:
            raise ValueError(f"depth must be at least 2, not {depth}")
        self._width, self._depth, self._granularity = width, depth, granularity
        super().__init__(
            {
                "read": In(VectorRead(depth, width, self.latency)),
                "write_enable": In(width // granularity),
                "write_address": In(range(depth)),
                "write_data": In(width),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.submodules.words = words = memory.Memory(
            shape=self._width, depth=self._depth, init=[], attrs={"no_rw_check": 1}
        )
        write = words.write_port(granularity=self._granularity)
        read = words.read_port(domain="comb")
        output = Signal(self._width, reset_less=True)
        m.d.comb += [
            write.en.eq(self.write_enable),
            write.addr.eq(self.write_address),
            write.data.eq(self.write_data),
            read.addr.eq(self.read.address),
            self.read.data.eq(output),
        ]
        with m.If(self.read.enable):
            m.d.sync += output.eq(read.data)
        return m
