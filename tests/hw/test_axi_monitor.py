"""The protocol monitors: each rule fires on a seeded violation and is silent on random legal traffic.

The design under test is a bundle of wires; the benches drive both sides of each port.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import cocotb
import pytest
from cocotb.handle import Immediate
from cocotb.triggers import FallingEdge, RisingEdge
from cocotb.types import LogicArray
from cocotbext.axi import AxiBurstType, AxiBus, AxiLiteBus, AxiLiteMaster, AxiLiteRam, AxiMaster, AxiRam

from axi_monitor import Axi4Monitor, AxiLiteMonitor, AxiViolation, Rule
from bench import run_bench
from stimulus import rng, stalls, start
from wires import Channels, Wires, axi4_channels, axi_lite_channels

_PORTS: dict[str, Channels] = {
    "axi": axi4_channels(64, id_width=2),
    "lite": axi_lite_channels(32),
    "narrow": axi_lite_channels(16),
    "reads": {name: fields for name, fields in axi4_channels(64).items() if name in ("ar", "r")},
}


class Port:
    """Drives one port of `Wires`, one cycle a call."""

    def __init__(self, dut: Any, prefix: str) -> None:
        self.dut = dut
        self.prefix = prefix
        self.channels = _PORTS[prefix]

    def signal(self, name: str) -> Any:
        return getattr(self.dut, f"{self.prefix}_{name}")

    async def cycle(self, **signals: Any) -> None:
        """Drive `signals` for one cycle, every VALID and READY not named to 0; returns at its edge."""
        for channel in self.channels:
            for name in (f"{channel}valid", f"{channel}ready"):
                self.signal(name).value = signals.pop(name, 0)
        for name, value in signals.items():
            self.signal(name).value = value
        await RisingEdge(self.dut.clk)

    def transfer(self, channel: str, **fields: Any) -> dict[str, Any]:
        """Signals of a legal transfer on `channel`, taken at once; `fields` replaces some of them."""
        address = 0x1000 if self.channels[channel].get("addr") == 32 else 0x10
        legal = {"addr": address, "size": 3, "burst": 1, "cache": 3, "last": 1, "valid": 1, "ready": 1}
        values = {field: legal.get(field, 0) for field in (*self.channels[channel], "valid", "ready")}
        return {f"{channel}{field}": value for field, value in (values | fields).items()}

    async def send(self, channel: str, **fields: Any) -> None:
        await self.cycle(**self.transfer(channel, **fields))

    async def prepare(self, channel: str) -> None:
        """What must have happened before a legal transfer on `channel`."""
        if channel == "b":
            await self.send("aw")
            await self.send("w")
        elif channel == "r":
            await self.send("ar")


Scenario = Callable[[Port], Awaitable[None]]
#: Name of a scenario: the port, the rule that it breaks, the channel that is to be blamed, what is driven.
SCENARIOS: dict[str, tuple[str, Rule, str, Scenario]] = {}
FOUR_STATE: set[str] = set()


def _scenario(port: str, rule: Rule, channel: str, title: str) -> Callable[[Scenario], Scenario]:
    def register(scenario: Scenario) -> Scenario:
        name = f"{port}_{channel}_{rule.name.lower()}" + (f"_{title}" if title else "")
        assert name not in SCENARIOS, name
        SCENARIOS[name] = (port, rule, channel.upper(), scenario)
        if rule is Rule.KNOWN:
            FOUR_STATE.add(name)
        return scenario

    return register


def _handshake_scenarios(port: str, channel: str) -> None:
    """The rules that every channel of every port has."""

    @_scenario(port, Rule.VALID_HELD, channel, "")
    async def valid_falls(p: Port) -> None:
        await p.prepare(channel)
        await p.send(channel, ready=0)
        await p.cycle()

    @_scenario(port, Rule.VALID_IN_RESET, channel, "")
    async def valid_in_reset(p: Port) -> None:
        p.dut.rst.value = 1
        await p.cycle()
        await p.send(channel)
        await p.cycle()

    @_scenario(port, Rule.VALID_AFTER_RESET, channel, "")
    async def valid_after_reset(p: Port) -> None:
        p.dut.rst.value = 1
        await p.cycle()
        await p.cycle()
        p.dut.rst.value = 0
        await p.send(channel, ready=0)
        p.dut.rst.value = 1  # the transfer ends in reset, before another rule sees it
        await p.cycle()

    @_scenario(port, Rule.KNOWN, channel, "valid")
    async def valid_unknown(p: Port) -> None:
        await p.prepare(channel)
        await p.send(channel, valid=LogicArray("X"))

    @_scenario(port, Rule.KNOWN, channel, "ready")
    async def ready_unknown(p: Port) -> None:
        await p.prepare(channel)
        await p.send(channel, ready=LogicArray("Z"))

    for field, width in _PORTS[port][channel].items():

        @_scenario(port, Rule.PAYLOAD_STABLE, channel, field)
        async def payload_changes(p: Port, field: str = field, width: int = width) -> None:
            await p.prepare(channel)
            first = p.transfer(channel, ready=0)
            await p.cycle(**first)
            await p.cycle(**first)
            # One bit of the field, a random one, flips while VALID waits.
            bit = 1 << rng(f"{channel}{field}").randrange(width)
            await p.cycle(**first | {f"{channel}ready": 1, f"{channel}{field}": first[channel + field] ^ bit})

        if field != "data":

            @_scenario(port, Rule.KNOWN, channel, field)
            async def control_unknown(p: Port, field: str = field, width: int = width) -> None:
                await p.prepare(channel)
                # All other bits 0; RLAST, ID and response fit a first single transfer, so only X is at fault.
                await p.send(channel, **{field: LogicArray("X" if width == 1 else "0" * (width - 1) + "X")})


for _port in ("axi", "lite", "reads"):
    for _channel in _PORTS[_port]:
        _handshake_scenarios(_port, _channel)


def _illegal_address(rule: Rule, title: str, **fields: int) -> None:
    """One illegal address on AW and on AR."""
    for channel in ("aw", "ar"):

        @_scenario("axi", rule, channel, title)
        async def address(p: Port, channel: str = channel) -> None:
            await p.send(channel, **fields)


_illegal_address(Rule.BOUNDARY, "aligned", addr=0x1FF8, len=1)
_illegal_address(Rule.BOUNDARY, "unaligned", addr=0x1F01, len=32)
_illegal_address(Rule.BOUNDARY, "narrow", addr=0x1FFF, len=1, size=0)
_illegal_address(Rule.BOUNDARY, "longest", addr=0x1808, len=255)
_illegal_address(Rule.BOUNDARY, "end_of_memory", addr=0xFFFF_FFF8, len=1)
_illegal_address(Rule.BURST_TYPE, "", burst=3)
_illegal_address(Rule.BURST_LENGTH, "fixed", burst=0, len=16)
_illegal_address(Rule.BURST_LENGTH, "wrap", burst=2, len=2)
_illegal_address(Rule.BURST_LENGTH, "wrap_long", burst=2, len=31)
_illegal_address(Rule.BURST_SIZE, "", size=4)
_illegal_address(Rule.WRAP_ALIGNED, "", burst=2, len=3, addr=0x1004)
_illegal_address(Rule.CACHE, "write_allocate", cache=0b1000)
_illegal_address(Rule.CACHE, "read_allocate", cache=0b0101)


def _illegal_strobe(title: str, strobes: list[int], **fields: int) -> None:
    """A burst of which the last transfer has strobes beside its lanes; also with the data ahead of AW."""

    async def data(p: Port) -> None:
        for index, strobe in enumerate(strobes):
            await p.send("w", strb=strobe, last=index == len(strobes) - 1)

    @_scenario("axi", Rule.STROBES, "w", title)
    async def address_first(p: Port) -> None:
        await p.send("aw", len=len(strobes) - 1, **fields)
        await data(p)

    @_scenario("axi", Rule.STROBES, "w", f"{title}_data_first")
    async def data_first(p: Port) -> None:
        await data(p)
        await p.send("aw", len=len(strobes) - 1, **fields)


_illegal_strobe("narrow", [0x08], addr=0x1004, size=2)
_illegal_strobe("unaligned", [0x02], addr=0x1002)
_illegal_strobe("second", [0x0F, 0x0F], addr=0x1000, size=2)
_illegal_strobe("after_unaligned", [0xE0, 0x10], addr=0x1005, size=2)
_illegal_strobe("fixed", [0x0C, 0x0C, 0x30], addr=0x1002, size=1, burst=0)
_illegal_strobe("wrap", [0xF0, 0xF0], addr=0x1004, size=2, burst=2)


@_scenario("axi", Rule.WLAST, "w", "early")
async def _wlast_early(p: Port) -> None:
    await p.send("aw", len=2)
    await p.send("w", last=0)
    await p.send("w", last=1)


@_scenario("axi", Rule.WLAST, "w", "late")
async def _wlast_late(p: Port) -> None:
    await p.send("aw", len=1)
    await p.send("w", last=0)
    await p.send("w", last=0)


@_scenario("axi", Rule.WLAST, "w", "early_data_first")
async def _wlast_early_data_first(p: Port) -> None:
    await p.send("w", last=1)
    await p.send("aw", len=1)


@_scenario("axi", Rule.WLAST, "w", "second_burst")
async def _wlast_second_burst(p: Port) -> None:
    await p.send("aw", len=1)
    await p.send("aw", len=1)
    for last in (0, 1, 1):
        await p.send("w", last=last)


@_scenario("axi", Rule.RESPONSE_EARLY, "b", "nothing")
@_scenario("lite", Rule.RESPONSE_EARLY, "b", "nothing")
async def _response_to_nothing(p: Port) -> None:
    await p.send("b")


@_scenario("axi", Rule.RESPONSE_EARLY, "b", "no_data")
@_scenario("lite", Rule.RESPONSE_EARLY, "b", "no_data")
async def _response_without_data(p: Port) -> None:
    await p.send("aw")
    await p.send("b")


@_scenario("axi", Rule.RESPONSE_EARLY, "b", "no_address")
@_scenario("lite", Rule.RESPONSE_EARLY, "b", "no_address")
async def _response_without_address(p: Port) -> None:
    await p.send("w")
    await p.send("b")


@_scenario("axi", Rule.RESPONSE_EARLY, "b", "data_incomplete")
async def _response_before_last(p: Port) -> None:
    await p.send("aw", len=1)
    await p.send("w", last=0)
    await p.send("b")


@_scenario("axi", Rule.RESPONSE_EARLY, "b", "same_cycle")
@_scenario("lite", Rule.RESPONSE_EARLY, "b", "same_cycle")
async def _response_with_data(p: Port) -> None:
    await p.send("aw")
    await p.cycle(**p.transfer("w"), **p.transfer("b"))


@_scenario("axi", Rule.RESPONSE_EARLY, "b", "data_not_accepted")
@_scenario("lite", Rule.RESPONSE_EARLY, "b", "data_not_accepted")
async def _response_before_ready(p: Port) -> None:
    await p.send("aw")
    await p.send("w", ready=0)
    await p.cycle(**p.transfer("w", ready=0), **p.transfer("b"))
    await p.send("w")


@_scenario("axi", Rule.RESPONSE_EARLY, "b", "wrong_id")
async def _response_with_wrong_id(p: Port) -> None:
    await p.send("aw", id=1)
    await p.send("w")
    await p.send("b", id=2)


@_scenario("axi", Rule.RESPONSE_EARLY, "b", "twice")
@_scenario("lite", Rule.RESPONSE_EARLY, "b", "twice")
async def _response_twice(p: Port) -> None:
    await p.prepare("b")
    await p.send("b")
    await p.send("b")


@_scenario("axi", Rule.READ_UNASKED, "r", "nothing")
@_scenario("lite", Rule.READ_UNASKED, "r", "nothing")
@_scenario("reads", Rule.READ_UNASKED, "r", "nothing")
async def _read_data_for_nothing(p: Port) -> None:
    await p.send("r")


@_scenario("axi", Rule.READ_UNASKED, "r", "same_cycle")
@_scenario("lite", Rule.READ_UNASKED, "r", "same_cycle")
async def _read_data_with_address(p: Port) -> None:
    await p.cycle(**p.transfer("ar"), **p.transfer("r"))


@_scenario("axi", Rule.READ_UNASKED, "r", "wrong_id")
async def _read_data_with_wrong_id(p: Port) -> None:
    await p.send("ar", id=1)
    await p.send("r", id=3)


@_scenario("axi", Rule.READ_UNASKED, "r", "twice")
@_scenario("lite", Rule.READ_UNASKED, "r", "twice")
async def _read_data_too_long(p: Port) -> None:
    await p.prepare("r")
    await p.send("r")
    await p.send("r")


@_scenario("axi", Rule.RLAST, "r", "early")
async def _rlast_early(p: Port) -> None:
    await p.send("ar", len=2)
    await p.send("r", last=0)
    await p.send("r", last=1)


@_scenario("axi", Rule.RLAST, "r", "late")
async def _rlast_late(p: Port) -> None:
    await p.send("ar", len=1)
    await p.send("r", last=0)
    await p.send("r", last=0)


@_scenario("axi", Rule.RLAST, "r", "order_of_one_id")
async def _rlast_out_of_order(p: Port) -> None:
    # Two reads of one ID: the short one must not overtake the long one.
    await p.send("ar", id=1, len=3)
    await p.send("ar", id=1, len=0)
    await p.send("r", id=1, last=1)


@_scenario("axi", Rule.EXOKAY, "b", "")
async def _exokay_write(p: Port) -> None:
    await p.prepare("b")
    await p.send("b", resp=1)


@_scenario("axi", Rule.EXOKAY, "r", "")
async def _exokay_read(p: Port) -> None:
    await p.prepare("r")
    await p.send("r", resp=1)


@_scenario("lite", Rule.LITE_EXOKAY, "b", "")
async def _lite_exokay_write(p: Port) -> None:
    await p.prepare("b")
    await p.send("b", resp=1)


@_scenario("lite", Rule.LITE_EXOKAY, "r", "")
async def _lite_exokay_read(p: Port) -> None:
    await p.prepare("r")
    await p.send("r", resp=1)


@_scenario("narrow", Rule.LITE_WIDTH, "w", "")
@_scenario("narrow", Rule.LITE_WIDTH, "r", "")
async def _lite_width(p: Port) -> None:
    await p.cycle()


def _monitor(dut: Any, prefix: str, *, strict: bool) -> Axi4Monitor | AxiLiteMonitor:
    kind = Axi4Monitor if prefix in ("axi", "reads") else AxiLiteMonitor
    return kind(dut, prefix, dut.clk, dut.rst, strict=strict)


async def _start(dut: Any) -> None:
    """All wires low, clock and reset."""
    for handle in dut:
        if handle._name != "clk":
            handle.set(Immediate(0))
    await start(dut)


@cocotb.test()
@cocotb.parametrize(name=sorted(SCENARIOS))
async def rule_fires(dut: Any, name: str) -> None:
    """One violation in otherwise legal traffic: that rule is reported, on that channel, and no other."""
    prefix, rule, channel, scenario = SCENARIOS[name]
    if name in FOUR_STATE and cocotb.SIM_NAME.startswith("Verilator"):
        return  # two-state: X cannot be driven
    monitor = _monitor(dut, prefix, strict=False)
    await _start(dut)
    port = Port(dut, prefix)
    for idle in range(rng().randrange(3)):
        assert not [v for v in monitor.violations if v.rule is not Rule.LITE_WIDTH], idle
        await port.cycle()
    await scenario(port)
    await FallingEdge(dut.clk)
    found = {(violation.rule, violation.channel) for violation in monitor.violations}
    if rule is Rule.LITE_WIDTH:
        assert (rule, channel) in found
        assert {r for r, _ in found} == {rule}
    else:
        assert found == {(rule, channel)}, (name, [str(violation) for violation in monitor.violations])
    with pytest.raises(AxiViolation, match=rule.section):
        monitor.assert_clean(allow_outstanding=True)


@cocotb.test(expect_error=AxiViolation)
async def strict_monitor_fails_the_test(dut: Any) -> None:
    """Without anyone asking the monitor, a violation ends the test."""
    _monitor(dut, "axi", strict=True)
    await _start(dut)
    port = Port(dut, "axi")
    await port.send("b")
    for _ in range(10):
        await port.cycle()


@cocotb.test()
async def unfinished_work_is_not_clean(dut: Any) -> None:
    """assert_clean() tells of no clock, of transactions without answer and of transfers without READY."""
    monitor = _monitor(dut, "axi", strict=True)

    def complaint() -> str:
        try:
            monitor.assert_clean()
        except AssertionError as error:
            return str(error)
        return ""

    assert "no clock edge" in complaint()
    await _start(dut)
    port = Port(dut, "axi")
    await port.cycle()
    assert complaint() == ""
    for step, message in (("aw", "1 transactions"), ("w", "1 transactions"), ("b", "")):
        await port.send(step)
        await FallingEdge(dut.clk)
        assert message in complaint()
        assert bool(message) == bool(complaint())
    await port.send("ar", ready=0)
    await FallingEdge(dut.clk)
    assert "READY on AR" in complaint()
    await port.send("ar")
    await FallingEdge(dut.clk)
    assert "1 transactions" in complaint()
    monitor.assert_clean(allow_outstanding=True)
    # A reset forgets what was under way.
    dut.rst.value = 1
    await port.cycle()
    await port.cycle()
    dut.rst.value = 0
    await port.cycle()
    assert complaint() == ""


@cocotb.test()
async def edge_cases_are_legal(dut: Any) -> None:
    """What looks wrong and is not: bursts up to the boundary, exclusive EXOKAY, data first, mixed IDs."""
    monitor = _monitor(dut, "axi", strict=True)
    await _start(dut)
    p = Port(dut, "axi")
    await p.send("ar", addr=0x1FF8)
    await p.send("r")
    await p.send("ar", addr=0xFFFF_F800, len=255)
    for beat in range(256):
        await p.send("r", last=beat == 255, resp=2 + beat % 2)
    await p.send("ar", addr=0x1FFC, burst=0, size=2, len=15)  # FIXED stays where it is
    for beat in range(16):
        await p.send("r", last=beat == 15)
    await p.send("ar", lock=1)
    await p.send("r", resp=1)
    await p.send("aw", lock=1, cache=0)
    await p.send("w", strb=0xFF)
    await p.send("b", resp=1)
    # Reads of different IDs, interleaved and out of order.
    await p.send("ar", id=1, len=1)
    await p.send("ar", id=2, len=0)
    await p.send("r", id=1, last=0)
    await p.send("r", id=2, last=1)
    await p.send("r", id=1, last=1)
    # Data ahead of its address; two writes under way; answers in another order.
    await p.send("w", last=0, strb=0xFE)
    await p.send("w", last=1)
    await p.send("aw", id=3, addr=0x1001, len=1)
    await p.send("aw", id=0, addr=0x1000, len=0)
    await p.send("w", strb=0)
    await p.send("b", id=0, resp=3)
    await p.send("b", id=3, ready=0)
    await p.send("b", id=3)
    # Address, data and an earlier read in one cycle.
    await p.cycle(**p.transfer("aw"), **p.transfer("w"), **p.transfer("ar"))
    await p.cycle(**p.transfer("b"), **p.transfer("r"))
    await FallingEdge(dut.clk)
    monitor.assert_clean()


def _pause(model: Any, random: Any, probability: float) -> None:
    for half, channels in (("write_if", ("aw", "w", "b")), ("read_if", ("ar", "r"))):
        for channel in channels:
            sequence = stalls(random, probability)
            getattr(getattr(model, half), f"{channel}_channel").set_pause_generator(sequence)


@cocotb.test()
@cocotb.parametrize(stall=[0.0, 0.3, 0.7])
async def random_axi4_traffic_is_clean(dut: Any, stall: float) -> None:
    """cocotbext-axi's manager and memory talk at random; what was written is read back."""
    monitor = _monitor(dut, "axi", strict=True)
    await _start(dut)
    random = rng()
    bus = AxiBus.from_prefix(dut, "axi")
    manager = AxiMaster(bus, dut.clk, dut.rst)
    memory = AxiRam(bus, dut.clk, dut.rst, size=1 << 16)
    image = bytearray(1 << 16)
    if stall:
        _pause(manager, random, stall)
        _pause(memory, random, stall)
    await RisingEdge(dut.clk)

    async def transfer(region: int) -> None:
        for _ in range(12):
            size = random.randrange(4)
            start_at = region * 0x4000 + random.choice([random.randrange(0x3000), 0xFFF, 0x1000, 0x1FF8])
            length = random.choice([1, 2, 3, 8, 64, random.randrange(1, 600)])
            data = random.randbytes(length)
            image[start_at : start_at + length] = data
            written = await manager.write(start_at, data, size=size, awid=region)
            assert written.resp == 0
            back = await manager.read(start_at, length, size=random.randrange(4), arid=region)
            assert back.data == data

    tasks = [cocotb.start_soon(transfer(region)) for region in range(4)]
    for task in tasks:
        await task
    # The manager model splits bursts at 4 KiB for INCR only; WRAP and FIXED get one legal burst each.
    await manager.write(0x100, random.randbytes(32), burst=AxiBurstType.WRAP, size=3)
    await manager.read(0x110, 8, burst=AxiBurstType.FIXED, size=2)
    assert memory.read(0x200, 0x3E00) == bytes(image[0x200:0x4000])
    for _ in range(20):
        await RisingEdge(dut.clk)
    monitor.assert_clean()
    assert min(monitor.transfers.values()) >= 50, monitor.transfers


