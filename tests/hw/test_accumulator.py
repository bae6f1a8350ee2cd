"""Accumulator: tiles of random passes against int64 sums, with positions as close together as they may be."""

from __future__ import annotations

import os
import random
from dataclasses import dataclass, field
from typing import Any

import cocotb
import numpy as np
import pytest
from cocotb.triggers import RisingEdge
from numpy.typing import NDArray

from bench import run_bench
from lepton_hw.accumulator import Accumulator
from lepton_hw.config import PRESETS
from lepton_hw.interfaces import PassTag
from stimulus import apply_reset, rng, start
from vectors import pack, unpack

CONFIG = PRESETS[os.environ.get("PRESET", "base")]
N = CONFIG.array_size
DEPTH = CONFIG.accumulator_depth
BITS = 15 + N.bit_length()
EXTREME = 2**14 * N  # the largest sum that the array makes
LATENCY = 1

Int64 = NDArray[np.int64]


@dataclass
class Stream:
    """Cycles to drive, and what must come out.

    Attributes:
        sums: shape (cycles, N) when finished, one row a cycle; noise where nothing is valid.
        tags: one a cycle.
        results: by the cycle in which the last sum of a position is driven.
    """

    random: random.Random
    sums: list[Int64] = field(default_factory=list)
    tags: list[int] = field(default_factory=list)
    results: dict[int, Int64] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.numpy = np.random.default_rng(self.random.getrandbits(64))

    def values(self) -> Int64:
        if self.random.random() < 0.3:
            return self.numpy.choice(np.array([-EXTREME, EXTREME]), N)
        return self.numpy.integers(-EXTREME, EXTREME + 1, N)

    def cycle(
        self, *, valid: bool, start: bool = False, overwrite: bool = False, finish: bool = False
    ) -> Int64:
        tag = PassTag.const({"valid": valid, "start": start, "overwrite": overwrite, "finish": finish})
        self.tags.append(tag.as_value().value)
        self.sums.append(self.values())
        return self.sums[-1]

    def gap(self, cycles: int) -> None:
        """Nothing valid; the other flags are noise, except for `start`, which there is with a vector only."""
        for _ in range(cycles):
            flags = self.random.randrange(4)
            self.cycle(valid=False, overwrite=bool(flags & 1), finish=bool(flags & 2))

    def tile(self, passes: list[list[bool]]) -> None:
        """Passes of a tile, each a list of `valid`, all with the same number of valid vectors."""
        positions = sum(passes[0])
        totals = np.zeros((positions, N), np.int64)
        for number, pattern in enumerate(passes):
            assert sum(pattern) == positions
            last = number == len(passes) - 1
            position = 0
            for i, valid in enumerate(pattern):
                values = self.cycle(valid=valid, start=i == 0, overwrite=number == 0, finish=last)
                if valid:
                    totals[position] += values
                    if last:
                        self.results[len(self.tags) - 1] = totals[position]
                    position += 1

    def pattern(self, positions: int, length: int) -> list[bool]:
        """`positions` valid vectors somewhere among `length`."""
        where = set(self.random.sample(range(length), positions))
        return [i in where for i in range(length)]

    def random_tile(self) -> None:
        positions = self.random.choice((1, 2, 3, N, self.random.randint(1, 3 * N)))
        passes = []
        for _ in range(self.random.choice((1, 1, 2, self.random.randint(1, 6)))):
            if positions == 1:  # the only one whose vector must come early
                passes.append([True] + [False] * (N - 1))
            else:
                passes.append(self.pattern(positions, max(N, positions) + self.random.randrange(N)))
        self.tile(passes)


class ExtremeStream(Stream):
    """The largest and the smallest sums in turn."""

    def values(self) -> Int64:
        return np.full(N, EXTREME if len(self.tags) % 2 else -EXTREME)


