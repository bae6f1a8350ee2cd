"""Protocol monitors for AXI4 and AXI4-Lite ports in cocotb benches.

A bus model drives a bus; it does not say when the other side breaks the rules. A monitor watches both sides
of a port at every clock edge and fails the running test at the first violation:

    monitor = Axi4Monitor(dut, "m_axi", dut.clk, dut.rst)          # signals m_axi_awvalid, m_axi_awready, ...
    csr_monitor = AxiLiteMonitor(dut, "s_axil", dut.clk, dut.rst)
    ...
    monitor.assert_clean()            # at the end: no violation, nothing left unfinished, really watched

A port may have the read or the write channels only. For an Amaranth member `bus` the signals are called
`bus__awvalid`, so the prefix is "bus_".

With `strict=False` violations are only recorded in `monitor.violations`, until `assert_clean` raises them.

The rules are those of the AMBA AXI and ACE Protocol Specification, ARM IHI 0022 (section numbers of issues E
to H); `Rule` has the list. What a monitor of wires cannot see is left out: combinational paths from READY to
VALID (A3.2.1), data values, exclusive access beyond its response code.

Reset here is synchronous: outputs follow one edge after `reset` rises, so the first edge that samples it
high is not checked, and a transfer that it cuts short is no violation. Nothing is checked before the first
reset, when the design's state is not defined.
"""

from __future__ import annotations

import enum
from collections import defaultdict, deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import cocotb
from cocotb.simtime import get_sim_time
from cocotb.triggers import RisingEdge

__all__ = ["Axi4Monitor", "AxiLiteMonitor", "AxiViolation", "Rule", "Violation"]


class Rule(enum.Enum):
    """What is checked, as (name, section of ARM IHI 0022, the rule)."""

    VALID_HELD = ("VALID held", "A3.2.1", "VALID stays high until READY")
    PAYLOAD_STABLE = ("payload stable", "A3.2.1", "the payload keeps its value while VALID waits for READY")
    VALID_IN_RESET = ("VALID in reset", "A3.1.2", "VALID is low during reset")
    VALID_AFTER_RESET = (
        "VALID after reset",
        "A3.1.2",
        "VALID rises at an edge after reset, not with its end",
    )
    KNOWN = ("known value", "A3.2", "VALID is not X or Z, nor are READY and control beside a high VALID")
    BOUNDARY = ("4 KiB boundary", "A3.4.1", "a burst does not cross a 4 KiB address boundary")
    BURST_TYPE = ("burst type", "A3.4.1", "AxBURST 0b11 is reserved")
    BURST_LENGTH = ("burst length", "A3.4.1", "FIXED bursts have 1 to 16 transfers, WRAP 2, 4, 8 or 16")
    BURST_SIZE = ("burst size", "A3.4.1", "a transfer is not wider than the data bus")
    WRAP_ALIGNED = ("wrap alignment", "A3.4.1", "a WRAP burst starts at a multiple of the transfer size")
    CACHE = ("memory type", "A4.4", "AxCACHE[3:2] are low when AxCACHE[1] is")
    WLAST = ("WLAST", "A3.2.2", "WLAST is high on exactly the last of the AWLEN + 1 write transfers")
    STROBES = ("write strobes", "A3.4.3", "WSTRB is high only on byte lanes that the transfer covers")
    RESPONSE_EARLY = (
        "write response",
        "A3.3.1",
        "BVALID follows the handshakes of AW and of the last W, once a burst, with its ID",
    )
    READ_UNASKED = ("read data", "A3.3.1", "RVALID follows the handshake of an AR with the same ID")
    RLAST = ("RLAST", "A3.2.2", "RLAST is high on exactly the last of the ARLEN + 1 read transfers")
    EXOKAY = ("EXOKAY", "A3.4.4", "EXOKAY answers exclusive accesses only")
    LITE_EXOKAY = ("EXOKAY on AXI4-Lite", "B1.1.1", "AXI4-Lite has no EXOKAY response")
    LITE_WIDTH = ("AXI4-Lite data width", "B1.1", "the data bus has 32 or 64 bits, transfers use all of it")

    @property
    def section(self) -> str:
        """Section of ARM IHI 0022."""
        return self.value[1]


