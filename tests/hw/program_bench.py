"""Random programs on a whole NPU in a bench, held against the golden model (runs inside the simulator).

    bench = ProgramBench(dut, preset("nano"))
    await bench.start()
    p = bench.program("third", size=2)               # a correct program; size: output tiles
    bench.vary_timing()                              # latency and back-pressure on every channel
    await bench.run(p)                               # raises BenchMismatch unless RTL and golden model agree
    await bench.run(*mutate(bench.random, p))        # a spoiled program must fail as announced
    await bench.finish()

Every run is checked: the state and the error in the CSRs, the counters that do not depend on time, all of the
memory byte for byte, that no byte was written outside the write window and none read outside the read window
(but for the rest of the beats at its ends).
"""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any

import numpy as np
from cocotbext.axi import AxiResp

from axi_memory import Burst, Direction
from lepton_hw.config import NPUConfig
from lepton_hw.isa import COMMAND_BYTES, CSR, Control, ErrorCode, Opcode, Status
from lepton_sim.mutation import Expectation
from lepton_sim.random_program import MEMORY_BYTES, RandomProgram, random_program, run_golden
from npu_driver import NpuDriver, Outcome
from stimulus import rng
from transfers import bursts

__all__ = ["FETCH_ID", "BenchMismatch", "ProgramBench", "expectation_of_fault"]

FETCH_ID = 1
"""ARID of command fetches; LOAD reads with 0."""
WATCHDOG = 4_000
"""Far above the longest pause that latency and back-pressure make."""


class BenchMismatch(AssertionError):
    """RTL and golden model disagree; names the program, its seed and the difference."""


class ProgramBench:
    """An NPU with its memory, and the golden model beside it.

    Arguments:
        dut: cocotb handle of `lepton_npu`.
        config: its configuration.

    Attributes:
        npu: the driver.
        random: for the choices of the test.
        runs: runs started so far.
    """

    def __init__(self, dut: Any, config: NPUConfig) -> None:
        self.npu = NpuDriver(dut, memory_bytes=MEMORY_BYTES)
        self.config = config
        self.random = rng("choices")
        self.runs = 0
        self._timing = "no back-pressure"
        # One line a register access is too much.
        logging.getLogger(f"cocotb.{dut._name}.s_axil").setLevel(logging.WARNING)

    async def start(self) -> None:
        """Start the clock and reset the NPU."""
        await self.npu.start()

    async def finish(self) -> None:
        """Let the buses rest and ask the monitors; raises at any violation."""
        await self.npu.finish()

    def program(self, label: str, *, size: int | None = None, work: int = 800) -> RandomProgram:
        """A random program that follows from the run's seed, the test's name and `label`."""
        source = rng(label)
        return random_program(
            source, self.config, size=source.choice((0, 1, 1, 2)) if size is None else size, work=work
        )

    def vary_timing(self) -> None:
        """Another latency of the memory and other back-pressure on all channels of both ports."""
        choose = self.random
        latency = choose.choice((0, 0, 1, choose.randrange(10), choose.randrange(60)))
        probability = choose.choice((0.0, 0.1, 0.3, 0.6))
        self.set_timing(latency, probability)

    def set_timing(self, latency: int, probability: float) -> None:
        """Latency in cycles, probability of a pause."""
        self.npu.memory.latency = latency
        self.npu.stall(probability, self.random)
        self._timing = f"latency {latency}, stalls {probability}"

    async def launch(self, p: RandomProgram, *, watchdog: int = WATCHDOG) -> None:
        """Put memory and registers as the program wants them, and start; returns while it runs.

        Faults that were injected before stay.
        """
        npu = self.npu
        faults = list(npu.memory.faults)
        npu.memory.clear_log()
        npu.memory.faults.extend(faults)
        npu.memory.write(0, p.memory.tobytes())
        await npu.open_windows(*(w if w[0] <= w[1] else None for w in (p.read_window, p.write_window)))
        await npu.write_csr(CSR.PROGRAM_ADDRESS, p.program_address)
        await npu.write_csr(CSR.PROGRAM_BYTES, p.program_bytes)
        await npu.write_csr(CSR.WATCHDOG, watchdog)
        await npu.write_csr(CSR.IRQ_ENABLE, 1)
        await npu.write_csr(CSR.CONTROL, Control.START)
        self.runs += 1

    async def run(self, p: RandomProgram, expectation: Expectation | None = None) -> Outcome:
        """Run a program and check how it ends.

        Arguments:
            expectation: the error that must come; None for a run to END.

        Raises:
            BenchMismatch: RTL and golden model, or RTL and `expectation`, disagree.
        """
        await self.launch(p)
        await self.npu.wait_interrupt()
        outcome = await self.npu.outcome()
        self.check(p, outcome, expectation)
        return outcome

    def check(self, p: RandomProgram, outcome: Outcome, expectation: Expectation | None = None) -> None:
        """Compare a run that has ended with the golden model; arguments and errors as for `run`."""
        wanted, memory = run_golden(p)
        problems = []
        if expectation is None:
            if wanted.error is not None:
                raise ValueError(f"{p.description} must have an expectation: {wanted.error}")
            if (outcome.status, outcome.error) != (Status.DONE, ErrorCode.NONE):
                problems.append(f"ended with {_name(outcome)} instead of DONE")
            for name, value in wanted.counters.items():
                found = outcome.counters[CSR[name.upper()]]
                if found != value:
                    problems.append(f"counter {name} is {found} instead of {value}")
        else:
            announced = (expectation.code, expectation.command, expectation.info)
            if outcome.status != Status.ERROR or (outcome.error, outcome.command, outcome.info) != announced:
                problems.append(
                    f"ended with {_name(outcome)} instead of ERROR {expectation.code.name} at command "
                    f"{expectation.command}, info {expectation.info}"
                )
        problems += self.outside_windows(p)
        if expectation is None or expectation.memory_exact:
            problems += _difference(self.memory(), memory)
        if problems:
            self.fail(p, problems)

    def memory(self) -> np.ndarray:
        """The external memory as it is now, uint8 [MEMORY_BYTES]."""
        return np.frombuffer(self.npu.memory.read(0, MEMORY_BYTES), np.uint8)

    def outside_windows(self, p: RandomProgram) -> list[str]:
        """What the bus log and the memory say about accesses outside the windows since `launch`."""
        problems = []
        first, last = p.write_window
        for address, length in self.npu.memory.written:
            if address < first or address + length - 1 > last:
                problems.append(f"wrote {length} bytes at {address:#x}, outside the write window")
        changed = np.flatnonzero(self.memory() != p.memory)
        if changed.size and not first <= changed[0] <= changed[-1] <= last:
            problems.append(f"bytes from {changed[0]:#x} to {changed[-1]:#x} changed")
        bus = self.config.bus_bytes
        for burst in self.npu.memory.bursts:
            window = p.read_window if burst.direction is Direction.READ else p.write_window
            end = burst.beat_address(burst.beats - 1) + burst.size
            if burst.address < window[0] // bus * bus or end > window[1] // bus * bus + bus:
                problems.append(f"{burst.direction.value} burst {burst.address:#x} to {end - 1:#x}")
        return problems

    def fail(self, p: RandomProgram, problems: list[str]) -> None:
        """Raise BenchMismatch."""
        raise BenchMismatch(
            f"run {self.runs} ({self._timing}), windows {p.read_window} {p.write_window}, {p.description}:\n"
            + "\n".join(problems[:8])
        )


