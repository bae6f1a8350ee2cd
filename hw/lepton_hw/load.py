"""The LOAD unit: external memory, or a constant, to the on-chip memories.

        command -> RowBursts --+--> AR register -> bus
                               |
                               +--> FIFO of announced bursts -> BurstBeats --+
                                                                             +--> beat register -> memories
                                           bus -> R (2 entries) -------------+

Addresses run ahead of the data, by as many bursts as the FIFO holds. FILLs go through the same FIFO and so
keep their place among the LOADs; their beats need nothing from the bus. While a FILL writes, data of later
LOADs waits on the bus.
"""

from __future__ import annotations

from amaranth.hdl import Cat, Module, Mux, Signal
from amaranth.lib import data, stream, wiring
from amaranth.lib.fifo import SyncFIFO
from amaranth.lib.wiring import In, Out
from amaranth.utils import exact_log2

from .bursts import BurstBeats, RowBursts, beat_layout, burst_layout
from .config import NPUConfig
from .interfaces import AXI4Read, BeatWrite, UnitPort, command_fields
from .isa import ErrorCode, Opcode, Target, Unit
from .scratchpad import window_layout

__all__ = ["LOAD_ID", "LoadUnit"]

LOAD_ID = 0
"""ARID of data reads."""
_INCR = 0b01
_CACHE = 0b0011  # normal memory, non-cacheable, bufferable (ARM IHI 0022, A4.4)