@dataclass(frozen=True)
class Violation:
    """One broken rule: when, on which channel, by what value."""

    rule: Rule
    port: str
    channel: str
    time_ns: float
    detail: str

    def __str__(self) -> str:
        name, section, text = self.rule.value
        return f"{self.time_ns:.0f} ns, {self.port} {self.channel}: {name} ({section}: {text}): {self.detail}"


class AxiViolation(AssertionError):
    """A port broke the protocol; `violations` has the records."""

    def __init__(self, violations: list[Violation]) -> None:
        super().__init__("AXI protocol violated\n" + "\n".join(f"  {violation}" for violation in violations))
        self.violations = violations


_OKAY, _EXOKAY = 0, 1
_FIXED, _INCR, _WRAP = 0, 1, 2

# Payload signals of each channel. All of them must be stable; those of _DATA may hold X.
_PAYLOAD = {
    "aw": ("id", "addr", "len", "size", "burst", "lock", "cache", "prot", "qos", "region", "user"),
    "w": ("data", "strb", "last", "user"),
    "b": ("id", "resp", "user"),
    "ar": ("id", "addr", "len", "size", "burst", "lock", "cache", "prot", "qos", "region", "user"),
    "r": ("id", "data", "resp", "last", "user"),
}
_DATA = ("data", "user")


@dataclass
class _Burst:
    """An address that was accepted: what its data transfers have to look like."""

    id: int
    address: int
    length: int
    size: int
    kind: int
    exclusive: bool
    beat: int = 0

    def lanes(self, bus_bytes: int) -> int:
        """Mask of the byte lanes that the present transfer covers (A3.4.2, A3.4.3)."""
        step = 1 << self.size
        aligned = self.address // step * step
        address = self.address
        if self.beat and self.kind != _FIXED:
            address = aligned + self.beat * step
            if self.kind == _WRAP:
                span = step * self.length
                base = self.address // span * span
                address = base + (address - base) % span
        first = address % bus_bytes
        end = address // step * step % bus_bytes + step
        return (1 << end) - (1 << first)


def _reader(handle: Any) -> Callable[[], str]:
    """A function that reads a signal as a string of 0, 1, X, Z.

    `handle.value` wraps the same call in objects that take several times as long, for some ten signals at
    every clock edge; hence the handle's inner interface, here and nowhere else.
    """
    return handle._handle.get_signal_val_binstr  # type: ignore[no-any-return]


class _Channel:
    """One VALID/READY channel: samples it, checks the handshake, hands over payloads."""

    def __init__(self, monitor: _Monitor, name: str) -> None:
        def signal(suffix: str) -> Any:
            return getattr(monitor.dut, f"{monitor.prefix}_{name}{suffix}", None)

        self.monitor = monitor
        self.name = name.upper()
        valid, ready = signal("valid"), signal("ready")
        if valid is None or ready is None:
            raise AttributeError(f"{monitor.dut._name} has no {monitor.prefix}_{name}valid and ...ready")
        self.handles = {field: handle for field in _PAYLOAD[name] if (handle := signal(field)) is not None}
        self._valid, self._ready = _reader(valid), _reader(ready)
        self._payload = {field: _reader(handle) for field, handle in self.handles.items()}
        self._waiting: dict[str, str] | None = None
        self.transfers = 0

    def clear(self) -> None:
        """Forget a transfer that waits for READY."""
        self._waiting = None

    def check_low(self, rule: Rule) -> None:
        """VALID must be low now."""
        valid = self._valid()
        if valid != "0":
            self.monitor._report(rule, self.name, f"{self.name}VALID is {valid}")

    def sample(self) -> tuple[dict[str, int] | None, bool]:
        """The payload when a transfer is first offered (else None), and whether one is accepted now."""
        valid = self._valid()
        if valid == "0":
            if self._waiting is not None:
                self._report(Rule.VALID_HELD, f"{self.name}VALID fell before {self.name}READY rose")
                self._waiting = None
            return None, False
        if valid != "1":
            self._report(Rule.KNOWN, f"{self.name}VALID is {valid}")
            self._waiting = None
            return None, False
        payload = {field: read() for field, read in self._payload.items()}
        fresh = self._waiting is None
        numbers: dict[str, int] | None = None
        if fresh:
            numbers = self._numbers(payload)
        elif payload != self._waiting:
            changed = [
                f"{self.name}{field.upper()} from {_hex(self._waiting[field])} to {_hex(value)}"
                for field, value in payload.items()
                if value != self._waiting[field]
            ]
            self._report(Rule.PAYLOAD_STABLE, "changed " + ", ".join(changed))
        ready = self._ready()
        if ready not in ("0", "1"):
            self._report(Rule.KNOWN, f"{self.name}READY is {ready} while {self.name}VALID is high")
        accepted = ready == "1"
        self._waiting = None if accepted else payload
        self.transfers += accepted
        return numbers, accepted

    def _numbers(self, payload: dict[str, str]) -> dict[str, int]:
        numbers = {}
        for field, text in payload.items():
            try:
                numbers[field] = int(text, 2)
            except ValueError:
                # Left out: what follows takes the legal default, so that one fault gives one report.
                if field not in _DATA:
                    self._report(Rule.KNOWN, f"{self.name}{field.upper()} is 0b{text} while VALID is high")
        return numbers

    def _report(self, rule: Rule, detail: str) -> None:
        self.monitor._report(rule, self.name, detail)


