"""The whole NPU against the golden model: random programs, bus errors, malformed commands, resets, hangs.

    .venv/bin/python -m pytest tests/hw/test_npu.py                        # default suite: 50 random programs
    .venv/bin/python -m pytest tests/hw/test_npu.py -m slow                # all presets, 1,000 random programs
    LEPTON_NPU_PROGRAMS=5000 .venv/bin/python -m pytest tests/hw/test_npu.py -m slow -k "random_programs and nano"

LEPTON_NPU_PROGRAMS sets how many random programs each preset runs; it also scales the tests with errors (a
tenth of it for each kind of error, at least one). LEPTON_SEED chooses the programs; a failure prints it.

Every run is checked in full by `ProgramBench`; the protocol monitors watch both ports all the time. The runs
of one test follow one another without a reset, so an error that leaves something behind spoils the next run.
"""

from __future__ import annotations

import os
from typing import Any

import cocotb
import numpy as np
import pytest
from cocotb.triggers import RisingEdge
from cocotbext.axi import AxiResp

from axi_memory import Direction, Fault
from bench import run_bench
from lepton_hw.config import PRESETS, NPUConfig, preset
from lepton_hw.isa import CSR, Command, Control, ErrorCode, Opcode, Status, Target, encode
from lepton_hw.npu import LeptonNPU
from lepton_hw.verilog import TOP, named_ports
from lepton_sim.mutation import MUTATIONS, Expectation, mutate
from lepton_sim.ordering import OrderingStyle, add_semaphores
from lepton_sim.random_program import MEMORY_BYTES, RandomProgram
from program_bench import ProgramBench, expectation_of_fault, fits_output_buffer
from stimulus import rng

CONFIG = preset(os.environ.get("NPU_PRESET", "nano"))
COUNT = int(os.environ.get("NPU_COUNT", "1"))
WORK = int(os.environ.get("NPU_WORK", "800"))
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
    """Read and write registers during a run: nothing that may disturb it is let through."""
    npu = bench.npu
    for _ in range(bench.random.randrange(1, 8)):
        register = bench.random.choice((CSR.PROGRAM_ADDRESS, CSR.WRITE_LAST, CSR.READ_FIRST, CSR.WATCHDOG))
        before = await npu.read_csr(register)
        response = await npu.write_csr_raw(register, 64)
        after, status = await npu.read_csr(register), Status(await npu.read_csr(CSR.STATUS))
        if status is not Status.BUSY:
            if response is AxiResp.OKAY:
                await npu.write_csr(register, before)
            return
        assert (response, after) == (AxiResp.SLVERR, before), register.name
        response = await npu.write_csr_raw(CSR.CONTROL, Control.START)
        if npu.dut.irq.value or response is AxiResp.OKAY:
            # The run ended before the write: the same program has been started once more.
            return
        assert response is AxiResp.SLVERR


@cocotb.test()
async def many_jobs_back_to_back(dut: Any) -> None:
    """Twenty-five short jobs, each started while the interrupt of the one before is pending."""
    bench = await begin(dut)
    npu, commands = bench.npu, [bench.program(f"job {i}", size=i % 2, work=200) for i in range(5)]
    for i in range(25):
        p = commands[i % len(commands)]
        await bench.launch(p)
        assert not dut.irq.value, "START takes the interrupt back"
        await npu.wait_interrupt()
        code, command = await npu.read_csr(CSR.ERROR_CODE), await npu.read_csr(CSR.ERROR_COMMAND)
        assert (code, command) == (0, 0), f"job {i}: {ErrorCode(code).name} at command {command}"
        if i % 5 == 4:
            bench.check(p, await npu.outcome())
        else:
            wanted = bench.golden_memory(p)
            np.testing.assert_array_equal(bench.memory(), wanted, f"job {i}: {p.description}")
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
                commands.append(
                    Command(opcode, address=edge + offset, row_bytes=size, local_address=local)
                )
        # 4 KiB in one piece, from a boundary to the next, and by rows that end and start at boundaries.
        commands += [
            Command(Opcode.LOAD, address=0x4000, row_bytes=4096, local_address=room - 4096),
            Command(Opcode.STORE, address=0xB000, row_bytes=4096, local_address=room - 4096),
            Command(Opcode.LOAD, address=0x4FFF, row_bytes=2, rows=3, stride=0x1000, local_stride=5),
            Command(Opcode.STORE, address=0x9FFF, row_bytes=1, rows=3, stride=0x1000, local_stride=3),
            Command(Opcode.STORE, address=0xA000, row_bytes=1, rows=3, stride=0x1000, local_stride=3),
        ]
        p = transfers_only(commands, draw)
        bench.set_timing(*((0, 0.0), (30, 0.0), (5, 0.4))[part])
        await bench.run(p)
        lengths = {
            (b.direction, b.beats) for b in bench.npu.memory.bursts if b.direction is Direction.WRITE or not b.id
        }
        for direction in Direction:
            assert {(direction, 1), (direction, CONFIG.burst_beats)} <= lengths
    await bench.finish()


