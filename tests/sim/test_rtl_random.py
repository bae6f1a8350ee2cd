"""The RTL, simulated in this process, against the golden model: random programs, correct and spoiled.

    .venv/bin/python -m pytest tests/sim/test_rtl_random.py              # some on `nano`
    .venv/bin/python -m pytest tests/sim/test_rtl_random.py -m slow      # thousands, on all presets
    LEPTON_RTL_PROGRAMS=20000 .venv/bin/python -m pytest tests/sim/test_rtl_random.py -m slow -k nano

LEPTON_RTL_PROGRAMS sets how many programs each preset runs, LEPTON_SEED where their numbers start. A failure
names the number of its program. One device runs them all without a reset; after each program comes a spoiled
copy of it. tests/hw/test_npu.py does the same in cocotb, with random back-pressure and protocol monitors.
"""

from __future__ import annotations

import os
import random

import numpy as np
import pytest

from lepton_hw.config import PRESETS
from lepton_sim.mutation import Expectation, mutate
from lepton_sim.random_program import MEMORY_BYTES, RandomProgram, random_program, run_golden
from lepton_sim.rtl import RtlDevice

TIMINGS: tuple[dict[str, object], ...] = (
    {"latency": 1, "write_latency": 1, "outstanding": 1},
    {"latency": 20},
    {"latency": 200, "write_latency": 3, "outstanding": 2, "bandwidth": (1, 3)},
    {"latency": 3, "write_latency": 100},
)
WATCHDOG = 4000  # far above any pause of these memories

# Device.run refuses before the run what these kinds spoil: the benches of the NPU have them.
REFUSED_BY_RUN = ("misaligned", "empty", "program outside", "read bus", "write bus", "fetch bus")


def spoil(rng: random.Random, p: RandomProgram) -> tuple[RandomProgram, Expectation] | None:
    """A spoiled copy that Device.run takes, or None when three tries gave none."""
    for _ in range(3):
        spoiled, expectation = mutate(rng, p)
        if not spoiled.description.startswith(REFUSED_BY_RUN):
            return spoiled, expectation
    return None


def check(device: RtlDevice, p: RandomProgram, expectation: Expectation | None, name: str) -> None:
    """Run a program on both and compare; `name` says which one it is."""
    wanted, memory = run_golden(p)
    device.write(0, p.memory)
    read = p.read_window
    found = device.run(
        p.program_address,
        p.program_bytes,
        read_window=read,
        write_window=p.write_window,
        max_cycles=3_000_000,
    )
    after = device.read(0, MEMORY_BYTES)
    about = f"{name}, windows {read} {p.write_window}, {p.description}"
    error = found.error
    if expectation is None:
        assert error is None, f"{about}: {error}"
        common = {counter: found.counters[counter] for counter in wanted.counters}
        assert common == wanted.counters, about
    else:
        assert error is not None, f"{about}: no error instead of {expectation}"
        announced = (expectation.code, expectation.command, expectation.info)
        assert (error.code, error.command, error.info) == announced, about
    first, last = p.write_window
    changed = np.flatnonzero(after != p.memory)
    assert not changed.size or first <= changed[0] <= changed[-1] <= last, (
        f"{about}: wrote outside the window"
    )
    if expectation is None or expectation.memory_exact:
        np.testing.assert_array_equal(after, memory, about)


def run_programs(preset: str, count: int) -> None:
    config = PRESETS[preset]
    seed = os.environ.get("LEPTON_SEED") or "0"
    first = random.SystemRandom().randrange(1 << 32) if seed == "random" else int(seed, 0)
    print(f"programs {first} to {first + count - 1} (LEPTON_SEED={first})")
    devices = [
        RtlDevice(config, memory_bytes=MEMORY_BYTES, watchdog=WATCHDOG, **timing)  # type: ignore[arg-type]
        for timing in TIMINGS
    ]
    for number in range(first, first + count):
        rng = random.Random(f"{preset} {number}")
        p = random_program(rng, config, size=rng.randrange(5))
        which = number % len(devices)
        name = f"program {number} on {preset}, memory {TIMINGS[which]}"
        check(devices[which], p, None, name)
        spoiled = spoil(rng, p)
        if spoiled is not None:
            check(devices[which], *spoiled, name)
    for device in devices:
        device.close()


def test_random_programs() -> None:
    run_programs("nano", 60)


@pytest.mark.slow
@pytest.mark.parametrize("preset", PRESETS)
def test_thousands_of_random_programs(preset: str) -> None:
    run_programs(preset, int(os.environ.get("LEPTON_RTL_PROGRAMS", "1000")))
