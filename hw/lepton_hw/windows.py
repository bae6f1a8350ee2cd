"""Which entries of a tile the output stage reads, in which order: pooling windows and their taps.

`WindowProducts` makes the few products that the loops need before a command starts, by shifting and adding;
`WindowWalk` then goes through the windows with one addition for each pointer and tap.
"""

from __future__ import annotations

from amaranth.hdl import Const, Module, Mux, Signal, Value, signed
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from .config import NPUConfig

__all__ = ["WindowProducts", "WindowWalk", "entry_bits", "tap_layout"]

COORDINATE_BITS = 25  # 32767 + 65534 * 255 + 254, the furthest tap a command can name, and a sign


def entry_bits(config: NPUConfig) -> int:
    """Bits of a running count of output buffer entries: one more than of an entry's address."""
    return config.output_depth.bit_length()


def _vector_bits(config: NPUConfig) -> int:
    return config.scratchpad_vectors.bit_length() - 1


def tap_layout(config: NPUConfig) -> data.StructLayout:
    """One tap of a window.

    Members:
        inside: it lies in the tile; if not, only `last` and `block_last` count.
        last: of its window.
        block_last: of the last window of a channel block.
        entry: running count of the entry in the output buffer.
        residual: vector address of the residual for that position.
    """
    return data.StructLayout(
        {
            "inside": 1,
            "last": 1,
            "block_last": 1,
            "entry": entry_bits(config),
            "residual": _vector_bits(config),
        }
    )


