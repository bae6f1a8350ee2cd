"""The requantizing lane against exact arithmetic, and against the reference operators."""

from __future__ import annotations

import cocotb
import numpy as np
from cocotb.triggers import RisingEdge

from bench import run_bench
from lepton_hw.requantize import RequantizeLane
from lepton_sim.reference.requantize import multiply_by_quantized_multiplier
from requantize_model import clamp, rescale, rescale_once
from stimulus import rng, start

_EDGES = [0, 1, 2, 3, 2**15 - 1, 2**15, 2**16 - 1, 2**16, 2**30 - 1, 2**30, 2**30 + 1, 2**31 - 2, 2**31 - 1]


def _operands(random, count):
    """Rows of x, multiplier, shift, zero point, minimum, maximum: edge cases among numbers of all sizes."""
    rows = []
    for _ in range(count):
        if random.random() < 0.3:
            x = random.choice(_EDGES) * random.choice((1, -1)) - random.randrange(2)
        else:
            x = random.randrange(-(2**31), 2**31) >> random.randrange(32)
        x = max(-(2**31), min(x, 2**31 - 1))
        if random.random() < 0.2:
            multiplier = random.choice(_EDGES)
        else:
            multiplier = random.randrange(2**31) >> random.choice((0, 0, 0, random.randrange(31)))
        minimum, maximum = sorted(random.choice((-128, 127, random.randrange(-128, 128))) for _ in range(2))
        rows.append((x, multiplier, random.randrange(-31, 31), random.randrange(-128, 128), minimum, maximum))
    # A shift that makes halves: 2 and 3 times 2^30 / 2^31 are 1 and 1.5; then / 2^e.
    rows += [(x << e, 2**30, -e, 0, -128, 127) for e in range(1, 16) for x in range(-9, 10)]
    rows += [(x, 2**30, 0, 0, -128, 127) for x in range(-9, 10)]
    return rows


def _unsigned(value, bits):
    return int(value) % 2**bits


@cocotb.test()
async def every_operation_is_exact(dut):
    """Operations of both roundings with random pauses; a stage that does not work must not change."""
    await start(dut)
    random = rng()
    rows = _operands(random, 20_000)
    columns = np.array(rows, np.int64).T
    twice = rescale(*columns[:3])
    assert np.array_equal(twice, multiply_by_quantized_multiplier(*columns[:3]))
    once = [random.random() < 0.5 for _ in rows]
    wanted = np.where(once, rescale_once(*columns[:3]), twice)
    wanted_clamped = [
        int(clamp(w, int(z), int(low), int(high)))
        for w, z, low, high in zip(wanted, *columns[3:], strict=True)
    ]
    rescale_latency, latency = RequantizeLane.RESCALE_LATENCY, RequantizeLane.LATENCY
    flight: list[int | None] = [None] * (latency + 1)  # flight[i]: operation in cycle i
    following, finished = 0, 0
    edge = RisingEdge(dut.clk)
    while finished < len(rows):
        entering = None
        if following < len(rows) and random.random() < 0.9:
            entering, following = following, following + 1
        flight = [entering, *flight[:-1]]
        # Inputs of a stage without an operation are junk.
        x, multiplier, shift = (
            rows[entering][:3]
            if entering is not None
            else (random.getrandbits(32), random.getrandbits(31), random.getrandbits(6))
        )
        dut.x.value = _unsigned(x, 32)
        dut.multiplier.value = int(multiplier)
        dut.shift.value = _unsigned(shift, 6)
        dut.once.value = once[entering] if entering is not None else random.getrandbits(1)
        moving, clamping = flight[rescale_latency], flight[rescale_latency + 1]
        dut.zero_point.value = _unsigned(rows[moving][3] if moving is not None else 85, 8)
        dut.minimum.value = _unsigned(rows[clamping][4] if clamping is not None else 7, 8)
        dut.maximum.value = _unsigned(rows[clamping][5] if clamping is not None else 7, 8)
        dut.enable.value = sum((flight[i] is not None) << i for i in range(latency))
        await edge
        if moving is not None:
            got = dut.rescaled.value.to_signed()
            assert got == wanted[moving], f"rescale{rows[moving][:3]} is {wanted[moving]}, not {got}"
        if flight[latency] is not None:
            done = flight[latency]
            got = dut.clamped.value.to_signed()
            assert got == wanted_clamped[done], f"{rows[done]} gives {wanted_clamped[done]}, not {got}"
            finished += 1


def test_requantize(simulator):
    run_bench(RequantizeLane, __name__, simulator=simulator)