async def run(dut: Any, stream: Stream) -> None:
    """Drives the stream and checks each result, its cycle and that there are no others."""
    packed = pack(np.array(stream.sums), BITS)
    edge = RisingEdge(dut.clk)
    came: dict[int, int] = {}
    for cycle in range(len(packed) + LATENCY):
        if cycle < len(packed):
            dut.sums.value = packed[cycle]
            dut.sums_tag.value = stream.tags[cycle]
        else:
            dut.sums_tag.value = 0
        await edge
        # values before this edge: of the cycle that ends here
        if dut.result__valid.value == 1:
            came[cycle - LATENCY] = int(dut.result__data.value)
    assert list(came) == list(stream.results), "results at other cycles than they should be"
    got = unpack(list(came.values()), 32, N)
    wanted = np.array(list(stream.results.values()))
    wanted = (wanted + 2**31) % 2**32 - 2**31
    wrong = np.argwhere(got != wanted)
    assert not len(wrong), f"{len(wrong)} of {got.size} sums are wrong, the first at result, lane {wrong[0]}"


@cocotb.test()
async def random_tiles(dut: Any) -> None:
    """Tiles of 1 to 3 N positions in 1 to 6 passes, invalid vectors between (also with `start`), gaps."""
    await start(dut)
    stream = Stream(rng())
    for _ in range(60):
        stream.random_tile()
        if stream.random.random() < 0.3:
            stream.gap(stream.random.randrange(2 * N))
    await run(dut, stream)


@cocotb.test()
async def closest_positions(dut: Any) -> None:
    """The same position again after 2 cycles, the least that there can be, and after 3, 4, ..."""
    await start(dut)
    stream = Stream(rng())
    for distance in (2, 3, 4, 2, 5, 2):
        positions = max(2, distance)
        late = [False] * (N + 8 - positions) + [True] * positions
        early = [True] * positions + [False] * (N + 8 - positions)
        stream.tile([late, early, late, early])
        # P positions at the end of a pass and at the beginning of the next: P cycles
    alone = [False] * (N - 2) + [True, False]  # one position, ..
    stream.tile([alone, [True] + [False] * (N - 1), alone, alone, [True]])  # .. 2 cycles later
    await run(dut, stream)


@cocotb.test()
async def whole_memory(dut: Any) -> None:
    """A tile of as many positions as there are, three passes without a pause, after one of other values."""
    await start(dut)
    stream = Stream(rng())
    for _ in range(2):
        stream.tile([[True] * DEPTH] * 3)
    await run(dut, stream)


@cocotb.test()
async def next_tile_while_results_come(dut: Any) -> None:
    """Tiles of one pass, whose results never touch the memory, between the tiles of two."""
    await start(dut)
    stream = Stream(rng())
    for _ in range(8):
        stream.tile([[True] * N])
        stream.tile([[True] * N] * 2)
    await run(dut, stream)


@cocotb.test(skip=N < 16)  # takes 2**17 / N passes; lanes are alike
async def wraps_like_int32(dut: Any) -> None:
    """Enough extreme sums to leave 32 bits, upwards and downwards."""
    await start(dut)
    stream = ExtremeStream(rng())
    stream.tile([[True] * 2] * (2**31 // EXTREME + 3))
    await run(dut, stream)


@cocotb.test()
async def correct_after_reset(dut: Any) -> None:
    """Reset in the middle of a pass: no result comes out of it, and the next tiles are right."""
    await start(dut)
    random_source = rng()
    for _ in range(4):
        before = Stream(random_source)
        before.tile([before.pattern(N, 2 * N), before.pattern(N, 2 * N)])
        task = cocotb.start_soon(run(dut, before))
        for _ in range(random_source.randint(1, 4 * N - 2)):
            await RisingEdge(dut.clk)
        task.cancel()
        await apply_reset(dut, cycles=1)
        dut.sums_tag.value = 0
        await RisingEdge(dut.clk)
        await RisingEdge(dut.clk)
        assert dut.result__valid.value == 0
        after = Stream(random_source)
        after.random_tile()
        await run(dut, after)


@pytest.mark.parametrize("preset", PRESETS)
def test_accumulator(preset: str, simulator: str) -> None:
    if simulator == "icarus" and preset in ("base", "large"):
        pytest.skip("slow in Icarus, and no other code than small")
    run_bench(lambda: Accumulator(PRESETS[preset]), __name__, simulator=simulator, env={"PRESET": preset})
