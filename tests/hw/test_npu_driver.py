"""The driver of the whole NPU, on wires behind which a Python model plays the NPU's part."""

from __future__ import annotations

from typing import Any

import cocotb
import pytest
from cocotb.triggers import RisingEdge, SimTimeoutError
from cocotbext.axi import AxiBus, AxiLiteBus, AxiLiteRam, AxiMaster, AxiResp

from bench import run_bench
from lepton_hw.isa import CSR, Control, ErrorCode, Status
from npu_driver import CsrError, NpuDriver
from stimulus import rng
from wires import Wires, axi4_channels, axi_lite_channels


class Impostor:
    """Plays the NPU: copies its program to 0x800 when started, then raises the interrupt."""

    def __init__(self, dut: Any) -> None:
        self.dut = dut
        self.registers = AxiLiteRam(AxiLiteBus.from_prefix(dut, "s_axil"), dut.clk, dut.rst, size=4096)
        self.manager = AxiMaster(AxiBus.from_prefix(dut, "m_axi"), dut.clk, dut.rst)
        dut.irq.value = 0
        cocotb.start_soon(self._run())

    async def _run(self) -> None:
        registers = self.registers
        while True:
            await RisingEdge(self.dut.clk)
            if registers.read_dword(CSR.IRQ_PENDING):
                self.dut.irq.value = 0
                registers.write_dword(CSR.IRQ_PENDING, 0)
            if registers.read_dword(CSR.CONTROL) == Control.START:
                registers.write_dword(CSR.CONTROL, 0)
                length = registers.read_dword(CSR.PROGRAM_BYTES)
                program = await self.manager.read(registers.read_dword(CSR.PROGRAM_ADDRESS), length)
                await self.manager.write(0x800, program.data)
                registers.write_dword(CSR.STATUS, Status.ERROR)
                registers.write_dword(CSR.ERROR_CODE, max(ErrorCode))
                registers.write_dword(CSR.ERROR_COMMAND, 3)
                registers.write_dword(CSR.ERROR_INFO, 0xDEAD)
                registers.write_dword(CSR.CYCLES, 1234)
                self.dut.irq.value = registers.read_dword(CSR.IRQ_ENABLE)


@cocotb.test()
@cocotb.parametrize(stall=[0.0, 0.5])
async def runs_and_reports(dut: Any, stall: float) -> None:
    """Program, windows and watchdog reach the registers; status, error and counters come back, twice."""
    npu = NpuDriver(dut, memory_bytes=4096, latency=3)
    impostor = Impostor(dut)
    await npu.start()
    npu.stall(stall)
    for address in (0x100, 0x240):
        program = rng(str(address)).randbytes(192)
        outcome = await npu.run(program, address=address, write_window=(0x800, 0xFFF), watchdog=77)
        assert npu.memory.read(0x800, 192) == program
        assert outcome.status == Status.ERROR
        assert outcome.error is max(ErrorCode)
        assert (outcome.command, outcome.info, outcome.counters[CSR.CYCLES]) == (3, 0xDEAD, 1234)
        expected = {
            CSR.PROGRAM_ADDRESS: address, CSR.PROGRAM_BYTES: 192, CSR.READ_FIRST: 0, CSR.READ_LAST: 4095,
            CSR.WRITE_FIRST: 0x800, CSR.WRITE_LAST: 0xFFF, CSR.WATCHDOG: 77, CSR.IRQ_ENABLE: 1,
        }  # fmt: skip
        assert {register: impostor.registers.read_dword(register) for register in expected} == expected
    await npu.finish()


@cocotb.test()
async def registers_keep_their_value(dut: Any) -> None:
    """Random values, read back; a closed window has its last byte before its first."""
    npu = NpuDriver(dut, memory_bytes=4096)
    Impostor(dut)
    await npu.start()
    random = rng()
    for register in random.sample([r for r in CSR if r not in (CSR.CONTROL, CSR.IRQ_PENDING)], 10):
        value = random.getrandbits(32)
        await npu.write_csr(register, value)
        assert await npu.read_csr(register) == value
    await npu.open_windows(None, (16, 31))
    assert await npu.read_csr(CSR.READ_FIRST) > await npu.read_csr(CSR.READ_LAST)
    assert await npu.read_csr(CSR.WRITE_LAST) == 31
    assert await npu.write_csr_raw(0xFFC, 1) is AxiResp.OKAY
    assert await npu.read_csr_raw(0xFFC) == (1, AxiResp.OKAY)
    await npu.finish()


@cocotb.test()
async def a_reset_ends_an_access(dut: Any) -> None:
    """An access that a reset cuts short raises, and the next one works."""
    npu = NpuDriver(dut, memory_bytes=4096)
    impostor = Impostor(dut)
    await npu.start()
    impostor.registers.read_if.ar_channel.pause = True

    async def read() -> None:
        with pytest.raises(CsrError, match="read of 0x024 was cut short"):
            await npu.read_csr(CSR.STATUS)

    task = cocotb.start_soon(read())
    for _ in range(10):
        await RisingEdge(dut.clk)
    await npu.reset()
    await task
    impostor.registers.read_if.ar_channel.pause = False
    await npu.write_csr(CSR.WATCHDOG, 5)
    assert await npu.read_csr(CSR.WATCHDOG) == 5
    with pytest.raises(SimTimeoutError):
        await npu.wait_interrupt(timeout_cycles=20)
    await npu.finish()


def test_npu_driver(simulator: str) -> None:
    ports = {"s_axil": axi_lite_channels(32), "m_axi": axi4_channels(64)}
    run_bench(lambda: Wires(ports, extra=("irq",)), __name__, simulator=simulator, top="npu_wires")
