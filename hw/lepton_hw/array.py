"""Systolic array: N x N multiply-adds a cycle, weights that ride the wave.

Timing: what happens for the vector that is presented at the ports in cycle 0.

=================  ==================================================================================
cycle              registers that change at its end
=================  ==================================================================================
i                  byte i of `vector` and of row 0 of the weights leaves its skew triangle; the delay
                   lines of `first` and `source` reach the PEs with row + column = i
1 + r + c          PE(r, c): activation; weight, if `first`: byte c of row r, presented in cycle r,
                   is then at the end of column c's triangle
2 + r + c          PE(r, c): product
3 + r + c          PE(r, c): sum of rows 0 to r
N + 2 + c          the sum of all rows leaves column c
2 N + 1            it leaves column c's deskewing registers: N - 1 - c of them, none in column N - 1
2 N + 2            (nothing changes) `sums` and `sums_tag` are at the ports: `latency`
=================  ==================================================================================

Weights: PE(r, c) sees row r on its column's bus in the cycle in which the first vector of the pass arrives,
and the vectors before it have just left. So no PE needs a second weight register, and the next pass may
start N cycles after this one, when the bus is free again.

Activations: byte i of `vector` is i cycles late, which is right for row i (from the left, LEFT) and for
column i (from above, CHAIN and GROUPS), since PE(r, c) is r + c cycles late. From PE to PE they take one
cycle to the right and two cycles down (sums take one). So PE(r, c) has the vector's own byte r in LEFT, and
in CHAIN byte c of the vector r cycles before. In GROUPS rows 3 and 6 take `groups[0]` and `groups[1]`,
which come together with `vector` and are delayed 3 and 6 cycles more: rows 3, 4 and 5 have byte c of this
`groups[0]` and of those of one and two cycles before.
"""

from __future__ import annotations

from amaranth.hdl import Cat, Module, Mux, Signal, Value
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from .config import NPUConfig
from .interfaces import PassTag, Source, lanes, sums
from .pe import ProcessingElement, sum_bits
from .skew import Skew

__all__ = ["SystolicArray"]

GROUP_TAPS = 3  # rows of one group in Source.GROUPS


class SystolicArray(wiring.Component):
    """Matrix products: rows are input lanes, columns are output channels. A vector a cycle, no stall.

    With `config.rows_mode` False there is no vertical path; `groups` and `source` are then ignored. Rows from
    `config.depthwise_taps` on have none either: in CHAIN and GROUPS their activation is 0.

    Arguments:
        config: the NPU's configuration.

    Members:
        vector: activations.
        groups: the vectors for rows 3 and 6 in GROUPS.
        first: this is the first vector of a pass; at least N cycles after the one before.
        source: where the PEs take this vector from. CHAIN and GROUPS also look at the vectors of the cycles
            before, of whatever pass.
        tag: travels along; here only delayed.
        weights: row r of the tile (byte c: column c), r cycles after `first`. Ignored at other times.
        sums, sums_tag: exactly `latency` cycles after `vector`. Signed, as wide as the largest sum.
    """

    def __init__(self, config: NPUConfig) -> None:
        self._config = config
        n = config.array_size
        super().__init__(
            {
                "vector": In(lanes(config)),
                "groups": In(data.ArrayLayout(lanes(config), 2)),
                "first": In(1),
                "source": In(Source),
                "tag": In(PassTag),
                "weights": In(lanes(config)),
                "sums": Out(sums(config, sum_bits(n))),
                "sums_tag": Out(PassTag),
            }
        )

    @property
    def latency(self) -> int:
        """Cycles from `vector` to `sums`."""
        return 2 * self._config.array_size + 2

    def elaborate(self, platform: object) -> Module:
        m = Module()
        config, n = self._config, self._config.array_size
        chain_rows = config.depthwise_taps if config.rows_mode else 0
        diagonals = 2 * n - 1  # PEs with the same row + column see a vector in the same cycle

        rising = [1 + i for i in range(n)]
        m.submodules.skew_vector = skew_vector = Skew(8, rising)
        m.submodules.skew_weights = skew_weights = Skew(8, rising)
        m.d.comb += [
            skew_vector.input.as_value().eq(self.vector.as_value()),
            skew_weights.input.as_value().eq(self.weights.as_value()),
        ]
        first = Signal(diagonals)
        m.d.sync += first.eq(Cat(self.first, first))
        if chain_rows:
            vertical, grouped = Signal(diagonals), Signal(diagonals)
            m.d.sync += [
                vertical.eq(Cat(self.source != Source.LEFT, vertical)),
                grouped.eq(Cat(self.source == Source.GROUPS, grouped)),
            ]
        group_inputs: dict[int, data.View] = {}  # row: bytes by column
        for row in range(GROUP_TAPS, chain_rows, GROUP_TAPS):
            group = row // GROUP_TAPS - 1
            skew = Skew(8, [row + delay for delay in rising])
            m.submodules[f"skew_group_{group}"] = skew
            m.d.comb += skew.input.as_value().eq(self.groups[group].as_value())
            group_inputs[row] = skew.output

        above: list[ProcessingElement] = []  # the row before, by column
        for row in range(n):
            here: list[ProcessingElement] = []
            for column in range(n):
                m.submodules[f"pe_{row}_{column}"] = pe = ProcessingElement(row, chain_rows)
                diagonal = row + column
                m.d.comb += [
                    pe.left.eq(here[-1].activation if here else skew_vector.output[row]),
                    pe.take.eq(first[diagonal]),
                    pe.weight.eq(skew_weights.output[column]),
                ]
                if chain_rows:
                    m.d.comb += pe.vertical.eq(vertical[diagonal])
                if row > 0:
                    m.d.comb += pe.sum_above.eq(above[column].sum)
                if row < chain_rows:
                    down: Value = above[column].below if row > 0 else skew_vector.output[column]
                    if row in group_inputs:
                        down = Mux(grouped[diagonal], group_inputs[row][column], down)
                    m.d.comb += pe.above.eq(down)
                here.append(pe)
            above = here

        m.submodules.deskew = deskew = Skew(sum_bits(n), [n - 1 - column for column in range(n)])
        m.d.comb += [
            *(deskew.input[column].eq(above[column].sum) for column in range(n)),
            self.sums.as_value().eq(deskew.output.as_value()),
        ]
        tag_bits = []
        for field in PassTag.as_shape().members:  # one shift register each
            line = Signal(self.latency, name=f"tag_{field}")
            m.d.sync += line.eq(Cat(self.tag[field], line))
            tag_bits.append(line[-1])
        m.d.comb += self.sums_tag.as_value().eq(Cat(tag_bits))
        return m