def _hex(text: str) -> str:
    try:
        return f"0x{int(text, 2):x}"
    except ValueError:
        return f"0b{text}"


class _Monitor:
    """What both monitors share: sampling, reset, counting of bursts and responses."""

    def __init__(
        self, dut: Any, prefix: str, clock: Any, reset: Any, *, strict: bool = True, name: str | None = None
    ) -> None:
        self.dut = dut
        self.prefix = prefix
        self.name = name or prefix
        self.strict = strict
        self.violations: list[Violation] = []
        self.cycles = 0
        """Clock edges checked, outside reset."""
        self._clock = clock
        self._read_reset = _reader(reset)
        writes, reads = (hasattr(dut, f"{prefix}_{channel}valid") for channel in ("aw", "ar"))
        if not (writes or reads):
            raise AttributeError(f"{dut._name} has neither {prefix}_awvalid nor {prefix}_arvalid")
        self._channels: list[_Channel] = []
        if writes:
            self._aw, self._w, self._b = (self._channel(channel) for channel in ("aw", "w", "b"))
        if reads:
            self._ar, self._r = (self._channel(channel) for channel in ("ar", "r"))
        self._has_writes, self._has_reads = writes, reads
        self._bus_bytes = len((self._w if writes else self._r).handles["data"]) // 8
        self._clear()
        self._task = cocotb.start_soon(self._run())

    def _channel(self, name: str) -> _Channel:
        channel = _Channel(self, name)
        self._channels.append(channel)
        return channel

    @property
    def transfers(self) -> dict[str, int]:
        """Number of handshakes seen on each channel, by name: AW, W, B, AR, R."""
        return {channel.name: channel.transfers for channel in self._channels}

    @property
    def outstanding(self) -> int:
        """Transactions that were begun and not answered in full."""
        writes = len(self._writes) + sum(len(queue) for queue in self._responses.values())
        return writes + bool(self._early_data) + sum(len(queue) for queue in self._reads.values())

    def assert_clean(self, *, allow_outstanding: bool = False) -> None:
        """Raise what was recorded; also if nothing was checked or a transaction is unfinished.

        Raises:
            AxiViolation: rules were broken.
            AssertionError: no clock edge was checked (no reset, no clock), or transactions are unfinished.
        """
        if self.violations:
            raise AxiViolation(self.violations)
        assert self.cycles, f"{self.name}: the monitor saw no clock edge after a reset"
        if not allow_outstanding:
            waiting = [channel.name for channel in self._channels if channel._waiting is not None]
            assert not waiting, f"{self.name}: transfers still wait for READY on {', '.join(waiting)}"
            assert not self.outstanding, f"{self.name}: {self.outstanding} transactions are unfinished"

    def _report(self, rule: Rule, channel: str, detail: str) -> None:
        violation = Violation(rule, self.name, channel, get_sim_time("ns"), detail)
        self.violations.append(violation)
        if self.strict:
            raise AxiViolation([violation])

    def _clear(self) -> None:
        for channel in self._channels:
            channel.clear()
        self._writes: deque[_Burst] = deque()  # addresses whose data is not complete, in order
        self._early_data: deque[dict[str, int]] = deque()  # write data ahead of its address
        self._responses: defaultdict[int, deque[_Burst]] = defaultdict(deque)  # writes to answer, by ID
        self._reads: defaultdict[int, deque[_Burst]] = defaultdict(deque)  # reads to answer, by ID

    async def _run(self) -> None:
        edge = RisingEdge(self._clock)
        while self._read_reset() != "1":
            await edge
        in_reset = True
        while True:
            await edge
            if self._read_reset() == "1":
                if in_reset:
                    for channel in self._channels:
                        channel.check_low(Rule.VALID_IN_RESET)
                self._clear()
                in_reset = True
                continue
            if in_reset:
                in_reset = False
                before = len(self.violations)
                for channel in self._channels:
                    channel.check_low(Rule.VALID_AFTER_RESET)
                if len(self.violations) > before:
                    continue  # one fault, one report
            self.cycles += 1
            self._check_cycle()

    def _check_cycle(self) -> None:
        # Answers first: they may only follow handshakes of earlier cycles.
        if self._has_writes:
            self._check_write_response()
            self._check_write()
        if self._has_reads:
            self._check_read_data()
            self._check_read_address()

    def _check_write(self) -> None:
        address, accepted = self._aw.sample()
        if address is not None:
            self._new_write = self._burst(self._aw, address)
        if accepted:
            self._writes.append(self._new_write)
            while self._early_data and self._writes:
                self._place_write_data(self._early_data.popleft())
        data, accepted = self._w.sample()
        if data is not None:
            self._new_data = data
        if accepted:
            if self._writes:
                self._place_write_data(self._new_data)
            else:
                self._early_data.append(self._new_data)

    def _check_read_address(self) -> None:
        address, accepted = self._ar.sample()
        if address is not None:
            self._new_read = self._burst(self._ar, address)
        if accepted:
            self._reads[self._new_read.id].append(self._new_read)

    def _place_write_data(self, data: dict[str, int]) -> None:
        """Count one write transfer to the oldest address that lacks data."""
        burst = self._writes[0]
        lanes = burst.lanes(self._bus_bytes)
        strobes = data.get("strb", lanes)
        if strobes & ~lanes:
            self._report(
                Rule.STROBES,
                "W",
                f"WSTRB is 0b{strobes:b}, transfer {burst.beat} of the burst at 0x{burst.address:x} "
                f"covers 0b{lanes:b}",
            )
        final = burst.beat == burst.length - 1
        last = bool(data.get("last", final))
        if last != final:
            self._report(
                Rule.WLAST,
                "W",
                f"WLAST is {last:d} on transfer {burst.beat + 1} of {burst.length}, "
                f"burst at 0x{burst.address:x}",
            )
        burst.beat += 1
        if last or final:
            self._writes.popleft()
            self._responses[burst.id].append(burst)

    def _check_write_response(self) -> None:
        response, accepted = self._b.sample()
        if response is not None:
            self._new_response = response
            queue = self._responses[response.get("id", 0)]
            if not queue:
                self._report(
                    Rule.RESPONSE_EARLY,
                    "B",
                    f"BVALID with ID {response.get('id', 0)}, no complete write of that ID waits",
                )
            self._check_response_code("B", response.get("resp", _OKAY), queue)
        if accepted and (queue := self._responses[self._new_response.get("id", 0)]):
            queue.popleft()

    def _check_read_data(self) -> None:
        data, accepted = self._r.sample()
        if data is not None:
            self._new_read_data = data
            queue = self._reads[data.get("id", 0)]
            if queue:
                burst = queue[0]
                final = burst.beat == burst.length - 1
                if bool(data.get("last", final)) != final:
                    self._report(
                        Rule.RLAST,
                        "R",
                        f"RLAST is {data['last']} on transfer {burst.beat + 1} of {burst.length}, "
                        f"burst at 0x{burst.address:x}",
                    )
            else:
                self._report(
                    Rule.READ_UNASKED, "R", f"RVALID with ID {data.get('id', 0)}, no read of that ID waits"
                )
            self._check_response_code("R", data.get("resp", _OKAY), queue)
        if accepted and (queue := self._reads[self._new_read_data.get("id", 0)]):
            burst = queue[0]
            burst.beat += 1
            if burst.beat == burst.length or self._new_read_data.get("last", 0):
                queue.popleft()

    def _burst(self, channel: _Channel, address: dict[str, int]) -> _Burst:
        raise NotImplementedError

    def _check_response_code(self, channel: str, code: int, queue: deque[_Burst]) -> None:
        raise NotImplementedError


