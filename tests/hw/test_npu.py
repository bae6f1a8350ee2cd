"""The whole NPU against the golden model: random programs, bus errors, malformed commands, resets, hangs.

    .venv/bin/python -m pytest tests/hw/test_npu.py            # default suite: 50 random programs
    .venv/bin/python -m pytest tests/hw/test_npu.py -m slow    # all presets: 1,000 random programs
    LEPTON_NPU_PROGRAMS=5000 .venv/bin/python -m pytest tests/hw/test_npu.py -m slow -k "programs and base"

LEPTON_NPU_PROGRAMS sets how many random programs each preset runs; it also scales the tests with errors (a
tenth of it for each kind of malformed program, a fifth for the others). LEPTON_SEED chooses the programs; a
failure prints it.

Every run is checked in full by `ProgramBench`; the protocol monitors watch both ports all the time. The runs
of one test follow one another without a reset, so an error that leaves something behind spoils the next run.
"""

from __future__ import annotations

import os
import random
from dataclasses import replace
from typing import Any

import cocotb
import numpy as np
import pytest
from cocotb.triggers import RisingEdge
from cocotbext.axi import AxiResp

from axi_memory import Direction, Fault
from bench import run_bench, simulator_available
from lepton_hw.config import PRESETS, preset
from lepton_hw.isa import COMMANDS, CSR, Command, Control, ErrorCode, Opcode, Status, Target, encode
from lepton_hw.npu import LeptonNPU
from lepton_hw.verilog import TOP, named_ports
from lepton_sim.mutation import MUTATIONS, Expectation, mutate
from lepton_sim.ordering import OrderingStyle, add_semaphores
from lepton_sim.random_program import MEMORY_BYTES, RandomProgram, run_golden
from program_bench import FETCH_ID, BenchMismatch, ProgramBench, expectation_of_fault
from stimulus import rng

CONFIG = preset(os.environ.get("NPU_PRESET", "nano"))
COUNT = int(os.environ.get("NPU_COUNT", "1"))
WORK = int(os.environ.get("NPU_WORK", "800"))
CHANNELS = ["ar", "r", "aw", "w", "b"]
FAULT_RESPONSES = (AxiResp.SLVERR, AxiResp.DECERR)


async def begin(dut: Any) -> ProgramBench:
    bench = ProgramBench(dut, CONFIG)
    await bench.start()
    return bench


async def cycles(dut: Any, count: int) -> None:
    for _ in range(count):
        await RisingEdge(dut.clk)


# --- correct programs ---


@cocotb.test()
async def random_programs(dut: Any) -> None:
    """Back to back, each with its own latency and back-pressure; registers are read while they run."""
    bench = await begin(dut)
    for i in range(COUNT):
        p = bench.program(f"program {i}", work=WORK)
        bench.vary_timing()
        if bench.random.random() < 0.7:
            await bench.run(p)
            continue
        await bench.launch(p)
        await look_around(bench)
        await bench.npu.wait_interrupt()
        bench.check(p, await bench.npu.outcome())
    await bench.finish()


async def look_around(bench: ProgramBench) -> None:
    """Read and write registers during a run: nothing that would disturb it is let through."""
    npu = bench.npu
    assert await npu.write_csr_raw(CSR.CONTROL, Control.START) is AxiResp.SLVERR
    for _ in range(bench.random.randrange(6)):
        register = bench.random.choice((CSR.PROGRAM_ADDRESS, CSR.WRITE_LAST, CSR.READ_FIRST, CSR.WATCHDOG))
        before = await npu.read_csr(register)
        if await npu.write_csr_raw(register, before ^ 64) is AxiResp.OKAY:
            assert Status.BUSY not in Status(await npu.read_csr(CSR.STATUS))
            return  # the run is over, and the next one sets all registers
        assert await npu.read_csr(register) == before, register.name


@cocotb.test()
async def differences_are_noticed(dut: Any) -> None:
    """The checks can fail: a flipped byte inside or outside the window, another counter, another error."""
    bench = await begin(dut)
    p = bench.program("checked", size=1)
    outcome = await bench.run(p)
    first, last = p.write_window
    outside = first - 1 if first else last + 1
    for address, words in ((first, "1 bytes of memory differ"), (outside, f"bytes from {outside:#x} to")):
        byte = bench.memory()[address]
        bench.npu.memory.write(address, bytes([byte ^ 1]))
        with pytest.raises(BenchMismatch, match=words):
            bench.check(p, outcome)
        bench.npu.memory.write(address, bytes([byte]))
    counters = outcome.counters | {CSR.BYTES_WRITTEN: 1}
    with pytest.raises(BenchMismatch, match="counter bytes_written is 1 instead of"):
        bench.check(p, replace(outcome, counters=counters))
    with pytest.raises(BenchMismatch, match="instead of ERROR FIELD at command 2, info 3"):
        bench.check(p, outcome, Expectation(ErrorCode.FIELD, 2, 3, True))
    bench.check(p, outcome)
    await bench.finish()


