"""One lane of the output stage: TFLite's fixed-point rescale, zero point and clamp, fully pipelined.

    cycle   registered at its end                              enable
    0       shifted  = x << max(shift, 0), modulo 2^32         0
                       (`once`: saturated)
            factor   = multiplier
    1       products = the four 16 x 16 bit partial products   1
    2       outer    = high product, low product               2
            middle   = sum of the cross products + 2^14
    3       high     = (outer + middle * 2^16) >> 31           3
    4       nudged   = high + rounding term                    4
    5       rescaled = nudged >> max(-shift, 0)                5
    6       moved    = rescaled + zero_point, modulo 2^32      6
    7       clamped  = moved within [minimum, maximum]         7

The 2^14 in `middle` is the 2^30 that rounds ``x * multiplier / 2^31``. The second rounding, halves away from
zero, adds 2^(e - 1) to positive and 2^(e - 1) - 1 to negative values before the shift right by e: a row of
e - 1 ones, and a carry for positive values.

With `once` there is one rounding, halves away from zero: (P + 2^(30 + e) - (P < 0)) >> (31 + e) of the
product P = hi * 2^31 + lo. That is (hi + 2^(e - 1) - tie) >> e, where a tie is a negative P with lo = 0; and
for e = 0, where the 2^30 is needed as in the other case, hi' - tie with hi' and lo' those of P + 2^30.
"""

from __future__ import annotations

from amaranth.hdl import Cat, Module, Mux, Signal, Value, signed
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from .isa import SUM_BITS

__all__ = ["MULTIPLIER_BITS", "SHIFT_BITS", "RequantizeLane"]

MULTIPLIER_BITS = 31
SHIFT_BITS = 6
_HALF = 16  # bits of a partial product's operands


class RequantizeLane(wiring.Component):
    """Pipelined ``x * multiplier * 2^(shift - 31)``, rounded twice, then moved by a zero point and clamped.

    A new operation may start every cycle. Registers keep their values while their enable is 0.

    Members:
        x: int32, in cycle 0.
        multiplier: 0 to 2^31 - 1, in cycle 0.
        shift: -31 to 30, positive is left, in cycle 0.
        once: round once, in cycle 0.
        enable: bit i belongs to the operation that is in cycle i.
        rescaled: int32, from cycle `RESCALE_LATENCY` on.
        zero_point: int8, in cycle `RESCALE_LATENCY`.
        minimum, maximum: int8, in cycle `RESCALE_LATENCY` + 1.
        clamped: int8, from cycle `latency` on.
    """

    RESCALE_LATENCY = 6
    LATENCY = 8

    def __init__(self) -> None:
        super().__init__(
            {
                "x": In(signed(SUM_BITS)),
                "multiplier": In(MULTIPLIER_BITS),
                "shift": In(signed(SHIFT_BITS)),
                "once": In(1),
                "enable": In(self.LATENCY),
                "rescaled": Out(signed(SUM_BITS)),
                "zero_point": In(signed(8)),
                "minimum": In(signed(8)),
                "maximum": In(signed(8)),
                "clamped": Out(signed(8)),
            }
        )

    @property
    def latency(self) -> int:
        """Cycles from `x` to `clamped`."""
        return self.LATENCY

    def elaborate(self, platform: object) -> Module:
        m = Module()

        def register(name: str, stage: int, value: Value) -> Signal:
            out = Signal(value.shape(), name=name, reset_less=True)
            with m.If(self.enable[stage]):
                m.d.sync += out.eq(value)
            return out

        def right_shift(amount: Value) -> Value:
            return Mux(amount[-1], (-amount)[: SHIFT_BITS - 1], 0)

        # 0: shift left
        left = Mux(self.shift[-1], 0, self.shift[: SHIFT_BITS - 1])
        wide = self.x << left
        overflows = wide[SUM_BITS - 1 :].any() & ~wide[SUM_BITS - 1 :].all()
        extreme = Mux(self.x[-1], 1 << (SUM_BITS - 1), (1 << (SUM_BITS - 1)) - 1)
        shifted = register("shifted", 0, Mux(self.once & overflows, extreme, wide[:SUM_BITS])[:SUM_BITS])
        factor = register("factor", 0, self.multiplier)

        # the right shift travels along: it is used in cycles 4 and 5
        right = register("right_0", 0, right_shift(self.shift))
        once = register("once_0", 0, self.once)
        # P + 2^30 is needed unless the rounding comes later
        half = register("half_0", 0, ~self.once | (right_shift(self.shift) == 0))
        negative = register("negative_1", 1, shifted[-1] & once)
        half = register("half_1", 1, half)
        negative = register("negative_2", 2, negative)
        once = register("once_1", 1, once)
        for stage in (2, 3):
            once = register(f"once_{stage}", stage, once)
        for stage in range(1, 4):
            right = register(f"right_{stage}", stage, right)

        # 1: partial products; only the upper half of x has a sign
        x_low, x_high = shifted[:_HALF], shifted[_HALF:].as_signed()
        m_low, m_high = factor[:_HALF], factor[_HALF:]
        low_low = register("low_low", 1, (x_low * m_low)[: 2 * _HALF])
        low_high = register("low_high", 1, (x_low * m_high)[: 2 * _HALF - 1])
        high_low = register("high_low", 1, (x_high * m_low)[: 2 * _HALF].as_signed())
        high_high = register("high_high", 1, (x_high * m_high)[: 2 * _HALF - 1].as_signed())

        # 2: the outer products do not overlap; the cross products meet
        outer_low = register("outer_low", 2, low_low)
        outer_high = register("outer_high", 2, high_high)
        middle = register(
            "middle", 2, (low_high + high_low + (half << (_HALF - 2)))[: 2 * _HALF + 1].as_signed()
        )

        # 3: the low 16 bits of the product pass unchanged; they only tell a tie
        product = Cat(outer_low[_HALF:], outer_high).as_signed() + middle
        tie = register("tie", 3, negative & ~outer_low[:_HALF].any() & ~product[: _HALF - 1].any())
        high = register("high", 3, product[_HALF - 1 : _HALF - 1 + SUM_BITS].as_signed())

        # 4: rounding term of the shift right; `right` is that of this operation
        ones = Signal(SUM_BITS - 1)
        minus_one = tie & (right == 0)
        m.d.comb += [ones[i].eq((right > i + 1) | minus_one) for i in range(SUM_BITS - 2)]
        m.d.comb += ones[-1].eq(minus_one)
        carry = (right != 0) & Mux(once, ~tie, ~high[-1])
        nudged = register("nudged", 4, (high + ones.as_signed() + carry)[: SUM_BITS + 1])
        amount = register("amount", 4, right)

        # 5 to 7: shift right, zero point, clamp
        rescaled = register("rescaled_value", 5, (nudged.as_signed() >> amount)[:SUM_BITS].as_signed())
        moved = register("moved", 6, (rescaled + self.zero_point)[:SUM_BITS].as_signed())
        above, below = moved > self.maximum, moved < self.minimum
        clamped = register(
            "clamped_value", 7, Mux(above, self.maximum, Mux(below, self.minimum, moved[:8].as_signed()))[:8]
        )
        m.d.comb += [self.rescaled.eq(rescaled), self.clamped.eq(clamped)]
        return m
