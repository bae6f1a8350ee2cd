"""The control unit with models of the four units: whole runs from START to the interrupt."""

from __future__ import annotations

import os
from typing import Any

import cocotb
import pytest
from cocotb.triggers import RisingEdge
from cocotbext.axi import AxiResp

from axi_memory import Direction, Fault
from bench import run_bench
from command_source import CommandSource, verdict
from fake_units import FakeUnit, Plan, control_bench
from lepton_hw.config import preset
from lepton_hw.isa import (
    COMMAND_BYTES,
    CSR,
    Checker,
    Command,
    CommandError,
    Control,
    ErrorCode,
    Opcode,
    Status,
    Unit,
    encode,
    unit_of,
)
from npu_driver import NpuDriver, Outcome
from stimulus import rng, start

END = Command(Opcode.END)
MEMORY = 1 << 16


class Bench:
    """Driver, memory and the four models."""

    def __init__(self, dut: Any, *, latency: int = 4) -> None:
        self.dut = dut
        self.config = preset(os.environ["CONFIG"])
        self.random = rng()
        dut.events.value = 0
        dut.progress.value = 0
        self.npu = NpuDriver(dut, memory_bytes=MEMORY, latency=latency)
        self.units = {unit: FakeUnit(dut, unit, rng(unit.name)) for unit in Unit}
        for unit in self.units.values():
            unit.start()
        self.windows = ((0, MEMORY - 1), (0, MEMORY - 1))

    async def start(self) -> None:
        await start(self.dut)

    def plan(self, **plan: Any) -> None:
        """The same plan for all units."""
        for unit in self.units.values():
            unit.plan = Plan(**plan)

    def checker(self) -> Checker:
        return Checker(self.config, *self.windows)

    def program(self, length: int) -> list[Command]:
        """Correct commands; posts before them meet their waits, and one unit waits on each semaphore."""
        r = self.random
        checker = self.checker()
        source = CommandSource(self.config, *self.windows, r)
        commands = [source.correct(checker) for _ in range(length)]
        while checker.tile is not None:
            commands.append(source.correct(checker))
        posted = [0] * 16
        level = [0] * 16
        for command in commands:
            unit = unit_of(command)
            assert unit is not None
            for slot in ("wait0", "wait1"):
                semaphore = 4 * r.randrange(4) + unit
                count = min(level[semaphore], r.choice((0, 1, 2, 15)))
                level[semaphore] -= count
                command.values |= {f"{slot}_semaphore": semaphore, f"{slot}_count": count}
            for slot in ("post0", "post1"):
                semaphore = r.randrange(16)
                count = r.choice((0, 0, 1, 2, 15))
                count = count if posted[semaphore] + count <= 255 else 0
                posted[semaphore] += count
                level[semaphore] += count
                command.values |= {f"{slot}_semaphore": semaphore, f"{slot}_count": count}
        return commands

    async def run(self, program: bytes, **arguments: Any) -> Outcome:
        """A run; the program lies anywhere in the first 4 KiB pages."""
        address = 64 * self.random.randrange(150)
        self.npu.memory.clear_log() if not arguments.pop("keep_faults", False) else None
        return await self.npu.run(program, address=address, **arguments)

    def check_finished(
        self, outcome: Outcome, commands: list[Command], error: CommandError | None = None
    ) -> None:
        """All `commands` went through their units, once, in order, in time; the run ended with `error`."""
        if error is None:
            assert (outcome.status, outcome.error) == (Status.DONE, ErrorCode.NONE), outcome
            assert (outcome.command, outcome.info) == (0, 0), outcome
        else:
            assert outcome.status == Status.ERROR, outcome
            assert (outcome.error, outcome.info) == (error.code, error.info), (outcome, error)
            assert outcome.command == len(commands), outcome
        assert outcome.counters[CSR.COMMANDS] == len(commands)
        self.check_taken(commands, complete=True)
        for unit in (Unit.LOAD, Unit.OUTPUT, Unit.STORE):
            counter = CSR[f"{unit.name}_BUSY"]
            assert outcome.counters[counter] == self.units[unit].busy_cycles, unit

    def check_taken(self, commands: list[Command], *, complete: bool) -> None:
        """What the units took is what the program says, and no command ran ahead of its semaphores."""
        expected: dict[Unit, list[dict[str, int]]] = {unit: [] for unit in Unit}
        where: dict[int, tuple[Unit, int]] = {}  # command: unit and number there
        checker = self.checker()
        for i, command in enumerate(commands):
            unit, tile = unit_of(command), checker.tile
            assert checker.check(command) is None
            assert unit is not None
            if command.opcode is Opcode.SYNC:
                continue
            raw = int.from_bytes(encode([command]), "little")
            payload = {"opcode": command.opcode, "words": raw >> 64}
            if unit is Unit.OUTPUT:
                names = ("height", "width", "blocks")
                payload |= {f"tile_{name}": getattr(tile, name) if tile else 0 for name in names}
            where[i] = (unit, len(expected[unit]))
            expected[unit].append(payload)
        for unit, model in self.units.items():
            got = [payload for _, payload in model.taken]
            for payload, wanted in zip(got, expected[unit], strict=complete):
                if wanted["opcode"] not in (Opcode.OUTPUT,) and unit is Unit.OUTPUT:
                    wanted = {**payload, **{k: wanted[k] for k in ("opcode", "words")}}
                assert payload == wanted, unit
            if complete:
                assert len(model.done) == len(expected[unit]), unit
        # Semaphores: what a command and those before it in its unit took away had been posted by then.
        ends = {unit: model.done for unit, model in self.units.items()}
        done = {i: ends[unit][n] for i, (unit, n) in where.items() if n < len(ends[unit])}
        for i, command in enumerate(commands):
            if command.opcode is Opcode.SYNC:
                before = [done.get(j) for j in range(i) if j in where and where[j][0] is unit_of(command)]
                if None not in before:
                    done[i] = max((t for t in before if t is not None), default=0)
        for i, (unit, n) in where.items():
            if n >= len(self.units[unit].taken):
                continue
            now = self.units[unit].taken[n][0]
            for semaphore in range(unit, 16, 4):
                taken = sum(_count(c, "wait", semaphore) for c in commands[: i + 1] if unit_of(c) is unit)
                given = sum(_count(commands[j], "post", semaphore) for j, t in done.items() if t < now)
                assert taken <= given, (i, semaphore)

    async def good_run(self) -> None:
        """What a run was before must not matter."""
        self.plan()
        commands = self.program(self.random.randint(1, 12))
        self.check_finished(await self.run(encode([*commands, END])), commands)


