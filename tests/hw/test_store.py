"""STORE unit: rows, strides and alignments, back-pressure, bus errors, clear, one beat a cycle."""

from __future__ import annotations

import os
from collections import deque
from typing import Any

import cocotb
import numpy as np
import pytest
from cocotb.triggers import RisingEdge
from cocotbext.axi import AxiResp

from axi_memory import AxiMemory, Direction, Fault
from axi_monitor import Axi4Monitor
from bench import run_bench
from lepton_hw.isa import Command, ErrorCode, Opcode, Unit
from lepton_hw.scratchpad import Scratchpad
from lepton_hw.store import StoreUnit
from stimulus import rng, stalls, start
from transfers import CONFIGS, bursts, payload_bytes, random_transfer, transfer
from unit_driver import UnitDriver, cycle

EXTERNAL_BYTES = 1 << 16


class ScratchpadModel:
    """Answers the unit's reads: the data is there for one cycle, `store_latency` after the grant."""

    def __init__(self, dut: Any, image: np.ndarray, stall: float) -> None:
        self.dut = dut
        self.image = image
        self._random = rng("garbage")
        self._stalls = stalls(rng("scratchpad"), stall)
        dut.scratchpad__request__ready.value = 0
        self._task = cocotb.start_soon(self._run())

    async def _run(self) -> None:
        dut, bus = self.dut, config().bus_bytes
        # Entry i is on the data port i cycles from now; a grant seen at an edge belongs to the cycle before.
        pipeline: deque[int | None] = deque([None] * (Scratchpad.store_latency - 1))
        waiting: int | None = None
        edge = RisingEdge(dut.clk)
        while True:
            await edge
            if str(dut.rst.value) == "1":
                continue
            granted = None
            if str(dut.scratchpad__request__valid.value) == "1":
                address = int(dut.scratchpad__request__payload.value)
                assert waiting in (None, address), "address changed while it waited"
                waiting = address
                if str(dut.scratchpad__request__ready.value) == "1":
                    waiting = None
                    window = self.image[np.arange(address, address + bus) % len(self.image)]
                    granted = int.from_bytes(window.tobytes(), "little")
            else:
                assert waiting is None, "request dropped before it was granted"
            pipeline.append(granted)
            data = pipeline.popleft()
            dut.scratchpad__data.value = self._random.getrandbits(8 * bus) if data is None else data
            dut.scratchpad__request__ready.value = int(not next(self._stalls))


