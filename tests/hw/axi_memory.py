"""An AXI4 memory for benches: back-pressure, latency, bus errors on a chosen transfer, a log of all bursts.

    memory = AxiMemory(dut, "m_axi", dut.clk, dut.rst, size=1 << 20)
    memory.write(0x1000, data)                        # back door, no simulation time
    memory.stall(0.3, rng("memory"))                  # random pauses on all channels
    memory.latency = 20                               # cycles from an address to its first data or response
    memory.inject(Fault(Direction.READ, AxiResp.SLVERR, burst=2, beat=5))   # third read burst, sixth beat
    memory.inject(Fault(Direction.WRITE, AxiResp.DECERR, address=0x2003))   # the beat that holds that byte
    memory.hold("r")                                  # a bus that hangs; memory.release("r")
    ...
    assert memory.read(0x2000, 64) == expected
    assert all(0x2000 <= address < 0x3000 for address, _ in memory.written)

The channels are cocotbext-axi's; what they carry is decided here, because its memory cannot answer DECERR,
nor fail one beat of a write. A beat with a fault reads as zeros and is not written; the other beats of the
burst are. Addresses beyond the memory answer DECERR. A port may have the read or the write channels only.
"""

from __future__ import annotations

import enum
import random
from collections import deque
from dataclasses import dataclass, field
from typing import Any

import cocotb
from cocotb.triggers import Event, RisingEdge
from cocotbext.axi import AxiBurstType, AxiReadBus, AxiResp, AxiWriteBus
from cocotbext.axi.axi_channels import AxiARSink, AxiAWSink, AxiBSource, AxiRSource, AxiWSink

from stimulus import stalls

__all__ = ["AxiMemory", "Burst", "Direction", "Fault"]


class Direction(enum.Enum):
    """Which way data goes, seen from the manager."""

    READ = "read"
    WRITE = "write"


@dataclass
class Fault:
    """A bus error to come. It hits a beat when every condition that is given holds.

    Attributes:
        direction: reads or writes.
        response: SLVERR or DECERR.
        burst: index of the burst among those of its direction since `AxiMemory.clear_log`.
        beat: index within the burst.
        address: a byte that the beat covers.
        times: how many beats it hits; None for all.
        hits: beats hit so far.
    """

    direction: Direction
    response: AxiResp
    burst: int | None = None
    beat: int | None = None
    address: int | None = None
    times: int | None = 1
    hits: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        if self.response not in (AxiResp.SLVERR, AxiResp.DECERR):
            raise ValueError(f"A fault responds with SLVERR or DECERR, not {self.response!r}")

    def matches(self, burst: Burst, beat: int, first: int, size: int) -> bool:
        """Whether it hits `beat` of `burst`, which covers `size` bytes from `first`."""
        return (
            (self.times is None or self.hits < self.times)
            and self.direction is burst.direction
            and self.burst in (None, burst.index)
            and self.beat in (None, beat)
            and (self.address is None or first <= self.address < first + size)
        )


@dataclass
class Burst:
    """A burst in the log: what was asked and what was answered."""

    direction: Direction
    index: int
    id: int
    address: int
    beats: int
    size: int
    kind: AxiBurstType
    ready_at: int
    responses: list[AxiResp] = field(default_factory=list)

    def beat_address(self, beat: int) -> int:
        """First byte of the aligned container of a beat."""
        aligned = self.address // self.size * self.size
        if self.kind is AxiBurstType.FIXED:
            return aligned
        if self.kind is AxiBurstType.WRAP:
            span = self.size * self.beats
            base = self.address // span * span
            return base + (aligned - base + beat * self.size) % span
        return aligned + beat * self.size


