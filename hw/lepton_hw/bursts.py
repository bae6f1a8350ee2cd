"""From rows of a command to AXI bursts, and from bursts to beats: what LOAD and STORE have in common.

    command -> RowBursts -> bursts -> FIFO of announced bursts -> BurstBeats -> beats, one a cycle

A row is `row_bytes` bytes at any external and any on-chip address. On the bus it is a run of whole, aligned
beats; the first and the last one are masked to the row's bytes. On chip, beat k of a row is the window of
bus bytes at (local address - address mod bus bytes) + k * bus bytes: the shift between the two alignments is
the scratchpad's business.

Bursts end at multiples of `burst_beats` beats. That keeps them clear of 4 KiB boundaries (burst_beats * bus
bytes divides 4096), and makes the length of a burst a matter of one comparison.
"""

from __future__ import annotations

from amaranth.hdl import Cat, Const, Module, Mux, ShapeLike, Signal, unsigned
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import exact_log2

from .config import NPUConfig
from .isa import COMMANDS, Opcode

__all__ = ["BurstBeats", "RowBursts", "beat_layout", "burst_layout", "local_bits", "rows_layout"]

ROW_BYTES_BITS = COMMANDS[Opcode.STORE].by_name["row_bytes"].width
ROWS_BITS = COMMANDS[Opcode.STORE].by_name["rows"].width


def local_bits(config: NPUConfig) -> int:
    """Width of an on-chip byte address: enough for the largest memory."""
    return exact_log2(max(config.scratchpad_bytes, config.weight_bytes, config.parameter_bytes))


def _with_tag(fields: dict[str, ShapeLike], tag: ShapeLike | None) -> data.StructLayout:
    return data.StructLayout(fields if tag is None else {**fields, "tag": tag})


def rows_layout(config: NPUConfig, tag: ShapeLike | None) -> data.StructLayout:
    """A command's rows. `tag` travels with each burst and beat; None: there is no such field."""
    return _with_tag(
        {
            "address": unsigned(32),
            "stride": unsigned(32),
            "local": unsigned(local_bits(config)),
            "local_stride": unsigned(local_bits(config)),
            "row_bytes": unsigned(ROW_BYTES_BITS),
            "rows": unsigned(ROWS_BITS),
        },
        tag,
    )


def burst_layout(config: NPUConfig, tag: ShapeLike | None) -> data.StructLayout:
    """A burst.

    Fields: `beat_address`, in beats; `length`, beats less one; `start`, `end`: it holds the first, the last
    beat of a row; `final`: it is the command's last; `local`: window of the row's first beat; `skip`: bytes
    of that beat before the row; `keep`: index of the row's last byte in its last beat; `tag`.
    """
    lane = exact_log2(config.bus_bytes)
    return _with_tag(
        {
            "beat_address": unsigned(32 - lane),
            "length": unsigned(exact_log2(config.burst_beats)),
            "start": unsigned(1),
            "end": unsigned(1),
            "final": unsigned(1),
            "local": unsigned(local_bits(config)),
            "skip": unsigned(lane),
            "keep": unsigned(lane),
        },
        tag,
    )


def beat_layout(config: NPUConfig, tag: ShapeLike | None) -> data.StructLayout:
    """A beat.

    Fields: `local`: byte address of its window on chip; `mask`: the row's bytes in it; `count`: how many;
    `last`: of its burst; `final`: of its command; `tag`.
    """
    return _with_tag(
        {
            "local": unsigned(local_bits(config)),
            "mask": unsigned(config.bus_bytes),
            "count": unsigned(exact_log2(config.bus_bytes) + 1),
            "last": unsigned(1),
            "final": unsigned(1),
        },
        tag,
    )


