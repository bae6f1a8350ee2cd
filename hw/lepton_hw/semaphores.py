"""The 16 counting semaphores, shared by four sequencers: one operation a cycle."""

from __future__ import annotations

from amaranth.hdl import Module, Mux, Signal
from amaranth.lib import wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

from .config import SEMAPHORES
from .isa import Unit

__all__ = ["SemaphorePort", "Semaphores"]

_BITS = 8


class SemaphorePort(wiring.Signature):
    """One sequencer's way to the semaphores, seen from the sequencer.

    Members:
        request: do this operation; held until `grant`.
        post: add `count` to `semaphore`; else a wait: take `count` away when there is as much.
        grant: the operation is done in this cycle. A wait that must wait longer is not granted.
    """

    def __init__(self) -> None:
        super().__init__(
            {
                "request": Out(1),
                "post": Out(1),
                "semaphore": Out(range(SEMAPHORES)),
                "count": Out(4),
                "grant": In(1),
            }
        )


class Semaphores(wiring.Component):
    """Semaphore memory with a round-robin arbiter.

    Every request is looked at once in at most four cycles: also one that waits cannot starve the post that it
    waits for. Clearing takes 16 cycles, in which nothing is granted; a reset does the same.

    Members:
        ports: one a unit, in the order of isa.Unit.
        clear: set all to 0.
        overflow: a post went past 255 (one cycle; the semaphore's value is lost).
        unit: whose operation this cycle's is; with `semaphore`, for `overflow`.
    """

    def __init__(self) -> None:
        super().__init__(
            {
                "ports": In(SemaphorePort()).array(len(Unit)),
                "clear": In(1),
                "overflow": Out(1),
                "unit": Out(Unit),
                "semaphore": Out(range(SEMAPHORES)),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.submodules.memory = memory = Memory(shape=_BITS, depth=SEMAPHORES, init=[])
        write = memory.write_port()
        read = memory.read_port(domain="comb")

        unit = Signal(range(len(Unit)))
        request = Signal()
        last = Signal(range(len(Unit)))
        with m.Switch(last):
            for i in range(len(Unit)):
                with m.Case(i):
                    # The one after `last` first; `last` itself when nobody else asks.
                    m.d.comb += unit.eq(i)
                    for j in reversed(range(1, len(Unit))):
                        other = (i + j) % len(Unit)
                        with m.If(self.ports[other].request):
                            m.d.comb += unit.eq(other)

        post = Signal()
        count = Signal(4)
        grant = Signal()
        with m.Switch(unit):
            for i in range(len(Unit)):
                with m.Case(i):
                    port = self.ports[i]
                    m.d.comb += [
                        request.eq(port.request),
                        post.eq(port.post),
                        self.semaphore.eq(port.semaphore),
                        count.eq(port.count),
                        port.grant.eq(grant),
                    ]

        cleared = Signal(range(SEMAPHORES + 1))
        ready = cleared == SEMAPHORES
        value = Signal(_BITS + 1)
        m.d.comb += [
            self.unit.eq(unit),
            read.addr.eq(self.semaphore),
            value.eq(Mux(post, read.data + count, read.data - count)),
            # The ninth bit is the carry of a post, or the borrow of a wait.
            grant.eq(ready & request & (post | ~value[_BITS])),
            self.overflow.eq(grant & post & value[_BITS]),
            write.addr.eq(Mux(ready, self.semaphore, cleared)),
            write.data.eq(Mux(ready, value, 0)),
            write.en.eq(grant | ~ready),
        ]
        with m.If(request & ready):
            m.d.sync += last.eq(unit)
        with m.If(~ready):
            m.d.sync += cleared.eq(cleared + 1)
        with m.If(self.clear):
            m.d.sync += cleared.eq(0)
        return m
