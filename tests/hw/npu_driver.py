"""The whole NPU in a bench: registers, memory, protocol monitors and runs behind one class.

    @cocotb.test()
    async def runs_a_program(dut):
        npu = NpuDriver(dut, memory_bytes=1 << 20)
        await npu.start()                                        # clock, reset
        npu.memory.write(0x1_0000, tensor)
        npu.stall(0.3)                                           # random back-pressure on every channel
        outcome = await npu.run(encode(commands), write_window=(0x8_0000, 0xF_FFFF))
        assert outcome.error is ErrorCode.NONE, outcome
        assert npu.memory.read(0x8_0000, 64) == expected
        await npu.finish()                                       # quiet buses, clean monitors

Ports are those of the module `lepton_npu`: `clk`, `rst`, `irq`, AXI4-Lite `s_axil_*`, AXI4 `m_axi_*`.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

from cocotb.triggers import RisingEdge, with_timeout
from cocotbext.axi import AxiLiteBus, AxiLiteMaster, AxiResp

from axi_memory import AxiMemory
from axi_monitor import Axi4Monitor, AxiLiteMonitor
from lepton_hw.isa import COUNTERS, CSR, Control, ErrorCode, Status
from stimulus import CLOCK_NS, apply_reset, rng, stalls, start

__all__ = ["CsrError", "NpuDriver", "Outcome"]


class CsrError(AssertionError):
    """A register access was answered with an error, or a reset cut it short."""


@dataclass(frozen=True)
class Outcome:
    """How a run ended, from the CSRs.

    Attributes:
        status: CSR.STATUS after the run.
        error: why it stopped; ErrorCode.NONE when it reached the end.
        command: index of the command at fault (meaningful with an error).
        info: CSR.ERROR_INFO.
        counters: performance counters.
    """

    status: Status
    error: ErrorCode
    command: int
    info: int
    counters: dict[CSR, int]


class NpuDriver:
    """Hides the buses of a `lepton_npu` from its benches.

    Arguments:
        dut: cocotb handle of the top module.
        memory_bytes: size of the external memory, from address 0 on.
        latency: cycles from an address to the first data or the response.
        csr_prefix, memory_prefix: start of the port names.

    Attributes:
        memory: the AxiMemory behind the manager port (content, faults, log).
        monitors: the protocol monitors of both ports; they fail the test at the first violation.
    """

    def __init__(
        self,
        dut: Any,
        *,
        memory_bytes: int = 1 << 20,
        latency: int = 0,
        csr_prefix: str = "s_axil",
        memory_prefix: str = "m_axi",
    ) -> None:
        self.dut = dut
        self.memory = AxiMemory(dut, memory_prefix, dut.clk, dut.rst, size=memory_bytes, latency=latency)
        self._bus = AxiLiteMaster(AxiLiteBus.from_prefix(dut, csr_prefix), dut.clk, dut.rst)
        self.monitors = (
            AxiLiteMonitor(dut, csr_prefix, dut.clk, dut.rst),
            Axi4Monitor(dut, memory_prefix, dut.clk, dut.rst),
        )

    async def start(self) -> None:
        """Start the clock and reset the NPU."""
        await start(self.dut)

    async def reset(self, *, cycles: int = 3) -> None:
        """Reset the NPU and what is under way on the buses; the memory keeps its content."""
        await apply_reset(self.dut, cycles=cycles)

    def stall(self, probability: float, random_source: random.Random | None = None) -> None:
        """Random back-pressure on every channel of both ports; probability 0 ends it."""
        source = random_source or rng("stall")
        self.memory.stall(probability, source)
        bus = self._bus
        for channel in (
            bus.write_if.aw_channel,
            bus.write_if.w_channel,
            bus.write_if.b_channel,
            bus.read_if.ar_channel,
            bus.read_if.r_channel,
        ):
            generator = stalls(random.Random(source.getrandbits(64)), probability) if probability else None
            channel.set_pause_generator(generator)
            channel.pause = False

    # Registers

    async def read_csr_raw(self, address: int) -> tuple[int, AxiResp]:
        """Value and response of a 32-bit read; `address` is a byte offset, legal or not."""
        answer = await self._bus.read(address, 4)
        if answer is None:
            raise CsrError(f"read of 0x{address:03x} was cut short by a reset")
        return int.from_bytes(answer.data, "little"), AxiResp(answer.resp)

    async def write_csr_raw(self, address: int, value: int) -> AxiResp:
        """Response to a 32-bit write; `address` is a byte offset, legal or not."""
        answer = await self._bus.write(address, value.to_bytes(4, "little"))
        if answer is None:
            raise CsrError(f"write of 0x{address:03x} was cut short by a reset")
        return AxiResp(answer.resp)

    async def read_csr(self, register: CSR) -> int:
        """Value of a register; raises CsrError unless the answer is OKAY."""
        value, response = await self.read_csr_raw(register)
        if response is not AxiResp.OKAY:
            raise CsrError(f"read of {register.name} (0x{register:03x}) was answered {response.name}")
        return value

    async def write_csr(self, register: CSR, value: int) -> None:
        """Write a register; raises CsrError unless the answer is OKAY."""
        response = await self.write_csr_raw(register, value)
        if response is not AxiResp.OKAY:
            raise CsrError(
                f"write of 0x{value:x} to {register.name} (0x{register:03x}) was answered {response.name}"
            )

    # Runs

    async def open_windows(self, read: tuple[int, int] | None, write: tuple[int, int] | None) -> None:
        """Set the memory windows: first and last byte (inclusive); None closes one."""
        for (first, last), registers in (
            (read or (1, 0), (CSR.READ_FIRST, CSR.READ_LAST)),
            (write or (1, 0), (CSR.WRITE_FIRST, CSR.WRITE_LAST)),
        ):
            await self.write_csr(registers[0], first)
            await self.write_csr(registers[1], last)

    async def launch(
        self,
        program: bytes,
        *,
        address: int = 0,
        read_window: tuple[int, int] | None = None,
        write_window: tuple[int, int] | None = None,
        watchdog: int = 10_000,
    ) -> None:
        """Put a program into memory and start it, interrupt enabled; returns while it runs.

        Both windows cover the whole memory unless they are given.
        """
        everything = (self.memory.base, self.memory.base + self.memory.size - 1)
        self.memory.write(address, program)
        await self.open_windows(read_window or everything, write_window or everything)
        await self.write_csr(CSR.PROGRAM_ADDRESS, address)
        await self.write_csr(CSR.PROGRAM_BYTES, len(program))
        await self.write_csr(CSR.WATCHDOG, watchdog)
        await self.write_csr(CSR.IRQ_ENABLE, 1)
        await self.write_csr(CSR.CONTROL, Control.START)

    async def wait_interrupt(self, *, timeout_cycles: int = 1_000_000) -> None:
        """Wait until `irq` is high.

        Raises:
            cocotb.triggers.SimTimeoutError: it did not rise within `timeout_cycles`.
        """
        if str(self.dut.irq.value) != "1":
            await with_timeout(RisingEdge(self.dut.irq), timeout_cycles * CLOCK_NS, "ns")
        await RisingEdge(self.dut.clk)

    async def outcome(self) -> Outcome:
        """Read how the last run ended, and take back the interrupt."""
        outcome = Outcome(
            status=Status(await self.read_csr(CSR.STATUS)),
            error=ErrorCode(await self.read_csr(CSR.ERROR_CODE)),
            command=await self.read_csr(CSR.ERROR_COMMAND),
            info=await self.read_csr(CSR.ERROR_INFO),
            counters={counter: await self.read_csr(counter) for counter in COUNTERS},
        )
        await self.write_csr(CSR.IRQ_PENDING, 1)
        return outcome

    async def run(
        self,
        program: bytes,
        *,
        address: int = 0,
        read_window: tuple[int, int] | None = None,
        write_window: tuple[int, int] | None = None,
        watchdog: int = 10_000,
        timeout_cycles: int = 1_000_000,
    ) -> Outcome:
        """Run a program from memory `address` to its interrupt; the arguments are those of `launch`."""
        await self.launch(
            program, address=address, read_window=read_window, write_window=write_window, watchdog=watchdog
        )
        await self.wait_interrupt(timeout_cycles=timeout_cycles)
        return await self.outcome()

    async def finish(self, *, settle_cycles: int = 50) -> None:
        """Let the buses come to rest; raises when a monitor is not clean or a transaction is unfinished."""
        self.stall(0)
        for _ in range(settle_cycles):
            await RisingEdge(self.dut.clk)
        for monitor in self.monitors:
            monitor.assert_clean()