class RowBursts(wiring.Component):
    """Cuts the rows of commands into bursts, one burst a cycle across rows and commands.

        cycle  stage
        0      command taken
        1      row: the next row's addresses, its number of beats, its first and last byte
        2      burst: as long as it may be; the row's next one in the next cycle

    Arguments:
        config: the NPU's configuration.
        tag: shape of what travels along; None: nothing.

    Members:
        rows: commands, in order.
        bursts: their bursts, in order. `valid` may fall in a cycle after `clear`.
        clear: drop all work; in that cycle `bursts` may still offer one, which must not be taken.
        busy: there are rows left.
    """

    def __init__(self, config: NPUConfig, tag: ShapeLike | None) -> None:
        self._config = config
        self._tag = tag
        super().__init__(
            {
                "rows": In(stream.Signature(rows_layout(config, tag))),
                "bursts": Out(stream.Signature(burst_layout(config, tag))),
                "clear": In(1),
                "busy": Out(1),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        config = self._config
        lane = exact_log2(config.bus_bytes)
        index_bits = exact_log2(config.burst_beats)

        # Row stage: `row` is the next row to cut.
        row_valid = Signal()
        row = Signal(rows_layout(config, self._tag))  # rows, row_bytes: less one
        row_taken = Signal()
        last_row = Signal()
        skip = row.address[:lane]
        span = Signal(ROW_BYTES_BITS + 1)  # from the first beat's first byte to the row's last byte
        m.d.comb += [
            span.eq(skip + row.row_bytes),
            last_row.eq(row.rows == 0),
            self.rows.ready.eq(~row_valid | (row_taken & last_row)),
        ]
        with m.If(row_taken):
            m.d.sync += [
                row.address.eq(row.address + row.stride),
                row.local.eq(row.local + row.local_stride),
                row.rows.eq(row.rows - 1),
            ]
        with m.If(self.rows.ready):
            m.d.sync += [
                row_valid.eq(self.rows.valid),
                row.eq(self.rows.payload),
                row.row_bytes.eq(self.rows.payload.row_bytes - 1),
                row.rows.eq(self.rows.payload.rows - 1),
            ]

        # Burst stage. The beats up to the next multiple of burst_beats, less one, are the inverse of the
        # low address bits.
        burst_valid = Signal()
        beat_address = Signal(32 - lane)
        left = Signal(ROW_BYTES_BITS + 1 - lane)  # beats of the row, less one
        final_row = Signal()
        start = Signal()
        local = Signal(local_bits(config))
        first_byte, last_byte = Signal(lane), Signal(lane)
        burst = self.bursts.payload
        fits = Signal()
        burst_taken = Signal()
        index = beat_address[:index_bits]
        m.d.comb += [
            fits.eq(left <= ~index),
            self.bursts.valid.eq(burst_valid),
            burst.beat_address.eq(beat_address),
            burst.length.eq(Mux(fits, left, ~index)),
            burst.start.eq(start),
            burst.end.eq(fits),
            burst.final.eq(fits & final_row),
            burst.local.eq(local),
            burst.skip.eq(first_byte),
            burst.keep.eq(last_byte),
            burst_taken.eq(burst_valid & self.bursts.ready),
            row_taken.eq(row_valid & (~burst_valid | (burst_taken & fits))),
        ]
        with m.If(burst_taken):
            m.d.sync += [
                start.eq(0),
                beat_address.eq(Cat(Const(0, index_bits), beat_address[index_bits:] + 1)),
                left.eq(left + index - config.burst_beats),
            ]
            with m.If(fits):
                m.d.sync += burst_valid.eq(0)
        with m.If(row_taken):
            m.d.sync += [
                burst_valid.eq(1),
                start.eq(1),
                beat_address.eq(row.address[lane:]),
                left.eq(span[lane:]),
                final_row.eq(last_row),
                local.eq(row.local - skip),
                first_byte.eq(skip),
                last_byte.eq(span[:lane]),
            ]
        if self._tag is not None:
            tag = Signal(self._tag)
            m.d.comb += burst.tag.eq(tag)
            with m.If(row_taken):
                m.d.sync += tag.eq(row.tag)
        m.d.comb += self.busy.eq(row_valid | burst_valid)
        with m.If(self.clear):
            m.d.sync += [row_valid.eq(0), burst_valid.eq(0)]
        return m


class BurstBeats(wiring.Component):
    """Walks through the beats of bursts, one a cycle; combinational from `bursts` to `beats`.

    Arguments:
        config: the NPU's configuration.
        tag: shape of what travels along; None: nothing.

    Members:
        bursts: bursts, in order; one is taken with its last beat.
        beats: their beats.
        skip: end the burst with this beat.
    """

    def __init__(self, config: NPUConfig, tag: ShapeLike | None) -> None:
        self._config = config
        self._tag = tag
        super().__init__(
            {
                "bursts": In(stream.Signature(burst_layout(config, tag))),
                "beats": Out(stream.Signature(beat_layout(config, tag))),
                "skip": In(1),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        config = self._config
        burst, beat = self.bursts.payload, self.beats.payload
        index = Signal(exact_log2(config.burst_beats))
        following = Signal(local_bits(config))  # window of the beat after
        first, last = Signal(), Signal()
        begins, ends = Signal(), Signal()
        m.d.comb += [
            first.eq(index == 0),
            last.eq((index == burst.length) | self.skip),
            begins.eq(burst.start & first),
            ends.eq(burst.end & last),
            self.beats.valid.eq(self.bursts.valid),
            self.bursts.ready.eq(self.beats.ready & last),
            beat.local.eq(Mux(begins, burst.local, following)),
            beat.count.eq(
                Mux(ends, burst.keep + 1, config.bus_bytes) - Mux(begins, burst.skip, 0),
            ),
            beat.last.eq(last),
            beat.final.eq(last & burst.final),
        ]
        if self._tag is not None:
            m.d.comb += beat.tag.eq(burst.tag)
        # A row leaves out neither the last lane of its first beat nor the first lane of its last one.
        for lane in range(config.bus_bytes):
            before = begins & (burst.skip > lane) if lane < config.bus_bytes - 1 else Const(0)
            after = ends & (burst.keep < lane) if lane else Const(0)
            m.d.comb += beat.mask[lane].eq(~(before | after))
        with m.If(self.beats.valid & self.beats.ready):
            m.d.sync += [
                following.eq(beat.local + config.bus_bytes),
                index.eq(Mux(last, 0, index + 1)),
            ]
        return m
