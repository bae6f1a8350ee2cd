"""The semaphores against a list of 16 numbers: every grant is right, nobody starves, clearing is complete."""

from __future__ import annotations

from typing import Any

import cocotb
from amaranth.hdl import Value
from cocotb.triggers import ReadOnly, RisingEdge

from bench import run_bench
from fake_units import flat_ports
from lepton_hw.semaphores import Semaphores
from stimulus import apply_reset, rng, start

PORTS = 4


class Model:
    """Four requesters and what the semaphores should hold."""

    def __init__(self, dut: Any) -> None:
        self.dut = dut
        self.random = rng()
        self.values = [0] * 16
        self.requests: list[tuple[int, int, int] | None] = [None] * PORTS  # post, semaphore, count
        self.age = [0] * PORTS  # cycles for which a request could have been granted
        self.grants = 0
        self.overflows = 0
        dut.clear.value = 0
        for port in range(PORTS):
            self.drive(port, None)

    def drive(self, port: int, request: tuple[int, int, int] | None) -> None:
        """Present a request, or none."""
        self.requests[port] = request
        self.age[port] = 0
        post, semaphore, count = request or (self.random.randrange(2), self.random.randrange(16), 3)
        values = {"request": request is not None, "post": post, "semaphore": semaphore, "count": count}
        for name, value in values.items():
            getattr(self.dut, f"port{port}_{name}").value = value

    async def cycle(self, *, ready: bool = True) -> list[int]:
        """One clock: grants and overflow are checked, then counted. Returns who was served."""
        dut = self.dut
        await ReadOnly()
        served = [p for p in range(PORTS) if int(getattr(dut, f"port{p}_grant").value) and self.requests[p]]
        assert len(served) <= 1, "one operation a cycle"
        assert ready or not served, "a grant while clearing"
        overflow = False
        for port in range(PORTS):
            request = self.requests[port]
            if request is None:
                continue
            post, semaphore, count = request
            possible = post or self.values[semaphore] >= count
            if port in served:
                assert possible, (port, request, self.values)
                total = self.values[semaphore] + (count if post else -count)
                overflow = total > 255
                self.values[semaphore] = total & 255
                if overflow:
                    assert (int(dut.unit.value), int(dut.semaphore.value)) == (port, semaphore)
            elif possible and ready:
                self.age[port] += 1
                assert self.age[port] < PORTS, f"port {port} starves"
            else:
                self.age[port] = 0
        assert int(dut.overflow.value) == overflow
        self.overflows += overflow
        self.grants += len(served)
        await RisingEdge(dut.clk)
        for port in served:
            self.drive(port, None)
        return served


@cocotb.test()
async def random_operations(dut: Any) -> None:
    """Waits and posts from all ports, few and many at a time."""
    m = Model(dut)
    await start(dut)
    for _ in range(20):
        await RisingEdge(dut.clk)  # clearing after reset
    for i in range(6000):
        load = (0.05, 0.5, 1)[i // 100 % 3]
        for port in range(PORTS):
            if m.requests[port] is None and m.random.random() < load:
                post = m.random.random() < (0.7 if i // 500 % 2 else 0.45)
                m.drive(port, (int(post), m.random.randrange(4 if i % 2 else 16), m.random.randrange(16)))
        await m.cycle()
        if i % 100 == 99:  # waits that nobody will meet are withdrawn
            for port in range(PORTS):
                m.drive(port, None)
    assert m.grants > 2000 and m.overflows > 10, (m.grants, m.overflows)


@cocotb.test()
async def ports_take_turns(dut: Any) -> None:
    """All four ask all the time: each gets every fourth cycle."""
    m = Model(dut)
    await start(dut)
    for _ in range(20):
        await RisingEdge(dut.clk)
    order: list[int] = []
    for _ in range(40):
        for port in range(PORTS):
            if m.requests[port] is None:
                m.drive(port, (1, port, 1))
        order += await m.cycle()
    assert len(order) == 40
    assert all(len({*order[i : i + 4]}) == 4 for i in range(36)), order


@cocotb.test()
async def clears_all(dut: Any) -> None:
    """After `clear` and after a reset every semaphore is 0; requests meanwhile wait."""
    m = Model(dut)
    await start(dut)
    for i in range(12):
        for _ in range(20):
            await m.cycle(ready=False) if i == 0 else await m.cycle()
        for semaphore in range(16):
            m.drive(semaphore % PORTS, (1, semaphore, 1 + semaphore % 15))
            while not await m.cycle():
                pass
        if i % 2:
            await apply_reset(dut)
        else:
            dut.clear.value = 1
            await RisingEdge(dut.clk)
            dut.clear.value = 0
        m.values = [0] * 16
        m.drive(1, (0, m.random.randrange(16), 1))  # must not be granted: nothing is left to take
        m.drive(2, (1, i, 1))
        waited = 0
        while m.requests[2] is not None:
            await m.cycle(ready=waited >= 15)
            waited += 1
        assert 15 <= waited <= 20, waited
        m.drive(1, None)
        for semaphore in range(16):
            m.drive(0, (0, semaphore, 1 + (semaphore == i)))
            for _ in range(3):
                assert not await m.cycle()
        m.drive(0, (0, i, 1))
        assert await m.cycle() == [0]


def build() -> tuple[Semaphores, dict[str, Value]]:
    block = Semaphores()
    ports = {name: Value.cast(getattr(block, name)) for name in ("clear", "overflow", "unit", "semaphore")}
    for i in range(PORTS):
        ports |= flat_ports(f"port{i}", block.ports[i])
    return block, ports


def test_semaphores(simulator: str) -> None:
    run_bench(build, __name__, simulator=simulator)
