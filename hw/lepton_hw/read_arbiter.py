"""Two AXI4 read managers, command fetch and LOAD, on one port."""

from __future__ import annotations

from amaranth.hdl import Module, Mux, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from .config import NPUConfig
from .fetch import FETCH_ID
from .interfaces import AXI4Read
from .load import LOAD_ID

__all__ = ["ReadArbiter"]

_ADDRESS = ("addr", "len", "size", "burst", "lock", "cache", "prot")
_DATA = ("id", "data", "resp", "last")


class ReadArbiter(wiring.Component):
    """Merges command fetch and LOAD; fetch has priority. Adds no cycle to either channel.

    ARID says who asked (whatever the managers' own IDs are), and data goes to whom RID names. An address that
    waits for ARREADY stays, even when the other manager comes up meanwhile.

    Arguments:
        config: the NPU's configuration.

    Members:
        fetch, load: the managers.
        axi: the port.
    """

    def __init__(self, config: NPUConfig) -> None:
        super().__init__(
            {
                "fetch": In(AXI4Read(config.bus_width)),
                "load": In(AXI4Read(config.bus_width)),
                "axi": Out(AXI4Read(config.bus_width)),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        waiting = Signal()  # an address was offered in the cycle before and not taken
        held = Signal()  # whose it was
        is_fetch = Signal()
        m.d.comb += [
            is_fetch.eq(Mux(waiting, held, self.fetch.arvalid)),
            self.axi.arvalid.eq(Mux(is_fetch, self.fetch.arvalid, self.load.arvalid)),
            self.axi.arid.eq(Mux(is_fetch, FETCH_ID, LOAD_ID)),
            self.fetch.arready.eq(is_fetch & self.axi.arready),
            self.load.arready.eq(~is_fetch & self.axi.arready),
        ]
        for name in _ADDRESS:
            fetch, load = getattr(self.fetch, f"ar{name}"), getattr(self.load, f"ar{name}")
            m.d.comb += getattr(self.axi, f"ar{name}").eq(Mux(is_fetch, fetch, load))
        m.d.sync += [waiting.eq(self.axi.arvalid & ~self.axi.arready), held.eq(is_fetch)]

        # RID means nothing while RVALID is low.
        to_fetch = self.axi.rvalid & (self.axi.rid == FETCH_ID)
        m.d.comb += [
            self.fetch.rvalid.eq(self.axi.rvalid & to_fetch),
            self.load.rvalid.eq(self.axi.rvalid & ~to_fetch),
            self.axi.rready.eq(Mux(to_fetch, self.fetch.rready, self.load.rready)),
        ]
        for manager in (self.fetch, self.load):
            for name in _DATA:
                m.d.comb += getattr(manager, f"r{name}").eq(getattr(self.axi, f"r{name}"))
        return m
