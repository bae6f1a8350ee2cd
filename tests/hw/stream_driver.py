"""Drivers for Amaranth stream ports in block benches (runs inside the simulator).

    source = StreamSource(dut, "i", stall=0.3)         # signals i__payload, i__valid, i__ready
    sink = StreamSink(dut, "o", stall=0.3)
    await start(dut)
    source.send(*range(100))                           # queued; sent as the design takes them
    assert await sink.receive(100) == [...]            # payloads as unsigned integers
    sink.assert_empty()

The sink also checks Amaranth's stream contract: once `valid` is high, it and the payload stay until `ready`.
A payload with several fields is one integer, its first field in the low bits.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import Any

import cocotb
from cocotb.triggers import RisingEdge, with_timeout

from stimulus import CLOCK_NS, rng, stalls

__all__ = ["StreamSink", "StreamSource"]


def _never() -> Iterator[bool]:
    while True:
        yield False


def _signals(dut: Any, name: str) -> tuple[Any, Any, Any]:
    payload = getattr(dut, f"{name}__payload", None)  # absent when the payload has no bits
    return payload, getattr(dut, f"{name}__valid"), getattr(dut, f"{name}__ready")


class StreamSource:
    """Drives the input stream `name` of `dut`.

    Arguments:
        stall: probability of a cycle without an offer; 0 offers at every cycle.
    """

    def __init__(self, dut: Any, name: str, *, stall: float = 0.0) -> None:
        self._payload, self._valid, self._ready = _signals(dut, name)
        self._clock, self._reset = dut.clk, dut.rst
        self._stalls = stalls(rng(f"source {name}"), stall) if stall else _never()
        self._queue: deque[int] = deque()
        self._valid.value = 0
        self._task = cocotb.start_soon(self._run())

    def send(self, *payloads: int) -> None:
        """Queue payloads."""
        self._queue.extend(payloads)

    @property
    def pending(self) -> int:
        """Payloads that the design has not taken."""
        return len(self._queue)

    async def drained(self, *, timeout_cycles: int = 100_000) -> None:
        """Wait until the design has taken everything."""
        await with_timeout(self._drain(), timeout_cycles * CLOCK_NS, "ns")

    async def _drain(self) -> None:
        while self._queue:
            await RisingEdge(self._clock)

    async def _run(self) -> None:
        offered = False
        edge = RisingEdge(self._clock)
        while True:
            await edge
            if str(self._reset.value) == "1":
                self._queue.clear()
                self._valid.value = 0
                offered = False
                continue
            if offered and str(self._ready.value) == "1":
                self._queue.popleft()
                offered = False
            if not offered:
                # A stall is drawn at every chance to offer, so the sequence depends on the seed alone.
                offered = not next(self._stalls) and bool(self._queue)
                self._valid.value = int(offered)
                if offered and self._payload is not None:
                    self._payload.value = self._queue[0]


class StreamSink:
    """Takes what the output stream `name` of `dut` offers; fails the test when it breaks the contract."""

    def __init__(self, dut: Any, name: str, *, stall: float = 0.0) -> None:
        self.name = name
        self.received: deque[int] = deque()
        self._payload, self._valid, self._ready = _signals(dut, name)
        self._clock, self._reset = dut.clk, dut.rst
        self._stalls = stalls(rng(f"sink {name}"), stall) if stall else _never()
        self._ready.value = 0
        self._task = cocotb.start_soon(self._run())

    async def receive(self, count: int, *, timeout_cycles: int = 100_000) -> list[int]:
        """The next `count` payloads.

        Raises:
            cocotb.triggers.SimTimeoutError: they did not come within `timeout_cycles`.
        """
        await with_timeout(self._wait(count), timeout_cycles * CLOCK_NS, "ns")
        return [self.received.popleft() for _ in range(count)]

    def assert_empty(self) -> None:
        """Nothing was received beyond what `receive` handed out."""
        assert not self.received, f"stream {self.name}: unexpected {[hex(p) for p in self.received]}"

    async def _wait(self, count: int) -> None:
        while len(self.received) < count:
            await RisingEdge(self._clock)

    async def _run(self) -> None:
        waiting: str | None = None
        ready = False
        edge = RisingEdge(self._clock)
        while True:
            await edge
            if str(self._reset.value) == "1":
                waiting, ready = None, False
                self._ready.value = 0
                continue
            valid = str(self._valid.value)
            assert valid in ("0", "1"), f"stream {self.name}: valid is {valid}"
            payload = str(self._payload.value) if self._payload is not None else "0"
            if waiting is not None:
                assert valid == "1", f"stream {self.name}: valid fell before ready rose"
                assert payload == waiting, f"stream {self.name}: payload changed from {waiting} to {payload}"
            waiting = payload if valid == "1" and not ready else None
            if valid == "1" and ready:
                assert set(payload) <= {"0", "1"}, f"stream {self.name}: payload is 0b{payload}"
                self.received.append(int(payload, 2))
            ready = not next(self._stalls)
            self._ready.value = int(ready)
