"""LOAD unit: rows, strides and alignments, back-pressure, bus errors, clear, one beat a cycle."""

from __future__ import annotations

import os
from typing import Any

import cocotb
import numpy as np
import pytest
from cocotb.triggers import RisingEdge
from cocotbext.axi import AxiResp

from axi_memory import AxiMemory, Direction, Fault
from axi_monitor import Axi4Monitor
from bench import run_bench
from lepton_hw.isa import Command, ErrorCode, Opcode, Target, Unit
from lepton_hw.load import LoadUnit
from stimulus import rng, stalls, start
from transfers import CONFIGS, bursts, local_bytes, payload_bytes, random_transfer, transfer, windows
from unit_driver import UnitDriver, cycle

EXTERNAL_BYTES = 1 << 16


class ChipMemories:
    """The on-chip memories at the unit's ports.

    Attributes:
        images: content, by target.
        beats: (cycle, target, bytes written) of each write.
    """

    def __init__(self, dut: Any, stall: float) -> None:
        self.dut = dut
        self.images = {target: np.zeros(local_bytes(config(), target), np.uint8) for target in Target}
        self.beats: list[tuple[int, Target, int]] = []
        self._stalls = stalls(rng("scratchpad"), stall)
        self._cleared = False  # in the cycle before
        dut.scratchpad__ready.value = 0
        self._task = cocotb.start_soon(self._run())

    async def _run(self) -> None:
        dut, bus = self.dut, config().bus_bytes
        address_bits = (config().scratchpad_bytes - 1).bit_length()
        waiting: int | None = None
        edge = RisingEdge(dut.clk)
        while True:
            await edge
            if str(dut.rst.value) == "1":
                continue
            if str(dut.scratchpad__valid.value) == "1":
                payload = int(dut.scratchpad__payload.value)
                assert waiting in (None, payload), "payload changed while it waited"
                waiting = payload
                if str(dut.scratchpad__ready.value) == "1":
                    waiting = None
                    address = payload & ((1 << address_bits) - 1)
                    data = payload >> address_bits & ((1 << 8 * bus) - 1)
                    mask = payload >> (address_bits + 8 * bus)
                    self._write(Target.SCRATCHPAD, address, data, mask)
            else:
                assert waiting is None or str(dut.port__clear.value) == "1" or self._cleared, "valid fell"
                waiting = None
            self._cleared = str(dut.port__clear.value) == "1"
            for target, port in ((Target.WEIGHTS, "weights"), (Target.PARAMETERS, "parameters")):
                if str(getattr(dut, f"{port}__enable").value) == "1":
                    address = int(getattr(dut, f"{port}__address").value)
                    assert address % bus == 0
                    self._write(target, address, int(getattr(dut, f"{port}__data").value), (1 << bus) - 1)
            dut.scratchpad__ready.value = int(not next(self._stalls))

    def _write(self, target: Target, address: int, data: int, mask: int) -> None:
        image = self.images[target]
        for i, byte in enumerate(data.to_bytes(config().bus_bytes, "little")):
            if mask >> i & 1:
                image[(address + i) % len(image)] = byte
        self.beats.append((cycle(), target, mask.bit_count()))


