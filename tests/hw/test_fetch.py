"""Program fetch: the right bytes, bursts within the rules and within the FIFO, errors that travel, clears."""

from __future__ import annotations

import dataclasses
import os
from typing import Any

import cocotb
import pytest
from amaranth.hdl import Elaboratable, Module, Value
from cocotb.triggers import ReadOnly, RisingEdge
from cocotbext.axi import AxiResp

from axi_memory import AxiMemory, Direction, Fault
from axi_monitor import Axi4Monitor
from bench import run_bench
from fake_units import QuietWrites, flat_ports
from lepton_hw.config import PRESETS, NPUConfig
from lepton_hw.fetch import FETCH_ID, ProgramFetch
from stimulus import apply_reset, rng, start

CONFIGS: dict[str, NPUConfig] = {
    **PRESETS,
    "short": dataclasses.replace(PRESETS["nano"], burst_beats=4),
    "long": dataclasses.replace(PRESETS["nano"], burst_beats=256),
}


class Bench:
    """Memory, monitor, and a reader that takes beats at random."""

    def __init__(self, dut: Any) -> None:
        self.dut = dut
        self.config = CONFIGS[os.environ["CONFIG"]]
        self.random = rng()
        for name in ("start", "clear", "beats_ready"):
            getattr(dut, name).value = 0
        self.memory = AxiMemory(dut, "m_axi", dut.clk, dut.rst, size=1 << 16, latency=5)
        self.memory.write(0, self.random.randbytes(1 << 16))
        self.monitor = Axi4Monitor(dut, "m_axi", dut.clk, dut.rst)

    async def begin(self, address: int, size: int) -> None:
        """START of a fetch."""
        dut = self.dut
        self.memory.clear_log()
        dut.address.value, dut.size.value = address, size
        dut.start.value = 1
        await RisingEdge(dut.clk)
        dut.start.value = 0

    async def take(self, beats: int, ready: float) -> list[tuple[int, int]]:
        """The next beats, as (data, response)."""
        dut, out = self.dut, []
        width = self.config.bus_width
        for _ in range(50_000):
            if len(out) == beats:
                break
            now = self.random.random() < ready
            dut.beats_ready.value = now
            await ReadOnly()
            if now and int(dut.beats_valid.value):
                bits = int(dut.beats_payload.value)
                out.append((bits & ((1 << width) - 1), bits >> width))
            await RisingEdge(dut.clk)
        dut.beats_ready.value = 0
        assert len(out) == beats, f"{len(out)} of {beats} beats came"
        return out

    async def rest(self) -> None:
        """Wait until the bus owes nothing."""
        for _ in range(2000):
            await ReadOnly()
            busy = int(self.dut.busy.value)
            await RisingEdge(self.dut.clk)
            if not busy:
                return
        raise AssertionError("still busy")

    def expected(self, address: int, size: int) -> list[int]:
        step = self.config.bus_bytes
        raw = self.memory.read(address, size)
        return [int.from_bytes(raw[i : i + step], "little") for i in range(0, size, step)]

    def check_bursts(self, address: int, size: int) -> None:
        """Together they read the program once, in order; all with the fetch ID, none longer than allowed."""
        for burst in self.memory.bursts:
            assert (burst.id, burst.address) == (FETCH_ID, address)
            assert burst.beats <= self.config.burst_beats and burst.beats * burst.size <= 256
            assert burst.size == self.config.bus_bytes
            address += burst.beats * burst.size
            size -= burst.beats * burst.size
        assert size == 0


async def bench(dut: Any) -> Bench:
    out = Bench(dut)
    await start(dut)
    return out


