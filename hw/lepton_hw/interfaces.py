"""Signatures and layouts that blocks share."""

from types import SimpleNamespace

from amaranth.hdl import Value, signed, unsigned
from amaranth.lib import data, enum, stream, wiring
from amaranth.lib.wiring import In, Out

from .config import NPUConfig
from .isa import COMMANDS, SUM_BITS, Opcode, Unit

__all__ = [
    "AXI4Lite",
    "AXI4Read",
    "AXI4Write",
    "BeatWrite",
    "PassTag",
    "Source",
    "UnitPort",
    "VectorRead",
    "command_fields",
    "command_layout",
    "lanes",
    "sums",
]

FIRST_PAYLOAD_WORD = 2  # words 0 and 1 (opcode, semaphores) stay with the control unit


def lanes(config: NPUConfig) -> data.ArrayLayout:
    """A vector of int8."""
    return data.ArrayLayout(signed(8), config.array_size)


def sums(config: NPUConfig, bits: int = SUM_BITS) -> data.ArrayLayout:
    """A vector of partial or finished sums."""
    return data.ArrayLayout(signed(bits), config.array_size)


class Source(enum.Enum, shape=unsigned(2)):  # type: ignore[call-arg]
    """Where a PE takes its activation from; travels with the vector."""

    LEFT = 0  # the row's lane: modes VECTOR and PATCH
    CHAIN = 1  # the PE above, two cycles before: mode ROWS with one kernel row a pass
    GROUPS = 2  # as CHAIN, but rows 3 and 6 take vectors 1 and 2: mode ROWS with three taps a row


class PassTag(data.Struct):
    """Says of a vector what becomes of its sums; delayed alongside the array."""

    valid: 1  # the sums count
    start: 1  # first vector of a pass: its first valid sums have position 0 (may itself be invalid)
    overwrite: 1  # first pass of a tile
    finish: 1  # last pass of a tile: to the output buffer


def command_layout(unit: Unit) -> data.StructLayout:
    """What a unit gets of a command: the opcode and the words that hold its fields, as they are.

    OUTPUT also gets the tile that its CONV described.
    """
    last = max(f.word for spec in COMMANDS.values() if spec.unit is unit for f in spec.fields)
    members: dict[str, object] = {
        "opcode": unsigned(4),
        "words": unsigned(32 * (last + 1 - FIRST_PAYLOAD_WORD)),
    }
    if unit is Unit.OUTPUT:
        members |= {"tile_height": unsigned(16), "tile_width": unsigned(16), "tile_blocks": unsigned(12)}
    return data.StructLayout(members)


def command_fields(opcode: Opcode, words: Value) -> SimpleNamespace:
    """The fields of a command as attributes, cut out of the `words` member of a command_layout().

    The opcode and the semaphore fields are not among them.
    """
    out = SimpleNamespace()
    for f in COMMANDS[opcode].fields:
        if f.word >= FIRST_PAYLOAD_WORD:
            start = f.bit - 32 * FIRST_PAYLOAD_WORD
            value = words[start : start + f.width]
            setattr(out, f.name, value.as_signed() if f.signed else value)
    return out


class UnitPort(wiring.Signature):
    """Control unit to unit, seen from the control unit.

    Members:
        command: the next command, all its waits satisfied.
        done: one command, the oldest not yet done, is done (at most one a cycle).
        fault: the oldest command not yet done has failed (one cycle); with `fault_code`, an
            isa.ErrorCode, and `fault_info`. Only the DMA units can fail.
        busy: there is work, or the bus owes responses.
        clear: drop all work. `busy` falls when bus transfers that were announced are over.
    """

    def __init__(self, unit: Unit) -> None:
        super().__init__(
            {
                "command": Out(stream.Signature(command_layout(unit))),
                "done": In(1),
                "fault": In(1),
                "fault_code": In(4),
                "fault_info": In(32),
                "busy": In(1),
                "clear": Out(1),
            }
        )


class VectorRead(wiring.Signature):
    """Read port with fixed latency, seen from the reader.

    Members:
        enable, address: the vector to read.
        data: its bytes, `latency` cycles after; undefined otherwise.
    """

    def __init__(self, depth: int, width: int, latency: int) -> None:
        self.latency = latency
        super().__init__(
            {
                "enable": Out(1),
                "address": Out(range(depth)),
                "data": In(width),
            }
        )


class BeatWrite(wiring.Signature):
    """DMA write port of a memory of vectors: whole bus beats, always accepted. Seen from the writer.

    Members:
        enable, address: byte address, a multiple of the bus bytes.
        data: one beat.
    """

    def __init__(self, memory_bytes: int, bus_width: int) -> None:
        super().__init__({"enable": Out(1), "address": Out(range(memory_bytes)), "data": Out(bus_width)})


def _axi(members: dict[str, int], channel: str, flow: type[Out] | type[In]) -> dict[str, wiring.Member]:
    reverse = In if flow is Out else Out
    out = {f"{channel}{name}": flow(width) for name, width in members.items()}
    out[f"{channel}valid"] = flow(1)
    out[f"{channel}ready"] = reverse(1)
    return out


_ADDRESS = {
    "id": 1, "addr": 32, "len": 8, "size": 3, "burst": 2, "lock": 1, "cache": 4, "prot": 3,
}  # fmt: skip


class AXI4Read(wiring.Signature):
    """AR and R channels of AXI4, seen from the manager (ARM IHI 0022)."""

    def __init__(self, data_width: int) -> None:
        super().__init__(
            _axi(_ADDRESS, "ar", Out) | _axi({"id": 1, "data": data_width, "resp": 2, "last": 1}, "r", In)
        )


class AXI4Write(wiring.Signature):
    """AW, W and B channels of AXI4, seen from the manager (ARM IHI 0022)."""

    def __init__(self, data_width: int) -> None:
        super().__init__(
            _axi(_ADDRESS, "aw", Out)
            | _axi({"data": data_width, "strb": data_width // 8, "last": 1}, "w", Out)
            | _axi({"id": 1, "resp": 2}, "b", In)
        )


class AXI4Lite(wiring.Signature):
    """AXI4-Lite with 32-bit data and 12-bit addresses, seen from the manager."""

    def __init__(self) -> None:
        super().__init__(
            _axi({"addr": 12, "prot": 3}, "aw", Out)
            | _axi({"data": 32, "strb": 4}, "w", Out)
            | _axi({"resp": 2}, "b", In)
            | _axi({"addr": 12, "prot": 3}, "ar", Out)
            | _axi({"data": 32, "resp": 2}, "r", In)
        )
