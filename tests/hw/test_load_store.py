"""LOAD, scratchpad and STORE together: what LOAD brings, STORE takes back, while the other ports are busy.

A LOAD's `done` is all that the STORE of the same bytes waits for: the bench proves that it comes late enough.
"""

from __future__ import annotations

import os
from typing import Any

import cocotb
import numpy as np
import pytest
from amaranth.hdl import Module
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out
from cocotb.triggers import RisingEdge

from axi_memory import AxiMemory
from axi_monitor import Axi4Monitor
from bench import run_bench
from lepton_hw.config import BANKS, NPUConfig
from lepton_hw.interfaces import AXI4Read, AXI4Write, UnitPort, VectorRead
from lepton_hw.isa import Command, Opcode, Unit
from lepton_hw.load import LoadUnit
from lepton_hw.scratchpad import FEEDER_PORTS, Scratchpad, VectorWrite
from lepton_hw.store import StoreUnit
from stimulus import rng, start
from transfers import CONFIGS
from unit_driver import UnitDriver

EXTERNAL_BYTES = 1 << 16


class Joined(wiring.Component):
    """The three blocks; the ports of the array's side stay open."""

    def __init__(self, config: NPUConfig) -> None:
        self._config = config
        vectors, width = config.scratchpad_vectors, 8 * config.array_size
        super().__init__(
            {
                "load": In(UnitPort(Unit.LOAD)),
                "store": In(UnitPort(Unit.STORE)),
                "read": Out(AXI4Read(config.bus_width)),
                "write": Out(AXI4Write(config.bus_width)),
                "feeder": In(VectorRead(vectors, width, Scratchpad.feeder_latency)).array(FEEDER_PORTS),
                "output": In(VectorWrite(vectors, width)),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.submodules.scratchpad = scratchpad = Scratchpad(self._config)
        m.submodules.load_unit = load = LoadUnit(self._config)
        m.submodules.store_unit = store = StoreUnit(self._config)
        flipped = wiring.flipped
        wiring.connect(m, load.scratchpad, scratchpad.load)
        wiring.connect(m, store.scratchpad, scratchpad.store)
        wiring.connect(m, flipped(self.load), load.port)
        wiring.connect(m, flipped(self.store), store.port)
        wiring.connect(m, load.axi, flipped(self.read))
        wiring.connect(m, store.axi, flipped(self.write))
        wiring.connect(m, flipped(self.output), scratchpad.output)
        for outer, inner in zip(self.feeder, scratchpad.feeder, strict=True):
            wiring.connect(m, flipped(outer), inner)
        return m


class _Port:
    """Gives a UnitDriver one of the two unit ports under the name it knows."""

    def __init__(self, dut: Any, name: str) -> None:
        self._dut, self._name = dut, name

    def __getattr__(self, attribute: str) -> Any:
        return getattr(self._dut, attribute.replace("port__", f"{self._name}__"))


def config() -> Any:
    """The configuration under test."""
    return CONFIGS[os.environ["LEPTON_CONFIG"]]


async def disturb(dut: Any, last_vector: int) -> None:
    """Feeder reads anywhere, and output writes to the last vectors, at random."""
    draw, n = rng("disturb"), config().array_size
    while True:
        banks = draw.sample(range(BANKS), FEEDER_PORTS)
        for i in range(FEEDER_PORTS):
            getattr(dut, f"feeder__{i}__enable").value = int(draw.random() < 0.2)
            vector = draw.randrange(config().scratchpad_vectors // BANKS) * BANKS + banks[i]
            getattr(dut, f"feeder__{i}__address").value = vector
        dut.output__enable.value = int(draw.random() < 0.4)
        dut.output__address.value = draw.randrange(last_vector, config().scratchpad_vectors)
        dut.output__data.value = draw.getrandbits(8 * n)
        await RisingEdge(dut.clk)


@cocotb.test()
@cocotb.parametrize(stall=[0.0, 0.3])
async def there_and_back(dut, stall: float) -> None:
    """Random rows to the scratchpad and, the moment they are done, back to another place."""
    monitors = [Axi4Monitor(dut, f"{name}_", dut.clk, dut.rst) for name in ("read", "write")]
    source = AxiMemory(dut, "read_", dut.clk, dut.rst, size=EXTERNAL_BYTES, latency=5)
    sink = AxiMemory(dut, "write_", dut.clk, dut.rst, size=EXTERNAL_BYTES, latency=5)
    content = rng("memory").randbytes(EXTERNAL_BYTES)
    source.write(0, content)
    if stall:
        source.stall(stall, rng("source"))
        sink.stall(stall, rng("sink"))
    load, store = UnitDriver(_Port(dut, "load"), Unit.LOAD), UnitDriver(_Port(dut, "store"), Unit.STORE)
    await start(dut)
    cocotb.start_soon(disturb(dut, config().scratchpad_vectors - BANKS))
    # The last vectors belong to the disturbance.
    room = config().scratchpad_bytes - BANKS * config().array_size
    draw = rng("commands")
    local = np.zeros(config().scratchpad_bytes, np.uint8)
    expected = np.zeros(EXTERNAL_BYTES, np.uint8)
    external = np.frombuffer(content, np.uint8)
    for count in range(1, 80):
        address, size = draw.randrange(EXTERNAL_BYTES - 400), draw.randint(1, 120)
        # The halves take turns: a LOAD must not overwrite what a STORE has yet to read.
        where = room // 2 * (count % 2) + draw.randrange(room // 2 - size)
        await store.wait_done(count - 2)
        if draw.random() < 0.2:
            command = Command(Opcode.FILL, local_address=where, row_bytes=size, value=count)
            local[where : where + size] = count
        else:
            command = Command(Opcode.LOAD, address=address, local_address=where, row_bytes=size)
            local[where : where + size] = external[address : address + size]
        there = draw.randrange(EXTERNAL_BYTES - size)
        back = Command(Opcode.STORE, address=there, local_address=where, row_bytes=size)
        load.send(command)
        await load.wait_done(count)
        store.send(back)
        expected[there : there + size] = local[where : where + size]
    await store.wait_done(count)
    await store.wait_idle()
    wrong = np.flatnonzero(np.frombuffer(sink.read(0, EXTERNAL_BYTES), np.uint8) != expected)
    assert not len(wrong), f"{len(wrong)} bytes differ, the first at {wrong[0]:#x}"
    for monitor in monitors:
        monitor.assert_clean()


@pytest.mark.parametrize("name", ["nano", "base", "long"])
def test_load_store(name: str, simulator: str) -> None:
    """A bus as wide as a vector and a narrower one."""
    run_bench(lambda: Joined(CONFIGS[name]), __name__, simulator=simulator, env={"LEPTON_CONFIG": name})
