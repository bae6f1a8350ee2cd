"""The control unit: everything between the host's START and the interrupt.

```
            +--------+ beats  +---------+ verdicts          entries  +-----------+
 program -->| fetch  |------->| check   |--------> dispatch -------->| sequencer |--> unit (four of each)
            +--------+        +---------+             |              +-----------+
                                                      v                    | waits, posts
            +--------+  settings, start        state of the run      +------------+
 host <---->| csr    |<--------------------->  errors, counters      | semaphores |
            +--------+                                               +------------+
```

A run goes through these states:

| state | what happens | leaves |
| --- | --- | --- |
| IDLE | nothing | START: counters, errors, semaphores and units are cleared |
| PROGRAM | address and length of the program are checked | to RUN, or to FINISH with an error |
| RUN | commands are fetched, checked, dispatched | END, a wrong command, the program's end: to FINISH |
| FINISH | what was dispatched runs to its end | all idle: interrupt, IDLE |
| STOP | one cycle: units drop their work | to DRAIN |
| DRAIN | the bus gives what it owes | all idle: interrupt, IDLE; the watchdog: interrupt, HUNG |
| HUNG | as DRAIN, but the run is over | all idle: IDLE |

PROGRAM, RUN and FINISH go to STOP when a unit fails, a semaphore overflows, the host aborts or the watchdog
strikes. Errors of checks are precise: all commands before are done, none after is begun. A bus error on a
fetch is an error of the command that it hit; what lies behind END or behind a wrong command does not count.
Errors of the run beat a pending error of a check, since they belong to earlier commands; ABORTED and WATCHDOG
do so when a command is unfinished. When units fail in the same cycle, the earlier command counts.
"""

from types import SimpleNamespace

from amaranth.hdl import Cat, Const, Module, Mux, ResetInserter, Signal, Value
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out, connect, flipped

from .check import CommandChecker, Verdict
from .config import NPUConfig
from .csr import RegisterBlock
from .fetch import ProgramFetch
from .interfaces import FIRST_PAYLOAD_WORD, AXI4Lite, AXI4Read, UnitPort
from .isa import COMMANDS, COUNTERS, CSR, ErrorCode, Opcode, Unit
from .semaphores import Semaphores
from .sequencer import TICKET_BITS, Sequencer

__all__ = ["ControlUnit", "event_layout"]


_STUCK_CYCLES = 16
"""Longer than any pause of LOAD and STORE between two commands."""
_TRANSFERS = (Unit.LOAD, Unit.STORE)


def event_layout(config: NPUConfig) -> data.StructLayout:
    """What units report for the performance counters, each cycle.

    Members:
        array_busy: a vector entered the array.
        waiting_output: a pass waits for room behind the array.
        waiting_weights: a pass of fewer than N vectors waits for its weights.
        bytes_read: payload bytes that LOAD took from the bus.
        bytes_written: bytes that STORE wrote.
    """
    return data.StructLayout(
        {
            "array_busy": 1,
            "waiting_output": 1,
            "waiting_weights": 1,
            "bytes_read": range(config.bus_bytes + 1),
            "bytes_written": range(config.bus_bytes + 1),
        }
    )


