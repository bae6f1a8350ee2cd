"""The register block: access rules, byte strobes, arrival orders, interrupt."""

from __future__ import annotations

from typing import Any

import cocotb
import pytest
from amaranth.hdl import Module, Signal, Value
from amaranth.lib import wiring
from cocotb.triggers import ReadOnly, RisingEdge
from cocotbext.axi import AxiLiteBus, AxiLiteMaster, AxiResp

from axi_monitor import AxiLiteMonitor
from bench import run_bench
from lepton_hw.config import PRESETS
from lepton_hw.csr import RegisterBlock, Settings
from lepton_hw.isa import COUNTERS, CSR, ISA_VERSION, MAGIC, Control, Status, config_words
from stimulus import rng, stalls, start

PLAIN = (
    CSR.PROGRAM_ADDRESS,
    CSR.PROGRAM_BYTES,
    CSR.READ_FIRST,
    CSR.READ_LAST,
    CSR.WRITE_FIRST,
    CSR.WRITE_LAST,
    CSR.WATCHDOG,
)
READ_ONLY = (
    CSR.MAGIC,
    CSR.VERSION,
    CSR.CONFIG0,
    CSR.CONFIG1,
    CSR.CONFIG2,
    CSR.STATUS,
    CSR.ERROR_CODE,
    CSR.ERROR_COMMAND,
    CSR.ERROR_INFO,
    *COUNTERS,
)


class Registers:
    """The bus as a host sees it."""

    def __init__(self, dut: Any) -> None:
        self.dut = dut
        self.bus = AxiLiteMaster(AxiLiteBus.from_prefix(dut, "s_axil"), dut.clk, dut.rst)
        self.monitor = AxiLiteMonitor(dut, "s_axil", dut.clk, dut.rst)
        self.pulses: list[str] = []
        cocotb.start_soon(self._watch())

    async def _watch(self) -> None:
        while True:
            await RisingEdge(self.dut.clk)
            for name in ("start", "abort"):
                if str(getattr(self.dut, name).value) == "1":
                    self.pulses.append(name)

    async def read(self, address: int) -> tuple[int, AxiResp]:
        answer = await self.bus.read(address, 4)
        return int.from_bytes(answer.data, "little"), AxiResp(answer.resp)

    async def write(self, address: int, value: int, first: int = 0, size: int = 4) -> AxiResp:
        data = (value >> 8 * first).to_bytes(4, "little")[:size]
        return AxiResp((await self.bus.write(address + first, data)).resp)

    def stall(self, probability: float) -> None:
        for interface in (self.bus.write_if, self.bus.read_if):
            for name in ("aw", "w", "b", "ar", "r"):
                channel = getattr(interface, f"{name}_channel", None)
                if channel is not None:
                    channel.set_pause_generator(stalls(rng(name), probability))


async def power_up(dut: Any) -> Registers:
    """Inputs at rest (they keep their values from test to test), reset, bus."""
    for name in ("busy", "hung", "ended", "done", "error", "counters"):
        getattr(dut, name).value = 0
    for name in ("code", "command", "info"):
        getattr(dut, f"error_{name}").value = 0
    host = Registers(dut)  # before the reset: the monitor checks from there on
    await start(dut)
    return host


@cocotb.test()
async def constants_and_reset_values(dut: Any) -> None:
    """What the host reads before it has written anything."""
    host = await power_up(dut)
    expected = dict.fromkeys(CSR, 0) | {
        CSR.MAGIC: MAGIC,
        CSR.VERSION: ISA_VERSION[0] << 16 | ISA_VERSION[1],
        CSR.READ_FIRST: 1,
        CSR.WRITE_FIRST: 1,
    }
    expected |= dict(zip((CSR.CONFIG0, CSR.CONFIG1, CSR.CONFIG2), config_words(PRESETS["base"]), strict=True))
    for csr, value in expected.items():
        assert await host.read(csr) == (value, AxiResp.OKAY), csr.name


