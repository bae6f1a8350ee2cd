"""The control unit with its buses under the names of the NPU's, and models of the four units behind it.

A model takes commands after a random time, holds up to three, finishes them after a random time each, and
writes down what happened when. It can be told to fail, to stand still, and to owe the bus data.
"""

from __future__ import annotations

import random
from collections import deque
from dataclasses import dataclass, field
from typing import Any

import cocotb
from amaranth.hdl import Elaboratable, Module, Shape, Signal, Value
from amaranth.lib import wiring
from cocotb.triggers import ReadOnly, RisingEdge

from lepton_hw.config import NPUConfig
from lepton_hw.control import ControlUnit
from lepton_hw.interfaces import AXI4Write, command_layout
from lepton_hw.isa import ErrorCode, Unit

__all__ = ["FakeUnit", "Plan", "QuietWrites", "control_bench", "flat_ports"]

CAPACITY = 3


def flat_ports(prefix: str, interface: Any) -> dict[str, Value]:
    """Ports of an interface as `prefix_a_b`."""
    return {
        "_".join((prefix, *map(str, path))): Value.cast(value)
        for path, _, value in interface.signature.flatten(interface)
    }


class QuietWrites(wiring.Component):
    """Write channels on which nothing is written: the models want to see a whole AXI4 port."""

    def __init__(self, data_width: int) -> None:
        super().__init__({"port": wiring.Out(AXI4Write(data_width))})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.d.comb += self.port.bready.eq(1)
        return m


class _Bench(Elaboratable):
    def __init__(self, **blocks: Any) -> None:
        self._blocks = blocks

    def elaborate(self, platform: object) -> Module:
        m = Module()
        for name, block in self._blocks.items():
            m.submodules[name] = block
        return m


def control_bench(config: NPUConfig) -> tuple[Any, dict[str, Value]]:
    """The bench's design: module and ports. Units are `load_command_payload` and so on."""
    control = ControlUnit(config)
    writes = QuietWrites(config.bus_width)
    ports: dict[str, Value] = {"irq": control.irq, "progress": control.progress}
    ports["events"] = Value.cast(control.events)
    for prefix, interface in (("s_axil", control.csr), ("m_axi", control.fetch), ("m_axi", writes.port)):
        ports |= flat_ports(prefix, interface)
    for unit in Unit:
        ports |= flat_ports(unit.name.lower(), getattr(control, unit.name.lower()))
    assert all(isinstance(value, Signal) for value in ports.values())
    return _Bench(control=control, writes=writes), ports


@dataclass
class Plan:
    """How a unit behaves.

    Attributes:
        accept: chance to take a command in a cycle.
        shortest, longest: cycles a command takes.
        fail_at: number of the command (of this unit, from 0) that fails, and how.
        hang_at: number of the command that never ends.
        drain: cycles that the unit stays busy after a `clear` that found it at work; None for ever.
    """

    accept: float = 0.7
    shortest: int = 0
    longest: int = 12
    fail_at: int | None = None
    fault: tuple[ErrorCode, int] = (ErrorCode.READ_BUS, 2)
    hang_at: int | None = None
    drain: int | None = 0


@dataclass
class FakeUnit:
    """Model of one unit.

    Attributes:
        taken: (cycle, payload bits) of each command since the last `clear`.
        done: cycle of each `done`.
        faults: cycle of each `fault`, clears or not.
        busy_cycles: cycles of work since the last `clear`.
        clears: cycles in which `clear` was high.
        release: set to let a drain for ever end.
    """

    dut: Any
    unit: Unit
    random: random.Random
    plan: Plan = field(default_factory=Plan)
    taken: list[tuple[int, dict[str, int]]] = field(default_factory=list)
    done: list[int] = field(default_factory=list)
    faults: list[int] = field(default_factory=list)
    busy_cycles: int = 0
    clears: list[int] = field(default_factory=list)
    release: bool = False
    cycle: int = 0

    def start(self) -> None:
        """Begin; before the first reset."""
        for name in ("command_ready", "done", "fault", "fault_code", "fault_info", "busy"):
            self._port(name).value = 0
        cocotb.start_soon(self._run())

    def _port(self, name: str) -> Any:
        return getattr(self.dut, f"{self.unit.name.lower()}_{name}")

    async def _run(self) -> None:
        dut, r = self.dut, self.random
        layout = command_layout(self.unit)
        work: deque[int] = deque()  # cycles left, of each command
        drain = 0
        ready = False
        inputs = ("command_valid", "command_ready", "command_payload", "clear")
        port = {name: self._port(name) for name in inputs}
        out = {name: self._port(name) for name in ("done", "fault", "fault_code", "fault_info", "busy")}
        await RisingEdge(dut.clk)  # inputs have values from here on
        while True:
            await ReadOnly()
            # As text: Icarus first evaluates logic when an input changes, until then it may be X.
            valid, clear = (str(port[name].value) == "1" for name in ("command_valid", "clear"))
            payload = int(port["command_payload"].value) if valid and ready else 0
            reset = str(dut.rst.value) == "1"
            await RisingEdge(dut.clk)
            self.cycle += 1
            plan = self.plan
            done = fault = False
            if reset:
                work.clear()
                self.taken.clear()
                self.done.clear()
                self.busy_cycles = 0
                drain = 0
            elif clear:
                drain = -1 if work and plan.drain is None else plan.drain if work else 0
                work.clear()
                self.taken.clear()
                self.done.clear()
                self.busy_cycles = 0
                self.clears.append(self.cycle)
            else:
                if drain > 0:
                    drain -= 1
                if drain < 0 and self.release:
                    drain = 0
                if valid and ready:
                    widths = {name: Shape.cast(f.shape).width for name, f in layout}
                    fields = {name: payload >> f.offset & ((1 << widths[name]) - 1) for name, f in layout}
                    self.taken.append((self.cycle, fields))
                    work.append(r.randint(plan.shortest, plan.longest))
                if work and not (plan.hang_at is not None and len(self.done) >= plan.hang_at):
                    if work[0] == 0:
                        work.popleft()
                        if plan.fail_at is not None and len(self.done) == plan.fail_at:
                            fault = True
                            self.faults.append(self.cycle)
                        else:
                            done = True
                            self.done.append(self.cycle)
                    else:
                        work[0] -= 1
            ready = len(work) < CAPACITY and drain == 0 and r.random() < plan.accept and not fault
            port["command_ready"].value = ready
            out["done"].value, out["fault"].value = done, fault
            code, info = plan.fault if fault else (r.randrange(16), r.randrange(1 << 32))
            out["fault_code"].value, out["fault_info"].value = int(code), info
            busy = bool(work) or drain != 0 or done or fault
            out["busy"].value = busy
            self.busy_cycles += busy
