"""The NPU: all blocks, joined along the data path."""

from __future__ import annotations

from amaranth.hdl import Module
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out, connect, flipped

from .accumulator import Accumulator
from .array import SystolicArray
from .config import NPUConfig
from .control import ControlUnit
from .feeder import PORTS, ActivationFeeder
from .interfaces import AXI4Lite, AXI4Read, AXI4Write
from .load import LoadUnit
from .output_buffer import OutputBuffer
from .output_stage import OutputStage
from .read_arbiter import ReadArbiter
from .scratchpad import Scratchpad
from .store import StoreUnit
from .vector_memory import VectorMemory

__all__ = ["LeptonNPU"]


class LeptonNPU(wiring.Component):
    """A Lepton NPU.

    Args:
        config: what to build.

    Members:
        csr: AXI4-Lite subordinate; registers of isa.CSR.
        read, write: AXI4 manager; channels AR and R, and AW, W and B.
        irq: high while a run has ended, the interrupt is enabled and not yet acknowledged.
    """

    def __init__(self, config: NPUConfig) -> None:
        self.config = config
        super().__init__(
            {
                "csr": In(AXI4Lite()),
                "read": Out(AXI4Read(config.bus_width)),
                "write": Out(AXI4Write(config.bus_width)),
                "irq": Out(1),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        config = self.config
        m.submodules.control = control = ControlUnit(config)
        m.submodules.read_arbiter = arbiter = ReadArbiter(config)
        m.submodules.load = load = LoadUnit(config)
        m.submodules.store = store = StoreUnit(config)
        m.submodules.scratchpad = scratchpad = Scratchpad(config)
        m.submodules.weights = weights = VectorMemory(config.weight_bytes, config)
        m.submodules.parameters = parameters = VectorMemory(config.parameter_bytes, config)
        m.submodules.array = array = SystolicArray(config)
        m.submodules.feeder = feeder = ActivationFeeder(
            config,
            scratchpad_latency=scratchpad.feeder_latency,
            weight_latency=weights.latency,
            drain=array.latency + 8,
        )
        m.submodules.accumulator = accumulator = Accumulator(config)
        m.submodules.output_buffer = buffer = OutputBuffer(config)
        m.submodules.output_stage = output = OutputStage(config)

        # buses
        connect(m, flipped(self.csr), control.csr)
        connect(m, arbiter.fetch, control.fetch)
        connect(m, arbiter.load, load.axi)
        connect(m, flipped(self.read), arbiter.axi)
        connect(m, flipped(self.write), store.axi)
        m.d.comb += self.irq.eq(control.irq)

        # commands
        connect(m, control.load, load.port)
        connect(m, control.compute, feeder.port)
        connect(m, control.output, output.port)
        connect(m, control.store, store.port)

        # external memory to the on-chip memories
        connect(m, load.scratchpad, scratchpad.load)
        connect(m, load.weights, weights.write)
        connect(m, load.parameters, parameters.write)

        # scratchpad and weights through the array
        for i in range(PORTS):
            connect(m, feeder.scratchpad[i], scratchpad.feeder[i])
        connect(m, feeder.weights, weights.read)
        m.d.comb += [
            array.vector.eq(feeder.vector),
            array.groups.eq(feeder.groups),
            array.first.eq(feeder.first),
            array.source.eq(feeder.source),
            array.tag.eq(feeder.tag),
            array.weights.eq(weights.read.data),
            accumulator.sums.eq(array.sums),
            accumulator.sums_tag.eq(array.sums_tag),
        ]

        # finished sums to the output stage
        m.d.comb += [
            buffer.write.valid.eq(accumulator.result.valid),
            buffer.write.data.eq(accumulator.result.data),
            buffer.reserve.valid.eq(feeder.reserve_valid),
            buffer.reserve.count.eq(feeder.reserve_count),
            feeder.room.eq(buffer.room),
            output.written.eq(buffer.written),
            buffer.release.valid.eq(output.release.valid),
            buffer.release.count.eq(output.release.count),
            buffer.clear.eq(control.compute.clear),
        ]
        connect(m, output.sums, buffer.read)
        connect(m, output.parameters, parameters.read)
        m.d.comb += [
            scratchpad.residual.request.valid.eq(output.residual.valid),
            scratchpad.residual.request.payload.eq(output.residual.address),
            output.residual.ready.eq(scratchpad.residual.request.ready),
            output.residual.data.eq(scratchpad.residual.data),
            scratchpad.output.enable.eq(output.result.enable),
            scratchpad.output.address.eq(output.result.address),
            scratchpad.output.data.eq(output.result.data),
        ]

        # scratchpad to external memory
        connect(m, store.scratchpad, scratchpad.store)

        # counters, watchdog
        events = control.events
        moved = [
            self.read.rvalid & self.read.rready,
            feeder.array_busy,
            output.result.enable,
            (self.write.wvalid & self.write.wready) | (self.write.bvalid & self.write.bready),
        ]
        m.d.comb += [
            events.array_busy.eq(feeder.array_busy),
            events.waiting_output.eq(feeder.waiting_output),
            events.waiting_weights.eq(feeder.waiting_weights),
            events.bytes_read.eq(load.bytes_read),
            events.bytes_written.eq(store.bytes_written),
            *(control.progress[i].eq(bit) for i, bit in enumerate(moved)),
        ]
        return m
