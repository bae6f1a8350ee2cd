"""The STORE unit: scratchpad to external memory.

        command -> RowBursts --+--> AW register -> bus
                               |
                               +--> FIFO of bursts owed to B (is it the command's last?) -> done
                               |
                               +--> FIFO of bursts without data -> BurstBeats -> read request -> scratchpad
                                                                                                     |
                                            bus <- W register <- FIFO of beats <---------------------+

Reads run ahead of the bus by as many beats as the FIFO holds; a beat has its place there before it is read.
AW, W and B do not wait for one another, but for B: no more than `outstanding_writes` bursts are unanswered.
"""

from __future__ import annotations

from amaranth.hdl import Module, Mux, Signal
from amaranth.lib import data, wiring
from amaranth.lib.fifo import SyncFIFO
from amaranth.lib.wiring import In, Out
from amaranth.utils import exact_log2

from .bursts import BurstBeats, RowBursts, beat_layout, burst_layout
from .config import NPUConfig
from .interfaces import AXI4Write, UnitPort, command_fields
from .isa import ErrorCode, Opcode, Unit
from .scratchpad import GrantedRead, Scratchpad

__all__ = ["StoreUnit"]

_INCR = 0b01
_CACHE = 0b0011  # normal memory, non-cacheable, bufferable (ARM IHI 0022, A4.4)
_BEATS = 8
"""Beats between read request and bus. A place is taken one cycle before the request, given back when the
beat leaves the FIFO, and known to be free a cycle later: store_latency + 3 = 6 places keep one beat a cycle;
two more ride out conflicts in the scratchpad."""


