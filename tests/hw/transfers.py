"""Random LOAD, FILL and STORE commands, and what they should do: a NumPy model of the DMA units."""

from __future__ import annotations

import random
from collections.abc import Iterator

import numpy as np

from lepton_hw.config import PRESETS, NPUConfig
from lepton_hw.isa import Checker, Command, Opcode, Target

__all__ = [
    "CONFIGS",
    "bursts",
    "local_bytes",
    "payload_bytes",
    "random_transfer",
    "row_ranges",
    "transfer",
    "windows",
]

CONFIGS = {
    **PRESETS,
    # The longest bursts, a bus narrower than a vector, and as little in flight as can be.
    "long": NPUConfig(
        array_size=16,
        bus_width=32,
        scratchpad_bytes=32 * 1024,
        weight_bytes=8 * 1024,
        burst_beats=256,
        outstanding_reads=4,
        outstanding_writes=2,
    ),
    "single": NPUConfig(
        array_size=8,
        bus_width=32,
        scratchpad_bytes=16 * 1024,
        weight_bytes=4 * 1024,
        requantize_lanes=8,
        burst_beats=4,
        outstanding_reads=1,
        outstanding_writes=1,
    ),
}


def local_bytes(config: NPUConfig, target: int = Target.SCRATCHPAD) -> int:
    """Size of the on-chip memory."""
    return {
        Target.SCRATCHPAD: config.scratchpad_bytes,
        Target.WEIGHTS: config.weight_bytes,
        Target.PARAMETERS: config.parameter_bytes,
    }[Target(target)]


def row_ranges(command: Command) -> Iterator[tuple[int, int]]:
    """(first external byte, first on-chip byte) of each row; FILL has external address 0."""
    external = command.opcode is not Opcode.FILL
    for row in range(command.rows):
        address = command.address + row * command.stride if external else 0
        yield address, command.local_address + row * command.local_stride


def payload_bytes(command: Command) -> int:
    """Bytes that the command moves."""
    return command.rows * command.row_bytes


def bursts(command: Command, config: NPUConfig) -> list[tuple[int, int]]:
    """(address, beats) of the bursts of a LOAD or STORE: they end at multiples of burst_beats."""
    bus, out = config.bus_bytes, []
    for address, _ in row_ranges(command):
        beat, end = address // bus, (address + command.row_bytes - 1) // bus + 1
        while beat < end:
            stop = min(end, (beat // config.burst_beats + 1) * config.burst_beats)
            out.append((beat * bus, stop - beat))
            beat = stop
    return out


def windows(command: Command, config: NPUConfig) -> int:
    """Cycles on chip: beats of a LOAD or STORE, windows of a FILL."""
    if command.opcode is Opcode.FILL:
        return command.rows * -(-command.row_bytes // config.bus_bytes)
    return sum(beats for _, beats in bursts(command, config))


def transfer(command: Command, external: np.ndarray, local: np.ndarray) -> None:
    """Do the command: `external` and `local` (uint8) are the memories, changed in place."""
    for address, on_chip in row_ranges(command):
        inside, outside = (
            slice(on_chip, on_chip + command.row_bytes),
            slice(address, address + command.row_bytes),
        )
        if command.opcode is Opcode.LOAD:
            local[inside] = external[outside]
        elif command.opcode is Opcode.FILL:
            local[inside] = command.value & 0xFF
        else:
            external[outside] = local[inside]


def random_transfer(
    opcode: Opcode,
    config: NPUConfig,
    random_source: random.Random,
    *,
    external_bytes: int,
    longest: int = 300,
    payload: int = 1500,
) -> Command:
    """A legal command with random rows, strides and alignments.

    Arguments:
        external_bytes: size of the external memory.
        longest: bytes of the longest row.
        payload: about how many bytes the command moves at most.
    """
    draw = random_source
    bus = config.bus_bytes
    target = draw.choice(list(Target)) if opcode is Opcode.LOAD else Target.SCRATCHPAD
    unit = 1 if target is Target.SCRATCHPAD else bus
    local_size = local_bytes(config, target)
    longest = min(longest, local_size)
    row_bytes = draw.choice((1, 2, bus - 1, bus, bus + 1, draw.randint(1, longest), draw.randint(1, longest)))
    row_bytes = min(max(unit, row_bytes // unit * unit), longest)
    rows = draw.randint(1, max(1, min(30, payload // row_bytes)))
    rows = draw.choice((1, rows, rows))

    def place(size: int, edge: int) -> tuple[int, int]:
        """First byte and stride of rows that stay within `size` bytes, some across multiples of `edge`."""
        room = (size - row_bytes) // max(1, rows - 1)
        stride = draw.choice(
            (row_bytes, draw.randint(0, min(room, 3 * row_bytes + 40)), draw.randint(0, room))
        )
        stride = min(stride, room) // unit * unit
        last = size - row_bytes - (rows - 1) * stride
        first = draw.randint(0, last)
        if draw.random() < 0.5:
            first = min(last, max(0, draw.randrange(edge, size, edge) - draw.randint(0, row_bytes)))
        return first // unit * unit, stride

    local_address, local_stride = place(local_size, config.array_size)
    fields = {
        "row_bytes": row_bytes,
        "rows": rows,
        "local_address": local_address,
        "local_stride": local_stride,
    }
    if opcode is not Opcode.FILL:
        fields["address"], fields["stride"] = place(external_bytes, 4096)
    if opcode is Opcode.LOAD:
        fields["target"] = int(target)
    if opcode is Opcode.FILL:
        fields["value"] = draw.randint(-128, 127)
    command = Command(opcode, **fields)
    window = (0, external_bytes - 1)
    error = Checker(config, window, window).check(command)
    assert error is None, error
    return command
