"""SystolicArray: streams of passes from all sources, against NumPy; convolutions through its FIR filters.

`wave_sums` says what each vector's sums must be, from the vectors alone, without cycles or registers. The
tests of mode ROWS do without it: they compare with a convolution.
"""

from __future__ import annotations

import os
import random
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import cocotb
import numpy as np
import pytest
from cocotb.triggers import RisingEdge
from numpy.typing import NDArray

from bench import run_bench
from lepton_hw.array import SystolicArray
from lepton_hw.config import PRESETS
from lepton_hw.interfaces import Source
from stimulus import apply_reset, rng, start
from vectors import pack, unpack

CONFIG = PRESETS[os.environ.get("PRESET", "base")]
N = CONFIG.array_size
TAPS = CONFIG.depthwise_taps if CONFIG.rows_mode else 0
GROUPS = CONFIG.depthwise_groups
LATENCY = 2 * N + 2  # 2 N + 1 cycles through the array, and the input registers
SUM_BITS = 15 + N.bit_length()
LOWEST, HIGHEST = -128, 127
ALLOWED = list(Source) if CONFIG.rows_mode else [Source.LEFT]

Int64 = NDArray[np.int64]


@dataclass
class Pass:
    """Vectors, one a cycle, with the weights of their pass.

    Attributes:
        source: of all vectors.
        vectors: shape (3, length, N): `vector` and both `groups`.
        weights: shape (N, N), row by row.
        gap: cycles of noise after it.
    """

    source: Source
    vectors: Int64
    weights: Int64
    gap: int = 0

    @property
    def length(self) -> int:
        return self.vectors.shape[1]


class Noise:
    """Random int8 of a kind that is chosen anew for each array: extremes, one value, or anything."""

    def __init__(self, source: random.Random) -> None:
        self.random = source
        self.numpy = np.random.default_rng(source.getrandbits(64))

    def int8(self, *shape: int) -> Int64:
        match self.random.randrange(4):
            case 0:
                return self.numpy.choice(np.array([LOWEST, HIGHEST]), shape)
            case 1:
                return np.full(shape, self.random.choice((LOWEST, HIGHEST)), np.int64)
            case _:
                return self.numpy.integers(LOWEST, HIGHEST + 1, shape)

    def one_pass(self, source: Source, length: int, gap: int = 0) -> Pass:
        return Pass(source, self.int8(3, length, N), self.int8(N, N), gap)