@cocotb.test()
async def plain_registers_and_strobes(dut: Any) -> None:
    """Random writes of random bytes, read back, also at the settings port."""
    host = await power_up(dut)
    host.stall(0.3)
    random = rng()
    shadow = dict.fromkeys(PLAIN, 0) | {CSR.READ_FIRST: 1, CSR.WRITE_FIRST: 1}
    for _ in range(300):
        csr = random.choice(PLAIN)
        first = random.randrange(4)
        size = random.randint(1, 4 - first)
        value = random.randrange(1 << 32)
        assert await host.write(csr, value, first, size) is AxiResp.OKAY
        mask = ((1 << 8 * size) - 1) << 8 * first
        shadow[csr] = shadow[csr] & ~mask | value & mask
        assert await host.read(csr) == (shadow[csr], AxiResp.OKAY)
        layout = Settings.as_shape()
        bits = int(dut.settings.value)
        for name, (_, field) in zip((c.name.lower() for c in PLAIN), layout, strict=True):
            assert bits >> field.offset & 0xFFFF_FFFF == shadow[CSR[name.upper()]], name
    host.monitor.assert_clean()


@cocotb.test()
async def refuses_what_is_not_allowed(dut: Any) -> None:
    """Unknown addresses, read-only registers, and settings during a run."""
    host = await power_up(dut)
    before = {csr: await host.read(csr) for csr in CSR}
    for csr in READ_ONLY:
        assert await host.write(csr, 0xFFFF_FFFF) is AxiResp.SLVERR, csr.name
    known = {int(csr) for csr in CSR}
    for address in range(0, 0x1000, 4):
        if address not in known:
            assert (await host.read(address))[1] is AxiResp.SLVERR, hex(address)
            assert await host.write(address, 0xFFFF_FFFF) is AxiResp.SLVERR, hex(address)
    dut.busy.value = 1
    for csr in PLAIN:
        assert await host.write(csr, 0x1234_5678) is AxiResp.SLVERR, csr.name
    assert await host.read(CSR.STATUS) == (Status.BUSY, AxiResp.OKAY)
    dut.busy.value = 0
    assert {csr: await host.read(csr) for csr in CSR} == before
    assert not host.pulses
    host.monitor.assert_clean()


@cocotb.test()
async def start_and_abort(dut: Any) -> None:
    """START needs an idle NPU and a bus that owes nothing; ABORT needs a run; both need byte 0."""
    host = await power_up(dut)
    okay, slverr = AxiResp.OKAY, AxiResp.SLVERR
    for busy, hung, value, first, response, pulses in (
        (0, 0, Control.START, 0, okay, ["start"]),
        (0, 0, Control.START | Control.ABORT, 0, okay, ["start"]),
        (0, 0, Control.ABORT, 0, okay, []),
        (0, 0, 0, 0, okay, []),
        (0, 0, 0xFFFF_FF01, 1, okay, []),
        (1, 0, Control.START, 0, slverr, []),
        (1, 0, Control.START | Control.ABORT, 0, slverr, []),
        (1, 0, Control.ABORT, 0, okay, ["abort"]),
        (1, 0, 0xFFFF_FF03, 1, okay, []),
        (0, 1, Control.START, 0, slverr, []),
        (0, 1, Control.ABORT, 0, okay, []),
    ):
        dut.busy.value, dut.hung.value = busy, hung
        host.pulses.clear()
        assert await host.write(CSR.CONTROL, value, first, 4 - first) is response, (busy, hung, value)
        assert host.pulses == pulses, (busy, hung, value)


@cocotb.test()
async def interrupt(dut: Any) -> None:
    """Set by the end of a run, seen when enabled, taken back by a 1 or the next START."""
    host = await power_up(dut)

    async def end() -> None:
        dut.ended.value = 1
        await RisingEdge(dut.clk)
        dut.ended.value = 0
        await RisingEdge(dut.clk)

    async def level() -> tuple[int, int]:
        await ReadOnly()
        irq = int(dut.irq.value)
        return irq, (await host.read(CSR.IRQ_PENDING))[0]

    await end()
    assert await level() == (0, 1)
    await host.write(CSR.IRQ_ENABLE, 0xFFFF_FFFE)
    assert await level() == (0, 1)
    await host.write(CSR.IRQ_ENABLE, 1)
    assert await level() == (1, 1)
    await host.write(CSR.IRQ_PENDING, 0)
    await host.write(CSR.IRQ_PENDING, 0xFFFF_FFFF, 1, 3)
    assert await level() == (1, 1)
    await host.write(CSR.IRQ_PENDING, 1)
    assert await level() == (0, 0)
    await end()
    await host.write(CSR.CONTROL, Control.START)
    assert await level() == (0, 0)


