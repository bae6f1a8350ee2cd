"""Weight and parameter memories: beats in, vectors out."""

from __future__ import annotations

import os
from collections import deque
from typing import Any

import cocotb
import numpy as np
import pytest
from cocotb.triggers import RisingEdge

from bench import run_bench
from lepton_hw.vector_memory import VectorMemory
from stimulus import rng, start
from transfers import CONFIGS


def config() -> Any:
    """The configuration under test."""
    return CONFIGS[os.environ["LEPTON_CONFIG"]]


@cocotb.test()
async def random_beats_and_vectors(dut) -> None:
    """A write and a read in most cycles; a read sees every write of the cycles before."""
    n, bus, size = config().array_size, config().bus_bytes, config().parameter_bytes
    latency = int(os.environ["LEPTON_LATENCY"])
    draw = rng("bench")
    image = np.zeros(size, np.uint8)
    await start(dut)
    # Entry 0: what the data port shows at the next edge.
    due: deque[np.ndarray | None] = deque([None] * latency)
    compared = 0
    fill = [(bus * i, draw.randbytes(bus)) for i in range(size // bus)]
    for step in range(len(fill) + 3000):
        writing = step < len(fill) or draw.random() < 0.6
        address, beat = (
            fill[step] if step < len(fill) else (bus * draw.randrange(size // bus), draw.randbytes(bus))
        )
        near = address // n + draw.randrange(-2, 3)
        vector = draw.choice((near, draw.randrange(size // n))) % (size // n)
        reading = step >= len(fill) and draw.random() < 0.8
        dut.write__enable.value = int(writing)
        dut.write__address.value = address
        dut.write__data.value = int.from_bytes(beat, "little")
        dut.read__enable.value = int(reading)
        dut.read__address.value = vector
        await RisingEdge(dut.clk)
        expected = due.popleft()
        if expected is not None:
            assert int(dut.read__data.value) == int.from_bytes(expected.tobytes(), "little")
            compared += 1
        # A read of the vector that is being written gives undefined data.
        undefined = writing and address // n == vector
        due.append(image[vector * n :][:n].copy() if reading and not undefined else None)
        if writing:
            image[address : address + bus] = np.frombuffer(beat, np.uint8)
    assert compared > 1000


@pytest.mark.parametrize("latency", [1, 2])
@pytest.mark.parametrize("name", ["nano", "base", "long"])
def test_vector_memory(name: str, latency: int, simulator: str) -> None:
    """A bus as wide as a vector and a narrower one, both latencies."""
    run_bench(
        lambda: VectorMemory(CONFIGS[name].parameter_bytes, CONFIGS[name], latency=latency),
        __name__,
        simulator=simulator,
        env={"LEPTON_CONFIG": name, "LEPTON_LATENCY": latency},
    )


@pytest.mark.parametrize("latency", [0, 3])
def test_latency_is_checked(latency: int) -> None:
    """Other latencies are refused in words."""
    with pytest.raises(ValueError, match=f"latency must be 1 or 2, not {latency}"):
        VectorMemory(1024, CONFIGS["nano"], latency=latency)


@pytest.mark.parametrize("size", [0, 4, 1000])
def test_size_is_checked(size: int) -> None:
    """The size is a power of two of at least two vectors."""
    with pytest.raises(ValueError, match=f"memory_bytes must be a power of two of at least 8, not {size}"):
        VectorMemory(size, CONFIGS["nano"])
