"""One unit's command queue: waits, issue, bookkeeping of what is in flight, posts.

```
              wait0, wait1          accepted                 done
entry -> queue ----------> unit.command ------> in flight ----------> post0, post1
              (SYNC goes past the unit) ------------^
```

Posts are given in program order: those of a SYNC wait for the commands before it.
"""

from __future__ import annotations

from amaranth.hdl import Cat, Module, Mux, ResetInserter, Signal, Value
from amaranth.lib import data, stream, wiring
from amaranth.lib.fifo import SyncFIFO
from amaranth.lib.wiring import In, Out

from .interfaces import UnitPort, command_layout
from .isa import Unit
from .semaphores import SemaphorePort

__all__ = ["TICKET_BITS", "Sequencer", "entry_layout"]

TICKET_BITS = 6
"""Low bits of a command's index that stay with it. The whole index follows from them as long as fewer than
2**TICKET_BITS commands are under way (queues and in-flight lists of the four units together)."""


def entry_layout(unit: Unit) -> data.StructLayout:
    """A checked command on its way to a unit: its semaphores (word 1), ticket and what the unit gets."""
    return data.StructLayout(
        {
            "semaphores": 32,
            "sync": 1,
            "ticket": TICKET_BITS,
            "command": command_layout(unit),
        }
    )


_OPERATION = data.StructLayout({"semaphore": 4, "count": 4})
_SEMAPHORES = data.StructLayout({name: _OPERATION for name in ("wait0", "wait1", "post0", "post1")})
_FLIGHT = data.StructLayout({"posts": 16, "sync": 1, "ticket": TICKET_BITS})


