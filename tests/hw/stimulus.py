"""Clock, reset and random numbers for cocotb tests (runs inside the simulator)."""

from __future__ import annotations

import random
from typing import Any

import cocotb
from cocotb.clock import Clock
from cocotb.handle import ValueObjectBase
from cocotb.triggers import FallingEdge, RisingEdge, Timer

__all__ = ["CLOCK_NS", "apply_reset", "rng", "stalls", "start"]

CLOCK_NS = 10


def rng(label: str = "") -> random.Random:
    """A random generator that follows from the run's seed, the running test and `label`.

    Generators with different labels are independent: adding a draw in one place changes nothing elsewhere.
    """
    # While a test runs, cocotb.RANDOM_SEED is the run's seed mixed with that test's name.
    return random.Random(f"{cocotb.RANDOM_SEED}/{label}")


def stalls(random_source: random.Random, probability: float) -> Any:
    """Endless stream of booleans, True (stall) with `probability`; in bursts of 1 to 8 cycles.

    Fits cocotbext-axi's `set_pause_generator` and the drivers of `stream_driver`.
    """
    if not 0 <= probability < 1:
        raise ValueError(f"Stall probability must be at least 0 and below 1, not {probability}")
    while True:
        stall = random_source.random() < probability
        for _ in range(random_source.randint(1, 8)):
            yield stall


async def start(dut: Any, *, reset_cycles: int = 3) -> None:
    """Start the clock `dut.clk` and reset the design; returns just after the first edge out of reset.

    Inputs that nobody has driven yet are driven to 0, so that a four-state simulator has no Z on them.
    """
    await Timer(1, unit="ns")
    for handle in dut:
        if isinstance(handle, ValueObjectBase) and set(str(handle.value)) == {"Z"}:
            handle.value = 0
    cocotb.start_soon(Clock(dut.clk, CLOCK_NS, unit="ns").start())
    await apply_reset(dut, cycles=reset_cycles)


async def apply_reset(dut: Any, *, cycles: int = 3) -> None:
    """Assert `dut.rst` for `cycles` rising edges, then wait for one edge without it."""
    await FallingEdge(dut.clk)
    dut.rst.value = 1
    for _ in range(cycles):
        await RisingEdge(dut.clk)
    await FallingEdge(dut.clk)
    dut.rst.value = 0
    await RisingEdge(dut.clk)