class Axi4Monitor(_Monitor):
    """Checks an AXI4 port: signals `<prefix>_awvalid`, `<prefix>_awaddr` and so on of `dut`.

    Arguments:
        dut: cocotb handle of the module.
        prefix: start of the signal names, without the underscore. Optional signals of AXI4 may be missing.
        clock, reset: handles; reset is synchronous and active high.
        strict: fail the test at once (by an exception in the monitor's task), else only record.
        name: what messages call the port.
    """

    def _burst(self, channel: _Channel, address: dict[str, int]) -> _Burst:
        full = (self._bus_bytes - 1).bit_length()
        burst = _Burst(
            id=address.get("id", 0),
            address=address.get("addr", 0),
            length=address.get("len", 0) + 1,
            size=address.get("size", full),
            kind=address.get("burst", _INCR),
            exclusive=bool(address.get("lock", 0)),
        )
        step = 1 << burst.size
        where = f"burst at 0x{burst.address:x}"
        if step > self._bus_bytes:
            channel._report(
                Rule.BURST_SIZE, f"{where}: {step} bytes a transfer, {self._bus_bytes} a bus word"
            )
        if burst.kind not in (_FIXED, _INCR, _WRAP):
            channel._report(Rule.BURST_TYPE, f"{where}: {channel.name}BURST is {burst.kind}")
        too_long = burst.length > 16 if burst.kind == _FIXED else burst.length not in (2, 4, 8, 16)
        if burst.kind in (_FIXED, _WRAP) and too_long:
            kind = "FIXED" if burst.kind == _FIXED else "WRAP"
            channel._report(Rule.BURST_LENGTH, f"{where}: {burst.length} transfers of type {kind}")
        if burst.kind == _WRAP and burst.address % step:
            channel._report(Rule.WRAP_ALIGNED, f"{where}: WRAP with {step} bytes a transfer")
        if burst.kind == _INCR:
            final = burst.address // step * step + step * burst.length - 1
            if burst.address // 4096 != final // 4096:
                channel._report(Rule.BOUNDARY, f"{where}: {burst.length} x {step} bytes end at 0x{final:x}")
        cache = address.get("cache", 0)
        if cache & 0b1100 and not cache & 0b0010:
            channel._report(Rule.CACHE, f"{where}: {channel.name}CACHE is 0b{cache:04b}")
        return burst

    def _check_response_code(self, channel: str, code: int, queue: deque[_Burst]) -> None:
        if code == _EXOKAY and not (queue and queue[0].exclusive):
            self._report(Rule.EXOKAY, channel, f"{channel}RESP is EXOKAY, the access was not exclusive")