class Sequencer(wiring.Component):
    """Takes checked commands in order and sees them through.

    Arguments:
        unit: whose commands these are.
        queue_depth: commands that wait here.
        flight_depth: commands that the unit may hold, with those whose posts are due.

    Members:
        entry: the next command.
        port: to the unit; `port.clear` follows `drop_work`.
        semaphore: to the semaphores.
        clear: drop everything; held as long as the unit's answers are not to count.
        drop_work: tell the unit to drop its work (one cycle).
        idle: nothing queued, nothing in flight, no post due.
        waiting: the command at the head lacks a semaphore.
        oldest, has_oldest: ticket of the oldest command that is not finished.
        fault_ticket: ticket of the oldest command that the unit has not done (meaningful with port.fault).
        post_ticket: ticket of the command whose posts are due.
        progress: a command was issued or done, or a semaphore operation was made.
    """

    def __init__(self, unit: Unit, *, queue_depth: int = 4, flight_depth: int = 4) -> None:
        for name, depth in (("queue_depth", queue_depth), ("flight_depth", flight_depth)):
            if not 1 <= depth <= (1 << TICKET_BITS) // (2 * len(Unit)) - 1:
                raise ValueError(f"{name} must lie in [1, 7] (tickets have {TICKET_BITS} bits), not {depth}")
        self._queue_depth = queue_depth
        self._flight_depth = flight_depth
        super().__init__(
            {
                "entry": In(stream.Signature(entry_layout(unit))),
                "port": Out(UnitPort(unit)),
                "semaphore": Out(SemaphorePort()),
                "clear": In(1),
                "drop_work": In(1),
                "idle": Out(1),
                "waiting": Out(1),
                "oldest": Out(TICKET_BITS),
                "has_oldest": Out(1),
                "fault_ticket": Out(TICKET_BITS),
                "post_ticket": Out(TICKET_BITS),
                "progress": Out(1),
            }
        )
        self._entry = self.entry.payload.shape()

    def elaborate(self, platform: object) -> Module:
        m = Module()

        def fifo(width: int, depth: int) -> SyncFIFO:
            return SyncFIFO(width=width, depth=depth)

        clear = ResetInserter(self.clear)
        queue = fifo(self._entry.size, self._queue_depth)
        flight = fifo(_FLIGHT.size, self._flight_depth)
        tickets = fifo(TICKET_BITS, self._flight_depth)  # of what the unit has not done
        m.submodules.queue, m.submodules.flight, m.submodules.tickets = map(clear, (queue, flight, tickets))

        # The head: waits, one after the other, then the unit.
        head = data.View(self._entry, queue.r_data)
        operations = data.View(_SEMAPHORES, Value.cast(head.semaphores))
        m.d.comb += [
            Value.cast(queue.w_data).eq(self.entry.payload),
            queue.w_en.eq(self.entry.valid),
            self.entry.ready.eq(queue.w_rdy),
        ]
        took0, took1 = Signal(), Signal()
        lacks0 = ~took0 & (operations.wait0.count != 0)
        lacks1 = ~took1 & (operations.wait1.count != 0)
        satisfied = queue.r_rdy & ~lacks0 & ~lacks1
        room = flight.w_rdy
        issue = Signal()
        entry = data.View(_FLIGHT, flight.w_data)
        m.d.comb += [
            self.waiting.eq(queue.r_rdy & (lacks0 | lacks1)),
            Value.cast(self.port.command.payload).eq(head.command),
            self.port.command.valid.eq(satisfied & room & ~head.sync),
            issue.eq(satisfied & room & (head.sync | self.port.command.ready)),
            queue.r_en.eq(issue),
            flight.w_en.eq(issue),
            entry.posts.eq(Cat(operations.post0, operations.post1)),
            entry.sync.eq(head.sync),
            entry.ticket.eq(head.ticket),
            tickets.w_en.eq(issue & ~head.sync),
            tickets.w_data.eq(head.ticket),
            tickets.r_en.eq(self.port.done),
            self.fault_ticket.eq(tickets.r_data),
            self.port.clear.eq(self.drop_work),
        ]

        # The oldest in flight: posts, when the unit is through with it.
        done = Signal(range(self._flight_depth + 1))  # done by the unit, posts due
        first = data.View(_FLIGHT, flight.r_data)
        post0, post1 = (data.View(_OPERATION, first.posts.word_select(i, 8)) for i in range(2))
        gave0, gave1 = Signal(), Signal()
        owes0 = ~gave0 & (post0.count != 0)
        owes1 = ~gave1 & (post1.count != 0)
        due = flight.r_rdy & (first.sync | (done != 0))
        posting = due & (owes0 | owes1)
        finish = Signal()
        m.d.comb += [
            # Both owed: one grant is not enough.
            finish.eq(due & ((self.semaphore.grant & ~(owes0 & owes1)) | (~owes0 & ~owes1))),
            flight.r_en.eq(finish),
            self.post_ticket.eq(first.ticket),
        ]
        m.d.sync += done.eq(done + self.port.done - (finish & ~first.sync))

        # Posts go first: others may wait for them.
        operation = data.View(
            _OPERATION,
            Mux(
                posting,
                Mux(owes0, Value.cast(post0), Value.cast(post1)),
                Mux(lacks0, Value.cast(operations.wait0), Value.cast(operations.wait1)),
            ),
        )
        m.d.comb += [
            self.semaphore.request.eq(posting | self.waiting),
            self.semaphore.post.eq(posting),
            self.semaphore.semaphore.eq(operation.semaphore),
            self.semaphore.count.eq(operation.count),
        ]
        with m.If(self.semaphore.grant):
            with m.If(posting):
                m.d.sync += [gave0.eq(1), gave1.eq(~owes0)]
            with m.Else():
                m.d.sync += [took0.eq(1), took1.eq(~lacks0)]
        with m.If(finish):
            m.d.sync += [gave0.eq(0), gave1.eq(0)]
        with m.If(issue):
            m.d.sync += [took0.eq(0), took1.eq(0)]
        with m.If(self.clear):
            m.d.sync += [took0.eq(0), took1.eq(0), gave0.eq(0), gave1.eq(0), done.eq(0)]

        m.d.comb += [
            self.idle.eq(~queue.r_rdy & ~flight.r_rdy),
            self.has_oldest.eq(~self.idle),
            self.oldest.eq(Mux(flight.r_rdy, first.ticket, head.ticket)),
            self.progress.eq(issue | self.port.done | self.semaphore.grant),
        ]
        return m
