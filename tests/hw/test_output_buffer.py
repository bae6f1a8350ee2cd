"""OutputBuffer: writes, reservations, releases and reads at random against a dictionary; clear and reset."""

from __future__ import annotations

import os
import random
from typing import Any

import cocotb
import pytest
from cocotb.triggers import RisingEdge

from bench import run_bench
from lepton_hw.config import PRESETS
from lepton_hw.output_buffer import OutputBuffer
from stimulus import apply_reset, rng, start

CONFIG = PRESETS[os.environ.get("PRESET", "base")]
WIDTH = 32 * CONFIG.array_size
DEPTH = CONFIG.output_depth
LARGEST_TILE = CONFIG.accumulator_depth


class Ring:
    """Drives the buffer as feeder, accumulator and output stage do, and checks its outputs each cycle."""

    def __init__(self, dut: Any, source: random.Random) -> None:
        self.dut, self.random = dut, source
        self.read: int | None = None  # entry that was asked for in the cycle before
        self.idle()
        self.forget()

    def idle(self) -> None:
        """No request, until the next cycle()."""
        dut = self.dut
        for signal in (dut.write__valid, dut.reserve__valid, dut.release__valid, dut.read__enable, dut.clear):
            signal.value = 0

    def forget(self) -> None:
        """Empty: nothing reserved, nothing held."""
        self.entries: dict[int, int] = {}
        self.reserved = self.written = self.released = 0

    async def cycle(
        self, *, write: bool = False, reserve: int = 0, release: int = 0, read: int | None = None,
        clear: bool = False,
    ) -> None:  # fmt: skip
        """One cycle: drive it, check what is there before the edge, then account for it."""
        dut = self.dut
        data = self.random.getrandbits(WIDTH)
        dut.write__valid.value, dut.write__data.value = write, data
        # Counts without `valid` and addresses without `enable` are noise.
        dut.reserve__valid.value = reserve > 0
        dut.reserve__count.value = reserve or self.random.randint(0, LARGEST_TILE)
        dut.release__valid.value = release > 0
        dut.release__count.value = release or self.random.randint(0, DEPTH)
        dut.read__enable.value = read is not None
        dut.read__address.value = (self.random.randrange(DEPTH) if read is None else read) % DEPTH
        dut.clear.value = clear
        await RisingEdge(dut.clk)
        room = DEPTH - (self.reserved - self.released)
        assert int(dut.room.value) == room
        assert int(dut.written.value) == self.written % (2 * DEPTH)
        if self.read is not None:
            assert int(dut.read__data.value) == self.entries[self.read], f"entry {self.read}"
        self.read = read
        if clear:
            self.forget()
            self.read = None
            return
        if write:
            self.entries[self.written] = data
        self.written += write
        self.reserved += reserve
        self.released += release

    async def random_cycle(self, busy: tuple[float, float, float]) -> None:
        """Anything that is allowed. `busy`: how eager feeder, accumulator and output stage are."""
        r = self.random
        room = DEPTH - (self.reserved - self.released)
        reserve = min(room, r.randint(1, LARGEST_TILE)) if r.random() < busy[0] else 0
        write = self.written < self.reserved and r.random() < busy[1]
        held = self.written - self.released
        newest = self.written - 1
        read = None
        if held and r.random() < 0.8:
            # the newest entry, as the output stage reads it, is the one that is hardest to get right
            read = newest if r.random() < 0.4 else r.randrange(self.released, self.written)
        release = r.randint(1, held) if held and r.random() < busy[2] else 0
        await self.cycle(write=write, reserve=reserve, release=release, read=read)


@cocotb.test()
async def random_traffic(dut: Any) -> None:
    """Full, empty and in between; the ring wraps several times."""
    ring = Ring(dut, rng())
    await start(dut)
    for busy in ((0.1, 0.9, 0.01), (1, 1, 0.002), (0.02, 1, 0.5), (0.3, 0.5, 0.05)):
        for _ in range(1500):
            await ring.random_cycle(busy)
    assert ring.written > DEPTH, "the ring must wrap"


@cocotb.test()
async def fills_to_the_brim(dut: Any) -> None:
    """All entries reserved, written and read; then released at once while the next tile is reserved."""
    ring = Ring(dut, rng())
    await start(dut)
    for _ in range(3):  # `written` wraps at twice the depth
        for _ in range(DEPTH // LARGEST_TILE):
            await ring.cycle(reserve=LARGEST_TILE)
        assert ring.reserved - ring.released == DEPTH
        for _ in range(DEPTH):
            await ring.cycle(write=True)
        for entry in range(ring.released, ring.written):
            await ring.cycle(read=entry)
        await ring.cycle(release=DEPTH)
        await ring.cycle(reserve=1)
        await ring.cycle(write=True)
        await ring.cycle(release=1, reserve=LARGEST_TILE)
        for _ in range(LARGEST_TILE):
            await ring.cycle(write=True)
        await ring.cycle(release=LARGEST_TILE)
    await ring.cycle()


@cocotb.test()
async def empty_after_clear_and_reset(dut: Any) -> None:
    """At a random cycle, with a write, a reservation and a release at the same time; then correct."""
    ring = Ring(dut, rng())
    await start(dut)
    for i in range(12):
        for _ in range(ring.random.randint(1, 100)):
            await ring.random_cycle((0.3, 0.9, 0.1))
        if i % 2:
            await ring.cycle(write=True, reserve=1, release=1, clear=True)
        else:
            ring.idle()
            await apply_reset(dut, cycles=1)
            ring.forget()
            ring.read = None
        await ring.cycle()
    for _ in range(200):
        await ring.random_cycle((0.3, 0.9, 0.1))


@pytest.mark.parametrize("preset", PRESETS)
def test_output_buffer(preset: str, simulator: str) -> None:
    if simulator == "icarus" and preset in ("base", "large"):
        pytest.skip("slow in Icarus, and no other code than small")
    run_bench(lambda: OutputBuffer(PRESETS[preset]), __name__, simulator=simulator, env={"PRESET": preset})