class StoreUnit(wiring.Component):
    """Runs STORE, in order, one beat a cycle across rows and commands.

    A command is done the cycle after its last write response. After a bus error the unit takes no command
    until `port.clear`. On an error and on `port.clear` it completes the bursts that were announced with
    strobes of 0 (but for a beat that is already waiting for WREADY); commands are taken again when those
    bursts are answered.

    Arguments:
        config: the NPU's configuration.

    Members:
        port: commands (checked), completion, faults. `fault_info` is BRESP.
        axi: write channels; aligned INCR bursts of whole beats that end at multiples of `burst_beats` beats.
        scratchpad: windows to read.
        bytes_written: bytes that the bus took in the cycle before.
    """

    def __init__(self, config: NPUConfig) -> None:
        self._config = config
        super().__init__(
            {
                "port": In(UnitPort(Unit.STORE)),
                "axi": Out(AXI4Write(config.bus_width)),
                "scratchpad": Out(
                    GrantedRead(config.scratchpad_bytes, config.bus_width, Scratchpad.store_latency)
                ),
                "bytes_written": Out(range(config.bus_bytes + 1)),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        config, port, axi = self._config, self.port, self.axi
        m.submodules.bursts = bursts = RowBursts(config, None)
        m.submodules.beats = beats = BurstBeats(config, None)
        # At least two entries: a FIFO of one would have an index of no bits.
        depth = max(2, config.outstanding_writes)
        m.submodules.unanswered = unanswered = SyncFIFO(width=1, depth=depth)
        m.submodules.dataless = dataless = SyncFIFO(width=burst_layout(config, None).size, depth=depth)

        # Responses
        failing = Signal()
        halted = Signal()  # after an error, until clear
        draining = Signal()  # waiting for the responses to dropped bursts
        drop = Signal()
        answered = Signal()
        m.d.comb += [
            axi.bready.eq(1),
            unanswered.r_en.eq(axi.bvalid),
            answered.eq(axi.bvalid & unanswered.r_rdy & ~draining & ~port.clear),
            failing.eq(answered & axi.bresp[1]),
            drop.eq(port.clear | failing),
            bursts.clear.eq(drop),
            port.fault_code.eq(ErrorCode.WRITE_BUS),
            port.busy.eq(bursts.busy | unanswered.r_rdy | port.done | port.fault | draining),
        ]
        m.d.sync += [
            port.done.eq(answered & ~axi.bresp[1] & unanswered.r_data),
            port.fault.eq(failing),
            port.fault_info.eq(axi.bresp),
        ]
        with m.If(drop):
            m.d.sync += [draining.eq(1), halted.eq(~port.clear)]
        with m.Elif(~unanswered.r_rdy):
            m.d.sync += draining.eq(0)

        # Commands
        open_ = Signal()
        rows = bursts.rows.payload
        store = command_fields(Opcode.STORE, port.command.payload.words)
        m.d.comb += [
            open_.eq(~(port.clear | halted | draining)),
            port.command.ready.eq(open_ & bursts.rows.ready),
            bursts.rows.valid.eq(open_ & port.command.valid),
            rows.address.eq(store.address),
            rows.stride.eq(store.stride),
            rows.local.eq(store.local_address),
            rows.local_stride.eq(store.local_stride),
            rows.row_bytes.eq(store.row_bytes),
            rows.rows.eq(store.rows),
        ]

        # Addresses. AWVALID survives `drop`.
        burst = bursts.bursts.payload
        announce = Signal()
        room = Signal()
        m.d.comb += [
            # A burst without data is also unanswered: `dataless` has room when `unanswered` has.
            room.eq(unanswered.level != config.outstanding_writes),
            bursts.bursts.ready.eq(room & (~axi.awvalid | axi.awready) & ~drop),
            announce.eq(bursts.bursts.valid & bursts.bursts.ready),
            unanswered.w_en.eq(announce),
            unanswered.w_data.eq(burst.final),
            dataless.w_en.eq(announce),
            dataless.w_data.eq(burst),
            axi.awsize.eq(exact_log2(config.bus_bytes)),
            axi.awburst.eq(_INCR),
            axi.awcache.eq(_CACHE),
        ]
        with m.If(axi.awready):
            m.d.sync += axi.awvalid.eq(0)
        with m.If(announce):
            m.d.sync += [
                axi.awvalid.eq(1),
                axi.awaddr.eq(burst.beat_address << exact_log2(config.bus_bytes)),
                axi.awlen.eq(burst.length),
            ]

        self._data(m, dataless, beats, drop | draining)
        return m

    def _data(self, m: Module, dataless: SyncFIFO, beats: BurstBeats, dropped: Signal) -> None:
        """From bursts to W. `dropped`: beats that are not on the bus yet lose their strobes."""
        config, axi = self._config, self.axi
        count_bits = exact_log2(config.bus_bytes) + 1
        side_layout = data.StructLayout({"mask": config.bus_bytes, "count": count_bits, "last": 1})
        waiting_layout = data.StructLayout({"side": side_layout, "data": config.bus_width})
        m.submodules.waiting = waiting = SyncFIFO(width=waiting_layout.size, depth=_BEATS)

        # Read requests
        request = self.scratchpad.request
        requested = Signal(beat_layout(config, None))
        places = Signal(range(_BEATS + 1), init=_BEATS)  # free ones
        next_beat = beats.beats
        take = Signal()
        m.d.comb += [
            beats.bursts.valid.eq(dataless.r_rdy),
            beats.bursts.payload.eq(dataless.r_data),
            dataless.r_en.eq(beats.bursts.ready),
            next_beat.ready.eq((places != 0) & (~request.valid | request.ready)),
            take.eq(next_beat.valid & next_beat.ready),
            request.payload.eq(requested.local),
        ]
        with m.If(request.ready):
            m.d.sync += request.valid.eq(0)
        with m.If(take):
            m.d.sync += [request.valid.eq(1), requested.eq(next_beat.payload)]

        # What goes along with a read until its data is there
        granted = Signal()
        side = Signal(side_layout)
        m.d.comb += [
            granted.eq(request.valid & request.ready),
            side.mask.eq(requested.mask),
            side.count.eq(requested.count),
            side.last.eq(requested.last),
        ]
        for stage in range(Scratchpad.store_latency):
            granted_before, side_before = granted, side
            granted = Signal(name=f"granted{stage + 1}")
            side = Signal(side_layout, name=f"side{stage + 1}")
            m.d.sync += [granted.eq(granted_before), side.eq(side_before)]
        arriving = Signal(waiting_layout)
        m.d.comb += [
            arriving.side.eq(side),
            arriving.data.eq(self.scratchpad.data),
            waiting.w_en.eq(granted),
            waiting.w_data.eq(arriving),
        ]

        # The bus
        beat = waiting_layout(waiting.r_data)
        count = Signal(count_bits)
        free = Signal()
        leave = Signal()
        m.d.comb += [
            free.eq(~axi.wvalid | axi.wready),
            waiting.r_en.eq(free),
            leave.eq(free & waiting.r_rdy),
        ]
        with m.If(free):
            m.d.sync += [
                axi.wvalid.eq(waiting.r_rdy),
                axi.wdata.eq(beat.data),
                axi.wstrb.eq(Mux(dropped, 0, beat.side.mask)),
                axi.wlast.eq(beat.side.last),
                count.eq(Mux(dropped, 0, beat.side.count)),
            ]
        m.d.sync += [
            places.eq(places - take + leave),
            self.bytes_written.eq(Mux(axi.wvalid & axi.wready, count, 0)),
        ]
