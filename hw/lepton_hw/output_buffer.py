"""Ring of finished sums between the accumulator and the output stage.

An entry's life: `room` counts it until the feeder reserves it, when the pass that finishes the tile starts.
Then the accumulator writes it, `written` counts it, the output stage reads it (perhaps several times) and
releases it.
"""

from __future__ import annotations

from amaranth.hdl import Module, Mux, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from .accumulator import FinishedSums
from .block_ram import BlockRAM
from .config import NPUConfig
from .interfaces import VectorRead
from .isa import SUM_BITS

__all__ = ["OutputBuffer"]


class OutputBuffer(wiring.Component):
    """`output_depth` vectors of N int32, written in order and read anywhere.

    Arguments:
        config: the NPU's configuration.

    Members:
        write: the next vector, always accepted: its entry must have been reserved.
        reserve: `count` entries are taken, at most `room`.
        room: entries neither reserved nor held.
        written: vectors written since the last clear, modulo twice the depth. A vector is counted, and may be
            read, from the cycle after its write on.
        read: by entry number modulo the depth; latency 1.
        release: `count` entries, the oldest ones, will not be read again.
        clear: empties the buffer. A write, reservation or release of the same cycle has no effect.
    """

    latency = BlockRAM.latency
    """Cycles from `read.enable` to `read.data`."""

    def __init__(self, config: NPUConfig) -> None:
        self._config = config
        depth = config.output_depth
        super().__init__(
            {
                "write": In(FinishedSums(config)),
                "reserve": In(
                    wiring.Signature({"valid": Out(1), "count": Out(range(config.accumulator_depth + 1))})
                ),
                "room": Out(range(depth + 1), init=depth),
                "written": Out(range(2 * depth)),
                "read": In(VectorRead(depth, SUM_BITS * config.array_size, self.latency)),
                "release": In(wiring.Signature({"valid": Out(1), "count": Out(range(depth + 1))})),
                "clear": In(1),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        config = self._config
        depth = config.output_depth
        m.submodules.memory = memory = BlockRAM(SUM_BITS * config.array_size, depth)
        wiring.connect(m, wiring.flipped(self.read), memory.read)
        m.d.comb += [
            memory.write_enable.eq(self.write.valid),
            memory.write_address.eq(self.written[:-1]),
            memory.write_data.eq(self.write.data.as_value()),
        ]
        reserved, released = Signal(range(config.accumulator_depth + 1)), Signal(range(depth + 1))
        m.d.comb += [
            reserved.eq(Mux(self.reserve.valid, self.reserve.count, 0)),
            released.eq(Mux(self.release.valid, self.release.count, 0)),
        ]
        m.d.sync += [
            self.written.eq(self.written + self.write.valid),
            self.room.eq(self.room - reserved + released),
        ]
        with m.If(self.clear):
            m.d.sync += [self.written.eq(0), self.room.eq(depth)]
        return m
