"""ProcessingElement: every product, and random streams through each kind of PE."""

from __future__ import annotations

import os
from typing import Any

import cocotb
import pytest
from cocotb.triggers import RisingEdge

from bench import run_bench
from lepton_hw.pe import ProcessingElement, sum_bits
from stimulus import rng, start

CHAIN_ROWS = 9
ROW = int(os.environ.get("ROW", "0"))
CHAINED = ROW < CHAIN_ROWS


@cocotb.test()
async def every_product_is_exact(dut: Any) -> None:
    """All 256 activations with all 256 weights; the sum from above is extreme."""
    await start(dut)
    edge = RisingEdge(dut.clk)
    dut.vertical.value = 0
    for weight in range(-128, 128):
        above = 2**14 * ROW if weight % 2 else -(2**14) * ROW
        dut.sum_above.value = above
        for cycle in range(256 + 3):
            if cycle < 256:
                dut.left.value = cycle - 128
            if cycle < 2:
                dut.take.value = cycle == 0
                dut.weight.value = weight if cycle == 0 else ~weight
            await edge
            if cycle >= 3:
                activation = cycle - 3 - 128
                got = dut.sum.value.to_signed()
                assert got == weight * activation + above, f"{weight} * {activation} + {above} gives {got}"


@cocotb.test()
async def random_streams(dut: Any) -> None:
    """Weights taken at random times, activations from both sides, against the table of cycles."""
    await start(dut)
    random = rng()
    edge = RisingEdge(dut.clk)
    weight: int | None = None
    flight: list[tuple[int, int | None, int]] = []  # activation, product, sum above: newest first
    for _ in range(4000):
        left, above, bus = (random.choice((-128, 127, random.randrange(-128, 128))) for _ in range(3))
        vertical, take = random.randrange(2), random.random() < 0.2
        bound = 2**14 * ROW
        down = random.choice((-bound, bound, random.randint(-bound, bound)))
        dut.left.value, dut.take.value, dut.weight.value = left, take, bus
        dut.vertical.value = vertical
        if CHAINED:
            dut.above.value = above
        if ROW:
            dut.sum_above.value = down
        await edge
        if len(flight) >= 1:
            assert dut.activation.value.to_signed() == flight[0][0]
        if len(flight) >= 2 and ROW + 1 < CHAIN_ROWS:
            assert dut.below.value.to_signed() == flight[1][0]
        if len(flight) >= 3 and flight[2][1] is not None:
            assert dut.sum.value.to_signed() == flight[2][1] + flight[0][2]
        weight = bus if take else weight
        activation = (above if CHAINED else 0) if vertical else left
        flight = [(activation, None if weight is None else activation * weight, down), *flight[:2]]


@pytest.mark.parametrize("row", [0, 3, 8, 15])
def test_pe(row: int, simulator: str) -> None:
    """The first row, one with neighbours on all sides, the last with a vertical path, one without."""
    run_bench(
        lambda: ProcessingElement(row, CHAIN_ROWS),
        __name__,
        simulator=simulator,
        tests="random_streams",
        env={"ROW": row},
    )


def test_products() -> None:
    """Products are the same in all rows."""
    run_bench(
        lambda: ProcessingElement(3, CHAIN_ROWS), __name__, tests="every_product_is_exact", env={"ROW": 3}
    )


def test_sum_bits() -> None:
    """The width holds the extreme sums, and one bit less does not."""
    for products in range(1, 33):
        bits, extreme = sum_bits(products), products * 128 * 128
        assert 2 ** (bits - 2) <= extreme < 2 ** (bits - 1)


@pytest.mark.parametrize(("row", "chain_rows", "name"), [(-1, 0, "row"), (0, -1, "chain_rows")])
def test_arguments(row: int, chain_rows: int, name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} must be at least 0, not -1"):
        ProcessingElement(row, chain_rows)