class AxiLiteMonitor(_Monitor):
    """Checks an AXI4-Lite port; the arguments are those of `Axi4Monitor`.

    Raises:
        AxiViolation: the data bus is neither 32 nor 64 bits wide (on construction).
    """

    def __init__(
        self, dut: Any, prefix: str, clock: Any, reset: Any, *, strict: bool = True, name: str | None = None
    ) -> None:
        super().__init__(dut, prefix, clock, reset, strict=strict, name=name)
        for channel in self._channels:
            if "data" in channel.handles and (width := len(channel.handles["data"])) not in (32, 64):
                self._report(Rule.LITE_WIDTH, channel.name, f"{channel.name}DATA has {width} bits")

    def _burst(self, channel: _Channel, address: dict[str, int]) -> _Burst:
        # One transfer over the whole bus: every strobe is legal, whatever the low address bits.
        size = (self._bus_bytes - 1).bit_length()
        aligned = address.get("addr", 0) // self._bus_bytes * self._bus_bytes
        return _Burst(id=0, address=aligned, length=1, size=size, kind=_INCR, exclusive=False)

    def _check_response_code(self, channel: str, code: int, queue: deque[_Burst]) -> None:
        if code == _EXOKAY:
            self._report(Rule.LITE_EXOKAY, channel, f"{channel}RESP is EXOKAY")
