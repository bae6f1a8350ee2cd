"""ActivationFeeder: every vector, tag and weight tile of random CONVs, in all modes, cycle by cycle.

The expected stream is written from docs/architecture.md with plain loops, one position at a time.
"""

from __future__ import annotations

import os
import random
from collections import deque
from dataclasses import dataclass
from typing import Any

import cocotb
import pytest
from cocotb.triggers import RisingEdge, Timer

from bench import run_bench
from lepton_hw.config import PRESETS, NPUConfig
from lepton_hw.feeder import ActivationFeeder
from lepton_hw.interfaces import FIRST_PAYLOAD_WORD, Source, command_layout
from lepton_hw.isa import Checker, Command, Mode, Opcode, Unit, encode
from stimulus import apply_reset, rng, start

LATENCY = {"scratchpad": 2, "weights": 1}
CONFIG = PRESETS[os.environ.get("PRESET", "base")]


@dataclass
class Expected:
    """One cycle with a vector: its bytes, and what comes with it."""

    vector: list[int]
    groups: list[list[int]]
    valid: bool
    start: bool
    overwrite: bool
    finish: bool
    source: Source
    weights: int = 0  # first vector of the tile, where start


class Model:
    """What a CONV streams, from the scratchpad's bytes."""

    def __init__(self, config: NPUConfig, memory: bytes) -> None:
        self.n, self.memory = config.array_size, memory
        self.weight_vectors = config.weight_vectors

    def _vector(self, address: int) -> list[int]:
        n = self.n
        start = address * n % len(self.memory)
        return list(self.memory[start : start + n])

    def stream(self, c: Command) -> list[list[Expected]]:
        n, pad = self.n, [c.pad_value & 0xFF] * self.n
        out: list[list[Expected]] = []
        weights = c.weights
        for block in range(c.out_blocks):
            if c.restart_weights:
                weights = c.weights
            passes = list({Mode.VECTOR: self._vector_passes, Mode.PATCH: self._patch_passes,
                           Mode.ROWS: self._rows_passes}[Mode(c.mode)](c, block, pad))  # fmt: skip
            for i, (source, positions) in enumerate(passes):
                out.append(
                    [
                        Expected(
                            vectors[0], vectors[1:], valid, j == 0, bool(c.first) and i == 0,
                            bool(c.last) and i == len(passes) - 1, source, weights % self.weight_vectors,
                        )
                        for j, (vectors, valid) in enumerate(positions)
                    ]
                )  # fmt: skip
                weights += n
        return out

    def _vector_passes(self, c: Command, block: int, pad: list[int]) -> Any:
        for in_block in range(c.in_blocks):
            for ky in range(c.kernel_height):
                for kx in range(c.kernel_width):
                    positions = []
                    for oy in range(c.out_height):
                        for ox in range(c.out_width):
                            y = c.y_start + oy * c.stride_y + ky * c.dilation_y
                            x = c.x_start + ox * c.stride_x + kx * c.dilation_x
                            vector = pad
                            if 0 <= y < c.in_height and 0 <= x < c.in_width:
                                vector = self._vector(
                                    c.input // self.n + y * c.y_stride + x * c.x_stride
                                    + in_block * c.block_stride + block * c.out_block_stride
                                )  # fmt: skip
                            positions.append(([vector], True))
                    yield Source.LEFT, positions

    def _patch_passes(self, c: Command, block: int, pad: list[int]) -> Any:
        n, k_total = self.n, c.kernel_height * c.row_length
        for t in range(-(-k_total // c.pass_length)):
            r0 = t * c.pass_length // c.row_length
            positions = []
            for oy in range(c.out_height):
                for ox in range(c.out_width):
                    vector = [0] * n
                    for lane in range(min(c.pass_length, n)):
                        k = t * c.pass_length + lane
                        window = k // c.row_length - r0
                        if k >= k_total or window >= (2 if c.wide else 4):
                            continue
                        y = c.y_start + oy * c.stride_y + (r0 + window) * c.dilation_y
                        if not 0 <= y < c.in_height:
                            vector[lane] = c.pad_value & 0xFF
                            continue
                        at = c.input + ox * c.x_stride + (y * c.y_stride + block * c.out_block_stride) * n
                        byte = k % c.row_length
                        address = at + byte if c.wide else at // n * n + (at % n + byte) % n
                        vector[lane] = self.memory[address % len(self.memory)]
                    positions.append(([vector], True))
            yield Source.LEFT, positions

    def _rows_passes(self, c: Command, block: int, pad: list[int]) -> Any:
        for ky in range(0, c.kernel_height, c.rows_per_pass):
            positions = [([pad] * c.rows_per_pass, False)] * (c.kernel_width - 1 - c.valid_from)
            for oy in range(c.out_height):
                for i in range(c.row_samples):
                    vectors = []
                    for g in range(c.rows_per_pass):
                        y = c.y_start + oy * c.stride_y + (ky + g) * c.dilation_y
                        x = c.x_start + i
                        inside = 0 <= y < c.in_height and 0 <= x < c.in_width and ky + g < c.kernel_height
                        vectors.append(
                            self._vector(
                                c.input // self.n + y * c.y_stride + x * c.x_stride
                                + block * c.out_block_stride
                            )
                            if inside
                            else pad
                        )  # fmt: skip
                    index, off = divmod(i - c.valid_from, c.stride_x)
                    positions.append((vectors, off == 0 and 0 <= index < c.out_width))
            yield Source.GROUPS if c.rows_per_pass > 1 else Source.CHAIN, positions


def random_conv(random_source: random.Random, config: NPUConfig) -> Command:
    """A CONV that passes the checks."""
    modes = [Mode.VECTOR] + [Mode.PATCH] * config.patch_mode + [Mode.ROWS] * config.rows_mode
    n, r = config.array_size, random_source
    while True:
        mode = r.choice(modes)
        fields: dict[str, int] = {
            "mode": mode,
            "restart_weights": r.randrange(2),
            "pad_value": r.randint(-128, 127),
            "y_stride": r.randrange(1, 40),
            "x_stride": r.randrange(1, 6),
            "out_blocks": r.choice((1, 1, 2, 3)),
            "block_stride": r.randrange(0, 50),
            "out_block_stride": r.randrange(0, 50),
            "in_height": r.randint(1, 9),
            "in_width": r.randint(1, 9),
            "out_height": r.randint(1, 5),
            "out_width": r.randint(1, 8),
            "y_start": r.randint(-4, 3),
            "x_start": r.randint(-4, 3),
            "kernel_height": r.randint(1, 5),
            "kernel_width": r.randint(1, 4),
            "in_blocks": r.choice((1, 1, 2, 3)),
            "stride_y": r.randint(1, 3),
            "stride_x": r.randint(1, 3),
            "dilation_y": r.randint(1, 3),
            "dilation_x": r.randint(1, 3),
            "weights": r.randrange(config.weight_vectors),
            "input": r.randrange(config.scratchpad_bytes // 2) // n * n,
        }
        if r.random() < 0.3:
            fields |= {"out_blocks": 1, "first": r.randrange(2), "last": r.randrange(2)}
        if mode is Mode.PATCH:
            wide = r.randrange(2)
            fields |= {
                "wide": wide,
                "in_blocks": 1,
                "kernel_width": 1,
                "dilation_y": r.choice((1, 3)),
                "y_stride": r.randrange(10) * 4 + 2 if wide else r.randrange(20) * 2 + 1,
                "row_length": r.randint(1, n),
                "pass_length": r.randint(1, n),
                "input": r.randrange(config.scratchpad_bytes // 2),
            }
        elif mode is Mode.ROWS:
            width = r.choice((3, 3, r.randint(1, config.depthwise_taps)))
            rows = r.randint(1, config.depthwise_groups) if width == 3 else 1
            valid_from = r.randrange(width)
            least = valid_from + (fields["out_width"] - 1) * fields["stride_x"] + 1
            fields |= {
                "in_blocks": 1,
                "dilation_x": 1,
                "kernel_width": width,
                "rows_per_pass": rows,
                "y_stride": r.randrange(20) * 2 + 1,
                "dilation_y": r.choice((1, 3)),
                "valid_from": valid_from,
                "row_samples": least + r.randrange(3),
            }
        command = Command(Opcode.CONV, **fields)
        checker = Checker(config)
        if not command.first:
            checker.check(Command(Opcode.CONV, first=1, last=0, out_height=command.out_height,
                                  out_width=command.out_width, input=0))  # fmt: skip
        if checker.check(command) is None:
            return command


def payload(command: Command) -> int:
    raw = encode([command])
    words = int.from_bytes(raw[4 * FIRST_PAYLOAD_WORD :], "little")
    layout = command_layout(Unit.COMPUTE)
    mask = (1 << layout["words"].width) - 1
    return layout.const({"opcode": int(command.opcode), "words": words & mask}).as_value().value


class Surroundings:
    """Scratchpad, weight memory and output buffer around the feeder; records what reaches the array."""

    def __init__(self, dut: Any, memory: bytes, random_source: random.Random) -> None:
        self.dut, self.memory, self.random = dut, memory, random_source
        self.n = CONFIG.array_size
        self.checking = True
        self.expected: deque[list[Expected]] = deque()  # passes
        self.in_pass: deque[Expected] = deque()  # a pass, once started, has a vector each cycle
        self.weights_due: deque[tuple[int, int]] = deque()
        self.weights_read: deque[tuple[int, int]] = deque()
        self.held = 0  # entries of the output buffer that are taken
        self.done = 0
        self.cycle = 0
        self.starts: list[int] = []

    def vector(self, address: int) -> int:
        start = address * self.n
        return int.from_bytes(self.memory[start : start + self.n], "little")

    async def run(self) -> None:
        dut, n, latency = self.dut, self.n, LATENCY["scratchpad"]
        reads: list[deque[int | None]] = [deque([None] * latency, maxlen=latency) for _ in range(4)]
        while True:
            dut.room.value = CONFIG.output_depth - self.held
            await Timer(1, unit="ns")
            await RisingEdge(dut.clk)
            self.cycle += 1
            if dut.rst.value == 1:
                for queue in reads:
                    queue.extend([None] * len(queue))
                continue
            # combinational outputs before the edge are those sampled by it
            banks = []
            for j, queue in enumerate(reads):
                port = f"scratchpad__{j}__"
                enable = int(getattr(dut, port + "enable").value)
                address = int(getattr(dut, port + "address").value) if enable else None
                if address is not None:
                    banks.append(address % 4)
                queue.append(address)
                held = queue[0]
                data = self.vector(held) if held is not None else self.random.getrandbits(8 * n)
                getattr(dut, port + "data").value = data
            assert len(set(banks)) == len(banks), f"cycle {self.cycle}: two reads in one bank: {banks}"
            if dut.reserve_valid.value == 1:
                self.held += int(dut.reserve_count.value)
                assert self.held <= CONFIG.output_depth
            if self.held and self.random.random() < 0.2:
                self.held -= self.random.randint(1, self.held)
            self.done += int(dut.port__done.value)
            if self.checking:
                self._check_array()

    def _check_array(self) -> None:
        dut, n = self.dut, self.n
        valid, start_, overwrite, finish = (int(dut.tag.value) >> i & 1 for i in range(4))
        # a row of weights is read `latency` cycles before it is due beside the array's input
        if dut.weights__enable.value == 1:
            self.weights_read.append((self.cycle + LATENCY["weights"], int(dut.weights__address.value)))
        if start_:
            assert not self.in_pass, f"cycle {self.cycle}: a pass starts, {len(self.in_pass)} vectors missing"
            assert self.expected, f"cycle {self.cycle}: a pass more than expected"
            self.in_pass.extend(self.expected.popleft())
            self.starts.append(self.cycle)
            for row in range(n):
                address = (self.in_pass[0].weights + row) % CONFIG.weight_vectors
                self.weights_due.append((self.cycle + row, address))
        if not self.in_pass:
            assert not valid, f"cycle {self.cycle}: a vector outside a pass"
            return
        want = self.in_pass.popleft()
        what = f"cycle {self.cycle}, {len(self.in_pass)} left in the pass, {want}"
        assert (valid, start_, int(dut.first.value)) == (want.valid, want.start, want.start), what
        assert int(dut.source.value) == want.source.value, what
        assert (overwrite, finish) == (want.overwrite, want.finish), what
        got = list(int(dut.vector.value).to_bytes(n, "little"))
        assert got == want.vector, f"{got} at {what}"
        for g, group in enumerate(want.groups):
            if group:
                raw = int(dut.groups.value) >> 8 * n * g & (1 << 8 * n) - 1
                assert list(raw.to_bytes(n, "little")) == group, f"group {g} at {what}"

    def finish(self) -> None:
        assert not self.expected
        assert not self.in_pass
        assert self.weights_read == self.weights_due, "weight rows late, missing or wrong"

    def forget(self) -> None:
        """Start over: nothing expected, nothing held."""
        for queue in (self.expected, self.in_pass, self.weights_due, self.weights_read, self.starts):
            queue.clear()
        self.held = self.done = 0


async def send(dut: Any, commands: list[Command], random_source: random.Random, gap: float) -> None:
    for command in commands:
        while random_source.random() < gap:
            await RisingEdge(dut.clk)
        dut.port__command__payload.value = payload(command)
        dut.port__command__valid.value = 1
        while True:
            await RisingEdge(dut.clk)
            if dut.port__command__ready.value == 1:
                break
        dut.port__command__valid.value = 0


async def stream_all(dut: Any, around: Surroundings, commands: list[Command], gap: float) -> None:
    model = Model(CONFIG, around.memory)
    around.forget()
    for command in commands:
        around.expected.extend(model.stream(command))
    await send(dut, commands, around.random, gap)
    for _ in range(20_000):
        await RisingEdge(dut.clk)
        if around.done == len(commands) and not around.expected:
            break
    for _ in range(3 * CONFIG.array_size):
        await RisingEdge(dut.clk)
    assert around.done == len(commands)
    around.finish()
    assert dut.port__busy.value == 0


def surroundings(dut: Any) -> Surroundings:
    random_source = rng("feeder")
    memory = random_source.randbytes(CONFIG.scratchpad_bytes)
    around = Surroundings(dut, memory, random_source)
    cocotb.start_soon(around.run())
    return around


@cocotb.test()
async def streams_random_commands(dut: Any) -> None:
    """Vectors, tags and weights of random commands, with and without gaps between them."""
    await start(dut)
    around = surroundings(dut)
    for _ in range(int(os.environ.get("ROUNDS", "12"))):
        commands = [random_conv(around.random, CONFIG) for _ in range(around.random.randint(1, 6))]
        await stream_all(dut, around, commands, around.random.choice((0, 0.9)))


@cocotb.test()
async def wastes_no_cycle(dut: Any) -> None:
    """Full passes follow each other without a gap, within a command and from command to command."""
    await start(dut)
    around = surroundings(dut)
    n = CONFIG.array_size
    command = Command(
        Opcode.CONV, out_height=2, out_width=n, in_height=3, in_width=n, y_stride=n, x_stride=1,
        kernel_height=2, kernel_width=2, out_blocks=2, last=1,
    )  # fmt: skip
    await stream_all(dut, around, [command] * 4, 0)
    gaps = [b - a for a, b in zip(around.starts, around.starts[1:], strict=False)]
    assert gaps == [2 * n] * (4 * 2 * 4 - 1), gaps


@cocotb.test()
async def starts_clean_after_clear_and_reset(dut: Any) -> None:
    """After a clear or a reset at a random cycle the next commands stream correctly."""
    await start(dut)
    around = surroundings(dut)
    for i in range(6):
        commands = [random_conv(around.random, CONFIG) for _ in range(4)]
        around.checking = False  # what comes before the clear
        task = cocotb.start_soon(send(dut, commands, around.random, 0))
        for _ in range(around.random.randint(1, 150)):
            await RisingEdge(dut.clk)
        task.cancel()
        dut.port__command__valid.value = 0
        if i % 2:
            dut.port__clear.value = 1
            await RisingEdge(dut.clk)
            dut.port__clear.value = 0
        else:
            await apply_reset(dut)
        await RisingEdge(dut.clk)
        for _ in range(200):
            await RisingEdge(dut.clk)
            if dut.port__busy.value == 0:
                break
        assert dut.port__busy.value == 0
        around.checking = True
        await stream_all(dut, around, [random_conv(around.random, CONFIG) for _ in range(3)], 0)


@pytest.mark.parametrize("preset", PRESETS)
def test_feeder(preset: str, simulator: str) -> None:
    if simulator == "icarus" and preset == "large":
        pytest.skip("slow in Icarus, and no other code than base")
    run_bench(
        lambda: ActivationFeeder(PRESETS[preset], weight_latency=LATENCY["weights"]),
        __name__,
        simulator=simulator,
        env={"PRESET": preset},
    )