@cocotb.test()
@cocotb.parametrize(stall=[0.0, 0.5])
async def random_lite_traffic_is_clean(dut: Any, stall: float) -> None:
    """The same for AXI4-Lite."""
    monitor = _monitor(dut, "lite", strict=True)
    await _start(dut)
    random = rng()
    bus = AxiLiteBus.from_prefix(dut, "lite")
    manager = AxiLiteMaster(bus, dut.clk, dut.rst)
    memory = AxiLiteRam(bus, dut.clk, dut.rst, size=1 << 12)
    if stall:
        _pause(manager, random, stall)
        _pause(memory, random, stall)
    await RisingEdge(dut.clk)
    for _ in range(100):
        address = random.randrange((1 << 12) - 16)
        data = random.randbytes(random.randrange(1, 16))
        await manager.write(address, data)
        assert (await manager.read(address, len(data))).data == data
    for _ in range(20):
        await RisingEdge(dut.clk)
    monitor.assert_clean()
    assert min(monitor.transfers.values()) >= 100, monitor.transfers


def test_axi_monitor(simulator: str) -> None:
    run_bench(lambda: Wires(_PORTS), __name__, simulator=simulator, top="wires")


def test_every_rule_has_a_violation() -> None:
    """A rule without a scenario above would be a rule that nobody saw firing."""
    assert {rule for _, rule, _, _ in SCENARIOS.values()} == set(Rule)
