"""Reads the residual ahead of the output stage, so that a refused read costs no slot."""

from __future__ import annotations

from amaranth.hdl import Module, Signal
from amaranth.lib import wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

from .config import NPUConfig

__all__ = ["RESIDUAL_LATENCY", "ArbitratedRead", "ResidualPrefetch"]

RESIDUAL_LATENCY = 2
"""Cycles from a granted read to its data."""


class ArbitratedRead(wiring.Signature):
    """Scratchpad read port that may be refused, seen from the reader.

    Members:
        valid, ready: the read of `address` is granted when both are 1; until then both stay.
        address: vector address.
        data: the vector, `RESIDUAL_LATENCY` cycles after the grant; undefined otherwise.
    """

    def __init__(self, config: NPUConfig) -> None:
        super().__init__(
            {
                "valid": Out(1),
                "ready": In(1),
                "address": Out(range(config.scratchpad_vectors)),
                "data": In(8 * config.array_size),
            }
        )


class ResidualPrefetch(wiring.Component):
    """Holds residual vectors from their arrival to their use.

    Its user asks for a vector (`request` until `granted`), claims it when `available` (some other work may
    then start that will need it), and at last looks at it and drops it. There may be `depth` vectors between
    request and drop; keeping to that is up to the user.

    Arguments:
        depth: power of two.

    Members:
        request, address: ask for a vector.
        granted: the request is taken.
        available: an arrived vector is not yet claimed.
        claim: claim one.
        vector: the oldest one.
        drop: go on to the next.
        port: to the scratchpad.
    """

    def __init__(self, config: NPUConfig, *, depth: int) -> None:
        if depth < 2 or depth & (depth - 1):
            raise ValueError(f"depth must be a power of two of at least 2, not {depth}")
        self._width, self._depth = 8 * config.array_size, depth
        super().__init__(
            {
                "request": In(1),
                "address": In(range(config.scratchpad_vectors)),
                "granted": Out(1),
                "available": Out(1),
                "claim": In(1),
                "vector": Out(self._width),
                "drop": In(1),
                "port": Out(ArbitratedRead(config)),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.submodules.memory = memory = Memory(shape=self._width, depth=self._depth, init=[])
        write, read = memory.write_port(), memory.read_port(domain="comb")
        coming = Signal(RESIDUAL_LATENCY)
        unclaimed = Signal(range(self._depth + 1))
        arrived = coming[-1]

        m.d.comb += [
            self.port.valid.eq(self.request),
            self.port.address.eq(self.address),
            self.granted.eq(self.request & self.port.ready),
            self.available.eq(unclaimed != 0),
            write.en.eq(arrived),
            write.data.eq(self.port.data),
            self.vector.eq(read.data),
        ]
        m.d.sync += [
            coming.eq((coming << 1) | self.granted),
            write.addr.eq(write.addr + arrived),
            read.addr.eq(read.addr + self.drop),
            unclaimed.eq(unclaimed + arrived - self.claim),
        ]
        return m
