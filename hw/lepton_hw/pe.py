"""One multiply-add cell of the systolic array."""

from __future__ import annotations

from amaranth.hdl import Const, Module, Mux, Signal, signed
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

__all__ = ["ProcessingElement", "sum_bits"]


def sum_bits(products: int) -> int:
    """Bits of a signed sum of int8 x int8 products, each at most (-128) * (-128) = 2**14."""
    return (products << 14).bit_length() + 1


class ProcessingElement(wiring.Component):
    """Multiplies the activations that pass by the weight that stays, and adds to the sum from above.

    =====  ==================================================================
    cycle  registers that change at its end, for a vector at the PE in cycle 0
    =====  ==================================================================
    0      `activation` from `left` or `above`; the weight, where `take`
    1      the product; `below`
    2      `sum`
    =====  ==================================================================

    So an activation reaches the PE to the right 1 cycle later, the PE below 2 cycles later, and a sum the PE
    below 1 cycle later. Exact for all int8 values. No register is reset: the array knows what counts.

    Arguments:
        row: of the array, from 0 at the top; sums are as wide as `row + 1` products need.
        chain_rows: rows with a vertical path, 0 if the array has none.

    Members:
        left: from the PE to the left.
        take, weight: replace the weight; it serves the activation of the same cycle.
        activation: to the PE to the right.
        sum_above (not in row 0), sum: down the column.
        vertical (only with `chain_rows`): take the activation from above, not from the left. In the rows
            without a vertical path it is then 0.
        above (only in the first `chain_rows` rows): from the PE above.
        below (in the same rows but for the last): to the PE below.

    Raises:
        ValueError: a negative argument.
    """

    def __init__(self, row: int, chain_rows: int = 0) -> None:
        if row < 0:
            raise ValueError(f"row must be at least 0, not {row}")
        if chain_rows < 0:
            raise ValueError(f"chain_rows must be at least 0, not {chain_rows}")
        self._row, self._chain_rows = row, chain_rows
        members = {
            "left": In(signed(8)),
            "take": In(1),
            "weight": In(signed(8)),
            "activation": Out(signed(8)),
            "sum": Out(signed(sum_bits(row + 1))),
        }
        if row > 0:
            members["sum_above"] = In(signed(sum_bits(row)))
        if chain_rows > 0:
            members["vertical"] = In(1)
        if row < chain_rows:
            members["above"] = In(signed(8))
        if row + 1 < chain_rows:
            members["below"] = Out(signed(8))
        super().__init__(members)

    def elaborate(self, platform: object) -> Module:
        m = Module()
        row, chain_rows = self._row, self._chain_rows
        activation = Signal(signed(8), reset_less=True)
        weight = Signal(signed(8), reset_less=True)
        product = Signal(signed(16), reset_less=True)
        total = Signal.like(self.sum, reset_less=True)

        if chain_rows > 0:
            above = self.above if row < chain_rows else Const(0, signed(8))
            m.d.sync += activation.eq(Mux(self.vertical, above, self.left))
        else:
            m.d.sync += activation.eq(self.left)
        m.d.sync += [
            weight.eq(Mux(self.take, self.weight, weight)),
            product.eq(activation * weight),
            total.eq(self.sum_above + product if row > 0 else product),
        ]
        m.d.comb += [self.activation.eq(activation), self.sum.eq(total)]
        if row + 1 < chain_rows:
            below = Signal(signed(8), reset_less=True)
            m.d.sync += below.eq(activation)
            m.d.comb += self.below.eq(below)
        return m
