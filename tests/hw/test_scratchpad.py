"""Scratchpad: every port at once at random, with the promised priorities, latencies and alignments."""

from __future__ import annotations

import os
import random
from collections import deque
from dataclasses import dataclass, field
from typing import Any

import cocotb
import numpy as np
import pytest
from cocotb.triggers import FallingEdge, RisingEdge

from bench import run_bench
from lepton_hw.config import BANKS
from lepton_hw.scratchpad import FEEDER_PORTS, Scratchpad
from stimulus import rng, start
from transfers import CONFIGS


def config() -> Any:
    """The configuration under test."""
    return CONFIGS[os.environ["LEPTON_CONFIG"]]


class Model:
    """What the memory holds at any time.

    A write that is accepted in cycle t is seen by reads from cycle t + write_latency on. Up to the cycle
    before, a read may give old bytes, or for a vector that is being written, anything.
    """

    def __init__(self, image: np.ndarray) -> None:
        self.image = image
        self.young: deque[tuple[int, int, list[tuple[int, int]]]] = deque()

    def write(self, cycle: int, data: list[tuple[int, int]]) -> None:
        """Bytes, as (address, value), accepted in `cycle`."""
        self.young.append((cycle, cycle + Scratchpad.write_latency, data))

    def read(self, cycle: int, address: int, length: int) -> list[int | None]:
        """Bytes of a read granted in `cycle`; None for those of a vector that is being written."""
        while self.young and self.young[0][1] <= cycle:
            for where, value in self.young.popleft()[2]:
                self.image[where] = value
        vectors = {
            where // config().array_size
            for accepted, _, data in self.young
            if accepted < cycle
            for where, _ in data
        }
        where = [(address + i) % len(self.image) for i in range(length)]
        return [None if i // config().array_size in vectors else int(self.image[i]) for i in where]


@dataclass
class Reader:
    """Data that is to come on a port."""

    name: str
    data: Any
    latency: int
    due: deque[tuple[int, list[int | None]]] = field(default_factory=deque)
    compared: int = 0

    def check(self, cycle: int) -> None:
        """Compare what is due in this cycle."""
        if self.due and self.due[0][0] + self.latency == cycle:
            granted, expected = self.due.popleft()
            got = int(self.data.value).to_bytes(len(expected), "little")
            for i, byte in enumerate(expected):
                assert byte in (None, got[i]), (
                    f"{self.name}: read of cycle {granted}, byte {i} is {got[i]:#x}, not {byte:#x}"
                )
                self.compared += byte is not None


class Bench:
    """Drives all ports each cycle and checks grants and data.

    Attributes:
        activity: probability that a port wants something in a cycle, by port name.
        grants: cycles in which `residual`, `store`, `load` were granted, and in which they wanted to be.
    """

    def __init__(self, dut: Any, activity: dict[str, float]) -> None:
        self.dut = dut
        self.random = rng("bench")
        self.activity = activity
        self.size = config().scratchpad_bytes
        self.model = Model(np.zeros(self.size, np.uint8))
        self.feeder = [
            Reader(f"feeder {i}", getattr(dut, f"feeder__{i}__data"), Scratchpad.feeder_latency)
            for i in range(FEEDER_PORTS)
        ]
        self.residual = Reader("residual", dut.residual__data, Scratchpad.residual_latency)
        self.store = Reader("store", dut.store__data, Scratchpad.store_latency)
        self.cycle = 0
        self.wanted = dict.fromkeys(("residual", "store", "load"), 0)
        self.granted = dict.fromkeys(("residual", "store", "load"), 0)
        self._held: dict[str, tuple[int, ...]] = {}

    async def fill(self) -> None:
        """Known content, through the output port."""
        dut, n = self.dut, config().array_size
        content = rng("content").randbytes(self.size)
        dut.output__enable.value = 1
        for vector in range(self.size // n):
            piece = content[n * vector : n * vector + n]
            dut.output__address.value = vector
            dut.output__data.value = int.from_bytes(piece, "little")
            await RisingEdge(dut.clk)
        dut.output__enable.value = 0
        for _ in range(Scratchpad.write_latency):
            await RisingEdge(dut.clk)
        self.model.image = np.frombuffer(content, np.uint8).copy()

    def address(self, random_source: random.Random, unit: int) -> int:
        """An address in `unit`s of bytes: mostly in a small part, so that ports meet, and at the end."""
        count = self.size // unit
        some = max(1, 8 * BANKS * config().array_size // unit)
        near = random_source.choice((0, 0, count - some // 2))
        if random_source.random() < 0.7:
            return (near + random_source.randrange(some)) % count
        return random_source.randrange(count)

    async def run(self, cycles: int) -> None:
        """So many cycles of random requests, then wait for the data."""
        for _ in range(cycles):
            await self.step()
        activity, self.activity = self.activity, dict.fromkeys(self.activity, 0.0)
        for _ in range(60):  # what is still held gets its turn
            await self.step()
        self.activity = activity
        assert not self._held
        readers = (*self.feeder, self.residual, self.store)
        assert not any(reader.due for reader in readers)

    async def step(self) -> None:
        """One cycle: set the inputs, look at the grants in its middle, compare data."""
        dut, n, bus = self.dut, config().array_size, config().bus_bytes
        now, draw, model = self.cycle, self.random, self.model

        def wants(port: str) -> bool:
            return draw.random() < self.activity[port]

        reads: dict[int, int] = {}
        banks: set[int] = set()
        for i in range(FEEDER_PORTS):
            vector = self.address(draw, n)
            enable = wants("feeder") and vector % BANKS not in banks
            getattr(dut, f"feeder__{i}__enable").value = int(enable)
            getattr(dut, f"feeder__{i}__address").value = vector
            if enable:
                reads[i] = vector
                banks.add(vector % BANKS)
        if "residual" not in self._held and wants("residual"):
            self._held["residual"] = (self.address(draw, n),)
        if "store" not in self._held and wants("store"):
            self._held["store"] = (self.address(draw, 1),)
        if "load" not in self._held and wants("load"):
            mask = draw.choice(((1 << bus) - 1, draw.getrandbits(bus)))
            self._held["load"] = (self.address(draw, 1), draw.getrandbits(8 * bus), mask)
        dut.residual__request__valid.value = int("residual" in self._held)
        dut.store__request__valid.value = int("store" in self._held)
        dut.load__valid.value = int("load" in self._held)
        if "residual" in self._held:
            dut.residual__request__payload.value = self._held["residual"][0]
        if "store" in self._held:
            dut.store__request__payload.value = self._held["store"][0]
        if "load" in self._held:
            address, data, mask = self._held["load"]
            address_bits = (self.size - 1).bit_length()
            dut.load__payload.value = address | data << address_bits | mask << (address_bits + 8 * bus)
        output = self.address(draw, n) if wants("output") else None
        output_data = draw.getrandbits(8 * n)
        dut.output__enable.value = int(output is not None)
        dut.output__address.value = output or 0
        dut.output__data.value = output_data

        await FallingEdge(dut.clk)
        for reader in (*self.feeder, self.residual, self.store):
            reader.check(now)
        for i, vector in reads.items():
            self.feeder[i].due.append((now, model.read(now, vector * n, n)))

        def window_banks(address: int) -> set[int]:
            return {address // n % BANKS, (address + bus - 1) // n % BANKS}

        free = set(range(BANKS)) - banks
        if "residual" in self._held:
            (vector,) = self._held["residual"]
            if self._grant("residual", dut.residual__request__ready, {vector % BANKS} <= free):
                self.residual.due.append((now, model.read(now, vector * n, n)))
            free -= {vector % BANKS}
        if "store" in self._held:
            (address,) = self._held["store"]
            if self._grant("store", dut.store__request__ready, window_banks(address) <= free):
                self.store.due.append((now, model.read(now, address, bus)))
        writes: list[tuple[int, int]] = []
        if "load" in self._held:
            address, data, mask = self._held["load"]
            clash = output is not None and output % BANKS in window_banks(address)
            if self._grant("load", dut.load__ready, not clash):
                for i, byte in enumerate(data.to_bytes(bus, "little")):
                    if mask >> i & 1:
                        writes.append(((address + i) % self.size, byte))
        if output is not None:
            writes += [(output * n + i, byte) for i, byte in enumerate(output_data.to_bytes(n, "little"))]
        if writes:
            model.write(now, writes)
        await RisingEdge(dut.clk)
        self.cycle += 1

    def _grant(self, port: str, ready: Any, free: bool) -> bool:
        """Whether the port is served; it must be, exactly when its banks are free."""
        granted = str(ready.value) == "1"
        assert granted == free, f"{port}: ready is {granted}, its banks are {'free' if free else 'taken'}"
        self.wanted[port] += 1
        self.granted[port] += granted
        if granted:
            del self._held[port]
        return granted


@cocotb.test()
async def ports_alone(dut) -> None:
    """Each port in turn, with nothing in its way: never a stall."""
    bench = Bench(dut, {})
    await start(dut)
    await bench.fill()
    for port in ("feeder", "residual", "store", "output", "load"):
        bench.activity = {
            name: float(name == port) for name in ("feeder", "residual", "store", "output", "load")
        }
        await bench.run(300)
    assert bench.granted == bench.wanted
    assert all(reader.compared for reader in (*bench.feeder, bench.residual, bench.store))


@cocotb.test()
@cocotb.parametrize(feeder=[0.1, 0.5], others=[0.3, 0.9])
async def all_ports(dut, feeder: float, others: float) -> None:
    """All ports at once, with few and many conflicts."""
    bench = Bench(
        dut, {"feeder": feeder, "residual": others, "store": others, "output": others, "load": others}
    )
    await start(dut)
    await bench.fill()
    await bench.run(1500)
    for port, granted in bench.granted.items():
        assert 0 < granted <= bench.wanted[port]
    if others > 0.5:
        assert all(bench.granted[port] < bench.wanted[port] for port in bench.granted), "no conflict was met"
    assert all(reader.compared > 200 for reader in (*bench.feeder, bench.residual, bench.store))


@cocotb.test()
async def lowest_feeder_port_wins(dut) -> None:
    """Two feeder ports in one bank, which programs never do: the lower index gets its data."""
    bench = Bench(dut, {})
    await start(dut)
    await bench.fill()
    n = config().array_size
    draw = rng("conflict")
    for _ in range(50):
        low, high = sorted(draw.sample(range(FEEDER_PORTS), 2))
        vectors = {low: BANKS * draw.randrange(8), high: BANKS * draw.randrange(8)}
        for i in range(FEEDER_PORTS):
            getattr(dut, f"feeder__{i}__enable").value = int(i in vectors)
            getattr(dut, f"feeder__{i}__address").value = vectors.get(i, 1)
        await RisingEdge(dut.clk)
        for i in range(FEEDER_PORTS):
            getattr(dut, f"feeder__{i}__enable").value = 0
        for _ in range(Scratchpad.feeder_latency):
            await RisingEdge(dut.clk)
        expected = bench.model.image[vectors[low] * n :][:n].tobytes()
        assert int(getattr(dut, f"feeder__{low}__data").value) == int.from_bytes(expected, "little")


@pytest.mark.parametrize("name", list(CONFIGS))
def test_scratchpad(name: str, simulator: str) -> None:
    """All of the above, on each preset and two odd configurations."""
    if simulator == "icarus" and name not in ("nano", "long"):
        pytest.skip("Icarus runs two configurations, Verilator all")
    run_bench(lambda: Scratchpad(CONFIGS[name]), __name__, simulator=simulator, env={"LEPTON_CONFIG": name})
