"""Window reduction against NumPy."""

from __future__ import annotations

import os

import cocotb
import numpy as np
import pytest
from cocotb.triggers import FallingEdge, RisingEdge

from bench import run_bench
from lepton_hw.isa import PoolMode
from lepton_hw.pool import WINDOW_SUM_BITS, Pool
from stimulus import rng, start

_LANES = 4


def _pack(values, bits=8):
    return sum((int(v) % (1 << bits)) << (bits * i) for i, v in enumerate(values))


@cocotb.test()
async def windows_of_all_modes(dut):
    """Random windows with taps outside, group by group, with pauses in between; the largest sums."""
    random, groups = rng(), int(os.environ["GROUPS"])
    numbers = np.random.default_rng(random.getrandbits(32))
    await start(dut)
    for round_ in range(120):
        mode = random.choice(list(PoolMode))
        low, high = sorted(random.randrange(-128, 128) for _ in range(2))
        dut.mode.value, dut.minimum.value, dut.maximum.value = int(mode), low % 256, high % 256
        taps = 1 if mode is PoolMode.NONE else random.randint(1, 9)
        inside = numbers.random(taps) < 0.8
        values = numbers.integers(-128, 128, (taps, groups, _LANES))
        if round_ == 0:  # the largest window
            dut.mode.value = int(PoolMode.SUM)
            mode, taps = PoolMode.SUM, 255 * 255 if groups == 1 else 9
            inside, values = np.ones(taps, bool), np.full((taps, groups, _LANES), -128)
        seen = values[inside]
        best = seen.max(0, initial=-128)
        if mode is PoolMode.MAX:
            best = np.clip(best, low, high)
        for tap in range(taps):
            for group in range(groups):
                dut.valid.value, dut.group.value = 1, group
                dut.inside.value, dut.last.value = int(inside[tap]), int(tap == taps - 1)
                dut.values.value = _pack(values[tap, group])
                if tap == taps - 1 and mode is not PoolMode.SUM:
                    await FallingEdge(dut.clk)
                    assert int(dut.results.value) == _pack(best[group]), f"{mode}, group {group} of {groups}"
                await RisingEdge(dut.clk)
            dut.valid.value = 0
            dut.values.value = random.getrandbits(8 * _LANES)
            while random.random() < 0.2:
                await RisingEdge(dut.clk)
        if mode is PoolMode.SUM:
            for group in range(groups):
                dut.sum_group.value = group
                await FallingEdge(dut.clk)
                assert int(dut.sums.value) == _pack(seen.sum(0)[group], WINDOW_SUM_BITS)
                await RisingEdge(dut.clk)


@pytest.mark.parametrize("groups", [1, 4])
def test_pool(groups):
    run_bench(lambda: Pool(_LANES, groups), __name__, env={"GROUPS": groups})
