"""Errors on the whole NPU in RTL that need its real feeder and output buffer."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from lepton_hw.config import PRESETS
from lepton_hw.isa import COMMAND_BYTES, Command, ErrorCode, Opcode, encode
from lepton_sim.golden import GoldenDevice
from lepton_sim.rtl.device import RtlDevice

NANO = PRESETS["nano"]


@pytest.fixture(scope="module")
def device() -> Iterator[RtlDevice]:
    with RtlDevice(NANO, memory_bytes=1 << 16, watchdog=0) as opened:
        yield opened


def test_wrong_command_behind_a_conv_that_cannot_end(device: RtlDevice) -> None:
    """The CONV has four times the sums that the output buffer holds, and no OUTPUT will take them."""
    positions = NANO.accumulator_depth
    blocks = 4 * NANO.output_depth // positions
    conv = Command(Opcode.CONV, out_height=1, out_width=positions, out_blocks=blocks)
    wrong = Command(Opcode.OUTPUT, minimum=5, maximum=-5)
    program = np.frombuffer(encode([conv, wrong, Command(Opcode.END)]), np.uint8)
    for chosen in (device, GoldenDevice(NANO, memory_bytes=1 << 16)):
        chosen.write(0, program)
        error = chosen.run(0, 3 * COMMAND_BYTES, max_cycles=100_000).error
        assert error is not None
        assert (error.code, error.command) == (ErrorCode.FIELD, 1), error
    # and the next run is correct
    device.write(0, np.frombuffer(encode([Command(Opcode.END)]), np.uint8))
    assert device.run(0, COMMAND_BYTES).error is None