class Bench:
    """The unit between a memory and a chip, and the model of both."""

    def __init__(self, dut: Any, *, stall: float = 0.0, latency: int = 0, command_stall: float = 0.0) -> None:
        self.dut = dut
        self.random = rng("bench")
        self.monitor = Axi4Monitor(dut, "axi_", dut.clk, dut.rst)
        self.memory = AxiMemory(
            dut, "axi_", dut.clk, dut.rst, size=EXTERNAL_BYTES, latency=latency, outstanding=32
        )
        content = rng("memory").randbytes(EXTERNAL_BYTES)
        self.memory.write(0, content)
        self.external = np.frombuffer(content, np.uint8).copy()
        if stall:
            self.memory.stall(stall, rng("bus"))
        self.chip = ChipMemories(dut, stall)
        self.unit = UnitDriver(dut, Unit.LOAD, stalls(rng("commands"), command_stall))
        self.expected = {target: image.copy() for target, image in self.chip.images.items()}
        self.bytes_read = 0
        self._task = cocotb.start_soon(self._count())

    async def _count(self) -> None:
        while True:
            await RisingEdge(self.dut.clk)
            if str(self.dut.rst.value) == "0":
                self.bytes_read += int(self.dut.bytes_read.value)

    def command(self, **bounds: int) -> Command:
        """A random LOAD, or now and then a FILL."""
        opcode = Opcode.FILL if self.random.random() < 0.3 else Opcode.LOAD
        return random_transfer(opcode, config(), self.random, external_bytes=EXTERNAL_BYTES, **bounds)

    def expect(self, command: Command) -> None:
        """Do the command in the model."""
        target = Target(command.target) if command.opcode is Opcode.LOAD else Target.SCRATCHPAD
        transfer(command, self.external, self.expected[target])

    def check(self) -> None:
        """The chip holds what the model holds."""
        for target, image in self.chip.images.items():
            wrong = np.flatnonzero(image != self.expected[target])
            assert not len(wrong), f"{target.name}: {len(wrong)} bytes differ, the first at {wrong[0]:#x}"

    async def run(self, commands: list[Command]) -> None:
        """Run commands from idle; checks data, bursts, order and number of the done pulses."""
        beats, done, read = len(self.chip.beats), len(self.unit.done), self.bytes_read
        self.memory.clear_log()
        for command in commands:
            self.expect(command)
        self.unit.send(*commands)
        await self.unit.wait_done(done + len(commands))
        await self.unit.wait_idle()
        self.check()
        asked = [burst for c in commands if c.opcode is Opcode.LOAD for burst in bursts(c, config())]
        assert [(burst.address, burst.beats) for burst in self.memory.bursts] == asked
        # Each pulse comes the cycle after the last byte of its command, and not before.
        written = [(at, count) for at, _, count in self.chip.beats[beats:]]
        total = 0
        for command, at in zip(commands, self.unit.done[done:], strict=True):
            for _ in range(windows(command, config())):
                last, count = written.pop(0)
                total += count
            assert at == last + 1, f"{command}: last byte in cycle {last}, done in {at}"
        assert not written
        assert total == sum(payload_bytes(command) for command in commands)
        loads = sum(payload_bytes(c) for c in commands if c.opcode is Opcode.LOAD)
        assert self.bytes_read - read == loads


def config() -> Any:
    """The configuration under test."""
    return CONFIGS[os.environ["LEPTON_CONFIG"]]


@cocotb.test()
@cocotb.parametrize(stall=[0.0, 0.3, 0.7])
async def random_commands(dut, stall: float) -> None:
    """Back to back, with and without back-pressure on every channel."""
    bench = Bench(dut, stall=stall, latency=7)
    await start(dut)
    await bench.run([bench.command(payload=600) for _ in range(40)])
    bench.monitor.assert_clean()


@cocotb.test()
async def spaced_commands(dut) -> None:
    """Commands that come one at a time, to an idle unit or not quite."""
    bench = Bench(dut, stall=0.2, command_stall=0.9)
    await start(dut)
    await bench.run([bench.command(payload=60) for _ in range(60)])
    bench.monitor.assert_clean()


@cocotb.test()
async def long_rows(dut) -> None:
    """Rows of several of the longest bursts, from one byte before a 4 KiB boundary, on one, and beyond."""
    bench = Bench(dut)
    await start(dut)
    size = min(3 * config().burst_beats * config().bus_bytes + 5, config().scratchpad_bytes)
    commands = [
        Command(
            Opcode.LOAD,
            address=address,
            row_bytes=size,
            local_address=local % (local_bytes(config()) - size + 1),
        )
        for address, local in ((4096, 0), (4095, 1), (8192 + 3, 7), (12288 - size, 0))
        if address + size <= EXTERNAL_BYTES
    ]
    await bench.run(commands)
    lengths = {burst.beats for burst in bench.memory.bursts}
    assert max(lengths) == config().burst_beats
    bench.monitor.assert_clean()


