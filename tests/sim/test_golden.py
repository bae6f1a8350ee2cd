"""The golden model against loops over single positions, and against the reference operators.

The loops here are written from docs/architecture.md with Python integers; they share nothing with the model
but the commands.
"""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest

from lepton_hw.config import PRESETS, NPUConfig
from lepton_hw.isa import (
    COMMAND_BYTES,
    Checker,
    Command,
    ErrorCode,
    Mode,
    Opcode,
    PoolMode,
    Target,
    Unit,
    encode,
)
from lepton_sim.golden import GoldenDevice
from lepton_sim.golden.convolve import convolve
from lepton_sim.golden.memories import Memories
from lepton_sim.golden.output import Rescales, Tile, output
from lepton_sim.reference import (
    AddParameters,
    Padding,
    Requantization,
    add_integer,
    average_pool2d_integer,
    average_pool_multiplier,
    conv2d_integer,
    depthwise_conv2d_integer,
    max_pool2d_integer,
)

CONFIGS = ("nano", "small", "base")
PROGRAM = 0x4000
MEMORY = 1 << 16


def wrap(value: int) -> int:
    return (value + (1 << 31)) % (1 << 32) - (1 << 31)


def signed(byte: int) -> int:
    return (byte & 0xFF) - ((byte & 0x80) << 1)


# --- the loops ---


