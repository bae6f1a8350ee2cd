"""Read arbiter: two managers on one port, data to whom it belongs, fetch first, stable addresses."""

from __future__ import annotations

import os
from typing import Any

import cocotb
import pytest
from cocotb.triggers import RisingEdge
from cocotbext.axi import AxiBurstType, AxiMasterRead, AxiReadBus, AxiResp

from axi_memory import AxiMemory, Burst, Direction, Fault
from axi_monitor import Axi4Monitor
from bench import run_bench
from lepton_hw.fetch import FETCH_ID
from lepton_hw.load import LOAD_ID
from lepton_hw.read_arbiter import ReadArbiter
from stimulus import rng, stalls, start
from transfers import CONFIGS

EXTERNAL_BYTES = 1 << 16
IDS = {"fetch": FETCH_ID, "load": LOAD_ID}


def config() -> Any:
    """The configuration under test."""
    return CONFIGS[os.environ["LEPTON_CONFIG"]]


class Bench:
    """Both managers, the memory, and a monitor on each of the three ports."""

    def __init__(self, dut: Any, *, stall: float = 0.0) -> None:
        self.dut = dut
        self.memory = AxiMemory(dut, "axi_", dut.clk, dut.rst, size=EXTERNAL_BYTES, latency=4)
        self.content = rng("memory").randbytes(EXTERNAL_BYTES)
        self.memory.write(0, self.content)
        self.monitors = [Axi4Monitor(dut, f"{name}_", dut.clk, dut.rst) for name in ("axi", "fetch", "load")]
        self.masters = {
            name: AxiMasterRead(AxiReadBus.from_prefix(dut, f"{name}_"), dut.clk, dut.rst) for name in IDS
        }
        if stall:
            self.memory.stall(stall, rng("bus"))
            for name, master in self.masters.items():
                master.ar_channel.set_pause_generator(stalls(rng(f"{name} ar"), stall))
                master.r_channel.set_pause_generator(stalls(rng(f"{name} r"), stall))

    async def read(self, name: str, address: int, length: int) -> Any:
        """Read through a manager."""
        return await self.masters[name].read(address, length, arid=IDS[name], burst=AxiBurstType.INCR)

    def finish(self) -> None:
        """The protocol held on all ports, and ARID told the managers apart."""
        for monitor in self.monitors:
            monitor.assert_clean()


@cocotb.test()
@cocotb.parametrize(stall=[0.0, 0.4])
async def both_managers(dut, stall: float) -> None:
    """Random reads from both, several in flight: each gets its own data."""
    bench = Bench(dut, stall=stall)
    await start(dut)

    async def reads(name: str) -> None:
        draw = rng(name)
        for _ in range(30):
            wanted = [(draw.randrange(EXTERNAL_BYTES - 300), draw.randint(1, 300)) for _ in range(4)]
            tasks = [cocotb.start_soon(bench.read(name, *item)) for item in wanted]
            for (address, length), task in zip(wanted, tasks, strict=True):
                response = await task
                assert response.resp == AxiResp.OKAY
                assert response.data == bench.content[address : address + length]

    tasks = [cocotb.start_soon(reads(name)) for name in IDS]
    for task in tasks:
        await task
    ids = [burst.id for burst in bench.memory.bursts]
    assert ids.count(FETCH_ID) >= 120
    assert ids.count(LOAD_ID) >= 120
    bench.finish()


@cocotb.test()
async def errors_reach_their_manager(dut) -> None:
    """An error response goes where the data goes."""
    bench = Bench(dut)
    await start(dut)
    for name, response in (("fetch", AxiResp.SLVERR), ("load", AxiResp.DECERR)):
        bench.memory.clear_log()
        bench.memory.inject(Fault(Direction.READ, response, address=0x1004))
        other = "load" if name == "fetch" else "fetch"
        good = cocotb.start_soon(bench.read(other, 0x2000, 64))
        bad = cocotb.start_soon(bench.read(name, 0x1000, 64))
        assert (await bad).resp == response
        assert (await good).resp == AxiResp.OKAY
    bench.finish()


@cocotb.test()
async def fetch_first(dut) -> None:
    """Fetch is served before a queue of loads, after at most the one address that already waits."""
    bench = Bench(dut)
    await start(dut)
    bench.memory.hold("ar")
    loads = [cocotb.start_soon(bench.read("load", 256 * i, 4)) for i in range(6)]
    for _ in range(10):
        await RisingEdge(dut.clk)
    fetches = [cocotb.start_soon(bench.read("fetch", 0x8000 + 256 * i, 4)) for i in range(3)]
    for _ in range(10):
        await RisingEdge(dut.clk)
    bench.memory.release("ar")
    for task in (*loads, *fetches):
        await task
    order: list[Burst] = bench.memory.bursts
    assert order[0].id == LOAD_ID
    # The master offers its next address some cycles after the one before: loads may slip in between.
    assert [burst.id for burst in order[1:3]].count(FETCH_ID) >= 1
    assert order.index(next(b for b in order if b.id == FETCH_ID)) == 1
    bench.finish()


@pytest.mark.parametrize("name", ["nano", "base", "large"])
def test_read_arbiter(name: str, simulator: str) -> None:
    """All of the above on three bus widths."""
    run_bench(lambda: ReadArbiter(CONFIGS[name]), __name__, simulator=simulator, env={"LEPTON_CONFIG": name})
