"""Program fetch: reads the program in bursts, ahead of the checker.

Bursts end at multiples of their longest length, a power of two of at most 256 bytes, so none crosses a 4 KiB
boundary. A burst is announced only when the FIFO has room for a whole one: RREADY is always high, and a slow
checker never holds the bus.
"""

from __future__ import annotations

from amaranth.hdl import Module, Mux, ResetInserter, Signal, Value
from amaranth.lib import data, stream, wiring
from amaranth.lib.fifo import SyncFIFOBuffered
from amaranth.lib.wiring import In, Out

from .config import NPUConfig
from .interfaces import AXI4Read
from .isa import COMMAND_BYTES

__all__ = ["FETCH_ID", "ProgramFetch", "beat_layout"]

FETCH_ID = 1
"""ARID of command fetches; LOAD reads with 0."""
_FIFO_BYTES = 8 * COMMAND_BYTES
_BURST_BYTES = 256
_INCR = 0b01
_CACHE = 0b0011  # normal memory, non-cacheable, bufferable (ARM IHI 0022, A4.4)


def beat_layout(config: NPUConfig) -> data.StructLayout:
    """A beat of the program and the response that came with it."""
    return data.StructLayout({"data": config.bus_width, "resp": 2})


class ProgramFetch(wiring.Component):
    """Reads `size` bytes from `address` on and hands them out beat by beat.

    Arguments:
        config: bus width and longest burst.

    Members:
        port: AXI4 read channels, ID 1.
        start: begin (one cycle), with `address` and `size`, both multiples of 64. Not while busy.
        clear: announce no more bursts and drop what is here or on its way.
        beats: the program. Bus errors travel along; what to do about them is the reader's decision.
        exhausted: the whole program has been handed out.
        busy: the bus owes data.
        progress: a handshake on the bus.
    """

    def __init__(self, config: NPUConfig) -> None:
        self._config = config
        super().__init__(
            {
                "port": Out(AXI4Read(config.bus_width)),
                "start": In(1),
                "address": In(32),
                "size": In(32),
                "clear": In(1),
                "beats": Out(stream.Signature(beat_layout(config))),
                "exhausted": Out(1),
                "busy": Out(1),
                "progress": Out(1),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        config, port = self._config, self.port
        beat_bits = config.bus_bytes.bit_length() - 1
        depth = _FIFO_BYTES // config.bus_bytes
        longest = min(config.burst_beats, _BURST_BYTES // config.bus_bytes)

        active = Signal()  # between start and clear
        address = Signal(32 - beat_bits)  # in beats, as all that follow
        remaining = Signal(32 - beat_bits)  # to announce
        owed = Signal(range(depth + 1))  # announced, not yet received
        reserved = Signal(range(depth + 1))  # announced, not yet handed out

        # The burst that is next: constant while ARVALID waits, so it needs no registers of its own.
        length = Signal(range(longest + 1))
        to_boundary = longest - address[: longest.bit_length() - 1]
        m.d.comb += [
            length.eq(Mux(remaining < to_boundary, remaining, to_boundary)),
            port.arid.eq(FETCH_ID),
            port.araddr.eq(address << beat_bits),
            port.arlen.eq(length - 1),
            port.arsize.eq(beat_bits),
            port.arburst.eq(_INCR),
            port.arcache.eq(_CACHE),
            port.rready.eq(1),
        ]
        announce = port.arvalid & port.arready
        received = port.rvalid & port.rready
        with m.If(announce):
            m.d.sync += [
                port.arvalid.eq(0),
                address.eq(address + length),
                remaining.eq(remaining - length),
            ]
        with m.Elif(active & ~self.clear & ~port.arvalid & (remaining != 0) & (reserved <= depth - longest)):
            m.d.sync += port.arvalid.eq(1)

        m.submodules.fifo = fifo = ResetInserter(self.clear)(
            SyncFIFOBuffered(width=beat_layout(config).size, depth=depth)
        )
        beat = data.View(beat_layout(config), Value.cast(fifo.w_data))
        m.d.comb += [
            beat.data.eq(port.rdata),
            beat.resp.eq(port.rresp),
            fifo.w_en.eq(received & active),
            Value.cast(self.beats.payload).eq(fifo.r_data),
            self.beats.valid.eq(fifo.r_rdy),
            fifo.r_en.eq(self.beats.ready),
        ]
        taken = self.beats.valid & self.beats.ready
        announced = Mux(announce, length, 0)
        m.d.sync += [
            owed.eq(owed + announced - received),
            reserved.eq(reserved + announced - taken),
        ]
        m.d.comb += [
            self.busy.eq(port.arvalid | (owed != 0)),
            self.exhausted.eq(active & (remaining == 0) & (reserved == 0)),
            self.progress.eq(announce | received),
        ]
        with m.If(self.clear):
            m.d.sync += [active.eq(0), reserved.eq(0)]
        with m.If(self.start):
            m.d.sync += [
                active.eq(1),
                address.eq(self.address[beat_bits:]),
                remaining.eq(self.size[beat_bits:]),
            ]
        return m