def _name(outcome: Outcome) -> str:
    return f"{outcome.status!r} {outcome.error.name} at command {outcome.command}, info {outcome.info}"


def _difference(found: np.ndarray, wanted: np.ndarray) -> list[str]:
    places = np.flatnonzero(found != wanted)
    if not places.size:
        return []
    at = int(places[0])
    return [
        f"{places.size} bytes of memory differ, the first at {at:#x}: {found[at : at + 16].tobytes().hex()} "
        f"instead of {wanted[at : at + 16].tobytes().hex()}"
    ]


def expectation_of_fault(p: RandomProgram, log: list[Burst]) -> tuple[RandomProgram, Expectation | None]:
    """What a bus error must come to, from the log of the run: at most one beat in it was answered with one.

    Returns:
        The program as far as it acts, and how it must end; None: the error hit nothing that counts.
    """
    hits = [
        (burst, beat, response)
        for burst in log
        for beat, response in enumerate(burst.responses)
        if response is not AxiResp.OKAY
    ]
    if not hits:
        return p, None
    ((burst, beat, response),) = hits
    info = int(response)
    if burst.direction is Direction.READ and burst.id == FETCH_ID:
        command = (burst.beat_address(beat) - p.program_address) // COMMAND_BYTES
        if command >= len(p.commands):
            return p, None  # fetched ahead, behind END
        # Commands before it act, none after. The golden model is told so by the program's length; a program
        # of length 0 does nothing either.
        acting = replace(p, program_bytes=command * COMMAND_BYTES)
        return acting, Expectation(ErrorCode.FETCH_BUS, command, info, True)
    reading = burst.direction is Direction.READ
    opcode = Opcode.LOAD if reading else Opcode.STORE
    same = [b for b in log if b.direction is burst.direction and b.id == burst.id]
    command = _owner(p, opcode, same.index(burst), burst)
    return p, Expectation(ErrorCode.READ_BUS if reading else ErrorCode.WRITE_BUS, command, info, False)


def _owner(p: RandomProgram, opcode: Opcode, index: int, burst: Burst) -> int:
    """The command that a unit's burst number `index` belongs to: units run in program order."""
    for number, command in enumerate(p.commands):
        if command.opcode is not opcode:
            continue
        cut = bursts(command, p.config)
        if index < len(cut):
            if cut[index] != (burst.address, burst.beats):
                raise BenchMismatch(
                    f"command {number} ({command}): burst {index} is {burst.beats} beats at "
                    f"{burst.address:#x} instead of {cut[index][1]} at {cut[index][0]:#x}"
                )
            return number
        index -= len(cut)
    raise BenchMismatch(f"burst at {burst.address:#x} belongs to no {opcode.name} of {p.description}")