def wave_sums(source: Int64, vectors: Int64, weights: Int64) -> Int64:
    """Sums of each cycle's vector.

    Arguments:
        source: shape (cycles,).
        vectors: shape (3, cycles, N).
        weights: shape (cycles, N, N): of the pass to which the cycle belongs.
    """
    cycles = len(source)
    left = (source == Source.LEFT.value)[:, None]
    grouped = (source == Source.GROUPS.value)[:, None]
    above = vectors[0]  # what enters the row from above: shape (cycles, N), by column
    total = np.zeros((cycles, N), np.int64)
    for row in range(N):
        if row in (3, 6) and row < TAPS:
            above = np.where(grouped, vectors[row // 3], above)
        lane = np.broadcast_to(vectors[0][:, row : row + 1], (cycles, N))
        if TAPS:
            activations = np.where(left, lane, above if row < TAPS else 0)
        else:
            activations = lane
        total += activations * weights[:, row, :]
        above = np.concatenate([np.zeros((1, N), np.int64), activations[:-1]])
    return total


async def stream(dut: Any, passes: list[Pass], noise: Noise) -> tuple[Int64, Int64, list[int]]:
    """Drives noise (so that all taps hold what the model knows), passes with gaps, and N cycles more.

    Returns:
        Sums that came and sums that should have, shape (cycles, N), from the first pass on with its gaps; and
        the cycle in which each pass begins.
    """
    lead = max(TAPS, 1)
    cycles = lead + sum(p.length + p.gap for p in passes)
    source = noise.numpy.integers(0, 3, cycles)
    vectors = noise.numpy.integers(LOWEST, HIGHEST + 1, (3, cycles, N))
    bus = noise.numpy.integers(LOWEST, HIGHEST + 1, (cycles + N, N))
    weights = np.zeros((cycles, N, N), np.int64)
    tags = noise.numpy.integers(0, 16, cycles)
    begins = []
    at = lead
    for p in passes:
        begins.append(at)
        if CONFIG.rows_mode:
            source[at : at + p.length] = p.source.value
        vectors[:, at : at + p.length] = p.vectors
        bus[at : at + N] = p.weights
        weights[at:] = p.weights
        at += p.length + p.gap
    assert all(b - a >= N for a, b in pairwise(begins))

    packed = [pack(v, 8) for v in vectors]
    groups = [a | b << 8 * N for a, b in zip(packed[1], packed[2], strict=True)]
    packed_bus = pack(bus, 8)
    seen_sums, seen_tags = [], []
    edge = RisingEdge(dut.clk)
    starts = set(begins)
    for cycle in range(cycles + LATENCY):
        if cycle < cycles:
            dut.vector.value = packed[0][cycle]
            dut.groups.value = groups[cycle]
            dut.source.value = int(source[cycle])
            dut.tag.value = int(tags[cycle])
            dut.weights.value = packed_bus[cycle]
        dut.first.value = cycle in starts
        await edge
        # values before this edge: of the cycle that ends here
        if cycle >= LATENCY:
            seen_sums.append(int(dut.sums.value))
            seen_tags.append(int(dut.sums_tag.value))
    assert seen_tags == tags.tolist(), "the tags do not come with the sums"
    return (
        unpack(seen_sums, SUM_BITS, N)[lead:],
        wave_sums(source, vectors, weights)[lead:],
        [begin - lead for begin in begins],
    )


def assert_same(got: Int64, wanted: Int64, begins: list[int]) -> None:
    wrong = np.argwhere(got != wanted)
    if len(wrong):
        cycle, column = wrong[0]
        number = int(np.searchsorted(begins, cycle, side="right")) - 1
        raise AssertionError(
            f"{len(wrong)} sums are wrong, the first of pass {number}, cycle {cycle - begins[number]}, "
            f"column {column}: {got[cycle, column]}, not {wanted[cycle, column]}"
        )


@cocotb.test()
async def random_passes(dut: Any) -> None:
    """Passes of random lengths and sources with random gaps, extreme values among them."""
    await start(dut)
    noise = Noise(rng())
    random = noise.random
    for _ in range(6):
        passes = []
        for _ in range(random.randint(4, 10)):
            length = random.choice((N, N, random.randint(N, 3 * N)))
            gap = random.choice((0, 0, random.randrange(2 * N)))
            passes.append(noise.one_pass(random.choice(ALLOWED), length, gap))
        assert_same(*await stream(dut, passes, noise))


@cocotb.test()
async def passes_shorter_than_their_weights(dut: Any) -> None:
    """A pass of 1 to N - 1 vectors, then noise until N cycles are over, then the next."""
    await start(dut)
    noise = Noise(rng())
    lengths = list(range(1, N)) * 2
    noise.random.shuffle(lengths)
    passes = [noise.one_pass(noise.random.choice(ALLOWED), length, N - length) for length in lengths]
    assert_same(*await stream(dut, passes, noise))


@cocotb.test()
async def every_pair_of_sources_back_to_back(dut: Any) -> None:
    """Passes of exactly N cycles, each source after each."""
    await start(dut)
    noise = Noise(rng())
    pairs = [(a, b) for a in ALLOWED for b in ALLOWED]
    noise.random.shuffle(pairs)
    passes = [noise.one_pass(source, N) for pair in pairs for source in pair]
    assert_same(*await stream(dut, passes, noise))


@cocotb.test()
async def extreme_sums(dut: Any) -> None:
    """The largest and the smallest sum that there is, in all columns, and swings between them."""
    await start(dut)
    noise = Noise(rng())
    passes, largest = [], []
    for source in ALLOWED:
        products = N if source is Source.LEFT else TAPS if source is Source.CHAIN else 3 * GROUPS
        for activation, weight in ((-128, -128), (127, -128), (-128, 127), (127, 127)):
            vectors, weights = np.full((3, 2 * N, N), activation), np.full((N, N), weight)
            passes.append(Pass(source, vectors, weights))
            largest.append(activation * weight * products)
    got, wanted, begins = await stream(dut, passes, noise)
    assert_same(got, wanted, begins)
    for begin, value in zip(begins, largest, strict=True):
        assert (got[begin + 2 * N - 1] == value).all()


@cocotb.test()
async def correct_after_reset(dut: Any) -> None:
    """Reset in the middle of a stream: no tag comes out any more, and the next passes are right."""
    await start(dut)
    noise = Noise(rng())
    random = noise.random
    for _ in range(4):
        passes = [noise.one_pass(random.choice(ALLOWED), N + random.randrange(N)) for _ in range(4)]
        task = cocotb.start_soon(stream(dut, passes, noise))
        for _ in range(random.randint(1, 5 * N)):
            await RisingEdge(dut.clk)
        task.cancel()
        dut.first.value = 0
        dut.tag.value = 0
        await apply_reset(dut, cycles=1)
        for _ in range(LATENCY + 2):
            await RisingEdge(dut.clk)
            assert int(dut.sums_tag.value) == 0
        passes = [noise.one_pass(random.choice(ALLOWED), N) for _ in range(4)]
        assert_same(*await stream(dut, passes, noise))


def depthwise(image: Int64, kernel: Int64, stride: int, pad: int) -> Int64:
    """Depthwise convolution in plain loops; image (height, width, N), kernel (rows, columns, N)."""
    rows, columns, _ = kernel.shape
    padded = np.pad(image, ((pad, pad), (pad, pad), (0, 0)))
    height = (padded.shape[0] - rows) // stride + 1
    width = (padded.shape[1] - columns) // stride + 1
    out = np.zeros((height, width, N), np.int64)
    for y in range(height):
        for x in range(width):
            window = padded[y * stride : y * stride + rows, x * stride : x * stride + columns]
            out[y, x] = (window * kernel).sum(axis=(0, 1))
    return out


def filter_weights(kernel: Int64) -> Int64:
    """Weight tile of up to three kernel rows: tap t of row g holds its column kernel_width - 1 - t."""
    tile = np.zeros((N, N), np.int64)
    for g, row in enumerate(kernel):
        tile[3 * g : 3 * g + len(row)] = row[::-1]
    return tile


@cocotb.test(skip=not CONFIG.rows_mode)
async def depthwise_in_groups(dut: Any) -> None:
    """Kernels of 1 to 3 rows of 3 in one pass; all image rows in one stream, padding shared."""
    await start(dut)
    noise = Noise(rng())
    for rows in range(1, GROUPS + 1):
        for stride in (1, 2):
            height, width = noise.random.randint(rows, 5), noise.random.randint(3, 9)
            image, kernel = noise.int8(height, width, N), noise.int8(rows, 3, N)
            wanted = depthwise(image, kernel, stride, 1)
            padded = np.pad(image, ((1, 1), (0, 0), (0, 0)))
            samples: list[list[Int64]] = [[np.zeros(N, np.int64)] for _ in range(3)]  # 3 - 1 - valid_from
            outputs: list[int] = []  # sample that completes each output
            for y in range(len(wanted)):
                outputs += [len(samples[0]) + 1 + stride * x for x in range(wanted.shape[1])]
                for g in range(3):
                    row = padded[y * stride + g] if g < rows else noise.int8(width, N)
                    samples[g] += [*row, np.zeros(N, np.int64)]  # the pad after it
            passes = [
                noise.one_pass(Source.LEFT, N),
                Pass(Source.GROUPS, np.array(samples), filter_weights(kernel)),
            ]
            if passes[1].length < N:
                passes[1].gap = N - passes[1].length
            got, _, begins = await stream(dut, passes, noise)
            picked = got[begins[1] + np.array(outputs)].reshape(wanted.shape)
            assert (picked == wanted).all(), f"{rows} rows, stride {stride}"


@cocotb.test(skip=not CONFIG.rows_mode)
async def depthwise_in_a_chain(dut: Any) -> None:
    """Kernel rows of every width up to the number of taps, one row a pass, added up over the passes."""
    await start(dut)
    noise = Noise(rng())
    for columns in range(1, TAPS + 1):
        rows, stride = noise.random.randint(1, 3), noise.random.randint(1, 2)
        height, width = noise.random.randint(rows, 4), noise.random.randint(columns, columns + 5)
        image, kernel = noise.int8(height, width, N), noise.int8(rows, columns, N)
        wanted = depthwise(image, kernel, stride, 0)
        passes = []
        for ky in range(rows):
            samples = [vector for y in range(len(wanted)) for vector in image[y * stride + ky]]
            vectors = np.array([samples, noise.int8(len(samples), N), noise.int8(len(samples), N)])
            gap = max(0, N - len(samples))
            passes.append(Pass(Source.CHAIN, vectors, filter_weights(kernel[ky : ky + 1]), gap))
        got, _, begins = await stream(dut, passes, noise)
        outputs = [
            y * width + columns - 1 + stride * x for y in range(len(wanted)) for x in range(wanted.shape[1])
        ]
        total = sum(got[begin + np.array(outputs)] for begin in begins)
        assert (total.reshape(wanted.shape) == wanted).all(), f"{rows} x {columns}, stride {stride}"


@pytest.mark.parametrize("preset", PRESETS)
def test_array(preset: str, simulator: str) -> None:
    if simulator == "icarus" and preset in ("base", "large"):
        pytest.skip("slow in Icarus, and no other code than small")
    config = PRESETS[preset]

    def build() -> SystolicArray:
        array = SystolicArray(config)
        assert array.latency == 2 * config.array_size + 2, "must be the LATENCY that the bench expects"
        return array

    run_bench(build, __name__, simulator=simulator, env={"PRESET": preset})
