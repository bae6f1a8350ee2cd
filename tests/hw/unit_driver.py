"""Stands in for the control unit at a unit's `port` (runs inside the simulator)."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import cocotb
from cocotb.simtime import get_sim_time
from cocotb.triggers import RisingEdge, with_timeout

from lepton_hw.interfaces import FIRST_PAYLOAD_WORD, command_layout
from lepton_hw.isa import Command, Unit, encode
from stimulus import CLOCK_NS

__all__ = ["UnitDriver", "UnitFault", "cycle"]


def cycle() -> int:
    """Number of the clock cycle that ends now."""
    return int(get_sim_time("ns")) // CLOCK_NS


@dataclass(frozen=True)
class UnitFault:
    """What a unit said with `fault`."""

    cycle: int
    code: int
    info: int


class UnitDriver:
    """Gives commands to `dut.port` and records what comes back.

    Arguments:
        dut, unit: the unit; its UnitPort is called `port`.
        stalls: booleans, one for each chance to offer a command; True skips it.

    Attributes:
        taken: commands that the unit took.
        done: cycles of the done pulses.
        faults: the faults.
    """

    def __init__(self, dut: Any, unit: Unit, stalls: Iterator[bool] | None = None) -> None:
        self._dut = dut
        self._stalls = stalls
        layout = command_layout(unit)
        self._words = layout["words"].width // 32
        self._opcode_bits = layout["opcode"].width
        self._queue: deque[Command] = deque()
        self._clear_cycles = 0
        self._unfinished = 0  # cycles for which there has been work
        self.taken: list[Command] = []
        self.done: list[int] = []
        self.faults: list[UnitFault] = []
        dut.port__command__valid.value = 0
        dut.port__clear.value = 0
        self._task = cocotb.start_soon(self._run())

    def send(self, *commands: Command) -> None:
        """Queue commands."""
        self._queue.extend(commands)

    def clear(self, cycles: int = 1) -> None:
        """Drop the queue, and raise `clear` for so many cycles from now on; the records start anew."""
        self._queue.clear()
        self._clear_cycles = cycles
        self._dut.port__clear.value = 1
        self._dut.port__command__valid.value = 0
        self.taken, self.done, self.faults = [], [], []

    async def wait_done(self, count: int, *, timeout_cycles: int = 50_000) -> None:
        """Wait until that many commands are done."""
        await with_timeout(self._until(lambda: len(self.done) >= count), timeout_cycles * CLOCK_NS, "ns")

    async def wait_fault(self, *, timeout_cycles: int = 50_000) -> UnitFault:
        """Wait for a fault."""
        await with_timeout(self._until(lambda: bool(self.faults)), timeout_cycles * CLOCK_NS, "ns")
        return self.faults[0]

    async def wait_idle(self, *, timeout_cycles: int = 50_000) -> None:
        """Wait until the unit is not busy."""
        await with_timeout(
            self._until(lambda: str(self._dut.port__busy.value) == "0"), timeout_cycles * CLOCK_NS, "ns"
        )

    async def _until(self, condition: Any) -> None:
        while True:
            await RisingEdge(self._dut.clk)
            if condition():
                return

    def _payload(self, command: Command) -> int:
        first = 4 * FIRST_PAYLOAD_WORD
        words = int.from_bytes(encode([command])[first : first + 4 * self._words], "little")
        return words << self._opcode_bits | int(command.opcode)

    async def _run(self) -> None:
        dut = self._dut
        edge = RisingEdge(dut.clk)
        offered = False
        while True:
            await edge
            if str(dut.rst.value) == "1":
                continue
            if str(dut.port__clear.value) == "1":
                offered = False
                self._clear_cycles -= 1
                if self._clear_cycles <= 0:
                    dut.port__clear.value = 0
                else:
                    continue
            else:
                if str(dut.port__done.value) == "1":
                    assert str(dut.port__fault.value) == "0", "done and fault in one cycle"
                    self.done.append(cycle())
                    assert len(self.done) <= len(self.taken), "more commands done than taken"
                if str(dut.port__fault.value) == "1":
                    code, info = int(dut.port__fault_code.value), int(dut.port__fault_info.value)
                    self.faults.append(UnitFault(cycle(), code, info))
                if offered and str(dut.port__command__ready.value) == "1":
                    self.taken.append(self._queue.popleft())
                    offered = False
                if len(self.taken) > len(self.done) and not self.faults:
                    # The command taken at this very edge shows in `busy` from the next cycle on.
                    self._unfinished += 1
                    assert self._unfinished < 2 or str(dut.port__busy.value) == "1", (
                        "busy fell with work left"
                    )
                else:
                    self._unfinished = 0
            if self._clear_cycles > 0:
                offered = False  # clear() was called at this edge
            elif not offered and self._queue and not (self._stalls and next(self._stalls)):
                dut.port__command__payload.value = self._payload(self._queue[0])
                offered = True
                dut.port__command__valid.value = 1
            if not offered:
                dut.port__command__valid.value = 0
