"""The bench memory: content, faults on chosen beats, latency, pauses, log, reset; all under the monitor."""

from __future__ import annotations

from typing import Any

import cocotb
import pytest
from cocotb.simtime import get_sim_time
from cocotb.triggers import RisingEdge, with_timeout
from cocotbext.axi import AxiBus, AxiMaster, AxiResp

from axi_memory import AxiMemory, Direction, Fault
from axi_monitor import Axi4Monitor
from bench import run_bench
from stimulus import CLOCK_NS, apply_reset, rng, start
from wires import Wires, axi4_channels

SIZE = 1 << 14


async def _setup(dut: Any, **options: Any) -> tuple[AxiMemory, AxiMaster, Axi4Monitor]:
    monitor = Axi4Monitor(dut, "axi", dut.clk, dut.rst)
    memory = AxiMemory(dut, "axi", dut.clk, dut.rst, size=SIZE, **options)
    manager = AxiMaster(AxiBus.from_prefix(dut, "axi"), dut.clk, dut.rst)
    await start(dut)
    return memory, manager, monitor


async def _finish(dut: Any, monitor: Axi4Monitor) -> None:
    for _ in range(30):
        await RisingEdge(dut.clk)
    monitor.assert_clean()


@cocotb.test()
@cocotb.parametrize(stall=[0.0, 0.5])
async def keeps_what_is_written(dut: Any, stall: float) -> None:
    """Random writes and reads of all sizes and alignments, against a copy; the log covers every byte."""
    random = rng()
    memory, manager, monitor = await _setup(dut, latency=random.randrange(10))
    memory.stall(stall, random)
    image = bytearray(random.randbytes(SIZE))
    memory.write(0, image)
    touched = set()
    for _ in range(60):
        length = random.choice([1, 3, 8, 100, 700])
        address = random.choice([random.randrange(SIZE - length), 0xFFE, 0x1000])
        data = random.randbytes(length)
        assert (await manager.write(address, data, size=random.randrange(4))).resp is AxiResp.OKAY
        image[address : address + length] = data
        touched.update(range(address, address + length))
        back = await manager.read(address - address % 64, length, size=random.randrange(4))
        assert back.data == image[address - address % 64 :][:length]
    assert memory.read(0, SIZE) == image
    assert {
        byte for address, length in memory.written for byte in range(address, address + length)
    } == touched
    await _finish(dut, monitor)


@cocotb.test()
@cocotb.parametrize(response=[AxiResp.SLVERR, AxiResp.DECERR], direction=list(Direction))
async def fails_the_chosen_beat(dut: Any, response: AxiResp, direction: Direction) -> None:
    """A fault by burst and beat, then one by address: those and no others."""
    memory, manager, monitor = await _setup(dut)
    memory.write(0, b"\x55" * SIZE)
    by_index = memory.inject(Fault(direction, response, burst=2, beat=5))
    by_address = memory.inject(Fault(direction, response, address=0x803, times=None))
    seen = []
    for address in (0, 0x100, 0x200, 0x300, 0x7C0, 0x780, 0x808, 0x800):
        if direction is Direction.WRITE:
            seen.append((await manager.write(address, b"\xaa" * 72)).resp)
        else:
            seen.append((await manager.read(address, 72)).resp)
    okay = AxiResp.OKAY
    assert seen == [okay, okay, response, okay, response, okay, okay, response]
    assert (by_index.hits, by_address.hits) == (1, 2)
    bad = [
        (burst.index, beat) for burst in memory.bursts for beat, r in enumerate(burst.responses) if r != okay
    ]
    assert bad == [(2, 5), (4, 8), (7, 0)]
    if direction is Direction.WRITE:
        assert memory.read(0x200, 72) == b"\xaa" * 40 + b"\x55" * 8 + b"\xaa" * 24
        assert memory.read(0x800, 16) == b"\x55" * 8 + b"\xaa" * 8
    memory.clear_log()
    assert not memory.bursts
    assert (await manager.read(0x800, 8)).resp is okay
    assert memory.bursts[0].index == 0
    await _finish(dut, monitor)


@cocotb.test()
async def answers_decerr_beyond_its_end(dut: Any) -> None:
    """Outside the memory: DECERR, nothing changes; through the back door: an error in words."""
    memory, manager, monitor = await _setup(dut)
    assert (await manager.write(SIZE - 8, bytes(range(16)))).resp is AxiResp.DECERR
    assert (await manager.read(SIZE, 8)).resp is AxiResp.DECERR
    assert memory.read(SIZE - 8, 8) == bytes(range(8))
    assert memory.written == [(SIZE - 8, 8)]
    with pytest.raises(ValueError, match=r"0x3ff9 \+ 8 bytes is outside 0x0 \.\. 0x3fff"):
        memory.write(SIZE - 7, bytes(8))
    with pytest.raises(ValueError, match="SLVERR or DECERR"):
        Fault(Direction.READ, AxiResp.OKAY)
    await _finish(dut, monitor)


@cocotb.test()
async def latency_is_as_asked(dut: Any) -> None:
    """Forty more cycles of latency make a read and a write forty cycles longer."""
    memory, manager, monitor = await _setup(dut)

    async def cycles(operation: Any) -> int:
        begin = get_sim_time("ns")
        await operation
        return round((get_sim_time("ns") - begin) / CLOCK_NS)

    for _ in range(2):  # the first access wakes the models
        short = [await cycles(manager.read(0, 8)), await cycles(manager.write(0, bytes(8)))]
    memory.latency = 40
    long = [await cycles(manager.read(0, 8)), await cycles(manager.write(0, bytes(8)))]
    for before, after in zip(short, long, strict=True):
        assert 36 <= after - before <= 40, (short, long)
    await _finish(dut, monitor)


@cocotb.test()
async def a_held_channel_waits(dut: Any) -> None:
    """A bus that hangs, and goes on when released."""
    memory, manager, monitor = await _setup(dut)
    memory.write(0x40, b"lepton!!")
    for channel in ("ar", "r"):
        memory.hold(channel)
        read = cocotb.start_soon(manager.read(0x40, 8))
        for _ in range(200):
            await RisingEdge(dut.clk)
        assert not read.done()
        memory.release(channel)
        assert (await with_timeout(read, 500, "ns")).data == b"lepton!!"
    await _finish(dut, monitor)


@cocotb.test()
async def reset_drops_what_is_under_way(dut: Any) -> None:
    """After a reset at any moment of a burst the next access works, and the content is still there."""
    random = rng()
    memory, manager, monitor = await _setup(dut)
    memory.stall(0.3, random)
    memory.write(0, bytes(range(256)) * 4)
    for _ in range(12):
        manager.init_read(0, 1024)
        manager.init_write(0x2000, random.randbytes(1024))
        for _ in range(random.randrange(1, 150)):
            await RisingEdge(dut.clk)
        await apply_reset(dut)
        answer = await with_timeout(manager.read(0, 1024), 100_000, "ns")
        assert answer.data == bytes(range(256)) * 4
        await with_timeout(manager.write(0x3000, b"after"), 100_000, "ns")
        assert memory.read(0x3000, 5) == b"after"
    await _finish(dut, monitor)


def test_axi_memory(simulator: str) -> None:
    run_bench(lambda: Wires({"axi": axi4_channels(64)}), __name__, simulator=simulator, top="memory_wires")