class ControlUnit(wiring.Component):
    """Runs programs on the four units.

    Arguments:
        config: the NPU's configuration.
        queue_depth: commands queued before each unit.
        flight_depth: commands that a unit may hold.

    Members:
        csr: the host's registers.
        fetch: command fetches, ID 1.
        irq: interrupt, a level.
        load, compute, output, store: the units. `clear` is high for one cycle: at each start, and when an
            error ends the run at once. From then on `done` and `fault` do not count, until the next start.
        events: for the counters.
        progress: one bit a unit, in the order of isa.Unit: it moved data. Keeps the watchdog quiet; commands,
            fetches and semaphores are seen here.
    """

    def __init__(self, config: NPUConfig, *, queue_depth: int = 4, flight_depth: int = 4) -> None:
        self._config = config
        self._depths = {"queue_depth": queue_depth, "flight_depth": flight_depth}
        super().__init__(
            {
                "csr": In(AXI4Lite()),
                "fetch": Out(AXI4Read(config.bus_width)),
                "irq": Out(1),
                "load": Out(UnitPort(Unit.LOAD)),
                "compute": Out(UnitPort(Unit.COMPUTE)),
                "output": Out(UnitPort(Unit.OUTPUT)),
                "store": Out(UnitPort(Unit.STORE)),
                "events": In(event_layout(config)),
                "progress": In(len(Unit)),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        config = self._config
        clear = Signal()  # checker, sequencers, semaphores
        stop_fetch = Signal()
        drop_work = Signal()

        m.submodules.registers = registers = RegisterBlock(config)
        m.submodules.fetch = fetch = ProgramFetch(config)
        checker = CommandChecker(config)
        m.submodules.checker = ResetInserter(clear)(checker)
        m.submodules.semaphores = semaphores = Semaphores()
        settings = registers.settings
        connect(m, flipped(self.csr), registers.bus)
        connect(m, flipped(self.fetch), fetch.port)
        connect(m, fetch.beats, checker.beats)
        m.d.comb += [
            self.irq.eq(registers.irq),
            fetch.address.eq(settings.program_address),
            fetch.size.eq(settings.program_bytes),
            fetch.clear.eq(stop_fetch),
            checker.settings.eq(settings),
            semaphores.clear.eq(clear),
        ]
        ports = {unit: getattr(self, unit.name.lower()) for unit in Unit}
        sequencers = {unit: Sequencer(unit, **self._depths) for unit in Unit}
        for unit, sequencer in sequencers.items():
            m.submodules[f"{unit.name.lower()}_sequencer"] = sequencer
            connect(m, sequencer.port, flipped(ports[unit]))
            connect(m, sequencer.semaphore, semaphores.ports[unit])
            m.d.comb += [sequencer.clear.eq(clear), sequencer.drop_work.eq(drop_work)]

        # Dispatch
        issued = Signal(32)  # commands that were dispatched: also the index of the next one
        verdict = checker.result.payload
        dispatch = Signal()  # the verdict is good, its command goes to a queue
        is_end = Signal()
        accepted = Signal()
        m.d.comb += is_end.eq(verdict.command[:8] == Opcode.END)
        _dispatch(m, verdict, sequencers, issued, dispatch, accepted)
        with m.If(accepted):
            m.d.sync += issued.eq(issued + 1)

        # Errors of the run
        failure = _failure(m, sequencers, ports, semaphores, issued)
        has_oldest, oldest = _oldest(m, sequencers, issued)

        # The run
        code, command, info = Signal(ErrorCode), Signal(32), Signal(32)
        done, error = Signal(), Signal()
        m.d.comb += [
            registers.done.eq(done),
            registers.error.eq(error),
            registers.error_code.eq(code),
            registers.error_command.eq(command),
            registers.error_info.eq(info),
        ]
        quiet = Signal()
        m.d.comb += quiet.eq(~(fetch.busy | Cat(port.busy for port in ports.values()).any()))
        empty = Cat(s.idle for s in sequencers.values()).all()
        expired = Signal()
        moving = (
            fetch.progress
            | checker.working
            | self.progress.any()
            | Cat(s.progress for s in sequencers.values()).any()
        )
        _watchdog(m, settings.watchdog, ~registers.busy | moving | accepted | drop_work, expired)

        def may_stop() -> None:
            """Errors of the run, in the states in which they may come."""
            with m.If(failure.valid):
                m.d.sync += [code.eq(failure.code), command.eq(failure.index), info.eq(failure.info)]
                m.next = "STOP"
            with m.Elif(registers.abort | expired):
                with m.If(has_oldest | (code == ErrorCode.NONE)):
                    m.d.sync += [
                        code.eq(Mux(registers.abort, ErrorCode.ABORTED, ErrorCode.WATCHDOG)),
                        command.eq(oldest),
                        info.eq(0),
                    ]
                m.next = "STOP"

        # Before a wrong command there may be a CONV whose OUTPUT never comes: if its sums are more than the
        # output buffer holds it never ends, and who waits for it neither. Short pauses do not count.
        stuck = Signal(range(_STUCK_CYCLES + 1))
        others = (
            ports[unit].busy | ~(sequencers[unit].idle | sequencers[unit].waiting) for unit in _TRANSFERS
        )
        resting = ~Cat(others).any() & ~ports[Unit.OUTPUT].busy & sequencers[Unit.OUTPUT].idle
        with m.If(resting & self.events.waiting_output & (code != ErrorCode.NONE)):
            m.d.sync += stuck.eq(stuck + (stuck != _STUCK_CYCLES))
        with m.Else():
            m.d.sync += stuck.eq(0)

        with m.FSM() as fsm:
            with m.State("IDLE"):
                with m.If(registers.start):
                    m.d.sync += [
                        done.eq(0),
                        error.eq(0),
                        code.eq(ErrorCode.NONE),
                        command.eq(0),
                        info.eq(0),
                        issued.eq(0),
                    ]
                    m.next = "BEGIN"
            with m.State("BEGIN"):
                m.next = "PROGRAM"
            with m.State("PROGRAM"):
                m.d.comb += checker.result.ready.eq(1)
                with m.If(checker.result.valid):
                    m.d.comb += fetch.start.eq(verdict.code == ErrorCode.NONE)
                    m.d.sync += code.eq(verdict.code)
                    m.next = "RUN"
                    with m.If(verdict.code != ErrorCode.NONE):
                        m.next = "FINISH"
                may_stop()
            with m.State("RUN"):
                with m.If(checker.result.valid):
                    with m.If((verdict.code != ErrorCode.NONE) | is_end):
                        m.d.comb += checker.result.ready.eq(1)
                        m.d.sync += [code.eq(verdict.code), info.eq(verdict.info)]
                        with m.If(verdict.code != ErrorCode.NONE):
                            m.d.sync += command.eq(issued)
                        m.next = "FINISH"
                    with m.Else():
                        m.d.comb += [dispatch.eq(1), checker.result.ready.eq(accepted)]
                with m.Elif(fetch.exhausted & checker.empty):
                    m.d.sync += [code.eq(ErrorCode.PROGRAM), command.eq(issued)]
                    m.next = "FINISH"
                may_stop()
            with m.State("FINISH"):
                with m.If(quiet & empty):
                    m.next = "IDLE"
                with m.Elif(stuck == _STUCK_CYCLES):
                    m.next = "STOP"
                with m.Else():
                    may_stop()
            with m.State("STOP"):
                m.next = "DRAIN"
            with m.State("DRAIN"):
                with m.If(quiet):
                    m.next = "IDLE"
                with m.Elif(expired):
                    m.next = "HUNG"
            with m.State("HUNG"):
                with m.If(quiet):
                    m.next = "IDLE"
        idle, finish, drain, hung = map(fsm.ongoing, ("IDLE", "FINISH", "DRAIN", "HUNG"))
        m.d.comb += [
            drop_work.eq((idle & registers.start) | fsm.ongoing("STOP")),
            clear.eq(drop_work | drain | hung),
            stop_fetch.eq(finish | fsm.ongoing("STOP") | drain | hung),
            checker.check_program.eq(fsm.ongoing("BEGIN")),
            registers.busy.eq(~(idle | hung)),
            registers.hung.eq(hung),
            registers.ended.eq((finish & quiet & empty) | (drain & (quiet | expired))),
        ]
        with m.If(registers.ended):
            m.d.sync += [done.eq(code == ErrorCode.NONE), error.eq(code != ErrorCode.NONE)]
        self._counters(m, registers, ports, sequencers, issued)
        return m

    def _counters(
        self,
        m: Module,
        registers: RegisterBlock,
        ports: dict[Unit, UnitPort],
        sequencers: dict[Unit, Sequencer],
        issued: Signal,
    ) -> None:
        """All stand still between runs. CYCLES counts the cycle of START too, COMMANDS does not count END."""
        events = self.events
        busy = {unit: port.busy for unit, port in ports.items()}
        stalled = sequencers[Unit.COMPUTE].waiting
        steps: dict[CSR, Value] = {
            CSR.CYCLES: Const(1),
            CSR.ARRAY_BUSY: events.array_busy,
            CSR.STALL_LOAD: stalled & busy[Unit.LOAD],
            CSR.STALL_OUTPUT: events.waiting_output | (stalled & ~busy[Unit.LOAD] & busy[Unit.OUTPUT]),
            CSR.STALL_STORE: stalled & ~busy[Unit.LOAD] & ~busy[Unit.OUTPUT] & busy[Unit.STORE],
            CSR.STALL_WEIGHTS: events.waiting_weights,
            CSR.BYTES_READ: events.bytes_read,
            CSR.BYTES_WRITTEN: events.bytes_written,
            CSR.OUTPUT_BUSY: busy[Unit.OUTPUT],
            CSR.LOAD_BUSY: busy[Unit.LOAD],
            CSR.STORE_BUSY: busy[Unit.STORE],
        }
        for i, csr in enumerate(COUNTERS):
            if csr is CSR.COMMANDS:
                m.d.comb += registers.counters[i].eq(issued)
                continue
            counter = Signal(32, name=csr.name.lower())
            m.d.comb += registers.counters[i].eq(counter)
            with m.If(registers.busy):
                m.d.sync += counter.eq(counter + steps[csr])
            with m.If(registers.start):
                m.d.sync += counter.eq(1 if csr is CSR.CYCLES else 0)


def _dispatch(
    m: Module,
    verdict: Verdict,
    sequencers: dict[Unit, Sequencer],
    issued: Signal,
    dispatch: Signal,
    accepted: Signal,
) -> None:
    """Offer the command to the queue of its unit; `accepted` when it took it."""
    opcode = verdict.command[:8]
    sync = opcode == Opcode.SYNC
    sync_unit = COMMANDS[Opcode.SYNC].by_name["unit"]
    semaphores = COMMANDS[Opcode.SYNC].by_name["wait0_semaphore"].bit
    target = Signal(Unit)
    with m.Switch(opcode):
        for spec in COMMANDS.values():
            if spec.unit is not None:
                with m.Case(spec.opcode):
                    m.d.comb += target.eq(spec.unit)
        with m.Case(Opcode.SYNC):
            m.d.comb += target.eq(verdict.command[sync_unit.bit : sync_unit.bit + sync_unit.width])
    for unit, sequencer in sequencers.items():
        entry = sequencer.entry.payload
        payload = entry.command
        start = 32 * FIRST_PAYLOAD_WORD
        m.d.comb += [
            sequencer.entry.valid.eq(dispatch & (target == unit)),
            entry.semaphores.eq(verdict.command[semaphores : semaphores + 32]),
            entry.sync.eq(sync),
            entry.ticket.eq(issued),
            payload.opcode.eq(opcode),
            payload.words.eq(verdict.command[start : start + len(payload.words)]),
        ]
        if unit is Unit.OUTPUT:
            m.d.comb += [
                payload.tile_height.eq(verdict.tile_height),
                payload.tile_width.eq(verdict.tile_width),
                payload.tile_blocks.eq(verdict.tile_blocks),
            ]
    m.d.comb += accepted.eq(Cat(s.entry.valid & s.entry.ready for s in sequencers.values()).any())


def _age(issued: Signal, ticket: Value) -> Value:
    """How many commands ago the command with this ticket was dispatched."""
    return (issued[:TICKET_BITS] - ticket)[:TICKET_BITS]


def _oldest(m: Module, sequencers: dict[Unit, Sequencer], issued: Signal) -> tuple[Value, Value]:
    """Whether a command is unfinished, and the index of the oldest; of the next to come if none is."""
    age = Signal(TICKET_BITS, name="oldest_age")
    ages: Value = Const(0, TICKET_BITS)
    for unit, s in sequencers.items():
        own = Signal(TICKET_BITS, name=f"{unit.name.lower()}_age")
        m.d.comb += own.eq(Mux(s.has_oldest, _age(issued, s.oldest), 0))
        ages = Mux(own > ages, own, ages)
    m.d.comb += age.eq(ages)
    return age != 0, (issued - age)[:32]


def _failure(
    m: Module,
    sequencers: dict[Unit, Sequencer],
    ports: dict[Unit, UnitPort],
    semaphores: Semaphores,
    issued: Signal,
) -> SimpleNamespace:
    """The error of the run in this cycle, of several that of the earliest command."""
    out = SimpleNamespace(valid=Signal(), index=Signal(32), code=Signal(ErrorCode), info=Signal(32))
    age = Signal(TICKET_BITS, name="failure_age")
    posting = Signal(TICKET_BITS)
    with m.Switch(semaphores.unit):
        for unit, s in sequencers.items():
            with m.Case(unit):
                m.d.comb += posting.eq(s.post_ticket)
    best: Value = Const(0, TICKET_BITS)
    code: Value = Const(0, 4)
    info: Value = Const(0, 32)
    for unit in Unit:
        port = ports[unit]
        own = Signal(TICKET_BITS, name=f"{unit.name.lower()}_fault_age")
        m.d.comb += own.eq(Mux(port.fault, _age(issued, sequencers[unit].fault_ticket), 0))
        older = own > best
        best, code, info = (
            Mux(older, own, best),
            Mux(older, port.fault_code, code),
            Mux(older, port.fault_info, info),
        )
    own = Signal(TICKET_BITS, name="overflow_age")
    m.d.comb += own.eq(Mux(semaphores.overflow, _age(issued, posting), 0))
    older = own > best
    m.d.comb += [
        age.eq(Mux(older, own, best)),
        out.valid.eq(age != 0),
        out.index.eq(issued - age),
        out.code.eq(Mux(older, ErrorCode.SEMAPHORE, code)),
        out.info.eq(Mux(older, semaphores.semaphore, info)),
    ]
    return out


def _watchdog(m: Module, limit: Value, moving: Value, expired: Signal) -> None:
    """`expired` after `limit` cycles without `moving`; never if `limit` is 0."""
    idle = Signal(32, name="idle_cycles")
    m.d.comb += expired.eq((limit != 0) & (idle == limit))
    with m.If(moving):
        m.d.sync += idle.eq(0)
    with m.Else():
        m.d.sync += idle.eq(idle + 1)
