"""Loading a block's parameters: values, and how early they may be used."""

from __future__ import annotations

import cocotb
import numpy as np
from cocotb.triggers import RisingEdge

from bench import run_bench
from lepton_hw.config import preset
from lepton_hw.parameters import ParameterLoader
from stimulus import rng, start

_CONFIG = preset("small")
_N = _CONFIG.array_size


def _unpack(value, bits):
    raw = int(value)
    return [raw >> (bits * i) & ((1 << bits) - 1) for i in range(_N)]


@cocotb.test()
async def values_are_there_when_ready(dut):
    """Biases one cycle after `ready`, shifts two and multipliers three (as the pipeline takes them)."""
    random = rng()
    memory = np.random.default_rng(random.getrandbits(32)).integers(
        0, 256, (_CONFIG.parameter_vectors, _N), np.uint8
    )

    async def serve():
        while True:
            await RisingEdge(dut.clk)
            junk = random.getrandbits(8 * _N)
            enabled = dut.memory__enable.value
            at = int(dut.memory__address.value)
            dut.memory__data.value = int.from_bytes(memory[at].tobytes(), "little") if enabled else junk

    cocotb.start_soon(serve())
    await start(dut)
    kept = None
    for _ in range(100):
        per_tensor = kept is not None and random.random() < 0.5
        first = random.randrange(_CONFIG.parameter_vectors - 9)
        dut.start.value, dut.address.value, dut.per_tensor.value = 1, first, int(per_tensor)
        await RisingEdge(dut.clk)
        dut.start.value = 0
        dut.address.value = random.randrange(_CONFIG.parameter_vectors)
        await RisingEdge(dut.clk)
        assert not dut.ready.value
        cycles = 1
        while not dut.ready.value:
            cycles += 1
            await RisingEdge(dut.clk)
        assert cycles == (5 if per_tensor else 10)
        await RisingEdge(dut.clk)
        biases = memory[first : first + 4].reshape(-1).view("<u4")
        assert _unpack(dut.biases.value, 32) == biases.tolist()
        await RisingEdge(dut.clk)
        if not per_tensor:
            multipliers = memory[first + 4 : first + 8].reshape(-1).view("<u4") & 0x7FFF_FFFF
            kept = multipliers.tolist(), (memory[first + 8] & 0x3F).tolist()
        assert _unpack(dut.shifts.value, 6) == kept[1]
        await RisingEdge(dut.clk)
        assert _unpack(dut.multipliers.value, 31) == kept[0]


def test_parameters(simulator):
    run_bench(lambda: ParameterLoader(_CONFIG), __name__, simulator=simulator)