@cocotb.test()
async def many_jobs_back_to_back(dut: Any) -> None:
    """Twenty-five short jobs, each started while the interrupt of the one before is pending."""
    bench = await begin(dut)
    npu, jobs = bench.npu, [bench.program(f"job {i}", size=i % 2, work=200) for i in range(5)]
    for i in range(25):
        p = jobs[i % len(jobs)]
        await bench.launch(p)
        assert not dut.irq.value, "START takes the interrupt back"
        await npu.wait_interrupt()
        code, command = await npu.read_csr(CSR.ERROR_CODE), await npu.read_csr(CSR.ERROR_COMMAND)
        assert (code, command) == (0, 0), f"job {i}: {ErrorCode(code).name} at command {command}"
        np.testing.assert_array_equal(bench.memory(), run_golden(p)[1], f"job {i}: {p.description}")
    bench.check(p, await npu.outcome())
    await bench.finish()


@cocotb.test()
async def transfers_at_the_edges(dut: Any) -> None:
    """One byte to the longest burst, ending at, starting at and crossing 4 KiB boundaries, all alignments."""
    bench = await begin(dut)
    bus, longest = CONFIG.bus_bytes, CONFIG.burst_beats * CONFIG.bus_bytes
    sizes = (1, 2, bus - 1, bus, bus + 1, longest - 1, longest, longest + 1, 2 * longest)
    room = min(CONFIG.scratchpad_bytes, 8192)
    for part in range(3):
        draw = rng(f"edges {part}")
        commands = []
        for size in draw.sample(sizes, len(sizes)):
            for opcode, base in ((Opcode.LOAD, 0x3000), (Opcode.STORE, 0x9000)):
                edge = base + 0x1000 * draw.randrange(1, 4)
                offset = draw.choice((-size, 0, -bus, -1, 1, -size // 2, -size - 1, bus - size, -longest))
                local = draw.choice((0, room - size, draw.randrange(room - size + 1)))
                commands.append(Command(opcode, address=edge + offset, row_bytes=size, local_address=local))
        # 4 KiB in one piece, from a boundary to the next, and by rows that end and start at boundaries.
        commands += [
            Command(Opcode.LOAD, address=0x4000, row_bytes=4096, local_address=room - 4096),
            Command(Opcode.STORE, address=0xB000, row_bytes=4096, local_address=room - 4096),
            Command(Opcode.LOAD, address=0x4FFF, row_bytes=2, rows=3, stride=0x1000, local_stride=5),
            Command(Opcode.STORE, address=0x9FFF, row_bytes=1, rows=3, stride=0x1000, local_stride=3),
            Command(Opcode.STORE, address=0xA000, row_bytes=1, rows=3, stride=0x1000, local_stride=3),
        ]
        # What is stored must be known: the part of the scratchpad that is used is filled first.
        commands.insert(0, Command(Opcode.LOAD, address=0x2000, row_bytes=room))
        style = OrderingStyle(serial=part == 0)
        p = program_of(add_semaphores([*commands, Command(Opcode.END)], CONFIG, draw, style), draw)
        bench.set_timing(*((0, 0.0), (30, 0.0), (5, 0.4))[part])
        await bench.run(p)
        lengths = {(b.direction, b.beats) for b in bench.npu.memory.bursts if b.id != FETCH_ID}
        for direction in Direction:
            assert {(direction, 1), (direction, CONFIG.burst_beats)} <= lengths
    await bench.finish()


def program_of(commands: list[Command], draw: random.Random) -> RandomProgram:
    """A program in random memory: it may read 0 to 0x7FFF and write 0x8000 to 0xFFFF."""
    raw = encode(commands)
    assert len(raw) <= 0x2000
    memory = np.frombuffer(raw + draw.randbytes(MEMORY_BYTES - len(raw)), np.uint8)
    described = f"{len(commands)} transfers"
    return RandomProgram(
        CONFIG, tuple(commands), 0, len(raw), memory, (0, 0x7FFF), (0x8000, 0xFFFF), described
    )


# --- errors on the bus ---


@cocotb.test()
async def bus_errors(dut: Any) -> None:
    """SLVERR or DECERR on a random beat of a random transfer: fetch, LOAD or STORE; then a correct run."""
    bench = await begin(dut)
    seen = set()
    for i in range(max(3, COUNT // 5)):
        p = bench.program(f"faulty {i}", work=WORK)
        bench.vary_timing()
        await bench.run(p)
        log = list(bench.npu.memory.bursts)
        for kind in ("fetch", "load", "store"):
            direction = Direction.WRITE if kind == "store" else Direction.READ
            wanted_id = {"fetch": 1, "load": 0, "store": 0}[kind]
            bursts = [b for b in log if b.direction is direction and b.id == wanted_id]
            target = bench.random.choice(bursts)
            beat = bench.random.choice((0, target.beats - 1, bench.random.randrange(target.beats)))
            bench.npu.memory.inject(
                Fault(direction, bench.random.choice(FAULT_RESPONSES), burst=target.index, beat=beat)
            )
            bench.vary_timing()
            await bench.launch(p)
            await bench.npu.wait_interrupt()
            outcome = await bench.npu.outcome()
            acting, expectation = expectation_of_fault(p, bench.npu.memory.bursts)
            bench.check(acting, outcome, expectation)
            if expectation is not None:
                seen.add((expectation.code, expectation.info))
            bench.npu.memory.clear_log()
            await bench.run(p)
    assert {code for code, _ in seen} == {ErrorCode.FETCH_BUS, ErrorCode.READ_BUS, ErrorCode.WRITE_BUS}, seen
    await bench.finish()


# --- malformed programs ---


@cocotb.test()
async def malformed_programs(dut: Any) -> None:
    """Every kind of error: code, command and info as announced, what was before acts, then a correct run."""
    bench = await begin(dut)
    for kind in MUTATIONS:
        done = 0
        for i in range(50):
            p = bench.program(f"{kind} {i}", work=300)
            try:
                spoiled, expectation = mutate(bench.random, p, kind)
            except ValueError:
                continue  # does not fit this program
            bench.vary_timing()
            await bench.run(spoiled, expectation)
            await bench.run(p)
            done += 1
            if done >= max(1, COUNT // 10):
                break
        fits = kind != "unsupported" or not (CONFIG.rows_mode and CONFIG.patch_mode)
        assert done or not fits, f"no program for the kind {kind!r}"
    await bench.finish()


@cocotb.test()
async def transfers_of_length_zero(dut: Any) -> None:
    """No rows, or rows of no bytes: refused, for each command and memory that there is."""
    bench = await begin(dut)
    cases = [Command(Opcode.LOAD, target=int(target), row_bytes=CONFIG.bus_bytes) for target in Target]
    cases += [Command(Opcode.FILL), Command(Opcode.STORE, address=0x8000)]
    for good in cases:
        for name in ("row_bytes", "rows"):
            values = {n: v for n, v in good.values.items() if n != "opcode"}
            bad = Command(good.opcode, **values | {name: 0})
            p = program_of([good, bad, Command(Opcode.END)], rng(f"{bad}"))
            bit = COMMANDS[good.opcode].by_name[name].bit
            await bench.run(p, Expectation(ErrorCode.FIELD, 1, bit, True))
            await bench.run(program_of([good, Command(Opcode.END)], rng(f"{good}")))
    await bench.finish()


# --- resets ---


@cocotb.test()
async def resets(dut: Any) -> None:
    """A reset at a random cycle of a run: nothing outside the window was written, then a correct run."""
    bench = await begin(dut)
    for i in range(max(4, COUNT // 5)):
        p = bench.program(f"reset {i}", work=WORK)
        bench.vary_timing()
        duration = (await bench.run(p)).counters[CSR.CYCLES]
        await bench.launch(p)
        await cycles(dut, bench.random.randrange(duration + 20))
        await bench.npu.reset(cycles=bench.random.randrange(1, 5))
        problems = bench.outside_windows(p)
        if problems:
            bench.fail(p, problems)
        status = Status(await bench.npu.read_csr(CSR.STATUS))
        assert (status, int(dut.irq.value)) == (Status(0), 0)
        for first, last in ((CSR.READ_FIRST, CSR.READ_LAST), (CSR.WRITE_FIRST, CSR.WRITE_LAST)):
            assert await bench.npu.read_csr(first) > await bench.npu.read_csr(last), "a window is open"
        await bench.run(p)
    await bench.finish()


# --- watchdog and abort ---


@cocotb.test()
async def aborts(dut: Any) -> None:
    """ABORT at a random cycle of a run: the run ends, and the next one is correct."""
    bench = await begin(dut)
    npu, aborted = bench.npu, 0
    for i in range(max(4, COUNT // 5)):
        p = bench.program(f"abort {i}", work=WORK)
        bench.vary_timing()
        duration = (await bench.run(p)).counters[CSR.CYCLES]
        await bench.launch(p)
        await cycles(dut, bench.random.randrange(duration))
        await npu.write_csr(CSR.CONTROL, Control.ABORT)
        await npu.wait_interrupt(timeout_cycles=5000)
        outcome = await npu.outcome()
        if outcome.error is ErrorCode.NONE:  # it was over
            bench.check(p, outcome)
        else:
            aborted += 1
            assert (outcome.status, outcome.error, outcome.info) == (Status.ERROR, ErrorCode.ABORTED, 0)
            assert outcome.command < len(p.commands)
            if problems := bench.outside_windows(p):
                bench.fail(p, problems)
        await bench.run(p)
    assert aborted
    await bench.finish()


@cocotb.test()
@cocotb.parametrize(channel=CHANNELS)
async def bus_hangs(dut: Any, channel: str) -> None:
    """A channel that stops: the watchdog ends the run with BUS_HUNG, START is refused until it goes on."""
    bench = await begin(dut)
    npu, memory = bench.npu, bench.npu.memory
    reading = channel in ("ar", "r")
    for i in range(2):
        p = bench.program(f"hang {i}", work=200)
        await bench.run(p)
        if reading and i:
            # In the middle of the run, so that there is work to drop, but before the last LOADs' addresses.
            reads = [b for b in memory.bursts if b.direction is Direction.READ]
            last = max(k for k, b in enumerate(reads) if b.id != FETCH_ID)
            taken = bench.random.randint(1, max(1, last - 5))
            await bench.launch(p, watchdog=300)
            while sum(b.direction is Direction.READ for b in memory.bursts) < taken:
                await RisingEdge(dut.clk)
            memory.hold(channel)
        else:
            memory.hold(channel)
            await bench.launch(p, watchdog=300)
        await npu.wait_interrupt(timeout_cycles=20_000)
        outcome = await npu.outcome()
        assert outcome.error is ErrorCode.WATCHDOG, outcome
        assert outcome.status == Status.ERROR | Status.BUS_HUNG, outcome
        if not reading:
            first = next(k for k, c in enumerate(p.commands) if c.opcode is Opcode.STORE)
            assert outcome.command == first, (outcome, p.commands[first])
        elif not i:
            assert outcome.command == 0, outcome
        assert await npu.write_csr_raw(CSR.CONTROL, Control.START) is AxiResp.SLVERR
        await cycles(dut, 100)
        assert Status(await npu.read_csr(CSR.STATUS)) == Status.ERROR | Status.BUS_HUNG
        memory.release(channel)
        await cycles(dut, 1000)
        assert Status(await npu.read_csr(CSR.STATUS)) == Status.ERROR
        if problems := bench.outside_windows(p):
            bench.fail(p, problems)
        await bench.run(p)
    await bench.finish()


# --- pytest ---

SPECIAL = [
    "differences_are_noticed",
    "many_jobs_back_to_back",
    "transfers_at_the_edges",
    "bus_errors",
    "malformed_programs",
    "transfers_of_length_zero",
    "resets",
    "aborts",
    *(f"bus_hangs/channel={channel}" for channel in CHANNELS),
]


def design(name: str) -> tuple[LeptonNPU, dict[str, Any]]:
    npu = LeptonNPU(PRESETS[name])
    return npu, named_ports(npu)


def run(name: str, tests: list[str], programs: int, *, simulator: str = "verilator", work: int = 800) -> None:
    programs = int(os.environ.get("LEPTON_NPU_PROGRAMS", programs))
    env = {"NPU_PRESET": name, "NPU_COUNT": programs, "NPU_WORK": work}
    run_bench(lambda: design(name), __name__, simulator=simulator, top=TOP, tests=tests, env=env)


@pytest.mark.parametrize(("name", "programs"), [("nano", 30), ("small", 20)])
def test_random_programs(name: str, programs: int) -> None:
    run(name, ["random_programs"], programs)


@pytest.mark.parametrize("name", ["nano", "small"])
def test_errors_and_edges(name: str) -> None:
    run(name, SPECIAL, 1)


@pytest.mark.slow
@pytest.mark.parametrize("name", list(PRESETS))
def test_random_programs_in_number(name: str) -> None:
    run(name, ["random_programs"], 250, work=2000)


@pytest.mark.slow
@pytest.mark.parametrize("name", list(PRESETS))
def test_errors_and_edges_in_number(name: str) -> None:
    run(name, SPECIAL, 50)


@pytest.mark.slow
def test_four_state_simulator() -> None:
    """Icarus knows X: nothing undefined gets out or decides anything."""
    if not simulator_available("icarus"):
        pytest.skip("icarus is not installed (optional: apt install iverilog)")
    run("nano", ["random_programs", *SPECIAL], 4)