def _count(command: Command, kind: str, semaphore: int) -> int:
    values = command.values
    return sum(values[f"{kind}{i}_count"] for i in range(2) if values[f"{kind}{i}_semaphore"] == semaphore)


async def bench(dut: Any, **arguments: Any) -> Bench:
    out = Bench(dut, **arguments)
    await out.start()
    return out


@cocotb.test()
async def runs_programs(dut: Any) -> None:
    """Random programs back to back, with back-pressure on the buses, quick and slow units."""
    b = await bench(dut)
    for i in range(int(os.environ["RUNS"])):
        b.npu.stall(b.random.choice((0, 0.2, 0.6)))
        b.npu.memory.latency = b.random.choice((0, 3, 30))
        for unit in b.units.values():
            unit.plan = Plan(accept=b.random.choice((0.1, 0.7, 1)), longest=b.random.choice((0, 4, 40)))
        commands = b.program(b.random.choice((0, 1, 3, 20, 40)))
        behind = b.random.randbytes(COMMAND_BYTES * b.random.randrange(20))
        outcome = await b.run(encode([*commands, END]) + behind)
        b.check_finished(outcome, commands)
        dut._log.info("run %d: %d commands, %d cycles", i, len(commands), outcome.counters[CSR.CYCLES])
    await b.npu.finish()


