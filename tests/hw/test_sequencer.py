"""A sequencer between a random source, a semaphore port that grants at random, and a model of its unit."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Any

import cocotb
import pytest
from amaranth.hdl import Value
from cocotb.triggers import ReadOnly, RisingEdge, Timer

from bench import run_bench
from fake_units import FakeUnit, Plan, flat_ports
from lepton_hw.isa import Unit
from lepton_hw.sequencer import TICKET_BITS, Sequencer, entry_layout
from stimulus import apply_reset, rng, start

UNIT = Unit.STORE
LAYOUT = entry_layout(UNIT)


@dataclass(frozen=True)
class Entry:
    """A command: (semaphore, count) of two waits and two posts."""

    waits: tuple[tuple[int, int], tuple[int, int]]
    posts: tuple[tuple[int, int], tuple[int, int]]
    sync: bool
    ticket: int
    words: int

    def bits(self) -> int:
        """As the entry port wants it."""
        operations = (*self.waits, *self.posts)
        semaphores = sum((s | n << 4) << 8 * i for i, (s, n) in enumerate(operations))
        command = self.words << 4 | 6
        fields = {"semaphores": semaphores, "sync": self.sync, "ticket": self.ticket, "command": command}
        return sum(int(value) << LAYOUT[name].offset for name, value in fields.items())


class Bench:
    """What the sequencer does, as a list of events, and the commands that it was given."""

    def __init__(self, dut: Any) -> None:
        self.dut = dut
        self.random = rng()
        self.unit = FakeUnit(dut, UNIT, rng("unit"))
        self.given: list[Entry] = []
        self.source: deque[Entry] = deque()
        self.events: list[tuple[str, int, int]] = []  # kind, semaphore, count
        self.posters: list[int] = []  # tickets of the commands that posted
        self.grant = 0.5
        for name in ("entry_valid", "clear", "drop_work", "semaphore_grant"):
            getattr(dut, name).value = 0
        self.unit.start()
        cocotb.start_soon(self._semaphores())
        cocotb.start_soon(self._feed())

    def entry(self) -> Entry:
        """A random command."""
        r = self.random
        operation = [(r.randrange(16), r.choice((0, 0, 1, 7, 15))) for _ in range(4)]
        return Entry(
            (operation[0], operation[1]),
            (operation[2], operation[3]),
            r.randrange(4) == 0,
            len(self.given) % (1 << TICKET_BITS),
            r.getrandbits(32 * 6),
        )

    async def _feed(self) -> None:
        dut = self.dut
        while True:
            if not self.source or self.random.random() < 0.2:
                dut.entry_valid.value = 0
                await RisingEdge(dut.clk)
                continue
            dut.entry_payload.value = self.source[0].bits()
            dut.entry_valid.value = 1
            await ReadOnly()
            accepted = int(dut.entry_ready.value)
            await RisingEdge(dut.clk)
            if accepted and self.source:
                self.given.append(self.source.popleft())

    async def _semaphores(self) -> None:
        """Grants in the cycle of the request, as the arbiter does."""
        dut = self.dut
        while True:
            await RisingEdge(dut.clk)
            dut.semaphore_grant.value = 0
            await Timer(1, unit="ns")
            if not int(dut.semaphore_request.value) or self.random.random() >= self.grant:
                continue
            dut.semaphore_grant.value = 1
            post, semaphore, count = (
                int(getattr(dut, f"semaphore_{name}").value) for name in ("post", "semaphore", "count")
            )
            self.events.append(("post" if post else "wait", semaphore, count))
            if post:
                self.posters.append(int(dut.post_ticket.value))

    def begin(self) -> None:
        """Forget everything before a new round."""
        self.given.clear()
        self.source.clear()
        self.events.clear()
        self.posters.clear()

    async def drain(self, cycles: int = 20_000) -> None:
        """Wait until all is done."""
        for _ in range(cycles):
            await ReadOnly()
            idle = int(self.dut.idle.value) and not self.source
            await RisingEdge(self.dut.clk)
            if idle and not int(self.dut.entry_valid.value):
                return
        raise AssertionError("not idle")


async def bench(dut: Any) -> Bench:
    out = Bench(dut)
    out.begin()
    await start(dut)
    return out


@cocotb.test()
async def order_of_events(dut: Any) -> None:
    """Waits in program order, each before its command; posts in program order, each after it."""
    b = await bench(dut)
    for _ in range(20):
        b.begin()
        b.unit.taken.clear()
        b.unit.done.clear()
        b.grant = b.random.choice((0.05, 0.5, 1))
        b.unit.plan = Plan(accept=b.random.choice((0.2, 1)), longest=b.random.choice((0, 3, 30)))
        commands = []
        for i in range(60):
            entry = b.entry()
            commands.append(Entry(entry.waits, entry.posts, entry.sync, i, entry.words))
        b.source.extend(commands)
        await b.drain()
        assert b.given == commands
        waits = [(s, n) for kind, s, n in b.events if kind == "wait"]
        posts = [(s, n) for kind, s, n in b.events if kind == "post"]
        assert waits == [op for c in commands for op in c.waits if op[1]]
        assert posts == [op for c in commands for op in c.posts if op[1]]
        assert b.posters == [c.ticket for c in commands for op in c.posts if op[1]]
        assert [f["words"] for _, f in b.unit.taken] == [c.words for c in commands if not c.sync]
        assert len(b.unit.done) == len(b.unit.taken)


@cocotb.test()
async def nothing_runs_ahead(dut: Any) -> None:
    """Without grants no command behind one that waits is issued, no post skipped; the oldest is known."""
    b = await bench(dut)
    plain = ((0, 0), (0, 0))
    for before in range(5):
        for kind in ("wait0", "wait1", "post0", "post1"):
            b.begin()
            b.unit.taken.clear()
            b.unit.done.clear()
            b.unit.plan = Plan(accept=1, longest=2)
            b.grant = 0
            commands = [Entry(plain, plain, False, 10 + i, i) for i in range(before)]
            operation = ((0, 0), (5, 3)) if kind.endswith("1") else ((5, 3), (0, 0))
            waits, posts = (operation, plain) if kind.startswith("wait") else (plain, operation)
            commands.append(Entry(waits, posts, False, 30, 100))
            commands += [Entry(plain, plain, bool(i % 2), 31 + i, 200 + i) for i in range(3)]
            b.source.extend(commands)
            for _ in range(80):
                await RisingEdge(dut.clk)
            await ReadOnly()
            issued = [f["words"] for _, f in b.unit.taken]
            wanted = list(range(before)) if kind.startswith("wait") else [*range(before), 100, 200, 202]
            assert issued == wanted, (kind, before)
            assert int(dut.waiting.value) == kind.startswith("wait")
            assert (int(dut.has_oldest.value), int(dut.oldest.value), int(dut.idle.value)) == (1, 30, 0)
            await RisingEdge(dut.clk)
            b.grant = 1
            await b.drain()
            assert b.events == [(kind[:4], 5, 3)]
            await ReadOnly()
            assert not int(dut.has_oldest.value)
            await RisingEdge(dut.clk)


@cocotb.test()
async def names_the_failed_command(dut: Any) -> None:
    """`fault_ticket` is the oldest that the unit has not done, whatever SYNCs and posts are pending."""
    b = await bench(dut)
    plain = ((0, 0), (0, 0))
    for _ in range(30):
        b.begin()
        b.unit.taken.clear()
        b.unit.done.clear()
        b.grant = b.random.choice((0, 0.2))
        commands = [
            Entry(
                plain, ((1, 1), (0, 0)) if b.random.randrange(2) else plain, b.random.randrange(3) == 0, i, i
            )
            for i in range(3)
        ] + [Entry(plain, plain, False, 3, 3)]
        hang = sum(not c.sync for c in commands[:3])
        b.unit.plan = Plan(accept=1, longest=3, hang_at=hang)
        b.source.extend(commands)
        for _ in range(60):
            await RisingEdge(dut.clk)
        await ReadOnly()
        assert len(b.unit.done) == hang
        assert int(dut.fault_ticket.value) == 3
        await RisingEdge(dut.clk)
        b.unit.plan = Plan()
        b.grant = 1
        await b.drain()


@cocotb.test()
async def clear_and_reset(dut: Any) -> None:
    """At any time: all is dropped, the unit is told, and the next commands run as the first did."""
    b = await bench(dut)
    for i in range(40):
        b.begin()
        b.grant = 0.3
        b.unit.plan = Plan(longest=b.random.choice((2, 20)))
        b.source.extend(b.entry() for _ in range(20))
        for _ in range(b.random.randrange(100)):
            await RisingEdge(dut.clk)
        b.source.clear()
        dut.entry_valid.value = 0
        b.grant = 0
        if i % 3 == 0:
            await apply_reset(dut)
        else:
            dut.clear.value = dut.drop_work.value = 1
            await RisingEdge(dut.clk)
            dut.drop_work.value = 0
            for _ in range(3):
                await RisingEdge(dut.clk)
            dut.clear.value = 0
        await RisingEdge(dut.clk)
        await ReadOnly()
        assert int(dut.idle.value) and not int(dut.semaphore_request.value) and not int(dut.has_oldest.value)
        await RisingEdge(dut.clk)
        b.begin()
        b.unit.taken.clear()
        b.unit.done.clear()
        b.grant = 1
        commands = [b.entry() for _ in range(5)]
        b.source.extend(commands)
        await b.drain()
        assert [op for kind, *op in b.events if kind == "wait"] == [
            list(op) for c in commands for op in c.waits if op[1]
        ]
        assert [f["words"] for _, f in b.unit.taken] == [c.words for c in commands if not c.sync]


def build(queue_depth: int, flight_depth: int) -> tuple[Sequencer, dict[str, Value]]:
    block = Sequencer(UNIT, queue_depth=queue_depth, flight_depth=flight_depth)
    ports = flat_ports("entry", block.entry) | flat_ports("semaphore", block.semaphore)
    ports |= flat_ports(UNIT.name.lower(), block.port)
    names = ("clear", "drop_work", "idle", "waiting", "oldest", "has_oldest", "fault_ticket", "post_ticket")
    return block, ports | {name: getattr(block, name) for name in names}


@pytest.mark.parametrize(("queue", "flight"), [(4, 4), (1, 4)])
def test_sequencer(queue: int, flight: int, simulator: str) -> None:
    run_bench(lambda: build(queue, flight), __name__, simulator=simulator)


@pytest.mark.parametrize("depths", [{"queue_depth": 0}, {"flight_depth": 8}])
def test_impossible_depths(depths: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=r"must lie in \[1, 7\]"):
        Sequencer(UNIT, **depths)