def transfers_only(commands: list[Command], draw: Any) -> RandomProgram:
    """A program of these transfers: it reads 0x2000 to 0x7FFF and writes 0x8000 to 0xFFFF."""
    # What is stored must be known: the whole scratchpad part is filled first.
    room = min(CONFIG.scratchpad_bytes, 8192)
    fill = Command(Opcode.LOAD, address=0x2000, row_bytes=room)
    style = OrderingStyle(serial=True) if draw.random() < 0.5 else OrderingStyle()
    ordered = add_semaphores([fill, *commands, Command(Opcode.END)], CONFIG, draw, style)
    raw = encode(ordered)
    assert len(raw) <= 0x2000
    memory = np.frombuffer(raw + draw.randbytes(MEMORY_BYTES - len(raw)), np.uint8)
    return RandomProgram(
        CONFIG, tuple(ordered), 0, len(raw), memory, (0, 0x7FFF), (0x8000, 0xFFFF), "transfers at edges"
    )


# --- errors on the bus ---


@cocotb.test()
async def bus_errors(dut: Any) -> None:
    """SLVERR or DECERR on a random beat of a random transfer: fetch, LOAD or STORE; then a correct run."""
    bench = await begin(dut)
    seen = set()
    for i in range(max(3, COUNT // 10)):
        p = next(
            p for k in range(100) if fits_output_buffer(p := bench.program(f"faulty {i} {k}", work=WORK))
        )
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
    cases = [(Opcode.LOAD, {"target": int(target)}) for target in Target]
    cases += [(Opcode.FILL, {}), (Opcode.STORE, {})]
    for opcode, values in cases:
        for name in ("row_bytes", "rows"):
            values |= {"row_bytes": CONFIG.bus_bytes, "rows": 1, name: 0}
            if opcode is not Opcode.FILL:
                values["address"] = 0x8000
            p = transfers_only([Command(opcode, **values)], rng(f"{opcode.name} {values}"))
            p = with_windows_open(p)
            bit = next(f.bit for f in p.commands[1:] for f in fields(f) if f.name == name)
            await bench.run(p, Expectation(ErrorCode.FIELD, 1, bit, True))
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
@cocotb.parametrize(channel=["ar", "r", "aw", "w", "b"])
async def bus_hangs(dut: Any, channel: str) -> None:
    """A channel that stops: the watchdog ends the run with BUS_HUNG, START is refused until it goes on."""
    bench = await begin(dut)
    npu, memory = bench.npu, bench.npu.memory
    reading = channel in ("ar", "r")
    for i in range(2):
        p = bench.program(f"hang {i}", work=200)
        await bench.run(p)
        if reading and i:
            # In the middle of the run, so that there is work to drop in all units.
            await bench.launch(p, watchdog=300)
            await cycles(dut, bench.random.randrange(50, 300))
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


def _run(name: str, simulator: str, tests: list[str], programs: int, work: int = 800) -> None:
    def design() -> tuple[LeptonNPU, dict[str, Any]]:
        npu = LeptonNPU(PRESETS[name])
        return npu, named_ports(npu)

    programs = int(os.environ.get("LEPTON_NPU_PROGRAMS", programs))
    env = {"NPU_PRESET": name, "NPU_COUNT": programs, "NPU_WORK": work}
    run_bench(design, __name__, simulator=simulator, top=TOP, tests=tests, env=env)
