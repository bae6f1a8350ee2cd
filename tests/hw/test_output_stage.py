"""The OUTPUT unit among models of its neighbours, against the NumPy model of its arithmetic."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, replace

import cocotb
import numpy as np
import pytest
from cocotb.triggers import RisingEdge

from bench import run_bench
from lepton_hw.config import NPUConfig, preset
from lepton_hw.interfaces import FIRST_PAYLOAD_WORD, command_layout
from lepton_hw.isa import COMMAND_WORDS, Command, Opcode, Unit, encode
from lepton_hw.output_stage import OutputStage
from requantize_model import output_tile
from stimulus import rng, stalls, start

_LATENCY = 15  # most cycles from a finished sum to its vector's write
_WAY = 12  # cycles from the read of a sum to its vector's write
_GAP = 20  # .. from the last vector of a command to the first of the next


def _payload(command, tile):
    """The command as the unit gets it, in bits."""
    layout = command_layout(Unit.OUTPUT)
    raw = encode([command])
    words = int.from_bytes(raw[4 * FIRST_PAYLOAD_WORD : 4 * COMMAND_WORDS], "little")
    fields = {"opcode": int(command.opcode), "words": words % (1 << layout["words"].width)}
    fields |= {
        name: size for name, size in zip(("tile_blocks", "tile_height", "tile_width"), tile, strict=True)
    }
    return sum(value << layout[name].offset for name, value in fields.items())


class Neighbours:
    """Output buffer, scratchpad, parameter memory and control unit, in Python.

    Arguments:
        arrival: probability that the array finishes a vector in a cycle (if there is room).
        refusal: probability that the residual's read is refused.
        offering: probability that the next command is offered at once.
    """

    def __init__(self, dut, config, random, *, arrival=1.0, refusal=0.0, offering=1.0):
        self.dut, self.config, self.random = dut, config, random
        self.arrival, self.offering = stalls(random, 1 - arrival), stalls(random, 1 - offering)
        self.refusal = stalls(random, refusal)
        n = config.array_size
        numbers = np.random.default_rng(random.getrandbits(32))
        self.numbers = numbers
        self.scratchpad = numbers.integers(-128, 128, (config.scratchpad_vectors, n), np.int8)
        self.expected = self.scratchpad.copy()  # after all commands sent so far
        self.snapshots = []  # .. after each of them that is not done
        self.parameters = np.zeros((config.parameter_vectors, n), np.uint8)
        self.constants = dict(Command(Opcode.RESCALE).values) | {
            name: 0 for name in Command(Opcode.RESCALE).values
        }
        self.queue = []  # commands not yet taken
        self.coming = []  # vectors of sums that the array will finish
        self.ring = [None] * config.output_depth
        self.written = self.released = self.reserved = 0
        self.writes, self.write_cycles, self.written_cycles = 0, [], []
        self.taken = self.done = 0
        self.parameters_used = 0
        self.clearing = False
        self.cycle = self.active_cycle = 0
        self.task = cocotb.start_soon(self._run())

    def rescale(self, **fields):
        """Queue a RESCALE."""
        command = Command(Opcode.RESCALE, **fields)
        self.constants = dict(command.values)
        self.queue.append(_payload(command, (0, 0, 0)))
        self.snapshots.append((command, self.expected.copy()))

    def output(self, sums, **fields):
        """Queue an OUTPUT of `sums` [blocks, height, width, N], and let the array work on them."""
        command = Command(Opcode.OUTPUT, **fields)
        self.queue.append(_payload(command, sums.shape[:3]))
        self.coming += list(sums.reshape(-1, self.config.array_size).astype("<i4"))
        output_tile(sums, command.values, self.constants, self.parameters, self.expected)
        self.snapshots.append((command, self.expected.copy()))

    async def finished(self, patience=3000):
        """Wait for all commands; check that the output buffer has been given back."""
        while self.snapshots:
            idle = self.cycle - self.active_cycle
            assert idle < patience, f"{self.snapshots[0][0]}: nothing has happened for {idle} cycles"
            await RisingEdge(self.dut.clk)
        for _ in range(4):
            await RisingEdge(self.dut.clk)
        assert self.released == self.written, f"{self.written} entries written, {self.released} released"
        assert not self.dut.port__busy.value
        self.parameters_used = 0

    async def clear(self):
        """Drop all work: commands, sums and the constants of RESCALE."""
        self.clearing = True
        while self.clearing:
            await RisingEdge(self.dut.clk)
        await RisingEdge(self.dut.clk)
        assert not self.dut.port__busy.value, "busy after clear"

    def _cleared(self):
        self.queue, self.coming, self.snapshots = [], [], []
        self.written = self.released = 0
        self.ring = [None] * self.config.output_depth
        self.expected = self.scratchpad.copy()
        self.constants = dict.fromkeys(self.constants, 0)
        self.taken = self.done = 0
        self.clearing = False

    def _junk(self, bits):
        return self.random.getrandbits(bits)

    async def _run(self):
        dut, config, depth = self.dut, self.config, self.config.output_depth
        n = config.array_size
        edge = RisingEdge(dut.clk)
        granted = []  # residual addresses granted in the last cycles
        offered = False
        while True:
            # Inputs of this cycle
            clearing = self.clearing
            dut.port__clear.value = int(clearing)
            offered = bool(self.queue) and (offered or not next(self.offering)) and not clearing
            dut.port__command__valid.value = int(offered)
            dut.port__command__payload.value = (
                self.queue[0] if offered else self._junk(len(dut.port__command__payload))
            )
            # The array works ahead of the commands, as far as there is room.
            if self.coming and self.written - self.released < depth and not next(self.arrival):
                self.ring[self.written % depth] = self.coming.pop(0).tobytes()
                self.written += 1
                self.written_cycles.append(self.cycle)
            dut.written.value = self.written % (2 * depth)
            ready = not next(self.refusal)
            dut.residual__ready.value = int(ready)
            await edge
            self.cycle += 1
            if dut.sums__enable.value or dut.result__enable.value or dut.port__done.value:
                self.active_cycle = self.cycle
            # Outputs of the cycle that ends
            if clearing:
                if dut.result__enable.value:  # still allowed: the address is that of a checked command
                    self._write()
                self._cleared()
                offered, granted = False, []
                continue
            if offered and dut.port__command__ready.value:
                self.queue.pop(0)
                self.taken += 1
                offered = False
            assert not dut.port__fault.value
            if dut.port__done.value:
                assert self.taken > self.done, "done without a command"
                self.done += 1
                command, wanted = self.snapshots.pop(0)
                wrong = np.argwhere((wanted != self.scratchpad).any(1))[:, 0]
                assert not len(wrong), (
                    f"command {self.done}, {command}: vectors {wrong[:8]} are wrong, e.g. "
                    f"{self.scratchpad[wrong[0]]}, should be {wanted[wrong[0]]}"
                )
            if dut.sums__enable.value:
                at = int(dut.sums__address.value)
                age = (self.written - 1 - at) % depth
                entry = self.written - 1 - age
                assert self.released <= entry, (
                    f"read of entry {at}: {self.written} written, {self.released} free"
                )
                dut.sums__data.value = int.from_bytes(self.ring[at], "little")
            else:
                dut.sums__data.value = self._junk(32 * n)
            if dut.release__valid.value:
                self.released += int(dut.release__count.value)
                assert self.released <= self.written, "released more than was written"
            granted.append(None)
            if dut.residual__valid.value and ready:
                granted[-1] = int(dut.residual__address.value)
            arrived = granted.pop(0) if len(granted) == 2 else None
            dut.residual__data.value = (
                self._junk(8 * n)
                if arrived is None
                else int.from_bytes(self.scratchpad[arrived].tobytes(), "little")
            )
            if dut.parameters__enable.value:
                at = int(dut.parameters__address.value)
                dut.parameters__data.value = int.from_bytes(self.parameters[at].tobytes(), "little")
            else:
                dut.parameters__data.value = self._junk(8 * n)
            if dut.result__enable.value:
                self._write()

    def _write(self):
        raw = int(self.dut.result__data.value).to_bytes(self.config.array_size, "little")
        self.scratchpad[int(self.dut.result__address.value)] = np.frombuffer(raw, np.int8)
        self.writes += 1
        self.write_cycles.append(self.cycle)


def _config():
    return NPUConfig(**json.loads(os.environ["CONFIG"]))


def _shift(random):
    return random.choice((random.randrange(-31, 31), random.randrange(-12, 3)))


def _multiplier(random):
    return random.choice((random.randrange(2**30, 2**31), random.randrange(2**31), 2**30, 2**31 - 1, 0))


def _clamp(random):
    return sorted(random.choice((-128, 127, random.randrange(-128, 128))) for _ in range(2))


def _random_constants(random):
    """Fields of a RESCALE."""
    fields = {
        f"{name}_shift": random.choice((_shift(random), 0, -1)) for name in ("own", "residual", "sum", "pool")
    }
    fields["sum_shift"] = random.choice((_shift(random), -18, -19, -20))
    fields |= {f"{name}_multiplier": _multiplier(random) for name in ("own", "residual", "sum", "pool")}
    for name in ("residual", "sum", "pool"):
        fields[f"{name}_zero_point"] = random.randrange(-128, 128)
    for name in ("sum", "pool"):
        fields[f"{name}_minimum"], fields[f"{name}_maximum"] = _clamp(random)
    fields["pool_bias"] = random.choice((0, random.randrange(-(2**31), 2**31), random.randrange(-3000, 3000)))
    return fields


def _block_parameters(bench, random, first, blocks, per_tensor):
    """Write parameters of `blocks` blocks from vector `first` on."""
    n = bench.config.array_size
    for block in range(blocks):
        rows = bench.parameters[first + block * (4 if per_tensor else 9) :]
        wide = random.random() < 0.3
        bias = bench.numbers.integers(-(2**31) if wide else -5000, 2**31 if wide else 5000, n)
        rows[:4] = bias.astype("<i4").view(np.uint8).reshape(4, n)
        if not per_tensor:
            multiplier = [_multiplier(random) for _ in range(n)]
            rows[4:8] = np.array(multiplier, "<i4").view(np.uint8).reshape(4, n)
            rows[8] = np.array([_shift(random) for _ in range(n)], np.int8).view(np.uint8)


async def _random_output(bench, random, region):
    """Queue an OUTPUT of a random tile into one half of the scratchpad, with a residual from the other."""
    config = bench.config
    n, half = config.array_size, config.scratchpad_vectors // 2
    entries = random.choice((4, 16, 64, config.accumulator_depth))
    entries = min(entries, 200, config.accumulator_depth)
    height = random.randint(1, random.choice((1, 4, entries)))
    width = random.randint(1, max(1, min(entries // height, 300)))
    height = max(1, min(height, entries // width))
    per_tensor = random.randrange(2)
    rows = 4 if per_tensor else 9
    blocks = random.choice((1, 1, 2, 3, 4))
    blocks = min(blocks, config.parameter_vectors // rows, half // (height * width) or 1)
    mode = random.randrange(3)
    fields = {"pool_mode": mode, "per_tensor": per_tensor, "residual": random.randrange(2)}
    fields["single_rounding"] = random.randrange(2)
    strides = (random.randint(1, 3), random.randint(1, 3))
    starts = (0, 0)
    if mode:
        fields["pool_height"], fields["pool_width"] = random.randint(1, 4), random.randint(1, 4)
    if random.random() < 0.5:
        strides = (1, 1)
    if mode and random.random() < 0.2:  # the whole tile is one window, or nearly
        fields["pool_height"], fields["pool_width"] = height, width
        strides = (max(1, height - 1), max(1, width - 1))
    if random.random() < 0.5:
        starts = (random.randint(-4, 4), random.randint(-4, 4))
    if random.random() < 0.05:
        starts = (random.choice((-(2**15), 2**15 - 1, 100, -100)), random.randint(-300, 300))
        strides = (random.randint(1, 255), random.randint(1, 255))
    most = max(1, half // blocks)
    out_height = max(1, min(-(-height // strides[0]) + random.choice((0, 0, 1, -1)), most))
    out_width = max(1, min(-(-width // strides[1]) + random.choice((0, 0, 1, -1)), most // out_height))
    fields |= {"out_height": out_height, "out_width": out_width}
    fields |= {"pool_stride_y": strides[0], "pool_stride_x": strides[1]}
    fields |= {"pool_y_start": starts[0], "pool_x_start": starts[1]}
    # Blocks side by side in a pixel, or one whole image after the other.
    if random.randrange(2):
        x_stride, y_stride, block_stride = blocks, blocks * out_width, 1
    else:
        x_stride, y_stride, block_stride = 1, out_width, out_width * out_height
    fields |= {"x_stride": x_stride, "y_stride": y_stride, "block_stride": block_stride}
    room = half - out_height * out_width * blocks
    fields["output"] = n * (region * half + random.randint(0, room))
    other = (1 - region) * half
    fields["residual_input"] = n * (other + random.randrange(half // 4))
    spare = half * 3 // 4 - 1
    limit = max(spare // (height * width + blocks), 0)
    fields["residual_x_stride"] = random.randint(0, min(limit, 5))
    fields["residual_y_stride"] = min(fields["residual_x_stride"] * width, spare // (2 * height))
    fields["residual_block_stride"] = random.randint(0, 1)
    fields["zero_point"] = random.randrange(-128, 128)
    fields["minimum"], fields["maximum"] = _clamp(random)
    fields["shift"], fields["multiplier"] = _shift(random), _multiplier(random)
    # The commands that wait need their parameters: the next ones lie behind them.
    if bench.parameters_used + rows * blocks > config.parameter_vectors:
        await bench.finished()
    fields["parameters"] = random.choice((bench.parameters_used, config.parameter_vectors - rows * blocks))
    bench.parameters_used = fields["parameters"] + rows * blocks
    _block_parameters(bench, random, fields["parameters"], blocks, per_tensor)
    size = random.choice((2**7, 2**12, 2**20, 2**31))
    sums = bench.numbers.integers(-size, size, (blocks, height, width, n))
    bench.output(sums, **fields)


async def _bench(dut, **probabilities):
    """The unit out of reset among its neighbours."""
    bench_random = rng("neighbours")
    for name in ("port__clear", "port__command__valid", "written", "residual__ready"):
        getattr(dut, name).value = 0
    await start(dut)
    return Neighbours(dut, _config(), bench_random, **probabilities)


@cocotb.test()
async def random_commands(dut):
    """Commands of all kinds in a row; the sums arrive and the residual is refused at random."""
    random = rng()
    bench = await _bench(dut, arrival=0.9, refusal=0.3, offering=0.8)
    for _ in range(int(os.environ["ROUNDS"])):
        arrival, refusal = random.choice(((0.99, 0.0), (0.9, 0.3), (0.3, 0.0), (0.99, 0.9)))
        bench.arrival, bench.refusal = stalls(bench.random, 1 - arrival), stalls(bench.random, refusal)
        bench.rescale(**_random_constants(random))
        for i in range(2):
            await _random_output(bench, random, i)
    await bench.finished()
    assert bench.writes > 10 * int(os.environ["ROUNDS"])


@cocotb.test()
async def clear_in_the_middle(dut):
    """After a clear at any time the unit works, with the constants of RESCALE at 0."""
    random = rng()
    bench = await _bench(dut, arrival=0.7, refusal=0.4)
    for _ in range(int(os.environ["ROUNDS"])):
        bench.rescale(**_random_constants(random))
        await _random_output(bench, random, 0)
        for _ in range(random.randrange(200)):
            await RisingEdge(dut.clk)
        await bench.clear()
        await _random_output(bench, random, 1)
        await bench.finished()
        bench.rescale(**_random_constants(random))
        await _random_output(bench, random, 0)
        await bench.finished()


def _plain_fields(config, height, width, **fields):
    base = {
        "out_height": height,
        "out_width": width,
        "x_stride": 1,
        "y_stride": width,
        "block_stride": height * width,
        "shift": -8,
        "multiplier": 2**30,
    }
    return base | fields


def _tile(bench, blocks, height, width):
    return bench.numbers.integers(-(2**15), 2**15, (blocks, height, width, bench.config.array_size))


@cocotb.test()
async def throughput(dut):
    """Cycles a vector in every mode, across blocks and commands."""
    random = rng()
    bench = await _bench(dut)
    config = bench.config
    slot = config.array_size // config.requantize_lanes
    bench.rescale(**_random_constants(random))
    _block_parameters(bench, random, 0, 2, 0)
    await bench.finished()
    height, width, blocks = 8, 8, 2
    half = config.scratchpad_vectors // 2 * config.array_size
    window = {"pool_height": 2, "pool_width": 2, "pool_stride_y": 2, "pool_stride_x": 2}
    residual = {"residual": 1, "residual_x_stride": 1, "residual_y_stride": width, "residual_input": half}
    cases = {  # fields, outputs, slots a block
        "plain": ({}, 64, 64),
        "per_tensor": ({"per_tensor": 1}, 64, 64),
        "residual": (residual, 64, 4 * 64),
        "max": ({"pool_mode": 1, **window}, 16, 64),
        "sum": ({"pool_mode": 2, **window}, 16, 64 + 16),
        "residual_max": ({"pool_mode": 1, **window, **residual}, 16, 4 * 64),
        "residual_sum": ({"pool_mode": 2, **window, **residual}, 16, 4 * (64 + 16)),
    }
    for name, (fields, outputs, slots) in cases.items():
        side = 8 if outputs == 64 else 4
        if name == "residual":
            bench.refusal = stalls(bench.random, 0.3)
        before, frame = len(bench.write_cycles), slot * (4 if "residual" in name else 1)
        for _ in range(2):
            sums = _tile(bench, blocks, height, width)
            bench.output(sums, **_plain_fields(config, side, side, **fields))
        await bench.finished()
        cycles = bench.write_cycles[before:]
        assert len(cycles) == 2 * blocks * outputs
        for command in range(2):
            first, last = command * blocks * outputs, (command + 1) * blocks * outputs - 1
            spent = cycles[last] - cycles[first]
            assert spent <= slots * slot * blocks + 12 * (blocks - 1), f"{name}: {spent} cycles"
        gap = cycles[blocks * outputs] - cycles[blocks * outputs - 1]
        dut._log.info("%s: %d cycles, gap %d", name, cycles[-1] - cycles[0], gap)
        # Once more through the lanes for B and D, for a window's other taps, and for E.
        way = (
            2 * (_WAY + frame) * ("residual" in name)
            + frame * slots // outputs
            + (_WAY + frame) * ("sum" in name)
        )
        assert gap <= _GAP + way, f"{name}: {gap} cycles between commands"


@cocotb.test()
async def latency(dut):
    """A sum that a waiting command needs is in the scratchpad a few cycles after it is finished."""
    bench = await _bench(dut)
    config = bench.config
    slot = config.array_size // config.requantize_lanes
    for _ in range(5):
        sums = _tile(bench, 1, 2, 2)
        bench.output(sums, **_plain_fields(config, 2, 2))
        late, bench.coming = bench.coming, []
        for _ in range(60):
            await RisingEdge(dut.clk)
        for vector in late:
            bench.coming.append(vector)
            for _ in range(3 * slot + 40):
                await RisingEdge(dut.clk)
            taken = bench.write_cycles[-1] - bench.written_cycles[-1]
            dut._log.info("%d cycles from sum to scratchpad", taken)
            assert taken <= _LATENCY + 2 * (slot - 1)
        await bench.finished()


def _run(config, simulator, rounds=40):
    run_bench(
        lambda: OutputStage(config),
        __name__,
        simulator=simulator,
        env={"CONFIG": json.dumps(asdict(config)), "ROUNDS": rounds},
    )


_SMALL = {
    "nano": preset("nano"),
    "nano-4-lanes": replace(preset("nano"), requantize_lanes=4),
    "nano-full-ring": replace(preset("nano"), requantize_lanes=2, output_depth=64),
}


@pytest.mark.parametrize("name", _SMALL)
def test_output_stage(name, simulator):
    _run(_SMALL[name], simulator, 40 if simulator == "verilator" else 8)


_LARGER = {
    "small": preset("small"),
    "small-1-lane": replace(preset("small"), requantize_lanes=1, output_depth=512),
    "base": preset("base"),
    "base-4-lanes": replace(preset("base"), requantize_lanes=4),
}


@pytest.mark.parametrize("name", _LARGER)
def test_output_stage_larger(name):
    _run(_LARGER[name], "verilator")


@pytest.mark.slow
@pytest.mark.parametrize("lanes", [1, 8, 32])
def test_output_stage_large(lanes):
    _run(replace(preset("large"), requantize_lanes=lanes), "verilator")