class AxiMemory:
    """Memory behind the manager port `prefix` of `dut`.

    Arguments:
        dut, prefix: the port; signals are `<prefix>_araddr` and so on.
        clock, reset: handles; a reset drops what is under way and keeps the content and the log.
        size: bytes, from address `base` on.
        latency: clock cycles between an address and the first data beat or the response.
        outstanding: addresses taken ahead, in each direction.
        fill: what the memory holds at first.

    Attributes:
        bursts: log of all bursts, in the order of their addresses.
        written: log of the runs of bytes written over the bus, as (address, length).
        faults: errors to inject.
    """

    def __init__(
        self,
        dut: Any,
        prefix: str,
        clock: Any,
        reset: Any,
        *,
        size: int = 1 << 20,
        base: int = 0,
        latency: int = 0,
        outstanding: int = 8,
        fill: int = 0,
    ) -> None:
        self.base = base
        self.latency = latency
        self.faults: list[Fault] = []
        self.bursts: list[Burst] = []
        self.written: list[tuple[int, int]] = []
        self._image = bytearray([fill]) * size
        self._clock, self._reset = clock, reset
        self._outstanding = outstanding
        self._cycle = 0
        self._channels: dict[str, Any] = {}
        self._queues: dict[Direction, deque[Burst]] = {direction: deque() for direction in Direction}
        self._events: dict[Direction, Event] = {direction: Event() for direction in Direction}
        self._counts = dict.fromkeys(Direction, 0)
        if hasattr(dut, f"{prefix}_awvalid"):
            bus = AxiWriteBus.from_prefix(dut, prefix)
            self._channels["aw"] = AxiAWSink(bus.aw, clock, reset)
            self._channels["w"] = AxiWSink(bus.w, clock, reset)
            self._channels["b"] = AxiBSource(bus.b, clock, reset)
            self._bytes = len(bus.w.wdata) // 8
        if hasattr(dut, f"{prefix}_arvalid"):
            bus = AxiReadBus.from_prefix(dut, prefix)
            self._channels["ar"] = AxiARSink(bus.ar, clock, reset)
            self._channels["r"] = AxiRSource(bus.r, clock, reset)
            self._bytes = len(bus.r.rdata) // 8
        if not self._channels:
            raise AttributeError(f"{dut._name} has neither {prefix}_awvalid nor {prefix}_arvalid")
        for channel in self._channels.values():
            channel.queue_occupancy_limit = 2
        self._task = cocotb.start_soon(self._run())
        self._count_task = cocotb.start_soon(self._count_cycles())

    @property
    def size(self) -> int:
        """Bytes in the memory."""
        return len(self._image)

    # The back door

    def read(self, address: int, length: int) -> bytes:
        """`length` bytes from `address` on.

        Raises:
            ValueError: not all of them are in the memory.
        """
        offset = self._offset(address, length)
        return bytes(self._image[offset : offset + length])

    def write(self, address: int, data: bytes | bytearray | memoryview) -> None:
        """Put bytes into the memory; raises ValueError beyond its end."""
        offset = self._offset(address, len(data))
        self._image[offset : offset + len(data)] = data

    def _offset(self, address: int, length: int) -> int:
        if not self._holds(address, length):
            end = self.base + len(self._image)
            raise ValueError(f"0x{address:x} + {length} bytes is outside 0x{self.base:x} .. 0x{end - 1:x}")
        return address - self.base

    def _holds(self, address: int, length: int) -> bool:
        return self.base <= address and address + length <= self.base + len(self._image)

    # What the bus does

    def inject(self, fault: Fault) -> Fault:
        """Add a bus error; returns it, so that the bench can look at its `hits`."""
        self.faults.append(fault)
        return fault

    def clear_log(self) -> None:
        """Forget bursts, written runs and faults; burst indices start at 0 again."""
        self.faults.clear()
        self.bursts.clear()
        self.written.clear()
        self._counts = dict.fromkeys(Direction, 0)

    def stall(self, probability: float, random_source: random.Random, channels: str = "aw w b ar r") -> None:
        """Pause these channels at random, each with its own sequence; probability 0 ends it."""
        for name in channels.split():
            if name in self._channels:
                generator = None
                if probability:
                    generator = stalls(random.Random(random_source.getrandbits(64)), probability)
                self._channels[name].set_pause_generator(generator)
                self._channels[name].pause = False

    def hold(self, channel: str) -> None:
        """Stop a channel: no READY (aw, w, ar), no new VALID (b, r)."""
        self._channels[channel].set_pause_generator(None)
        self._channels[channel].pause = True

    def release(self, channel: str) -> None:
        """Let a held channel go on."""
        self._channels[channel].pause = False

    async def _count_cycles(self) -> None:
        edge = RisingEdge(self._clock)
        while True:
            await edge
            self._cycle += 1

    async def _run(self) -> None:
        """Serve the bus, from the end of each reset to the next."""
        while True:
            while str(self._reset.value) == "1":
                await self._reset.value_change
            tasks = []
            if "aw" in self._channels:
                tasks += [self._accept(Direction.WRITE), self._serve_writes()]
            if "ar" in self._channels:
                tasks += [self._accept(Direction.READ), self._serve_reads()]
            running = [cocotb.start_soon(task) for task in tasks]
            while str(self._reset.value) != "1":
                await self._reset.value_change
            for task in running:
                task.cancel()
            for channel in self._channels.values():
                channel.clear()
            for queue in self._queues.values():
                queue.clear()

    async def _accept(self, direction: Direction) -> None:
        prefix = "aw" if direction is Direction.WRITE else "ar"
        queue, event = self._queues[direction], self._events[direction]
        while True:
            item = await self._channels[prefix].recv()
            burst = Burst(
                direction=direction,
                index=self._counts[direction],
                id=int(getattr(item, f"{prefix}id")),
                address=int(getattr(item, f"{prefix}addr")),
                beats=int(getattr(item, f"{prefix}len")) + 1,
                size=1 << int(getattr(item, f"{prefix}size")),
                kind=AxiBurstType(int(getattr(item, f"{prefix}burst"))),
                ready_at=self._cycle + self.latency,
            )
            self._counts[direction] += 1
            self.bursts.append(burst)
            queue.append(burst)
            event.set()
            while len(queue) >= self._outstanding:
                await RisingEdge(self._clock)

    async def _next(self, direction: Direction) -> Burst:
        """The oldest burst not served; stays in the queue, which counts what is outstanding."""
        queue, event = self._queues[direction], self._events[direction]
        while not queue:
            event.clear()
            await event.wait()
        return queue[0]

    async def _wait_latency(self, burst: Burst) -> None:
        while self._cycle < burst.ready_at:
            await RisingEdge(self._clock)

    def _response(self, burst: Burst, beat: int) -> AxiResp:
        """The response to a beat, faults included; noted in the log."""
        first = burst.beat_address(beat)
        response = AxiResp.OKAY if self._holds(first, burst.size) else AxiResp.DECERR
        for fault in self.faults:
            if fault.matches(burst, beat, first, burst.size):
                fault.hits += 1
                response = fault.response
                break
        burst.responses.append(response)
        return response

    async def _serve_reads(self) -> None:
        channel = self._channels["r"]
        while True:
            burst = await self._next(Direction.READ)
            await self._wait_latency(burst)
            for beat in range(burst.beats):
                item = channel._transaction_obj()
                item.rid = burst.id
                item.rlast = beat == burst.beats - 1
                item.rresp = self._response(burst, beat)
                item.rdata = 0
                if item.rresp == AxiResp.OKAY:
                    address = burst.beat_address(beat)
                    shift = 8 * (address % self._bytes)
                    item.rdata = int.from_bytes(self.read(address, burst.size), "little") << shift
                await channel.send(item)
            self._queues[Direction.READ].popleft()

    async def _serve_writes(self) -> None:
        data, answers = self._channels["w"], self._channels["b"]
        while True:
            burst = await self._next(Direction.WRITE)
            for beat in range(burst.beats):
                item = await data.recv()
                if self._response(burst, beat) == AxiResp.OKAY:
                    word = burst.beat_address(beat) // self._bytes * self._bytes
                    self._store(word, int(item.wdata), int(getattr(item, "wstrb", (1 << self._bytes) - 1)))
            await self._wait_latency(burst)
            answer = answers._transaction_obj()
            answer.bid = burst.id
            answer.bresp = next((r for r in burst.responses if r != AxiResp.OKAY), AxiResp.OKAY)
            await answers.send(answer)
            self._queues[Direction.WRITE].popleft()

    def _store(self, word: int, data: int, strobes: int) -> None:
        """Write the bytes of a bus word whose strobe is set, run by run."""
        raw = data.to_bytes(self._bytes, "little")
        lane = 0
        while strobes >> lane:
            if not strobes >> lane & 1:
                lane += 1
                continue
            end = lane
            while strobes >> end & 1:
                end += 1
            self.write(word + lane, raw[lane:end])
            self.written.append((word + lane, end - lane))
            lane = end
