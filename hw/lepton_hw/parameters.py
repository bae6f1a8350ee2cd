"""Biases, multipliers and shifts of a block: from the parameter memory into registers.

A block's parameters are 9 vectors: 4 of int32 biases (vector k holds those of channels k N/4 to
(k + 1) N/4 - 1), 4 of int32 multipliers, 1 of int8 shifts; or only the 4 of biases.

    cycle    0      1          2          3          ...  9          10        11
             start  address 0  address 1  address 2       address 8  ready
                               data 0     data 1                     data 8
                                          vector 0                             vector 8 in its registers

`ready` rises so early that who takes the biases one cycle later, and multipliers and shifts two cycles later
or more, just finds each in its register.
"""

from __future__ import annotations

from amaranth.hdl import Module, Mux, Signal
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from .config import NPUConfig
from .interfaces import VectorRead
from .isa import PARAMETER_ROWS, PARAMETER_ROWS_PER_TENSOR, SUM_BITS
from .requantize import MULTIPLIER_BITS, SHIFT_BITS

__all__ = ["PARAMETER_LATENCY", "ParameterLoader"]

PARAMETER_LATENCY = 1
"""Cycles from address to data of the parameter memory."""

_PARTS = 4  # vectors that hold N int32


class ParameterLoader(wiring.Component):
    """Loads the parameters of one block.

    Members:
        start: load from `address` on; drops a load that is under way.
        address: the block's first vector.
        per_tensor: biases only (4 vectors); the others keep their values.
        ready: the block's parameters can be used; falls in the cycle after `start`.
        memory: the parameter memory.
        biases, multipliers, shifts: of the N channels.
    """

    def __init__(self, config: NPUConfig) -> None:
        self._config = config
        n = config.array_size
        super().__init__(
            {
                "start": In(1),
                "address": In(range(config.parameter_vectors)),
                "per_tensor": In(1),
                "ready": Out(1),
                "memory": Out(VectorRead(config.parameter_vectors, 8 * n, PARAMETER_LATENCY)),
                "biases": Out(data.ArrayLayout(SUM_BITS, n)),
                "multipliers": Out(data.ArrayLayout(MULTIPLIER_BITS, n)),
                "shifts": Out(data.ArrayLayout(SHIFT_BITS, n)),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        n = self._config.array_size
        row = Signal(range(PARAMETER_ROWS))
        rows = Signal(range(PARAMETER_ROWS + 1))
        reading = Signal()
        address = Signal.like(self.address, reset_less=True)
        last = row == rows - 1

        m.d.comb += [self.memory.enable.eq(reading), self.memory.address.eq(address)]
        with m.If(reading):
            m.d.sync += [row.eq(row + 1), address.eq(address + 1), reading.eq(~last)]

        # The vector that arrives, `PARAMETER_LATENCY` cycles after its address.
        arrives, arriving_row, finished = reading, row, reading & last
        for i in range(PARAMETER_LATENCY):
            delayed, delayed_row = Signal(name=f"arrives_{i}"), Signal.like(row, name=f"arriving_row_{i}")
            m.d.sync += [delayed.eq(arrives & ~self.start), delayed_row.eq(arriving_row)]
            if i + 1 < PARAMETER_LATENCY:
                delayed_end = Signal(name=f"finished_{i}")
                m.d.sync += delayed_end.eq(finished & ~self.start)
                finished = delayed_end
            arrives, arriving_row = delayed, delayed_row
        with m.If(finished):
            m.d.sync += self.ready.eq(1)

        words = data.View(data.ArrayLayout(SUM_BITS, n // _PARTS), self.memory.data)
        with m.If(arrives):
            for part in range(_PARTS):
                channels = range(part * n // _PARTS, (part + 1) * n // _PARTS)
                with m.If(arriving_row == part):
                    m.d.sync += [self.biases[c].eq(words[i]) for i, c in enumerate(channels)]
                with m.If(arriving_row == _PARTS + part):
                    m.d.sync += [self.multipliers[c].eq(words[i]) for i, c in enumerate(channels)]
            with m.If(arriving_row == 2 * _PARTS):
                m.d.sync += [self.shifts[c].eq(self.memory.data.word_select(c, 8)) for c in range(n)]

        with m.If(self.start):
            m.d.sync += [
                row.eq(0),
                rows.eq(Mux(self.per_tensor, PARAMETER_ROWS_PER_TENSOR, PARAMETER_ROWS)),
                address.eq(self.address),
                reading.eq(1),
                self.ready.eq(0),
            ]
        return m