class Bench:
    """The unit between a scratchpad and a memory, and the model of both."""

    def __init__(self, dut: Any, *, stall: float = 0.0, latency: int = 0, command_stall: float = 0.0) -> None:
        self.dut = dut
        self.random = rng("bench")
        self.monitor = Axi4Monitor(dut, "axi_", dut.clk, dut.rst)
        self.memory = AxiMemory(
            dut, "axi_", dut.clk, dut.rst, size=EXTERNAL_BYTES, latency=latency, outstanding=32
        )
        content = rng("memory").randbytes(EXTERNAL_BYTES)
        self.memory.write(0, content)
        self.expected = np.frombuffer(content, np.uint8).copy()
        if stall:
            self.memory.stall(stall, rng("bus"))
        content = rng("content").randbytes(config().scratchpad_bytes)
        self.scratchpad = ScratchpadModel(dut, np.frombuffer(content, np.uint8).copy(), stall)
        self.unit = UnitDriver(dut, Unit.STORE, stalls(rng("commands"), command_stall))
        self.bytes_written = 0
        self.beats: list[int] = []
        """Cycles of the beats on W."""
        self.responses: list[int] = []
        """Cycles of the responses."""
        self.strobes_allowed = True
        self._taken = True  # the beat on W of the cycle before
        self._task = cocotb.start_soon(self._watch())

    async def _watch(self) -> None:
        dut = self.dut
        while True:
            await RisingEdge(dut.clk)
            if str(dut.rst.value) == "1":
                continue
            self.bytes_written += int(dut.bytes_written.value)
            if str(dut.axi__wvalid.value) == "1":
                # A beat that waits for WREADY when the unit is cleared has to keep its strobes.
                if self._taken and not self.strobes_allowed:
                    assert int(dut.axi__wstrb.value) == 0, "strobes after clear"
                self._taken = str(dut.axi__wready.value) == "1"
                if self._taken:
                    self.beats.append(cycle())
            if str(dut.axi__bvalid.value) == "1" and str(dut.axi__bready.value) == "1":
                self.responses.append(cycle())

    def command(self, **bounds: int) -> Command:
        """A random STORE."""
        return random_transfer(Opcode.STORE, config(), self.random, external_bytes=EXTERNAL_BYTES, **bounds)

    def expect(self, command: Command) -> None:
        """Do the command in the model."""
        transfer(command, self.expected, self.scratchpad.image)

    def check(self) -> None:
        """The external memory holds what the model holds."""
        image = np.frombuffer(self.memory.read(0, EXTERNAL_BYTES), np.uint8)
        wrong = np.flatnonzero(image != self.expected)
        assert not len(wrong), f"{len(wrong)} bytes differ, the first at {wrong[0]:#x}"

    async def run(self, commands: list[Command]) -> None:
        """Run commands from idle; checks data, bursts, order and number of the done pulses."""
        responses, done, written = len(self.responses), len(self.unit.done), self.bytes_written
        self.memory.clear_log()
        for command in commands:
            self.expect(command)
        self.unit.send(*commands)
        await self.unit.wait_done(done + len(commands))
        await self.unit.wait_idle()
        self.check()
        asked = [burst for command in commands for burst in bursts(command, config())]
        assert [(burst.address, burst.beats) for burst in self.memory.bursts] == asked
        # Each pulse comes the cycle after the last response of its command.
        answered = self.responses[responses:]
        for command, at in zip(commands, self.unit.done[done:], strict=True):
            count = len(bursts(command, config()))
            assert at == answered[count - 1] + 1
            del answered[:count]
        assert not answered
        assert self.bytes_written - written == sum(payload_bytes(command) for command in commands)


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
@cocotb.parametrize(channel=["aw", "w", "b"])
async def one_slow_channel(dut, channel: str) -> None:
    """No channel waits for another one that it may not wait for: AW without W and W without AW go on."""
    bench = Bench(dut)
    await start(dut)
    command = Command(Opcode.STORE, address=4096, row_bytes=3, rows=5, stride=64, local_stride=5)
    bench.memory.hold(channel)
    bench.expect(command)
    bench.unit.send(command)
    for _ in range(60):
        await RisingEdge(dut.clk)
    sent = bench.monitor.transfers
    unanswered = min(config().outstanding_writes, 5)
    assert sent["B"] == 0
    if channel != "aw":
        assert sent["AW"] == unanswered
    # While AW is held, one address waits on the bus, and data for that one burst may go ahead.
    if channel != "w":
        assert sent["W"] == (unanswered if channel == "b" else 1)
    bench.memory.release(channel)
    await bench.unit.wait_done(1)
    bench.check()
    bench.monitor.assert_clean()


