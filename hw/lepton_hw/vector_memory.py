"""Weight and parameter memories: written by LOAD in bus beats, read a vector at a time."""

from __future__ import annotations

from amaranth.hdl import Const, Module, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In
from amaranth.utils import exact_log2

from .block_ram import BlockRAM
from .config import NPUConfig
from .interfaces import BeatWrite, VectorRead

__all__ = ["VectorMemory"]


class VectorMemory(wiring.Component):
    """A memory of vectors with one write and one read port.

        latency 1: address | block RAM output
        latency 2: address | block RAM output | register   (for speed: block RAMs are slow to put out)

    A beat that is written in cycle t is seen by a read issued from cycle t + 1 on; a read of the same vector
    issued in cycle t gives undefined data.

    Arguments:
        memory_bytes: size, a power of two; at least two vectors.
        config: the NPU's configuration.
        latency: of reads, in cycles: 1 or 2.

    Members:
        write: whole bus beats, always accepted.
        read: one vector a cycle; addresses wrap around.

    Raises:
        ValueError: a size or a latency that is not allowed.
    """

    def __init__(self, memory_bytes: int, config: NPUConfig, *, latency: int = 1) -> None:
        n = config.array_size
        if memory_bytes < 2 * n or memory_bytes & (memory_bytes - 1):
            raise ValueError(f"memory_bytes must be a power of two of at least {2 * n}, not {memory_bytes}")
        if latency not in (1, 2):
            raise ValueError(f"latency must be 1 or 2, not {latency}")
        self._config = config
        self._depth = memory_bytes // n
        self._latency = latency
        super().__init__(
            {
                "write": In(BeatWrite(memory_bytes, config.bus_width)),
                "read": In(VectorRead(self._depth, 8 * n, latency)),
            }
        )

    @property
    def latency(self) -> int:
        """Cycles from `read.enable` to `read.data`."""
        return self._latency

    def elaborate(self, platform: object) -> Module:
        m = Module()
        n, bus = self._config.array_size, self._config.bus_bytes
        m.submodules.storage = storage = BlockRAM(8 * n, self._depth, granularity=8 * bus)

        # A vector is one beat or several: the low bits of the beat's number choose its part.
        beats = n // bus
        beat = self.write.address[exact_log2(bus) :]
        part = beat[: exact_log2(beats)]
        for i in range(beats):
            chosen = part == i if beats > 1 else Const(1)
            m.d.comb += [
                storage.write_enable[i].eq(self.write.enable & chosen),
                storage.write_data[8 * bus * i : 8 * bus * (i + 1)].eq(self.write.data),
            ]
        m.d.comb += [
            storage.write_address.eq(beat[exact_log2(beats) :]),
            storage.read.address.eq(self.read.address),
            storage.read.enable.eq(self.read.enable),
        ]
        if self._latency == 1:
            m.d.comb += self.read.data.eq(storage.read.data)
        else:
            output = Signal(8 * n, reset_less=True)
            m.d.sync += output.eq(storage.read.data)
            m.d.comb += self.read.data.eq(output)
        return m