@cocotb.test()
async def one_beat_a_cycle(dut) -> None:
    """Without back-pressure: across bursts, rows and commands, short rows included."""
    bench = Bench(dut)
    await start(dut)
    bus = config().bus_bytes
    row = 64 * bus if config().outstanding_reads > 1 else 4 * bus
    cases = {
        "one long row": [Command(Opcode.LOAD, address=4096, row_bytes=4 * row % 3000 or 3000)],
        "long rows, unaligned": [
            Command(
                Opcode.LOAD,
                address=4096 + 3,
                stride=1500,
                row_bytes=700,
                rows=4,
                local_address=1,
                local_stride=701,
            )
        ],
        "short rows": [
            Command(
                Opcode.LOAD,
                address=8192 + 1,
                stride=33,
                row_bytes=10,
                rows=49,
                local_address=5,
                local_stride=16,
            )
        ],
        "short commands": [
            Command(Opcode.LOAD, address=8192 + 64 * i, row_bytes=bus, local_address=i * bus)
            for i in range(40)
        ],
        "to the weights": [
            Command(Opcode.LOAD, address=512 * i, row_bytes=512, local_address=0, target=int(Target.WEIGHTS))
            for i in range(4)
        ],
        "fills": [
            Command(Opcode.FILL, local_address=3, row_bytes=bus - 1, rows=30, local_stride=2 * bus, value=-5),
            Command(Opcode.FILL, local_address=0, row_bytes=10 * bus, rows=3, local_stride=10 * bus, value=7),
        ],
    }
    for name, commands in cases.items():
        first = len(bench.chip.beats)
        bench.memory.latency = 0
        await bench.run(commands)
        at = [beat[0] for beat in bench.chip.beats[first:]]
        beats, taken = len(at), at[-1] - at[0] + 1
        requests = sum(len(bursts(c, config())) for c in commands if c.opcode is Opcode.LOAD)
        fills = sum(c.rows * -(-windows(c, config()) // c.rows // config().burst_beats) for c in commands)
        # With few bursts in flight, their way from AR to R counts, up to 5 cycles in this bench; and so does
        # the place in the FIFO that a FILL gives back.
        flight = (requests * 5 + fills + beats) / config().outstanding_reads
        dut._log.info(f"{name}: {beats} beats in {taken} cycles, {requests} bursts")
        assert taken <= max(beats, flight) + 2, f"{name}: {beats} beats took {taken} cycles"
    bench.monitor.assert_clean()


@cocotb.test()
async def bus_errors(dut) -> None:
    """An error on any beat: one fault, when the commands before are done; nothing is written after it."""
    bench = Bench(dut, stall=0.2, latency=3)
    await start(dut)
    for _ in range(60):
        commands = [bench.command(payload=200) for _ in range(6)]
        commands[3] = random_transfer(
            Opcode.LOAD, config(), bench.random, external_bytes=EXTERNAL_BYTES, payload=200
        )
        owners = [i for i, c in enumerate(commands) if c.opcode is Opcode.LOAD for _ in bursts(c, config())]
        lengths = [n for c in commands if c.opcode is Opcode.LOAD for _, n in bursts(c, config())]
        hit = bench.random.randrange(len(owners))
        response = bench.random.choice((AxiResp.SLVERR, AxiResp.DECERR))
        beat = bench.random.randrange(lengths[hit])
        bench.memory.clear_log()
        bench.memory.inject(Fault(Direction.READ, response, burst=hit, beat=beat))
        before = len(bench.unit.done)
        bench.unit.send(*commands)
        fault = await bench.unit.wait_fault()
        assert (fault.code, fault.info) == (ErrorCode.READ_BUS, int(response))
        assert len(bench.unit.done) == before + owners[hit]
        # The control unit takes some time to react.
        for _ in range(bench.random.randrange(30)):
            await RisingEdge(dut.clk)
        assert len(bench.unit.faults) == 1
        assert len(bench.unit.done) == before + owners[hit]
        assert bench.chip.beats == [] or bench.chip.beats[-1][0] <= fault.cycle, "written after a fault"
        await clear_and_go_on(bench)
    bench.monitor.assert_clean()


@cocotb.test()
async def clear_at_any_time(dut) -> None:
    """Clear in the middle: what was announced is swallowed, and the next command is right."""
    bench = Bench(dut, stall=0.3, latency=5)
    await start(dut)
    for _ in range(100):
        bench.unit.send(*(bench.command(payload=400) for _ in range(8)))
        for _ in range(bench.random.randrange(120)):
            await RisingEdge(dut.clk)
        await clear_and_go_on(bench)
    bench.monitor.assert_clean()


async def clear_and_go_on(bench: Bench) -> None:
    """Clear, then run commands, at once or when the unit is idle."""
    bench.unit.clear(bench.random.randint(1, 3))
    await RisingEdge(bench.dut.clk)  # the last edge at which a beat may be written
    await RisingEdge(bench.dut.clk)
    for target, image in bench.chip.images.items():
        bench.expected[target][:] = image
    bench.memory.faults.clear()
    if bench.random.random() < 0.5:
        await bench.unit.wait_idle()
        bench.check()
        bench.monitor.assert_clean()  # nothing outstanding
        await bench.run([bench.command(payload=100) for _ in range(2)])
        return
    # At once: the dropped bursts are still on the bus, so only data and completion are checked.
    commands = [bench.command(payload=100) for _ in range(2)]
    for command in commands:
        bench.expect(command)
    bench.unit.send(*commands)
    await bench.unit.wait_done(len(commands))
    await bench.unit.wait_idle()
    bench.check()


@pytest.mark.parametrize("name", list(CONFIGS))
def test_load(name: str, simulator: str) -> None:
    """All of the above, on each preset and two odd configurations."""
    if simulator == "icarus" and name not in ("nano", "long"):
        pytest.skip("Icarus runs two configurations, Verilator all")
    run_bench(lambda: LoadUnit(CONFIGS[name]), __name__, simulator=simulator, env={"LEPTON_CONFIG": name})