@cocotb.test()
async def long_rows(dut) -> None:
    """Rows of several of the longest bursts, from one byte before a 4 KiB boundary, on one, and beyond."""
    bench = Bench(dut)
    await start(dut)
    size = min(3 * config().burst_beats * config().bus_bytes + 5, config().scratchpad_bytes)
    room = config().scratchpad_bytes - size + 1
    commands = [
        Command(Opcode.STORE, address=address, row_bytes=size, local_address=local % room)
        for address, local in ((4096, 0), (4095, 1), (8192 + 3, 7), (12288 - size, 0))
        if 0 <= address <= EXTERNAL_BYTES - size
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
    cases = {
        "one long row": [Command(Opcode.STORE, address=4096, row_bytes=3000)],
        "long rows, unaligned": [
            Command(
                Opcode.STORE,
                address=4099,
                stride=1500,
                row_bytes=700,
                rows=4,
                local_address=1,
                local_stride=701,
            )
        ],
        "rows of four beats": [
            Command(
                Opcode.STORE, address=8192, stride=8 * bus, row_bytes=4 * bus, rows=20, local_stride=4 * bus
            )
        ],
        "commands of four beats": [
            Command(Opcode.STORE, address=8192 + 8 * bus * i, row_bytes=4 * bus, local_address=4 * bus * i)
            for i in range(20)
        ],
        "short rows": [
            Command(
                Opcode.STORE, address=8193, stride=33, row_bytes=10, rows=49, local_address=5, local_stride=16
            )
        ],
    }
    for name, commands in cases.items():
        first = len(bench.beats)
        await bench.run(commands)
        at = bench.beats[first:]
        beats, taken = len(at), at[-1] - at[0] + 1
        requests = sum(len(bursts(command, config())) for command in commands)
        # A burst is unanswered while its beats go out, and before and after: up to 12 cycles in this bench
        # (the unit takes 6 from AW to W).
        flight = (12 * requests + beats) / config().outstanding_writes
        dut._log.info(f"{name}: {beats} beats in {taken} cycles, {requests} bursts")
        assert taken <= max(beats, flight) + 2, f"{name}: {beats} beats took {taken} cycles"
    bench.monitor.assert_clean()


@cocotb.test()
async def bus_errors(dut) -> None:
    """An error on any beat: one fault, when the commands before are done, and no strobes after it."""
    bench = Bench(dut, stall=0.2, latency=3)
    await start(dut)
    for _ in range(60):
        commands = [bench.command(payload=200) for _ in range(6)]
        owners = [i for i, command in enumerate(commands) for _ in bursts(command, config())]
        lengths = [beats for command in commands for _, beats in bursts(command, config())]
        hit = bench.random.randrange(len(owners))
        response = bench.random.choice((AxiResp.SLVERR, AxiResp.DECERR))
        bench.memory.clear_log()
        beat = bench.random.randrange(lengths[hit])
        bench.memory.inject(Fault(Direction.WRITE, response, burst=hit, beat=beat))
        before = len(bench.unit.done)
        bench.unit.send(*commands)
        fault = await bench.unit.wait_fault()
        bench.strobes_allowed = False
        assert (fault.code, fault.info) == (ErrorCode.WRITE_BUS, int(response))
        assert len(bench.unit.done) == before + owners[hit]
        for _ in range(bench.random.randrange(30)):
            await RisingEdge(dut.clk)
        assert len(bench.unit.faults) == 1
        assert len(bench.unit.done) == before + owners[hit]
        await clear_and_go_on(bench)
    bench.monitor.assert_clean()


@cocotb.test()
async def clear_at_any_time(dut) -> None:
    """Clear in the middle: announced bursts end without strobes, and the next command is right."""
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
    await RisingEdge(bench.dut.clk)  # in this cycle `clear` is seen: the last chance for strobes
    bench.strobes_allowed = False
    at_once = bench.random.random() < 0.5
    commands = [bench.command(payload=100) for _ in range(2)]
    if at_once:
        bench.unit.send(*commands)
        while not bench.unit.taken:
            await RisingEdge(bench.dut.clk)
    else:
        await bench.unit.wait_idle()
    bench.monitor.assert_clean()  # the bus owes nothing
    bench.strobes_allowed = True
    bench.memory.faults.clear()
    bench.expected[:] = np.frombuffer(bench.memory.read(0, EXTERNAL_BYTES), np.uint8)
    if not at_once:
        await bench.run(commands)
        return
    for command in commands:
        bench.expect(command)
    await bench.unit.wait_done(len(commands))
    await bench.unit.wait_idle()
    bench.check()


@pytest.mark.parametrize("name", list(CONFIGS))
def test_store(name: str, simulator: str) -> None:
    """All of the above, on each preset and two odd configurations."""
    if simulator == "icarus" and name not in ("nano", "long"):
        pytest.skip("Icarus runs two configurations, Verilator all")
    run_bench(lambda: StoreUnit(CONFIGS[name]), __name__, simulator=simulator, env={"LEPTON_CONFIG": name})