@cocotb.test()
async def fetches_programs(dut: Any) -> None:
    """Any address and length, bus stalls, slow and quick readers; then the next without a pause."""
    b = await bench(dut)
    for i in range(40):
        size = 64 * b.random.choice((1, 2, 3, 4, 5, 17, 70))
        address = b.random.choice((4096 - 64, 64 * b.random.randrange(900)))
        b.memory.stall(b.random.choice((0, 0.4)), b.random)
        b.memory.latency = b.random.choice((0, 5, 40))
        await b.begin(address, size)
        got = await b.take(size // b.config.bus_bytes, b.random.choice((0.05, 0.5, 1)))
        assert got == [(data, 0) for data in b.expected(address, size)], i
        await ReadOnly()
        assert int(dut.exhausted.value) and not int(dut.busy.value)
        await RisingEdge(dut.clk)
        b.check_bursts(address, size)
    b.monitor.assert_clean()


@cocotb.test()
async def never_holds_the_bus(dut: Any) -> None:
    """With a reader that takes nothing, at most 512 bytes are asked for, and all are taken off the bus."""
    b = await bench(dut)
    await b.begin(64, 4096)
    for _ in range(600):
        await ReadOnly()
        assert int(dut.m_axi_rready.value)
        assert not int(dut.exhausted.value)
        await RisingEdge(dut.clk)
    asked = sum(burst.beats * burst.size for burst in b.memory.bursts)
    assert 256 <= asked <= 512
    assert not int(dut.busy.value)
    got = await b.take(4096 // b.config.bus_bytes, 1)
    assert [data for data, _ in got] == b.expected(64, 4096)
    b.monitor.assert_clean()


@cocotb.test()
async def errors_travel_with_their_beat(dut: Any) -> None:
    """The response of each beat comes out with it."""
    b = await bench(dut)
    for _ in range(10):
        await b.begin(128, 512)
        hit = b.random.randrange(512)
        response = b.random.choice((AxiResp.SLVERR, AxiResp.DECERR))
        b.memory.inject(Fault(Direction.READ, response, address=128 + hit))
        got = await b.take(512 // b.config.bus_bytes, 0.7)
        wanted = [0] * len(got)
        wanted[hit // b.config.bus_bytes] = int(response)
        assert [resp for _, resp in got] == wanted
    b.monitor.assert_clean()


@cocotb.test()
async def clear_and_reset_at_any_time(dut: Any) -> None:
    """Cleared in mid-program: no beat of it is seen later; what was announced is taken off the bus."""
    b = await bench(dut)
    for i in range(60):
        b.memory.stall(b.random.choice((0, 0.6)), b.random)
        await b.begin(0, 4096)
        await b.take(b.random.randrange(20), 1)
        for _ in range(b.random.randrange(30)):
            await RisingEdge(dut.clk)
        if i % 4 == 3:
            await apply_reset(dut)
        else:
            dut.clear.value = 1
            for _ in range(b.random.choice((1, 1, 5))):
                await RisingEdge(dut.clk)
            dut.clear.value = 0
            await b.rest()
        b.memory.stall(0, b.random)
        address = 64 * b.random.randrange(200)
        await b.begin(address, 192)
        got = await b.take(192 // b.config.bus_bytes, 0.8)
        assert got == [(data, 0) for data in b.expected(address, 192)], i
    b.monitor.assert_clean()


class Design(Elaboratable):
    def __init__(self, fetch: ProgramFetch, writes: QuietWrites) -> None:
        self._parts = {"fetch": fetch, "writes": writes}

    def elaborate(self, platform: object) -> Module:
        m = Module()
        for name, part in self._parts.items():
            m.submodules[name] = part
        return m


def build(config: NPUConfig) -> tuple[Elaboratable, dict[str, Value]]:
    fetch, writes = ProgramFetch(config), QuietWrites(config.bus_width)
    ports = flat_ports("m_axi", fetch.port) | flat_ports("m_axi", writes.port)
    ports |= flat_ports("beats", fetch.beats)
    ports |= {
        name: getattr(fetch, name) for name in ("start", "address", "size", "clear", "exhausted", "busy")
    }
    return Design(fetch, writes), ports


@pytest.mark.parametrize("config", ["nano", "base", "short"])
def test_fetch(config: str, simulator: str) -> None:
    run_bench(lambda: build(CONFIGS[config]), __name__, simulator=simulator, env={"CONFIG": config})


@pytest.mark.slow
@pytest.mark.parametrize("config", CONFIGS)
def test_fetch_all(config: str) -> None:
    run_bench(lambda: build(CONFIGS[config]), __name__, env={"CONFIG": config})