@cocotb.test()
async def check_errors_are_precise(dut: Any) -> None:
    """A wrong command anywhere: all before it is done, nothing after it is begun."""
    b = await bench(dut)
    seen = set()
    for _ in range(int(os.environ["RUNS"])):
        commands = b.program(b.random.randrange(20))
        cut = b.random.randint(0, len(commands))
        checker = b.checker()
        for command in commands[:cut]:
            checker.check(command)
        source = CommandSource(b.config, *b.windows, b.random)
        while True:
            raw = source.any_raw(checker)
            tile = checker.tile
            error = verdict(raw, checker)
            checker.tile = tile
            if error is not None:
                break
        program = encode(commands[:cut]) + raw + encode([*commands[cut:], END])
        b.check_finished(await b.run(program), commands[:cut], error)
        seen.add(error.code)
    assert len(seen) >= min(4, int(os.environ["RUNS"]) // 2), seen
    await b.good_run()
    await b.npu.finish()


@cocotb.test()
async def program_errors(dut: Any) -> None:
    """No END, and programs that may not be fetched at all: not one read leaves for those."""
    b = await bench(dut)
    for length in (1, 2, 3, 9, 17):
        commands = b.program(length)
        error = CommandError(ErrorCode.PROGRAM)
        b.check_finished(await b.run(encode(commands)), commands, error)
    npu = b.npu
    commands = b.program(3)
    raw = encode([*commands, END])
    for address, size, window in (
        (32, len(raw), (0, MEMORY - 1)),
        (64, len(raw) + 4, (0, MEMORY - 1)),
        (64, 0, (0, MEMORY - 1)),
        (0, len(raw), (64, MEMORY - 1)),
        (64, len(raw), (0, 64 + len(raw) - 2)),
        (64, len(raw), (1, 0)),
        (0xFFFF_FFC0, 128, (0, 0xFFFF_FFFF)),
    ):
        npu.memory.clear_log()
        npu.memory.write(64, raw)
        await npu.open_windows(window, (1, 0))
        await npu.write_csr(CSR.PROGRAM_ADDRESS, address)
        await npu.write_csr(CSR.PROGRAM_BYTES, size)
        await npu.write_csr(CSR.CONTROL, Control.START)
        await npu.wait_interrupt(timeout_cycles=1000)
        outcome = await npu.outcome()
        b.check_finished(outcome, [], CommandError(ErrorCode.PROGRAM))
        assert not npu.memory.bursts, (address, size, window)
    await npu.run(raw, address=64, read_window=(64, 64 + len(raw) - 1))  # fits exactly
    assert all(x.address >= 64 and x.beat_address(x.beats) <= 64 + len(raw) for x in npu.memory.bursts)
    await b.good_run()
    await b.npu.finish()


@cocotb.test()
async def fetch_errors(dut: Any) -> None:
    """SLVERR and DECERR on every part of a program: the command that it hit is at fault; none behind END."""
    b = await bench(dut)
    commands = b.program(6)
    for i in range(len(commands) + 3):
        response = b.random.choice((AxiResp.SLVERR, AxiResp.DECERR))
        address = 64 * b.random.randrange(150)
        b.npu.memory.clear_log()
        b.npu.memory.inject(
            Fault(Direction.READ, response, address=address + COMMAND_BYTES * i + 4 * b.random.randrange(16))
        )
        raw = encode([*commands, END]) + bytes(COMMAND_BYTES * 2)
        outcome = await b.npu.run(raw, address=address)
        if i > len(commands):
            b.check_finished(outcome, commands)
        else:
            b.check_finished(outcome, commands[:i], CommandError(ErrorCode.FETCH_BUS, int(response)))
    await b.good_run()
    await b.npu.finish()


@cocotb.test()
async def unit_faults(dut: Any) -> None:
    """A unit fails: the run stops at once, after the bus has given what it owes."""
    b = await bench(dut)
    hit = 0
    for _ in range(int(os.environ["RUNS"])):
        commands = b.program(b.random.randint(4, 25))
        unit = b.random.choice((Unit.LOAD, Unit.STORE))
        own = [i for i, c in enumerate(commands) if unit_of(c) is unit and c.opcode is not Opcode.SYNC]
        if not own:
            continue
        number = b.random.randrange(len(own))
        fault = (b.random.choice((ErrorCode.READ_BUS, ErrorCode.WRITE_BUS)), b.random.randrange(1 << 32))
        b.plan(drain=b.random.choice((0, 5, 60)), longest=b.random.choice((4, 30)))
        b.units[unit].plan.fail_at, b.units[unit].plan.fault = number, fault
        # A wrong command behind: its error must not win.
        raw = encode(commands) + (encode([END]) if b.random.randrange(2) else bytes(COMMAND_BYTES))
        clears = [len(u.clears) for u in b.units.values()]
        outcome = await b.run(raw)
        assert outcome.status == Status.ERROR, outcome
        assert (outcome.error, outcome.info) == fault, outcome
        assert outcome.command == own[number], (outcome, own, number)
        assert [len(u.clears) for u in b.units.values()] == [n + 2 for n in clears]
        hit += 1
        if b.random.randrange(3) == 0:
            await b.good_run()
    assert hit
    await b.npu.finish()


@cocotb.test()
async def earlier_fault_wins(dut: Any) -> None:
    """Two units fail in the same cycle."""
    b = await bench(dut)
    checker = b.checker()
    source = CommandSource(b.config, *b.windows, b.random)

    def fresh(opcode: Opcode) -> Command:
        while True:
            command = source.plausible(opcode)
            command.values |= {n: 0 for n in command.values if n.startswith(("wait", "post"))}
            if checker.check(command) is None:
                return command

    # The second command starts some cycles after the first: with growing delays the first ends before it, in
    # the same cycle, after it.
    for first, second in ((Unit.LOAD, Unit.STORE), (Unit.STORE, Unit.LOAD)):
        seen = set()
        for delay in range(60, 110):
            for unit, cycles in ((first, delay), (second, 60)):
                b.units[unit].plan = Plan(
                    accept=1, shortest=cycles, longest=cycles, fail_at=0, fault=(ErrorCode.READ_BUS, unit)
                )
                b.units[unit].faults.clear()
            outcome = await b.run(encode([fresh(Opcode[first.name]), fresh(Opcode[second.name]), END]))
            assert outcome.error is ErrorCode.READ_BUS
            ends = [min(b.units[unit].faults, default=1 << 32) for unit in (first, second)]
            assert outcome.command == (0 if ends[0] <= ends[1] else 1), (outcome, ends)
            assert outcome.info == (first, second)[outcome.command]
            seen.add((ends[0] > ends[1]) - (ends[0] < ends[1]))
        assert seen == {-1, 0, 1}, seen
    await b.good_run()
    await b.npu.finish()


@cocotb.test()
async def semaphore_overflow(dut: Any) -> None:
    """255 is the most that a semaphore holds; the post beyond is an error of its command."""
    b = await bench(dut)
    for extra in (0, 1, 2):
        for unit in Unit:
            posts = [Command(Opcode.SYNC, unit=unit, post0_semaphore=9, post0_count=15) for _ in range(17)]
            more = Command(Opcode.SYNC, unit=unit, post0_count=1, post1_semaphore=9, post1_count=extra)
            outcome = await b.run(encode([*posts, more, Command(Opcode.SYNC, unit=unit), END]))
            if extra:
                assert (outcome.status, outcome.error) == (Status.ERROR, ErrorCode.SEMAPHORE), outcome
                assert (outcome.command, outcome.info) == (17, 9), outcome
            else:
                assert outcome.error is ErrorCode.NONE, outcome
    await b.good_run()
    await b.npu.finish()


@cocotb.test()
async def watchdog(dut: Any) -> None:
    """A unit that never ends, and waits that nobody meets; a slow run with progress is left alone."""
    b = await bench(dut)
    for _ in range(6):
        commands = b.program(12)
        unit = unit_of(commands[b.random.randrange(12)])
        assert unit is not None
        own = [i for i, c in enumerate(commands) if unit_of(c) is unit and c.opcode is not Opcode.SYNC]
        if not own:
            continue
        b.plan(drain=3)
        b.units[unit].plan.hang_at = b.random.randrange(len(own))
        outcome = await b.run(encode([*commands, END]), watchdog=200, timeout_cycles=5000)
        assert (outcome.status, outcome.error) == (Status.ERROR, ErrorCode.WATCHDOG), outcome
        # What is unfinished: the command that hangs; before it at most some that wait for one behind it.
        assert outcome.command == own[b.units[unit].plan.hang_at], outcome
        await b.good_run()
    lost = [Command(Opcode.SYNC), Command(Opcode.SYNC, unit=2, wait0_semaphore=1, wait0_count=1), END]
    outcome = await b.run(encode(lost), watchdog=100, timeout_cycles=1000)
    assert (outcome.error, outcome.command) == (ErrorCode.WATCHDOG, 1), outcome
    # Nothing moves for longer than the watchdog allows, but the unit says that it does.
    dut.progress.value = 1
    b.plan(shortest=300, longest=300)
    commands = b.program(6)
    b.check_finished(await b.run(encode([*commands, END]), watchdog=50), commands)
    dut.progress.value = 0
    # Off: the same without a word from the unit.
    b.check_finished(await b.run(encode([*commands, END]), watchdog=0), commands)
    await b.good_run()
    await b.npu.finish()


@cocotb.test()
async def bus_hung(dut: Any) -> None:
    """The bus does not give what it owes: the run ends all the same; no new one before it has."""
    b = await bench(dut)
    npu = b.npu
    for owing in ("fetch", *Unit):
        if owing == "fetch":
            npu.memory.hold("r")
            commands = b.program(3)
        else:
            b.units[owing].plan = Plan(hang_at=0, drain=None)
            commands = []
            while not any(unit_of(c) is owing and c.opcode is not Opcode.SYNC for c in commands):
                commands = b.program(30)
        outcome = await b.run(encode([*commands, END]), watchdog=100, timeout_cycles=3000)
        assert outcome.status == Status.ERROR | Status.BUS_HUNG, outcome
        assert outcome.error is ErrorCode.WATCHDOG, outcome
        if owing == "fetch":
            assert outcome.command == 0, outcome
        assert await npu.write_csr_raw(CSR.CONTROL, Control.START) is AxiResp.SLVERR
        assert (await npu.read_csr(CSR.STATUS)) & Status.BUS_HUNG
        assert await npu.write_csr_raw(CSR.WATCHDOG, 7) is AxiResp.OKAY
        if owing == "fetch":
            npu.memory.release("r")
        else:
            b.units[owing].release = True
        for _ in range(100):
            if not (await npu.read_csr(CSR.STATUS)) & Status.BUS_HUNG:
                break
        assert await npu.read_csr(CSR.STATUS) == Status.ERROR
        assert await npu.read_csr(CSR.IRQ_PENDING) == 0
        for unit in b.units.values():
            unit.release = False
        await b.good_run()
    await b.npu.finish()


@cocotb.test()
async def abort(dut: Any) -> None:
    """ABORT at any time; also when the fetch waits for the bus."""
    b = await bench(dut)
    npu = b.npu
    ended = 0
    for _ in range(int(os.environ["RUNS"])):
        commands = b.program(20)
        b.plan(drain=b.random.choice((0, 30)))
        b.units[Unit.LOAD].plan.hang_at = b.random.choice((None, 1))
        await npu.launch(encode([*commands, END]), address=64)
        for _ in range(b.random.randrange(500)):
            await RisingEdge(dut.clk)
        await npu.write_csr(CSR.CONTROL, Control.ABORT)
        await npu.wait_interrupt(timeout_cycles=1000)
        outcome = await npu.outcome()
        if outcome.error is ErrorCode.NONE:
            b.check_finished(outcome, commands)
            ended += 1
        else:
            assert (outcome.status, outcome.error) == (Status.ERROR, ErrorCode.ABORTED), outcome
            assert outcome.info == 0, outcome
            assert outcome.command <= outcome.counters[CSR.COMMANDS] <= len(commands)
        await b.good_run()
    assert ended < int(os.environ["RUNS"])
    # Which command: all but the one that hangs have had time to end.
    for position in range(5):
        loads = [Command(Opcode.LOAD, address=64 * i) for i in range(position + 1)]
        b.plan()
        b.units[Unit.LOAD].plan.hang_at = position
        before = [Command(Opcode.SYNC, unit=i % 4) for i in range(9)]
        commands = [*before, *loads, Command(Opcode.SYNC, unit=3)]
        await npu.launch(encode([*commands, END]), address=64)
        for _ in range(1500):
            await RisingEdge(dut.clk)
        await npu.write_csr(CSR.CONTROL, Control.ABORT)
        await npu.wait_interrupt(timeout_cycles=100)
        outcome = await npu.outcome()
        assert (outcome.error, outcome.command) == (ErrorCode.ABORTED, 9 + position), outcome
    npu.memory.hold("r")
    await npu.launch(encode([END]), address=64)
    for _ in range(50):
        await RisingEdge(dut.clk)
    await npu.write_csr(CSR.CONTROL, Control.ABORT)
    for _ in range(50):
        await RisingEdge(dut.clk)
    assert await npu.read_csr(CSR.STATUS) == Status.BUSY
    npu.memory.release("r")
    await npu.wait_interrupt(timeout_cycles=1000)
    outcome = await npu.outcome()
    assert (outcome.error, outcome.command) == (ErrorCode.ABORTED, 0), outcome
    await b.good_run()
    await b.npu.finish()


@cocotb.test()
async def reset_in_mid_run(dut: Any) -> None:
    """A reset at any cycle, then a correct run."""
    b = await bench(dut)
    for _ in range(int(os.environ["RUNS"])):
        b.plan()
        b.npu.stall(0.2)
        await b.npu.launch(encode([*b.program(20), END]), address=640)
        for _ in range(b.random.randrange(600)):
            await RisingEdge(dut.clk)
        await b.npu.reset()
        b.npu.stall(0)
        assert await b.npu.read_csr(CSR.STATUS) == 0
        assert await b.npu.read_csr(CSR.READ_FIRST) == 1
        await b.good_run()
    await b.npu.finish()


@cocotb.test()
async def settings_are_fixed_during_a_run(dut: Any) -> None:
    """Writes that a run refuses have no effect on it."""
    b = await bench(dut)
    b.plan(shortest=100, longest=100)
    commands = b.program(8)
    npu = b.npu
    await npu.launch(encode([*commands, END]), address=128)
    windows = (CSR.READ_FIRST, CSR.READ_LAST, CSR.WRITE_FIRST, CSR.WRITE_LAST)
    for csr in (CSR.PROGRAM_ADDRESS, CSR.PROGRAM_BYTES, *windows):
        assert await npu.write_csr_raw(csr, 0xFFFF_0000) is AxiResp.SLVERR
    assert await npu.write_csr_raw(CSR.WATCHDOG, 1) is AxiResp.SLVERR
    assert await npu.write_csr_raw(CSR.CONTROL, Control.START) is AxiResp.SLVERR
    assert await npu.read_csr(CSR.STATUS) == Status.BUSY
    await npu.wait_interrupt()
    b.check_finished(await npu.outcome(), commands)
    await b.npu.finish()


@cocotb.test()
async def counters(dut: Any) -> None:
    """Cycles to the cycle, events, stalls by cause."""
    b = await bench(dut)
    npu = b.npu
    now = 0
    seen: dict[str, int] = {}

    async def watch() -> None:
        nonlocal now
        while True:
            await RisingEdge(dut.clk)
            now += 1
            for name in ("irq", "s_axil_bvalid"):
                if int(getattr(dut, name).value):
                    seen.setdefault(name, now)

    cocotb.start_soon(watch())
    # array_busy, waiting_output, waiting_weights, bytes_read, bytes_written
    width = b.config.bus_bytes.bit_length()
    dut.events.value = 0b101 | 3 << 3 | b.config.bus_bytes << 3 + width
    commands = b.program(10)
    npu.memory.write(0, encode([*commands, END]))
    await npu.open_windows(*b.windows)
    await npu.write_csr(CSR.PROGRAM_BYTES, 64 * (len(commands) + 1))
    await npu.write_csr(CSR.IRQ_ENABLE, 1)
    seen.clear()
    await npu.write_csr(CSR.CONTROL, Control.START)
    await npu.wait_interrupt()
    outcome = await npu.outcome()
    cycles = outcome.counters[CSR.CYCLES]
    assert cycles == seen["irq"] - seen["s_axil_bvalid"] + 1  # START acts in the cycle before BVALID
    busy = cycles - 1
    assert outcome.counters[CSR.ARRAY_BUSY] == outcome.counters[CSR.STALL_WEIGHTS] == busy
    assert outcome.counters[CSR.BYTES_READ] == 3 * busy
    assert outcome.counters[CSR.BYTES_WRITTEN] == b.config.bus_bytes * busy
    again = {csr: await npu.read_csr(csr) for csr in outcome.counters}
    assert again == outcome.counters  # they stand still
    dut.events.value = 0b010
    outcome = await b.run(encode([END]))
    assert outcome.counters[CSR.STALL_OUTPUT] == outcome.counters[CSR.CYCLES] - 1
    assert outcome.counters[CSR.ARRAY_BUSY] == 0
    dut.events.value = 0
    stalls = (CSR.STALL_LOAD, CSR.STALL_OUTPUT, CSR.STALL_STORE)
    for other, counter in zip((Unit.LOAD, Unit.OUTPUT, Unit.STORE), stalls, strict=True):
        b.plan(accept=1, longest=0)
        b.units[other].plan = Plan(accept=1, shortest=200, longest=200)
        opcode = (Opcode.LOAD, None, Opcode.RESCALE, Opcode.STORE)[other]
        post = Command(opcode, post0_count=1)
        wait = Command(Opcode.SYNC, unit=Unit.COMPUTE, wait0_count=1)
        outcome = await b.run(encode([post, wait, END]))
        assert outcome.error is ErrorCode.NONE, outcome
        for csr in stalls:
            low, high = (150, 210) if csr is counter else (0, 0)
            assert low <= outcome.counters[csr] <= high, (other, csr.name, outcome.counters[csr])
    await b.npu.finish()


@cocotb.test()
async def latency(dut: Any) -> None:
    """Short ways: START to the first LOAD, the end of a command to the start of one that waits for it."""
    b = await bench(dut, latency=0)
    b.plan(accept=1, shortest=60, longest=60)  # the second command has arrived when the first is done
    load = Command(Opcode.LOAD, post0_count=1)
    store = Command(Opcode.STORE, wait0_count=1)
    outcome = await b.run(encode([load, store, END]))
    assert outcome.error is ErrorCode.NONE
    begun = b.units[Unit.LOAD].clears[-1]
    first = b.units[Unit.LOAD].taken[0][0] - begun
    hop = b.units[Unit.STORE].taken[0][0] - b.units[Unit.LOAD].done[0]
    dut._log.info("START to the first LOAD %d cycles, done to waiting command %d", first, hop)
    assert hop <= 8, hop
    assert first <= 34 + COMMAND_BYTES // b.config.bus_bytes, first
    await b.npu.finish()


@pytest.mark.parametrize("config", ["nano", "base"])
def test_control(config: str, simulator: str) -> None:
    runs = 20 if simulator == "verilator" else 4
    env = {"CONFIG": config, "RUNS": runs}
    run_bench(lambda: control_bench(preset(config)), __name__, simulator=simulator, env=env)


@pytest.mark.slow
@pytest.mark.parametrize("config", ["nano", "small", "base", "large"])
def test_control_long(config: str) -> None:
    run_bench(lambda: control_bench(preset(config)), __name__, env={"CONFIG": config, "RUNS": 300})