@cocotb.test()
async def status_errors_counters(dut: Any) -> None:
    """Inputs are read at their addresses."""
    host = await power_up(dut)
    random = rng()
    for _ in range(20):
        values = {csr: random.randrange(1 << 32) for csr in COUNTERS}
        dut.counters.value = sum(value << 32 * i for i, value in enumerate(values.values()))
        values |= {CSR.ERROR_COMMAND: random.randrange(1 << 32), CSR.ERROR_INFO: random.randrange(1 << 32)}
        values |= {CSR.ERROR_CODE: random.randrange(16), CSR.STATUS: random.randrange(16)}
        dut.error_command.value, dut.error_info.value = values[CSR.ERROR_COMMAND], values[CSR.ERROR_INFO]
        dut.error_code.value = values[CSR.ERROR_CODE]
        status = values[CSR.STATUS]
        dut.busy.value, dut.hung.value = bool(status & Status.BUSY), bool(status & Status.BUS_HUNG)
        dut.done.value, dut.error.value = bool(status & Status.DONE), bool(status & Status.ERROR)
        for csr, value in values.items():
            assert await host.read(csr) == (value, AxiResp.OKAY), csr.name


@cocotb.test()
async def address_and_data_in_any_order(dut: Any) -> None:
    """AW long before W, W long before AW, and reads that do not wait for a stuck write."""
    host = await power_up(dut)
    aw, w = host.bus.write_if.aw_channel, host.bus.write_if.w_channel
    for first, late in ((aw, w), (w, aw)):
        first.pause, late.pause = False, True
        write = cocotb.start_soon(host.write(CSR.WATCHDOG, 0xABCD))
        for _ in range(20):
            await RisingEdge(dut.clk)
        assert not write.done()
        assert await host.read(CSR.MAGIC) == (MAGIC, AxiResp.OKAY)
        late.pause = False
        assert await write is AxiResp.OKAY
        assert await host.read(CSR.WATCHDOG) == (0xABCD, AxiResp.OKAY)
        assert await host.write(CSR.WATCHDOG, 0) is AxiResp.OKAY
    host.monitor.assert_clean()


class Top(wiring.Component):
    """The block with bus ports in the bus models' names."""

    def __init__(self) -> None:
        self.block = RegisterBlock(PRESETS["base"])
        super().__init__({n: m for n, m in self.block.signature.members.items() if n != "bus"})
        self.bus = {path[-1]: value for path, _, value in self.block.bus.signature.flatten(self.block.bus)}

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.submodules.block = self.block
        for name, member in self.signature.members.items():
            inner, outer = Value.cast(getattr(self.block, name)), Value.cast(getattr(self, name))
            m.d.comb += inner.eq(outer) if member.flow is wiring.In else outer.eq(inner)
        return m


def build() -> tuple[wiring.Component, dict[str, Value]]:
    top = Top()
    ports: dict[str, Value] = {f"s_axil_{name}": signal for name, signal in top.bus.items()}
    for name in top.signature.members:
        value = getattr(top, name)
        ports[name] = value if isinstance(value, Signal) else Value.cast(value)
    return top, ports


def test_csr(simulator: str) -> None:
    run_bench(build, __name__, simulator=simulator)


def test_every_register_is_covered() -> None:
    """A new CSR must be put into one of the lists above."""
    assert {*PLAIN, *READ_ONLY, CSR.CONTROL, CSR.IRQ_ENABLE, CSR.IRQ_PENDING} == set(CSR)


pytestmark = pytest.mark.filterwarnings("error")
