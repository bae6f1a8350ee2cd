"""The stream drivers on a queue of Amaranth's library, and on streams that break the contract."""

from __future__ import annotations

from typing import Any

import cocotb
from amaranth.hdl import Module
from amaranth.lib import fifo, stream, wiring
from amaranth.lib.wiring import In, Out
from cocotb.triggers import RisingEdge

from bench import run_bench
from stimulus import rng, start
from stream_driver import StreamSink, StreamSource


class Queue(wiring.Component):
    """A FIFO of bytes between two streams, and a stream made of wires that a bench drives."""

    def __init__(self) -> None:
        super().__init__(
            {
                "i": In(stream.Signature(8)),
                "o": Out(stream.Signature(8)),
                "bad_valid": In(1),
                "bad_payload": In(8),
                "bad": Out(stream.Signature(8)),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.submodules.queue = queue = fifo.SyncFIFOBuffered(width=8, depth=4)
        wiring.connect(m, wiring.flipped(self.i), queue.w_stream)
        wiring.connect(m, queue.r_stream, wiring.flipped(self.o))
        m.d.comb += [self.bad.valid.eq(self.bad_valid), self.bad.payload.eq(self.bad_payload)]
        return m


@cocotb.test()
@cocotb.parametrize(stall=[0.0, 0.4])
async def everything_arrives_in_order(dut: Any, stall: float) -> None:
    """What goes in comes out, with and without stalls on both sides."""
    source, sink = StreamSource(dut, "i", stall=stall), StreamSink(dut, "o", stall=stall)
    await start(dut)
    data = list(rng().randbytes(300))
    source.send(*data)
    assert await sink.receive(100) == data[:100]
    assert await sink.receive(200) == data[100:]
    await source.drained(timeout_cycles=1)
    sink.assert_empty()


@cocotb.test()
async def full_rate_without_stalls(dut: Any) -> None:
    """One payload a cycle: the drivers add no bubbles."""
    source, sink = StreamSource(dut, "i"), StreamSink(dut, "o")
    await start(dut)
    source.send(*range(256))
    assert await sink.receive(256, timeout_cycles=256 + 8) == list(range(256))
    assert source.pending == 0


@cocotb.test(expect_error=AssertionError)
@cocotb.parametrize(then=[(0, 5), (1, 7)])
async def sink_sees_a_broken_contract(dut: Any, then: tuple[int, int]) -> None:
    """`valid` falls, or the payload changes, before `ready`: the sink fails the test."""
    StreamSink(dut, "bad", stall=0.999)
    await start(dut)
    for dut.bad_valid.value, dut.bad_payload.value in ((1, 5), (1, 5), then, then):
        await RisingEdge(dut.clk)


def test_stream_driver(simulator: str) -> None:
    run_bench(Queue, __name__, simulator=simulator, top="queue")