class WindowProducts(wiring.Component):
    """Start values and steps of the two pointers (output buffer entry, residual address).

    A pointer at pixel (y, x) is ``origin + y * row + x * pixel``. With (row, pixel) = (tile_width, 1) and
    (residual_y_stride, residual_x_stride) both need products with the same four numbers:

        start    = origin + y_start * row + x_start * pixel
        row_step = stride_y * row                  from window row to window row
        step     = stride_x * pixel                from window to window

    and the tile's entries are tile_height * tile_width. Five numbers are taken bit by bit, lowest first, and
    the strides shifted and added; a number is over when only its sign is left. So it takes a cycle for a
    number in [-1, 1], two for [-2, 3], and so on. All results are modulo the size of what they count.

    Members:
        start: take the inputs; they stay until `done`.
        done: the results are valid (from the next cycle on, until the next `start`).
        tile_height, tile_width, y_start, x_start, stride_y, stride_x: of the command.
        residual_input, residual_y_stride, residual_x_stride: vectors.
        entries: of the tile.
        entry_start, entry_row_step, entry_step: `entry_start` without the ring's base.
        residual_start, residual_row_step, residual_step.
    """

    def __init__(self, config: NPUConfig) -> None:
        self._entry, self._vector = entry_bits(config), _vector_bits(config)
        super().__init__(
            {
                "start": In(1),
                "done": Out(1),
                "tile_height": In(16),
                "tile_width": In(16),
                "y_start": In(signed(16)),
                "x_start": In(signed(16)),
                "stride_y": In(8),
                "stride_x": In(8),
                "residual_input": In(self._vector),
                "residual_y_stride": In(self._vector),
                "residual_x_stride": In(self._vector),
                "entries": Out(self._entry),
                "entry_start": Out(self._entry),
                "entry_row_step": Out(self._entry),
                "entry_step": Out(self._entry),
                "residual_start": Out(self._vector),
                "residual_row_step": Out(self._vector),
                "residual_step": Out(self._vector),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        one = Const(1)
        # number, strides it multiplies, results it is added to
        steps: tuple[tuple[Value, tuple[Value, Value], tuple[Signal, Signal]], ...] = (
            (
                self.y_start,
                (self.tile_width, self.residual_y_stride),
                (self.entry_start, self.residual_start),
            ),
            (self.x_start, (one, self.residual_x_stride), (self.entry_start, self.residual_start)),
            (
                self.stride_y,
                (self.tile_width, self.residual_y_stride),
                (self.entry_row_step, self.residual_row_step),
            ),
            (self.stride_x, (one, self.residual_x_stride), (self.entry_step, self.residual_step)),
            (self.tile_height, (self.tile_width, Const(0)), (self.entries, Signal(self._vector))),
        )
        step = Signal(range(len(steps)))
        running = Signal()
        number = Signal(signed(17))  # holds both signed and unsigned 16-bit numbers
        strides = (Signal(self._entry), Signal(self._vector))

        def load(index: int) -> list[object]:
            value, factors, _ = steps[index]
            return [number.eq(value), *(s.eq(f) for s, f in zip(strides, factors, strict=True))]

        with m.If(running):
            m.d.sync += [number.eq(number >> 1), *(s.eq(s << 1) for s in strides)]
            over = Signal()
            m.d.comb += over.eq((number == -1) | ((number >> 1) == 0))
            for i, (_, _, results) in enumerate(steps):
                with m.If((step == i) & number[0]):
                    # What is left of a negative number in the end is -1.
                    m.d.sync += [
                        r.eq(Mux(number == -1, r - s, r + s)) for r, s in zip(results, strides, strict=True)
                    ]
                with m.If((step == i) & over):
                    m.d.sync += step.eq(i + 1)
                    if i + 1 < len(steps):
                        m.d.sync += load(i + 1)
                    else:
                        m.d.sync += [running.eq(0), self.done.eq(1)]
        with m.If(self.start):
            m.d.sync += [running.eq(1), self.done.eq(0), step.eq(0), *load(0)]
            m.d.sync += [self.entry_start.eq(0), self.residual_start.eq(self.residual_input)]
            for _, _, results in steps[2:]:
                m.d.sync += [r.eq(0) for r in results]
        return m


class WindowWalk(wiring.Component):
    """The taps of all windows of a command, block after block; one a cycle.

    Taps outside the tile are dropped, except the last of a window: it says that the window is over.

    The loops are, from the inside: tap of a window row, row of a window, window of a row, row of windows,
    channel block. A pointer has a register for each: where the present run of that loop began. A step of
    loop l adds l's step to register l, and the registers of the loops inside start from there.

    Members:
        start: begin; all inputs below stay until the last tap is taken.
        base: entry at which the first block begins, at `start`.
        busy: taps are left.
        taps: the taps.
        tile_height, tile_width, tile_blocks: of the tile.
        out_height, out_width, pool_height, pool_width, stride_y, stride_x: loop counts and strides.
        y_start, x_start: first window.
        entries, entry_start, entry_row_step, entry_step: see `WindowProducts`.
        residual_start, residual_row_step, residual_step: see `WindowProducts`.
        residual_y_stride, residual_x_stride, residual_block_stride: vectors.
    """

    def __init__(self, config: NPUConfig) -> None:
        self._entry, self._vector = entry_bits(config), _vector_bits(config)
        self._taps = tap_layout(config)
        super().__init__(
            {
                "start": In(1),
                "base": In(self._entry),
                "busy": Out(1),
                "taps": Out(stream.Signature(self._taps)),
                "tile_height": In(16),
                "tile_width": In(16),
                "tile_blocks": In(12),
                "out_height": In(16),
                "out_width": In(16),
                "pool_height": In(8),
                "pool_width": In(8),
                "stride_y": In(8),
                "stride_x": In(8),
                "y_start": In(signed(16)),
                "x_start": In(signed(16)),
                "entries": In(self._entry),
                "entry_start": In(self._entry),
                "entry_row_step": In(self._entry),
                "entry_step": In(self._entry),
                "residual_start": In(self._vector),
                "residual_row_step": In(self._vector),
                "residual_step": In(self._vector),
                "residual_y_stride": In(self._vector),
                "residual_x_stride": In(self._vector),
                "residual_block_stride": In(self._vector),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        counts = (self.pool_width, self.pool_height, self.out_width, self.out_height, self.tile_blocks)
        levels = len(counts)
        counters = [Signal.like(c, name=f"counter_{i}") for i, c in enumerate(counts)]
        at_end = Signal(levels)  # this loop and all inside are in their last round
        m.d.comb += [at_end[i].eq(counters[i] == (counts[i] - 1)[: len(counts[i])]) for i in range(levels)]

        # One hot: the loop that goes on. All at their end: the walk is over.
        goes_on = Signal(levels)
        inner_at_end = [Const(1), *(at_end[:i].all() for i in range(1, levels))]
        m.d.comb += [goes_on[i].eq(~at_end[i] & inner_at_end[i]) for i in range(levels)]

        def pointer(name: str, width: int, origin: Value, steps: tuple[Value, ...]) -> Signal:
            """Pointer with one step for each loop; returns the innermost register."""
            registers = [Signal(width, name=f"{name}_{i}", reset_less=True) for i in range(levels)]
            value = Signal(width, name=f"{name}_next")
            for i in range(levels):
                with m.If(goes_on[i]):
                    m.d.comb += value.eq(registers[i] + steps[i])
            with m.If(self.start):
                m.d.sync += [r.eq(origin) for r in registers]
            with m.Elif(advance):
                for i in range(levels):
                    with m.If(goes_on[i:].any()):
                        m.d.sync += registers[i].eq(value)
            return registers[0]

        def coordinate(name: str, start: Value, stride: Value, tap: int, window: int) -> Signal:
            """Row or pixel of the tap: loop `tap` adds 1, loop `window` the stride; the others start anew."""
            at = Signal(signed(COORDINATE_BITS), name=name, reset_less=True)
            origin = Signal(signed(COORDINATE_BITS), name=f"{name}_origin", reset_less=True)
            with m.If(self.start):
                m.d.sync += [at.eq(start), origin.eq(start)]
            with m.Elif(advance):
                with m.If(goes_on[tap]):
                    m.d.sync += at.eq(at + 1)
                with m.If(goes_on[tap + 1 : window].any()):
                    m.d.sync += at.eq(origin)
                with m.If(goes_on[window]):
                    m.d.sync += [at.eq(origin + stride), origin.eq(origin + stride)]
                with m.If(goes_on[window + 1 :].any()):
                    m.d.sync += [at.eq(start), origin.eq(start)]
            return at

        advance = Signal()
        entry = pointer(
            "entry",
            self._entry,
            self.base + self.entry_start,
            (Const(1), self.tile_width, self.entry_step, self.entry_row_step, self.entries),
        )
        residual = pointer(
            "residual",
            self._vector,
            self.residual_start,
            (
                self.residual_x_stride,
                self.residual_y_stride,
                self.residual_step,
                self.residual_row_step,
                self.residual_block_stride,
            ),
        )
        x = coordinate("x", self.x_start, self.stride_x, 0, 2)
        y = coordinate("y", self.y_start, self.stride_y, 1, 3)

        # One register between the loops and the user of the taps.
        inside, last = Signal(), Signal()
        m.d.comb += [
            inside.eq((y >= 0) & (y < self.tile_height) & (x >= 0) & (x < self.tile_width)),
            last.eq(at_end[:2].all()),
            advance.eq(self.busy & (~self.taps.valid | self.taps.ready)),
        ]
        with m.If(self.taps.ready):
            m.d.sync += self.taps.valid.eq(0)
        with m.If(advance):
            m.d.sync += [
                self.taps.valid.eq(inside | last),
                self.taps.payload.inside.eq(inside),
                self.taps.payload.last.eq(last),
                self.taps.payload.block_last.eq(at_end[:4].all()),
                self.taps.payload.entry.eq(entry),
                self.taps.payload.residual.eq(residual),
            ]
            for i, counter in enumerate(counters):
                with m.If(at_end[: i + 1].all()):
                    m.d.sync += counter.eq(0)
                with m.Elif(inner_at_end[i]):
                    m.d.sync += counter.eq(counter + 1)
            with m.If(at_end.all()):
                m.d.sync += self.busy.eq(0)
        with m.If(self.start):
            m.d.sync += self.busy.eq(1)
        return m
