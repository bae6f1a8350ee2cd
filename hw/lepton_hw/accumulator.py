"""Adds the array's sums up over the passes of a tile.

=====  =====================================================================================
cycle  for a vector of sums that is at the ports in cycle 0
=====  =====================================================================================
0      its position is known; the memory reads that position's partial sum
1      partial sum (0 if `overwrite`) + sum: written back, or, if `finish`, given to `result`
2      a read of that position now sees the new partial sum
=====  =====================================================================================

Why no forwarding is needed: two valid vectors for the same position must be at least 2 cycles apart, and
they are. Let a tile have P positions. The next pass starts when all samples of this one are through, and
not before N cycles after its start.

- P >= 2: position p is followed in its pass by P - 1 - p valid vectors and preceded in the next one by p.
  With the vector itself that makes a distance of P or more.
- P = 1: the valid vector is number 0 of its pass in modes VECTOR and PATCH, and number kernel_width - 1 in
  mode ROWS. The distance to the next pass is N - (kernel_width - 1) or more, and kernel_width is at most
  `depthwise_taps`: that is 2 for N = 4, and 3, 8 and 24 for the larger arrays.

The distance of 2 does occur: a CONV in mode ROWS with 2 positions whose last sample completes an output,
followed by one in mode VECTOR that goes on with the tile.
"""

from __future__ import annotations

from amaranth.hdl import Module, Mux, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from .block_ram import BlockRAM
from .config import NPUConfig
from .interfaces import PassTag, sums
from .isa import SUM_BITS
from .pe import sum_bits

__all__ = ["Accumulator", "FinishedSums"]


class FinishedSums(wiring.Signature):
    """Vectors of finished sums, always accepted. Seen from the accumulator.

    Members:
        valid: there is one.
        data: its int32 values.
    """

    def __init__(self, config: NPUConfig) -> None:
        super().__init__({"valid": Out(1), "data": Out(sums(config))})


class Accumulator(wiring.Component):
    """Partial sums of one tile: `accumulator_depth` vectors of N int32, which wrap around.

    Positions count the valid vectors since the last `start`, modulo the depth. A vector with `start` that is
    not valid has no position; the next valid one has position 0.

    Arguments:
        config: the NPU's configuration.

    Members:
        sums, sums_tag: from the array.
        result: finished sums, `latency` cycles after the array's.
    """

    latency = 1
    """Cycles from `sums` to `result`."""

    def __init__(self, config: NPUConfig) -> None:
        self._config = config
        super().__init__(
            {
                "sums": In(sums(config, sum_bits(config.array_size))),
                "sums_tag": In(PassTag),
                "result": Out(FinishedSums(config)),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        config = self._config
        m.submodules.memory = memory = BlockRAM(SUM_BITS * config.array_size, config.accumulator_depth)

        following, position = Signal(range(config.accumulator_depth)), Signal(range(config.accumulator_depth))
        tag = self.sums_tag
        m.d.comb += [
            position.eq(Mux(tag.start, 0, following)),
            memory.read.enable.eq(tag.valid & ~tag.overwrite),
            memory.read.address.eq(position),
        ]
        m.d.sync += following.eq(position + tag.valid)

        # cycle 1
        arrived = Signal.like(self.sums, reset_less=True)
        arrived_position = Signal.like(position, reset_less=True)
        overwrite = Signal(reset_less=True)
        store, finish = Signal(), Signal()
        m.d.sync += [
            arrived.eq(self.sums),
            arrived_position.eq(position),
            overwrite.eq(tag.overwrite),
            store.eq(tag.valid & ~tag.finish),
            finish.eq(tag.valid & tag.finish),
        ]
        m.d.comb += [
            memory.write_enable.eq(store),
            memory.write_address.eq(arrived_position),
            memory.write_data.eq(self.result.data.as_value()),
            self.result.valid.eq(finish),
        ]
        for lane in range(config.array_size):
            partial = memory.read.data[SUM_BITS * lane : SUM_BITS * (lane + 1)].as_signed()
            m.d.comb += self.result.data[lane].eq(arrived[lane] + Mux(overwrite, 0, partial))
        return m