def loop_sums(c: Command, config: NPUConfig, scratchpad: bytes, weights: bytes) -> list[list[list[int]]]:
    """[block][position][channel] of a CONV, one product at a time."""
    n, result = config.array_size, []
    positions = [(oy, ox) for oy in range(c.out_height) for ox in range(c.out_width)]

    def byte(address: int) -> int:
        return signed(scratchpad[address % len(scratchpad)])

    def weight(tile: int, row: int, column: int) -> int:
        vector = (c.weights + tile * n + row) % (len(weights) // n)
        return signed(weights[vector * n + column])

    tile = 0
    for block in range(c.out_blocks):
        shift = block * c.out_block_stride * n
        if c.restart_weights:
            tile = 0
        sums = [[0] * n for _ in positions]
        if c.mode == Mode.VECTOR:
            for ib in range(c.in_blocks):
                for ky in range(c.kernel_height):
                    for kx in range(c.kernel_width):
                        for p, (oy, ox) in enumerate(positions):
                            y = c.y_start + oy * c.stride_y + ky * c.dilation_y
                            x = c.x_start + ox * c.stride_x + kx * c.dilation_x
                            inside = 0 <= y < c.in_height and 0 <= x < c.in_width
                            at = c.input + (ib * c.block_stride + y * c.y_stride + x * c.x_stride) * n + shift
                            for row in range(n):
                                a = byte(at + row) if inside else c.pad_value
                                for column in range(n):
                                    sums[p][column] += a * weight(tile, row, column)
                        tile += 1
        elif c.mode == Mode.PATCH:
            terms = c.kernel_height * c.row_length
            for start in range(0, terms, c.pass_length):
                for lane in range(c.pass_length):
                    k = start + lane
                    if k >= terms or k // c.row_length - start // c.row_length >= (2 if c.wide else 4):
                        continue
                    for p, (oy, ox) in enumerate(positions):
                        y = c.y_start + oy * c.stride_y + k // c.row_length * c.dilation_y
                        at = c.input + shift + y * c.y_stride * n + ox * c.x_stride
                        if c.wide:
                            at += k % c.row_length
                        else:
                            at = at // n * n + (at + k % c.row_length) % n
                        a = byte(at) if 0 <= y < c.in_height else c.pad_value
                        for column in range(n):
                            sums[p][column] += a * weight(tile, lane, column)
                tile += 1
        else:
            for first in range(0, c.kernel_height, c.rows_per_pass):
                for g in range(c.rows_per_pass):
                    for column in range(n):
                        stream = [c.pad_value] * (c.kernel_width - 1 - c.valid_from)
                        ends = []
                        for oy in range(c.out_height):
                            y = c.y_start + oy * c.stride_y + (first + g) * c.dilation_y
                            for i in range(c.row_samples):
                                x = c.x_start + i
                                real = 0 <= y < c.in_height and 0 <= x < c.in_width
                                real &= first + g < c.kernel_height
                                at = c.input + shift + (y * c.y_stride + x * c.x_stride) * n + column
                                output, rest = divmod(i - c.valid_from, c.stride_x)
                                if rest == 0 and 0 <= output < c.out_width:
                                    ends.append(len(stream))
                                stream.append(byte(at) if real else c.pad_value)
                        assert len(ends) == len(positions)
                        for p, end in enumerate(ends):
                            for tap in range(c.kernel_width):
                                sums[p][column] += stream[end - tap] * weight(tile, 3 * g + tap, column)
                tile += 1
        result.append([[wrap(s) for s in position] for position in sums])
    return result


def rescale(x: int, multiplier: int, shift: int) -> int:
    x = wrap(x << max(shift, 0))
    x = (x * multiplier + (1 << 30)) >> 31
    if shift < 0:
        x = (x + (1 << (-shift - 1)) - (x < 0)) >> -shift
    return x


def rescale_once(x: int, multiplier: int, shift: int) -> int:
    """One rounding, halves away from zero; left shifts saturate."""
    product = clamp(x << max(shift, 0), -(1 << 31), (1 << 31) - 1) * multiplier
    right = 31 + max(-shift, 0)
    magnitude = (abs(product) + (1 << (right - 1))) >> right
    return clamp(-magnitude if product < 0 else magnitude, -(1 << 31), (1 << 31) - 1)


def clamp(x: int, low: int, high: int) -> int:
    return min(max(x, low), high)


def loop_output(
    c: Command, config: NPUConfig, tile: Tile, r: Rescales, scratchpad: bytes, parameters: bytes
) -> dict[int, int]:
    """Bytes that an OUTPUT writes, by address."""
    n, written = config.array_size, {}

    def int32(at: int) -> int:
        return int.from_bytes(parameters[at : at + 4], "little", signed=True)

    for block in range(tile.sums.shape[0]):
        base = (c.parameters + block * (4 if c.per_tensor else 9)) * n
        for oy in range(c.out_height):
            for ox in range(c.out_width):
                for channel in range(n):
                    values = []
                    for ky in range(c.pool_height):
                        for kx in range(c.pool_width):
                            y = c.pool_y_start + oy * c.pool_stride_y + ky
                            x = c.pool_x_start + ox * c.pool_stride_x + kx
                            if not (0 <= y < tile.height and 0 <= x < tile.width):
                                continue
                            total = int(tile.sums[block, y * tile.width + x, channel])
                            total = wrap(total + int32(base + 4 * channel))
                            multiplier, shift = c.multiplier, c.shift
                            if not c.per_tensor:
                                multiplier = int32(base + 4 * n + 4 * channel)
                                shift = signed(parameters[base + 8 * n + channel])
                            rounded = (rescale_once if c.single_rounding else rescale)(
                                total, multiplier, shift
                            )
                            q = wrap(rounded + c.zero_point)
                            q = clamp(q, c.minimum, c.maximum)
                            if c.residual:
                                at = (
                                    c.residual_input
                                    + channel
                                    + n
                                    * (
                                        block * c.residual_block_stride
                                        + y * c.residual_y_stride
                                        + x * c.residual_x_stride
                                    )
                                )
                                other = signed(scratchpad[at]) - r.residual_zero_point
                                s1 = rescale((q - c.zero_point) << 20, r.own_multiplier, r.own_shift)
                                s2 = rescale(other << 20, r.residual_multiplier, r.residual_shift)
                                q = rescale(wrap(s1 + s2), r.sum_multiplier, r.sum_shift)
                                q = clamp(wrap(q + r.sum_zero_point), r.sum_minimum, r.sum_maximum)
                            values.append(q)
                    if c.pool_mode == PoolMode.SUM:
                        q = rescale(wrap(sum(values) + r.pool_bias), r.pool_multiplier, r.pool_shift)
                        q = clamp(wrap(q + r.pool_zero_point), r.pool_minimum, r.pool_maximum)
                    else:
                        q = max([-128, *values])
                        if c.pool_mode == PoolMode.MAX:
                            q = clamp(q, r.pool_minimum, r.pool_maximum)
                    at = c.output + n * (block * c.block_stride + oy * c.y_stride + ox * c.x_stride)
                    written[at + channel] = q & 0xFF
    return written


# --- random commands ---


def random_conv(r: random.Random, config: NPUConfig, mode: Mode) -> Command:
    """A small CONV that passes the checks."""
    n = config.array_size
    while True:
        fields: dict[str, int] = {
            "mode": mode,
            "restart_weights": r.randrange(2),
            "pad_value": r.randint(-128, 127),
            "y_stride": r.randrange(12),
            "x_stride": r.randrange(4),
            "out_blocks": r.choice((1, 1, 2, 3)),
            "block_stride": r.randrange(20),
            "out_block_stride": r.choice((0, r.randrange(20))),
            "in_height": r.randint(1, 6),
            "in_width": r.randint(1, 6),
            "out_height": r.randint(1, 4),
            "out_width": r.randint(1, 4),
            "y_start": r.randint(-4, 3),
            "x_start": r.randint(-4, 3),
            "kernel_height": r.randint(1, 4),
            "kernel_width": r.randint(1, 3),
            "in_blocks": r.choice((1, 1, 2)),
            "stride_y": r.randint(1, 3),
            "stride_x": r.randint(1, 3),
            "dilation_y": r.randint(1, 3),
            "dilation_x": r.randint(1, 3),
            "weights": r.randrange(config.weight_vectors),
            "input": r.randrange(config.scratchpad_bytes) // n * n,
        }
        if mode is Mode.PATCH:
            fields |= {
                "in_blocks": 1,
                "kernel_width": 1,
                "wide": r.randrange(2),
                "dilation_y": r.choice((1, 3)),
                "row_length": r.randint(1, n),
                "pass_length": r.randint(1, n),
                "x_stride": r.randrange(2 * n),
                "input": r.randrange(config.scratchpad_bytes),
            }
            fields["y_stride"] = r.choice((2, 6, 10)) if fields["wide"] else r.choice((1, 3, 5, 11))
        elif mode is Mode.ROWS:
            width = r.choice((3, r.randint(1, config.depthwise_taps)))
            fields |= {
                "in_blocks": 1,
                "dilation_x": 1,
                "kernel_width": width,
                "rows_per_pass": r.randint(1, config.depthwise_groups) if width == 3 else 1,
                "y_stride": r.choice((1, 3, 7)),
                "dilation_y": r.choice((1, 3)),
                "valid_from": r.randrange(width),
            }
            least = fields["valid_from"] + (fields["out_width"] - 1) * fields["stride_x"] + 1
            fields["row_samples"] = least + r.randrange(4)
        command = Command(Opcode.CONV, **fields)
        if Checker(config).check(command) is None:
            return command


def random_memories(seed: int, config: NPUConfig, extreme: bool = False) -> Memories:
    rng, memories = np.random.default_rng(seed), Memories(config)
    for memory in (memories.scratchpad, memories.weights, memories.parameters):
        if extreme:
            memory[...] = rng.choice(np.array([0x80, 0x7F], np.uint8), memory.shape).view(memory.dtype)
        else:
            memory[...] = rng.integers(0, 256, memory.shape, np.uint8).view(memory.dtype)
    return memories


@pytest.mark.parametrize("mode", Mode, ids=lambda m: m.name)
@pytest.mark.parametrize("preset", CONFIGS)
@pytest.mark.parametrize("seed", range(12))
def test_conv_matches_loops(preset: str, mode: Mode, seed: int) -> None:
    """Every mode, with padding, strides, wrap-around of weights, several blocks."""
    config = PRESETS[preset]
    if (mode is Mode.PATCH and not config.patch_mode) or (mode is Mode.ROWS and not config.rows_mode):
        pytest.skip(f"{preset} is built without {mode.name}")
    memories = random_memories(seed, config, extreme=seed % 4 == 0)
    command = random_conv(random.Random(f"{preset} {mode} {seed}"), config, mode)
    expected = loop_sums(command, config, memories.scratchpad.tobytes(), memories.weights.tobytes())
    assert convolve(command, config, memories).tolist() == expected, command


def test_sums_beyond_float32_stay_exact() -> None:
    """4096 products of -128 * -128 are 2^26: no float32 holds all integers up to there."""
    config = PRESETS["base"]
    memories = Memories(config)
    memories.scratchpad[...] = 0x80
    memories.weights[...] = -128
    memories.weights[5, 3] = 127
    command = Command(Opcode.CONV, in_blocks=256, block_stride=1)
    sums = convolve(command, config, memories)
    assert sums[0, 0].tolist() == [2**26 - (128 * 255 if c == 3 else 0) for c in range(16)]


def random_rescales(r: random.Random) -> Command:
    fields: dict[str, int] = {}
    for name in ("own", "residual", "sum", "pool"):
        fields[f"{name}_multiplier"] = r.choice((r.randrange(1 << 30, 1 << 31), r.randrange(1 << 31)))
        fields[f"{name}_shift"] = r.choice((0, r.randint(-31, 30), r.randint(-12, 2)))
    for name in ("residual", "sum", "pool"):
        fields[f"{name}_zero_point"] = r.randint(-128, 127)
    for name in ("sum", "pool"):
        low, high = sorted((r.randint(-128, 127), r.randint(-128, 127)))
        fields |= {f"{name}_minimum": low, f"{name}_maximum": high} if r.random() < 0.5 else {}
    fields["pool_bias"] = r.choice((0, r.randint(-(1 << 31), (1 << 31) - 1), r.randint(-9999, 9999)))
    return Command(Opcode.RESCALE, **fields)


@pytest.mark.parametrize("pool", PoolMode, ids=lambda m: m.name)
@pytest.mark.parametrize("preset", CONFIGS)
@pytest.mark.parametrize("seed", range(12))
def test_output_matches_loops(preset: str, pool: PoolMode, seed: int) -> None:
    """Every slot of the output stage, with windows that reach over the tile's edges."""
    config, r = PRESETS[preset], random.Random(f"{preset} {pool} {seed}")
    n, blocks, height, width = config.array_size, r.randint(1, 2), r.randint(1, 4), r.randint(1, 4)
    rng, memories = np.random.default_rng(seed), random_memories(seed, config)
    parameters = memories.parameters.reshape(-1, n)
    parameters[...] = rng.integers(0, 256, parameters.shape, np.uint8)
    first = r.randrange(4)
    for block in range(blocks):
        words = parameters[first + 9 * block + 4 : first + 9 * block + 8].reshape(-1).view("<i4")
        words[...] = rng.integers(0, 1 << 31, n)
        shifts = parameters[first + 9 * block + 8].view(np.int8)
        shifts[...] = rng.integers(-31, 31, n) if seed % 2 else rng.integers(-12, 0, n)
    limit = r.choice((1 << 31, 1 << 16))
    tile = Tile(height, width, rng.integers(-limit, limit, (blocks, height * width, n)).astype(np.int32))
    low, high = sorted((r.randint(-128, 127), r.randint(-128, 127)))
    fields: dict[str, int] = {
        "pool_mode": pool,
        "residual": r.randrange(2),
        "per_tensor": r.randrange(2),
        "single_rounding": r.randrange(2),
        "zero_point": r.randint(-128, 127),
        "out_height": r.randint(1, 3),
        "out_width": r.randint(1, 3),
        "pool_stride_y": r.randint(1, 3),
        "pool_stride_x": r.randint(1, 3),
        "pool_y_start": r.randint(-3, 3),
        "pool_x_start": r.randint(-3, 3),
        "parameters": first,
        "shift": r.randint(-20, 2),
        "multiplier": r.randrange(1 << 31),
        "output": r.randrange(64) * n,
        "y_stride": r.randrange(1, 9),
        "x_stride": r.randrange(3),
        "block_stride": r.randrange(40),
        "residual_input": r.randrange(64) * n,
        "residual_y_stride": r.randrange(5),
        "residual_x_stride": r.randrange(5),
        "residual_block_stride": r.randrange(40),
    }
    if pool is not PoolMode.NONE:
        fields |= {"pool_height": r.randint(1, 4), "pool_width": r.randint(1, 4)}
    if seed % 3 == 0:
        fields |= {"minimum": low, "maximum": high}
    command = Command(Opcode.OUTPUT, **fields)
    rescales = Rescales.of(random_rescales(r)) if seed else Rescales()
    before = memories.scratchpad.tobytes()
    written = loop_output(command, config, tile, rescales, before, memories.parameters.tobytes())
    output(command, config, tile, rescales, memories)
    expected = bytearray(before)
    for address, value in written.items():
        expected[address] = value
    assert memories.scratchpad.tobytes() == bytes(expected), command


# --- whole programs ---


def put(device: GoldenDevice, commands: list[Command], address: int = PROGRAM) -> int:
    program = encode(commands)
    device.write(address, program)
    return len(program)


def execute(device: GoldenDevice, commands: list[Command], **windows: tuple[int, int]) -> Any:
    return device.run(PROGRAM, put(device, commands), **windows)


def load(target: Target, local: int, address: int, nbytes: int, **more: int) -> Command:
    return Command(Opcode.LOAD, target=target, local_address=local, address=address, row_bytes=nbytes, **more)


def parameter_block(r: Requantization) -> bytes:
    """The 9 vectors of one block of N channels."""
    return (
        r.bias.astype("<i4").tobytes()
        + r.multiplier.astype("<i4").tobytes()
        + r.shift.astype(np.int8).tobytes()
    )


def tiles_of(weights: np.ndarray) -> bytes:
    """Tiles of OHWI weights, N channels each way: kernel row, kernel column, lane, channel."""
    return np.ascontiguousarray(weights.transpose(1, 2, 3, 0)).tobytes()


def requantization(rng: np.random.Generator, n: int) -> Requantization:
    return Requantization(
        rng.integers(-5000, 5000, n).astype(np.int32),
        rng.integers(1 << 30, 1 << 31, n).astype(np.int32),
        rng.integers(-11, -6, n).astype(np.int32),
        int(rng.integers(-128, 128)),
    )


class Layer:
    """One layer on `base`: input, weights and parameters at 0 on chip, output in the second half."""

    def __init__(self, seed: int) -> None:
        self.config = PRESETS["base"]
        self.rng = np.random.default_rng(seed)
        self.device = GoldenDevice(self.config, memory_bytes=MEMORY)

    def run(
        self, x: np.ndarray, tiles: bytes, r: Requantization, conv: Command, output: Command, *first: Command
    ) -> np.ndarray:
        device, commands, address = self.device, list(first), 0x100
        parts = {
            Target.SCRATCHPAD: x.tobytes(),
            Target.WEIGHTS: tiles,
            Target.PARAMETERS: parameter_block(r),
        }
        for target, part in parts.items():
            device.write(address, part)
            commands.append(load(target, 0, address, len(part)))
            address += -(-len(part) // 64) * 64
        pixels = output.out_height * output.out_width
        store = Command(Opcode.STORE, local_address=output.output, row_bytes=pixels * 16, address=0x8000)
        result = execute(device, [*commands, conv, output, store, Command(Opcode.END)])
        assert result.error is None, result.error
        assert result.counters["commands"] == len(commands) + 3
        assert result.counters["bytes_read"] == sum(map(len, parts.values()))
        assert result.counters["bytes_written"] == pixels * 16
        y = device.read(0x8000, pixels * 16).view(np.int8)
        return y.reshape(1, output.out_height, output.out_width, 16)


@pytest.mark.parametrize("seed", range(6))
def test_convolution_is_the_reference_operator(seed: int) -> None:
    """A padded, strided 3 x 3 convolution of 16 channels, against conv2d_integer."""
    layer = Layer(seed)
    rng, h, w, stride = layer.rng, 7, 9, 1 + seed % 2
    x = rng.integers(-128, 128, (1, h, w, 16)).astype(np.int8)
    weights = rng.integers(-127, 128, (16, 3, 3, 16)).astype(np.int8)
    r, zero = requantization(rng, 16), int(rng.integers(-128, 128))
    expected = conv2d_integer(x, weights, r, stride=stride, padding=Padding(1, 1, 1, 1), pad_value=zero)
    oh, ow = expected.shape[1:3]
    conv = Command(
        Opcode.CONV,
        pad_value=zero,
        y_stride=w,
        x_stride=1,
        in_height=h,
        in_width=w,
        out_height=oh,
        out_width=ow,
        y_start=-1,
        x_start=-1,
        kernel_height=3,
        kernel_width=3,
        stride_y=stride,
        stride_x=stride,
    )
    output = Command(
        Opcode.OUTPUT,
        zero_point=r.zero_point,
        out_height=oh,
        out_width=ow,
        output=0x10000,
        y_stride=ow,
        x_stride=1,
    )
    np.testing.assert_array_equal(layer.run(x, tiles_of(weights), r, conv, output), expected)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("rows_per_pass", [1, 2, 3])
def test_depthwise_in_rows_is_the_reference_operator(seed: int, rows_per_pass: int) -> None:
    """3 x 3 depthwise with padding; a row costs one sample more than its width."""
    layer = Layer(seed)
    rng, h, w, stride = layer.rng, 6, 7, 1 + seed % 2
    x = rng.integers(-128, 128, (1, h, w, 16)).astype(np.int8)
    weights = rng.integers(-127, 128, (1, 3, 3, 16)).astype(np.int8)
    r, zero = requantization(rng, 16), int(rng.integers(-128, 128))
    expected = depthwise_conv2d_integer(
        x, weights, r, stride=stride, padding=Padding(1, 1, 1, 1), pad_value=zero
    )
    oh, ow = expected.shape[1:3]
    passes = -(-3 // rows_per_pass)
    # Array rows of no kernel row must not matter; a kernel row beyond the last is padding with weights.
    tiles = rng.integers(-128, 128, (passes, 16, 16)).astype(np.int8)
    tiles[-1, : 3 * rows_per_pass] = 0
    for ky in range(3):
        for kx in range(3):
            tiles[ky // rows_per_pass, 3 * (ky % rows_per_pass) + 2 - kx] = weights[0, ky, kx]
    conv = Command(
        Opcode.CONV,
        mode=Mode.ROWS,
        pad_value=zero,
        y_stride=w,
        x_stride=1,
        in_height=h,
        in_width=w,
        out_height=oh,
        out_width=ow,
        y_start=-1,
        x_start=0,
        kernel_height=3,
        kernel_width=3,
        stride_y=stride,
        stride_x=stride,
        rows_per_pass=rows_per_pass,
        valid_from=1,
        row_samples=w + 1,
    )
    output = Command(
        Opcode.OUTPUT,
        zero_point=r.zero_point,
        out_height=oh,
        out_width=ow,
        output=0x10000,
        y_stride=ow,
        x_stride=1,
    )
    np.testing.assert_array_equal(layer.run(x, tiles.tobytes(), r, conv, output), expected)


@pytest.mark.parametrize("seed", range(6))
def test_thin_input_in_patches_is_the_reference_operator(seed: int) -> None:
    """ResNet-8's first layer: 3 x 3 of 3 channels in 2 passes of two windows at any alignment."""
    layer = Layer(seed)
    rng, h, w = layer.rng, 6, 8
    x = rng.integers(-128, 128, (1, h, w, 3)).astype(np.int8)
    weights = rng.integers(-127, 128, (16, 3, 3, 3)).astype(np.int8)
    r, zero = requantization(rng, 16), int(rng.integers(-128, 128))
    expected = conv2d_integer(x, weights, r, padding=Padding(1, 1, 1, 1), pad_value=zero)
    rows = np.full((h, 2 * 16), zero, np.int8)  # a row: one pixel of padding, the pixels, padding
    rows[:, 3 : 3 + 3 * w] = x.reshape(h, -1)
    tiles = np.zeros((2, 16, 16), np.int8)
    for k in range(27):
        tiles[k // 14, k % 14] = weights.reshape(16, 27)[:, k]
    conv = Command(
        Opcode.CONV,
        mode=Mode.PATCH,
        wide=1,
        pad_value=zero,
        row_length=9,
        pass_length=14,
        y_stride=2,
        x_stride=3,
        in_height=h,
        out_height=h,
        out_width=w,
        y_start=-1,
        kernel_height=3,
    )
    output = Command(
        Opcode.OUTPUT,
        zero_point=r.zero_point,
        out_height=h,
        out_width=w,
        output=0x10000,
        y_stride=w,
        x_stride=1,
    )
    # Pass 0 holds K 0..13: rows 0 and 1. Pass 1 holds 14..26: rows 1 and 2.
    np.testing.assert_array_equal(layer.run(rows, tiles.tobytes(), r, conv, output), expected)


IDENTITY = Requantization(np.zeros(16, np.int32), np.full(16, 1 << 30, np.int32), np.ones(16, np.int32))


@pytest.mark.parametrize("mode", [PoolMode.MAX, PoolMode.SUM], ids=lambda m: m.name)
@pytest.mark.parametrize("window", [2, 3])
def test_pooling_is_the_reference_operator(mode: PoolMode, window: int) -> None:
    """An identity tile, then windows side by side."""
    layer, h, w = Layer(window), 6, 9
    x = layer.rng.integers(-128, 128, (1, h, w, 16)).astype(np.int8)
    pool = max_pool2d_integer if mode is PoolMode.MAX else average_pool2d_integer
    expected = pool(x, window, stride=window)
    multiplier, shift = average_pool_multiplier(window * window)
    rescale = Command(Opcode.RESCALE, pool_multiplier=multiplier, pool_shift=shift)
    oh, ow = expected.shape[1:3]
    conv = Command(Opcode.CONV, y_stride=w, x_stride=1, in_height=h, in_width=w, out_height=h, out_width=w)
    output = Command(
        Opcode.OUTPUT,
        pool_mode=mode,
        out_height=oh,
        out_width=ow,
        pool_height=window,
        pool_width=window,
        pool_stride_y=window,
        pool_stride_x=window,
        output=0x10000,
        y_stride=ow,
        x_stride=1,
    )
    got = layer.run(x, np.eye(16, dtype=np.int8).tobytes(), IDENTITY, conv, output, rescale)
    np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("seed", range(4))
def test_residual_add_is_the_reference_operator(seed: int) -> None:
    """An identity tile, then the input added to itself turned by one pixel row."""
    layer, h, w = Layer(seed), 5, 4
    rng = layer.rng
    x = rng.integers(-128, 128, (1, h + 1, w, 16)).astype(np.int8)
    zeros = [int(z) for z in rng.integers(-128, 128, 3)]
    multipliers = [int(m) for m in rng.integers(1 << 30, 1 << 31, 3)]
    shifts = [int(rng.integers(-3, 1)), int(rng.integers(-3, 1)), int(rng.integers(-20, -17))]
    add = AddParameters(
        zeros[0],
        multipliers[0],
        shifts[0],
        zeros[1],
        multipliers[1],
        shifts[1],
        zeros[2],
        multipliers[2],
        shifts[2],
    )
    expected = add_integer(x[:, :h], x[:, 1:], add)
    rescale = Command(
        Opcode.RESCALE,
        residual_zero_point=zeros[1],
        sum_zero_point=zeros[2],
        own_multiplier=multipliers[0],
        own_shift=shifts[0],
        residual_multiplier=multipliers[1],
        residual_shift=shifts[1],
        sum_multiplier=multipliers[2],
        sum_shift=shifts[2],
    )
    shifted = Requantization(np.full(16, -zeros[0], np.int32), IDENTITY.multiplier, IDENTITY.shift, zeros[0])
    conv = Command(Opcode.CONV, y_stride=w, x_stride=1, in_height=h, in_width=w, out_height=h, out_width=w)
    output = Command(
        Opcode.OUTPUT,
        residual=1,
        zero_point=zeros[0],
        out_height=h,
        out_width=w,
        output=0x10000,
        y_stride=w,
        x_stride=1,
        residual_input=w * 16,
        residual_y_stride=w,
        residual_x_stride=1,
    )
    got = layer.run(x, np.eye(16, dtype=np.int8).tobytes(), shifted, conv, output, rescale)
    np.testing.assert_array_equal(got, expected)


def test_a_tile_may_be_summed_by_several_convs() -> None:
    """Sums of two CONVs add up; `first` starts anew, and a CONV of 2 input blocks gives the same."""
    config = PRESETS["nano"]
    memories = random_memories(1, config)
    device = GoldenDevice(config, memory_bytes=MEMORY)
    halves = [
        Command(
            Opcode.CONV, input=i * 40, x_stride=1, in_width=4, out_width=4, weights=4 * i, first=1 - i, last=i
        )
        for i in range(2)
    ]
    whole = Command(Opcode.CONV, in_blocks=2, block_stride=10, x_stride=1, in_width=4, out_width=4)
    out = {"out_width": 4, "x_stride": 1, "per_tensor": 1, "multiplier": 1 << 30, "shift": -6}
    device.memories.scratchpad[:] = memories.scratchpad
    device.memories.weights[:] = memories.weights
    commands = [
        *halves,
        Command(Opcode.OUTPUT, output=0x400, **out),
        whole,
        Command(Opcode.OUTPUT, output=0x800, **out),
        Command(Opcode.END),
    ]
    assert execute(device, commands).error is None
    scratchpad = device.memories.scratchpad
    assert scratchpad[0x400:0x410].any()
    np.testing.assert_array_equal(scratchpad[0x400:0x410], scratchpad[0x800:0x810])


def test_rows_of_transfers() -> None:
    """LOAD, FILL and STORE with strides: gaps stay, overlapping rows leave the last one, stride 0 repeats."""
    device = GoldenDevice(PRESETS["nano"], memory_bytes=MEMORY)
    device.write(0, np.arange(200, dtype=np.uint8))
    commands = [
        load(Target.SCRATCHPAD, 1, 3, 5, rows=3, local_stride=7, stride=10),
        load(Target.SCRATCHPAD, 100, 50, 4, rows=3, local_stride=2, stride=4),
        load(Target.SCRATCHPAD, 120, 60, 2, rows=2, local_stride=3, stride=0),
        Command(Opcode.FILL, value=-1, local_address=140, row_bytes=3, rows=2, local_stride=5),
        Command(Opcode.STORE, address=0x1000, row_bytes=160),
        Command(Opcode.STORE, address=0x1100, local_address=1, row_bytes=5, rows=3, local_stride=7, stride=6),
        Command(Opcode.END),
    ]
    assert execute(device, commands).error is None
    image = bytearray(160)
    for row in range(3):
        image[1 + 7 * row : 6 + 7 * row] = range(3 + 10 * row, 8 + 10 * row)
        image[100 + 2 * row : 104 + 2 * row] = range(50 + 4 * row, 54 + 4 * row)
    image[120:122] = image[123:125] = bytes((60, 61))
    image[140:143] = image[145:148] = b"\xff\xff\xff"
    assert device.read(0x1000, 160).tobytes() == bytes(image)
    rows = b"".join(bytes(range(3 + 10 * row, 8 + 10 * row)) + b"\0" for row in range(3))
    assert device.read(0x1100, 18).tobytes() == rows


def test_chip_memories_outlive_a_run_and_rescales_do_not() -> None:
    config = PRESETS["nano"]
    device = GoldenDevice(config, memory_bytes=MEMORY)
    fill = Command(Opcode.FILL, value=7, row_bytes=16)
    assert (
        execute(device, [fill, Command(Opcode.RESCALE, pool_zero_point=5), Command(Opcode.END)]).error is None
    )
    sum_pool = Command(Opcode.OUTPUT, pool_mode=PoolMode.SUM, output=0x100, per_tensor=1)
    commands = [
        Command(Opcode.FILL, value=9, local_address=0x100, row_bytes=4),
        Command(Opcode.CONV),
        sum_pool,
        Command(Opcode.STORE, address=0x1000, local_address=0xFC, row_bytes=8),
        Command(Opcode.STORE, address=0x2000, row_bytes=16),
        Command(Opcode.END),
    ]
    assert execute(device, commands).error is None
    assert device.read(0x2000, 16).tolist() == [7] * 16
    assert device.read(0x1000, 8).tolist() == [0] * 8  # pool_zero_point is 0 again, and so are the clamps


# --- errors ---


def failing(commands: list[Command] | bytes, **windows: tuple[int, int]) -> tuple[ErrorCode, int, int]:
    """(code, command, info) of the run."""
    device = GoldenDevice(PRESETS["nano"], memory_bytes=MEMORY)
    program = commands if isinstance(commands, bytes) else encode(commands)
    device.write(PROGRAM, program)
    whole = (0, MEMORY - 1)
    windows = {"read_window": whole, "write_window": whole} | windows
    error = device.execute(PROGRAM, len(program), **windows).error
    assert error is not None
    assert f"{error.command}" in error.message
    return error.code, error.command, error.info


END = Command(Opcode.END)
SYNC = Command(Opcode.SYNC)


def bit(opcode: Opcode, name: str) -> int:
    from lepton_hw.isa import COMMANDS

    return COMMANDS[opcode].by_name[name].bit


def test_an_error_stops_the_run_where_it_is() -> None:
    """Commands before it have taken effect, none after."""
    device = GoldenDevice(PRESETS["nano"], memory_bytes=MEMORY)
    stores = [Command(Opcode.STORE, address=0x1000 + i, row_bytes=1) for i in range(3)]
    bad = Command(Opcode.STORE, address=0x1002, row_bytes=0)
    result = execute(device, [Command(Opcode.FILL, value=1), *stores[:2], bad, stores[2], END])
    assert result.error is not None
    assert (result.error.code, result.error.command) == (ErrorCode.FIELD, 3)
    assert result.error.info == bit(Opcode.STORE, "row_bytes")
    assert "STORE.row_bytes" in result.error.message
    assert device.read(0x1000, 3).tolist() == [1, 1, 0]
    assert execute(device, [*stores, END]).error is None  # the next run is clean
    assert device.read(0x1000, 3).tolist() == [1, 1, 1]


def test_malformed_words() -> None:
    good = encode([SYNC])
    assert failing(good + b"\0" * 64) == (ErrorCode.OPCODE, 1, 0)
    assert failing(b"\x63" + good[1:]) == (ErrorCode.OPCODE, 0, 0x63)
    assert failing(good + good[:-1] + b"\x80") == (ErrorCode.RESERVED, 1, 15)


def test_what_no_command_can_repair() -> None:
    """Address, length and end of the program."""
    device = GoldenDevice(PRESETS["nano"], memory_bytes=MEMORY)
    device.write(PROGRAM, encode([SYNC, END]))
    whole = {"read_window": (0, MEMORY - 1), "write_window": (0, -1)}

    def outcome(address: int, nbytes: int, **windows: Any) -> tuple[ErrorCode, int, int]:
        error = device.execute(address, nbytes, **(whole | windows)).error
        assert error is not None
        return error.code, error.command, error.info

    program = (ErrorCode.PROGRAM, 0, 0)
    assert device.execute(PROGRAM, 128, **whole).error is None
    assert outcome(PROGRAM + 32, 128) == program
    assert outcome(PROGRAM, 100) == program
    assert outcome(PROGRAM, 0) == program
    assert outcome(PROGRAM, 128, read_window=(PROGRAM + 1, MEMORY)) == program
    assert outcome(PROGRAM, 128, read_window=(0, PROGRAM + 126)) == program
    assert outcome(0xFFFF_FFC0, 128, read_window=(0, 0xFFFF_FFFF)) == program
    assert outcome(PROGRAM, 64) == (ErrorCode.PROGRAM, 1, 0)  # truncated: no END
    device.write(MEMORY - 64, encode([SYNC]))
    assert outcome(MEMORY - 64, 128, read_window=(0, 2 * MEMORY)) == (ErrorCode.FETCH_BUS, 1, 3)
    assert outcome(MEMORY, 64, read_window=(0, 2 * MEMORY)) == (ErrorCode.FETCH_BUS, 0, 3)


def test_windows() -> None:
    """First and last byte of each window count; a closed window lets nothing through."""
    read = {"read_window": (PROGRAM, PROGRAM + 0xFFF)}
    at = bit(Opcode.LOAD, "address")

    def load_of(address: int, nbytes: int) -> list[Command]:
        return [load(Target.SCRATCHPAD, 0, address, nbytes), SYNC]  # no END: code PROGRAM if all is well

    fine = (ErrorCode.PROGRAM, 2, 0)
    assert failing(load_of(PROGRAM, 0x1000), **read) == fine
    assert failing(load_of(PROGRAM - 1, 4), **read) == (ErrorCode.READ_WINDOW, 0, at)
    assert failing(load_of(PROGRAM + 0xFFD, 4), **read) == (ErrorCode.READ_WINDOW, 0, at)
    assert failing(load_of(0xFFFF_FFFF, 2), **read) == (ErrorCode.READ_WINDOW, 0, at)

    def store(address: int) -> list[Command]:
        return [Command(Opcode.STORE, address=address, rows=2, stride=6, row_bytes=4), SYNC]

    window = {"write_window": (0x100, 0x109)}
    at = bit(Opcode.STORE, "address")
    assert failing(store(0x100), **window) == fine
    assert failing(store(0x101), **window) == (ErrorCode.WRITE_WINDOW, 0, at)
    assert failing(store(0xFF), **window) == (ErrorCode.WRITE_WINDOW, 0, at)
    assert failing(store(0), write_window=(1, 0)) == (ErrorCode.WRITE_WINDOW, 0, at)


def test_nothing_behind_the_memory() -> None:
    wide = {"read_window": (0, 0xFFFF_FFFF), "write_window": (0, 0xFFFF_FFFF)}
    end = [SYNC, END]
    beyond = load(Target.SCRATCHPAD, 0, MEMORY - 3, 4)
    assert failing([SYNC, beyond, *end], **wide) == (ErrorCode.READ_BUS, 1, 3)
    beyond = Command(Opcode.STORE, address=MEMORY - 8, row_bytes=4, rows=2, stride=5)
    assert failing([SYNC, beyond, *end], **wide) == (ErrorCode.WRITE_BUS, 1, 3)


def test_semaphores_in_program_order() -> None:
    post = Command(Opcode.SYNC, unit=Unit.LOAD, post0_semaphore=3, post0_count=15)
    wait = Command(Opcode.SYNC, unit=Unit.STORE, wait0_semaphore=3, wait0_count=10)
    assert failing([post, wait, wait, END]) == (ErrorCode.WATCHDOG, 2, 0)
    assert failing([wait, post, END]) == (ErrorCode.WATCHDOG, 0, 0)
    both = Command(Opcode.SYNC, wait0_semaphore=3, wait0_count=8, wait1_semaphore=3, wait1_count=8)
    assert failing([post, both, END]) == (ErrorCode.WATCHDOG, 1, 0)
    twice = Command(Opcode.SYNC, post0_semaphore=9, post0_count=15, post1_semaphore=9, post1_count=15)
    assert failing([twice] * 8 + [post] * 2 + [twice, END]) == (ErrorCode.SEMAPHORE, 10, 9)
    last = Command(Opcode.SYNC, post0_semaphore=9, post0_count=15)
    assert failing([twice] * 8 + [last, SYNC]) == (ErrorCode.PROGRAM, 10, 0)  # 255 is allowed


def test_commands_are_64_bytes() -> None:
    assert len(encode([END])) == COMMAND_BYTES