class LoadUnit(wiring.Component):
    """Runs LOAD and FILL, in order, one beat a cycle across rows and commands.

    A command is done when its last beat has been accepted by the memory, one cycle later. After a bus error
    the unit writes nothing more and takes no command until `port.clear`. After `port.clear` it takes commands
    as soon as the bus has delivered what was announced.

    Arguments:
        config: the NPU's configuration.

    Members:
        port: commands (checked), completion, faults. `fault_info` is RRESP.
        axi: read channels; aligned INCR bursts of whole beats that end at multiples of `burst_beats` beats.
        scratchpad: windows to write.
        weights, parameters: whole beats to write.
        bytes_read: payload bytes of LOADs written in the cycle before.
    """

    def __init__(self, config: NPUConfig) -> None:
        self._config = config
        # What a beat needs to know of its command.
        self._tag = data.StructLayout({"fill": 1, "target": 2, "value": 8})
        super().__init__(
            {
                "port": In(UnitPort(Unit.LOAD)),
                "axi": Out(AXI4Read(config.bus_width)),
                "scratchpad": Out(stream.Signature(window_layout(config))),
                "weights": Out(BeatWrite(config.weight_bytes, config.bus_width)),
                "parameters": Out(BeatWrite(config.parameter_bytes, config.bus_width)),
                "bytes_read": Out(range(config.bus_bytes + 1)),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        config, port, axi = self._config, self.port, self.axi
        m.submodules.bursts = bursts = RowBursts(config, self._tag)
        m.submodules.beats = beats = BurstBeats(config, self._tag)
        announced_layout = burst_layout(config, self._tag)
        # At least two entries: a FIFO of one would have an index of no bits.
        m.submodules.announced = announced = SyncFIFO(
            width=announced_layout.size, depth=max(2, config.outstanding_reads)
        )
        returned_layout = data.StructLayout({"data": config.bus_width, "resp": 2})
        m.submodules.returned = returned = SyncFIFO(width=returned_layout.size, depth=2)

        # The beat that is being written.
        valid, error = Signal(), Signal()
        resp = Signal(2)
        beat = Signal(beat_layout(config, self._tag))
        beat_data = Signal(config.bus_width, reset_less=True)
        accepted = Signal()

        failing = Signal()  # that beat came with an error
        halted = Signal()  # after an error, until clear
        draining = Signal()  # waiting for the data of dropped bursts
        drop = Signal()
        m.d.comb += [failing.eq(valid & error), drop.eq(port.clear | failing), bursts.clear.eq(drop)]
        with m.If(drop):
            m.d.sync += [draining.eq(1), halted.eq(~port.clear)]
        with m.Elif(~announced.r_rdy):
            m.d.sync += draining.eq(0)

        # Commands
        open_ = Signal()
        is_fill = Signal()
        rows = bursts.rows.payload
        load = command_fields(Opcode.LOAD, port.command.payload.words)
        fill = command_fields(Opcode.FILL, port.command.payload.words)
        m.d.comb += [
            open_.eq(~(port.clear | failing | halted | draining)),
            port.command.ready.eq(open_ & bursts.rows.ready),
            bursts.rows.valid.eq(open_ & port.command.valid),
            is_fill.eq(port.command.payload.opcode == Opcode.FILL),
            # A FILL is cut as if it came from address 0, so its windows begin with the row.
            rows.address.eq(Mux(is_fill, 0, load.address)),
            rows.stride.eq(Mux(is_fill, 0, load.stride)),
            rows.local.eq(Mux(is_fill, fill.local_address, load.local_address)),
            rows.local_stride.eq(Mux(is_fill, fill.local_stride, load.local_stride)),
            rows.row_bytes.eq(Mux(is_fill, fill.row_bytes, load.row_bytes)),
            rows.rows.eq(Mux(is_fill, fill.rows, load.rows)),
            rows.tag.fill.eq(is_fill),
            rows.tag.target.eq(Mux(is_fill, Target.SCRATCHPAD, load.target)),
            rows.tag.value.eq(fill.value),
        ]

        # Addresses. A burst enters the FIFO together with the AR register; ARVALID survives `drop`.
        burst = bursts.bursts.payload
        announce = Signal()
        room = Signal()
        m.d.comb += [
            room.eq(announced.level != config.outstanding_reads),
            bursts.bursts.ready.eq(room & (burst.tag.fill | ~axi.arvalid | axi.arready) & ~drop),
            announce.eq(bursts.bursts.valid & bursts.bursts.ready),
            announced.w_en.eq(announce),
            announced.w_data.eq(burst),
            axi.arid.eq(LOAD_ID),
            axi.arsize.eq(exact_log2(config.bus_bytes)),
            axi.arburst.eq(_INCR),
            axi.arcache.eq(_CACHE),
        ]
        with m.If(axi.arready):
            m.d.sync += axi.arvalid.eq(0)
        with m.If(announce & ~burst.tag.fill):
            m.d.sync += [
                axi.arvalid.eq(1),
                axi.araddr.eq(burst.beat_address << exact_log2(config.bus_bytes)),
                axi.arlen.eq(burst.length),
            ]

        # Data
        arrived = returned_layout(returned.r_data)
        next_beat = beats.beats.payload
        free = Signal()
        present = Signal()
        m.d.comb += [
            axi.rready.eq(returned.w_rdy),
            returned.w_en.eq(axi.rvalid),
            returned.w_data.eq(Cat(axi.rdata, axi.rresp)),
            beats.bursts.valid.eq(announced.r_rdy),
            beats.bursts.payload.eq(announced.r_data),
            announced.r_en.eq(beats.bursts.ready),
            # A dropped FILL owes nothing.
            beats.skip.eq(draining & next_beat.tag.fill),
            present.eq(next_beat.tag.fill | returned.r_rdy),
            beats.beats.ready.eq(free & present),
            returned.r_en.eq(free & beats.beats.valid & ~next_beat.tag.fill),
            free.eq(~valid | accepted),
        ]
        with m.If(free):
            m.d.sync += [
                valid.eq(beats.beats.valid & present & ~draining),
                beat.eq(next_beat),
                beat_data.eq(
                    Mux(next_beat.tag.fill, next_beat.tag.value.replicate(config.bus_bytes), arrived.data)
                ),
                error.eq(~next_beat.tag.fill & arrived.resp[1]),
                resp.eq(arrived.resp),
            ]
        with m.If(drop):
            m.d.sync += valid.eq(0)

        good = Signal()
        to_scratchpad = beat.tag.target == Target.SCRATCHPAD
        m.d.comb += [
            good.eq(valid & ~error),
            accepted.eq(~to_scratchpad | self.scratchpad.ready | error),
            self.scratchpad.valid.eq(good & to_scratchpad),
            self.scratchpad.payload.address.eq(beat.local),
            self.scratchpad.payload.data.eq(beat_data),
            self.scratchpad.payload.mask.eq(beat.mask),
        ]
        for target, memory in ((Target.WEIGHTS, self.weights), (Target.PARAMETERS, self.parameters)):
            m.d.comb += [
                memory.enable.eq(good & (beat.tag.target == target)),
                memory.address.eq(beat.local),
                memory.data.eq(beat_data),
            ]

        # Completion
        written = Signal()
        m.d.comb += written.eq(good & accepted & ~port.clear)
        m.d.sync += [
            port.done.eq(written & beat.final),
            port.fault.eq(failing & ~port.clear),
            port.fault_info.eq(resp),
            self.bytes_read.eq(Mux(written & ~beat.tag.fill, beat.count, 0)),
        ]
        m.d.comb += [
            port.fault_code.eq(ErrorCode.READ_BUS),
            port.busy.eq(bursts.busy | announced.r_rdy | valid | port.done | port.fault | draining),
        ]
        return m
