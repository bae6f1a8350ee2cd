"""The OUTPUT unit: finished sums -> bias, requantize, residual, pooling -> int8 vectors in the scratchpad.

    windows.py  --taps-->  FIFO  --starts-->  slots  --tags-->  lanes  -->  pool.py  -->  result
                             ^                  ^                 ^
    residual.py (prefetch) --+      written ----+   parameters ---+

The lanes do one group of channels a cycle, `groups` = N / lanes of them a slot; slots.py says which work is
in which slot. A group's way through the pipeline, in cycles after its read of the output buffer:

    cycle  tag   registered at its end
    0      -     the tap that starts; sums are read
    1      0     left, right     operands: sum and bias; scaled q and zero point; s1 and s2; ..
    2      1     x               their sum; the shift
    3      2     (lane cycle 0)  shifted x and the multiplier
    9      8     s1 or s2        rescaled; the lane adds the zero point
    11     10    q, window       clamped; joins its window
    12     -     result          is in the scratchpad a cycle later

Commands do not overlap in the pipeline, for the constants are not pipelined. But the next command's
parameters and products are fetched and made while the last vectors of the one before are under way.
"""

from __future__ import annotations

from itertools import pairwise
from types import SimpleNamespace

from amaranth.hdl import Array, Cat, Const, Elaboratable, Module, Mux, ResetInserter, Signal, Value, signed
from amaranth.lib import data, wiring
from amaranth.lib.fifo import SyncFIFO
from amaranth.lib.wiring import In, Out

from .config import NPUConfig
from .group_buffer import GroupBuffer, group_bits
from .interfaces import UnitPort, VectorRead, command_fields
from .isa import (
    PARAMETER_ROWS,
    PARAMETER_ROWS_PER_TENSOR,
    RESIDUAL_LEFT_SHIFT,
    SUM_BITS,
    Opcode,
    PoolMode,
    Unit,
)
from .parameters import PARAMETER_LATENCY, ParameterLoader
from .pool import Pool
from .requantize import MULTIPLIER_BITS, SHIFT_BITS, RequantizeLane
from .residual import ArbitratedRead, ResidualPrefetch
from .slots import RESIDUAL_FRAME, Work, slot_schedule
from .windows import WindowProducts, WindowWalk, entry_bits, tap_layout

__all__ = ["SUMS_LATENCY", "OutputStage"]

SUMS_LATENCY = 1
"""Cycles from address to data of the output buffer."""

TAPS_AHEAD = 8
"""Taps that are known, and residuals asked for, before they start."""
RESIDUALS_HELD = 16

OPERANDS = 0  # tag that goes with the choice of operands
ADDITION = 1
LANE = 2  # lane cycle 0
RESCALED = LANE + RequantizeLane.RESCALE_LATENCY
CLAMPED = LANE + RequantizeLane.LATENCY


class OutputStage(wiring.Component):
    """The OUTPUT unit (commands OUTPUT and RESCALE).

    A residual is read up to `RESIDUALS_HELD` vectors before the output vector of its position is written, and
    not before the commands before have written all of theirs.

    Members:
        port: to the control unit; never faults.
        sums: read port of the output buffer.
        written: running count of vectors finished in the output buffer, modulo twice its depth.
        release: `count` more entries will not be read again.
        residual: read port of the scratchpad that may be refused.
        parameters: read port of the parameter memory.
        result: vectors for the scratchpad; always accepted.
    """

    def __init__(self, config: NPUConfig) -> None:
        self.config = config
        n = config.array_size
        super().__init__(
            {
                "port": In(UnitPort(Unit.OUTPUT)),
                "sums": Out(VectorRead(config.output_depth, SUM_BITS * n, SUMS_LATENCY)),
                "written": In(entry_bits(config)),
                "release": Out(
                    wiring.Signature({"valid": Out(1), "count": Out(range(config.output_depth + 1))})
                ),
                "residual": Out(ArbitratedRead(config)),
                "parameters": Out(VectorRead(config.parameter_vectors, 8 * n, PARAMETER_LATENCY)),
                "result": Out(
                    wiring.Signature(
                        {
                            "enable": Out(1),
                            "address": Out(range(config.scratchpad_vectors)),
                            "data": Out(8 * n),
                        }
                    )
                ),
            }
        )

    def elaborate(self, platform: object) -> Elaboratable:
        m = Module()
        config = self.config
        self._lanes = config.requantize_lanes
        self._groups = config.array_size // self._lanes
        self._schedule = slot_schedule(self._groups, RESCALED + 1, CLAMPED + 1)
        work = self._commands(m)
        operation, group = self._slots(m, work)
        self._pipeline(m, work, operation, group)
        return ResetInserter(self.port.clear)(m)

    def _vectors(self, byte_address: Value) -> Value:
        """Vector address of a byte address."""
        low = self.config.array_size.bit_length() - 1
        return byte_address[low : low + self.config.scratchpad_vectors.bit_length() - 1]

    def _commands(self, m: Module) -> SimpleNamespace:
        """Prepare, take and finish commands. Returns what the rest needs of the present one."""
        config, port = self.config, self.port
        offered = port.command.payload
        new = command_fields(Opcode.OUTPUT, offered.words)
        taken = Signal.like(offered, reset_less=True)  # the present OUTPUT
        output = command_fields(Opcode.OUTPUT, taken.words)
        constants = Signal.like(offered.words)  # the last RESCALE
        rescale = command_fields(Opcode.RESCALE, constants)

        active = Signal()  # an OUTPUT is not yet done
        reading = Signal()  # .. and its sums are not all read and released
        preparing = Signal()  # products and parameters of the offered command are being made or ready
        prepare, accept, finish = Signal(), Signal(), Signal()
        is_output = offered.opcode == Opcode.OUTPUT

        m.submodules.products = products = WindowProducts(config)
        m.submodules.walk = walk = WindowWalk(config)
        m.submodules.loader = loader = ParameterLoader(config)
        wiring.connect(m, wiring.flipped(self.parameters), loader.memory)

        m.d.comb += [
            prepare.eq(port.command.valid & is_output & ~reading & ~preparing),
            accept.eq(port.command.valid & ~active & (~is_output | (preparing & products.done))),
            port.command.ready.eq(accept),
            port.busy.eq(active | port.command.valid),
        ]
        m.d.sync += port.done.eq(finish | (accept & ~is_output))
        with m.If(prepare):
            m.d.sync += preparing.eq(1)
        with m.If(finish):
            m.d.sync += active.eq(0)
        with m.If(accept):
            with m.If(is_output):
                m.d.sync += [taken.eq(offered), active.eq(1), reading.eq(1), preparing.eq(0)]
            with m.Else():
                m.d.sync += constants.eq(offered.words)

        m.d.comb += [
            products.start.eq(prepare),
            products.tile_height.eq(offered.tile_height),
            products.tile_width.eq(offered.tile_width),
            products.y_start.eq(new.pool_y_start),
            products.x_start.eq(new.pool_x_start),
            products.stride_y.eq(new.pool_stride_y),
            products.stride_x.eq(new.pool_stride_x),
            products.residual_input.eq(self._vectors(new.residual_input)),
            products.residual_y_stride.eq(new.residual_y_stride),
            products.residual_x_stride.eq(new.residual_x_stride),
        ]
        # `start` comes with the offered command, the rest is used while the taken one runs.
        m.d.comb += [
            walk.start.eq(accept & is_output),
            walk.tile_height.eq(taken.tile_height),
            walk.tile_width.eq(taken.tile_width),
            walk.tile_blocks.eq(taken.tile_blocks),
            walk.out_height.eq(output.out_height),
            walk.out_width.eq(output.out_width),
            walk.pool_height.eq(output.pool_height),
            walk.pool_width.eq(output.pool_width),
            walk.stride_y.eq(output.pool_stride_y),
            walk.stride_x.eq(output.pool_stride_x),
            walk.y_start.eq(Mux(walk.start, new.pool_y_start, output.pool_y_start)),
            walk.x_start.eq(Mux(walk.start, new.pool_x_start, output.pool_x_start)),
            walk.entries.eq(products.entries),
            walk.entry_start.eq(products.entry_start),
            walk.entry_row_step.eq(products.entry_row_step),
            walk.entry_step.eq(products.entry_step),
            walk.residual_start.eq(products.residual_start),
            walk.residual_row_step.eq(products.residual_row_step),
            walk.residual_step.eq(products.residual_step),
            walk.residual_y_stride.eq(output.residual_y_stride),
            walk.residual_x_stride.eq(output.residual_x_stride),
            walk.residual_block_stride.eq(output.residual_block_stride),
        ]
        return SimpleNamespace(
            new=new,
            new_blocks=offered.tile_blocks,
            prepare=prepare,
            accept=walk.start,
            finish=finish,
            active=active,
            reading=reading,
            taken=taken,
            output=output,
            rescale=rescale,
            products=products,
            walk=walk,
            loader=loader,
        )

    def _slots(self, m: Module, work: SimpleNamespace) -> tuple[Signal, Signal]:
        """Start vectors, release what is read. Returns this cycle's operation and group."""
        config, schedule = self.config, self._schedule
        output, walk, loader = work.output, work.walk, work.loader
        taps = tap_layout(config)
        pool_sum = output.pool_mode == PoolMode.SUM

        # Taps wait in a FIFO; a tap enters when its residual has been asked for.
        held = TAPS_AHEAD + schedule.residual // RESIDUAL_FRAME + 2
        assert held <= RESIDUALS_HELD, f"{held} residuals may be under way"
        m.submodules.prefetch = prefetch = ResidualPrefetch(config, depth=RESIDUALS_HELD)
        wiring.connect(m, wiring.flipped(self.residual), prefetch.port)
        m.submodules.fifo = fifo = SyncFIFO(width=taps.size, depth=TAPS_AHEAD)
        tap, head = walk.taps.payload, data.View(taps, fifo.r_data)
        needs_residual = output.residual & tap.inside
        m.d.comb += [
            prefetch.request.eq(walk.taps.valid & fifo.w_rdy & needs_residual),
            prefetch.address.eq(tap.residual),
            fifo.w_data.eq(tap.as_value()),
            fifo.w_en.eq(walk.taps.valid & walk.taps.ready),
            walk.taps.ready.eq(fifo.w_rdy & (~needs_residual | prefetch.granted)),
        ]

        # Where we are in the frame.
        group = Signal(group_bits(self._groups))
        slot = Signal(range(RESIDUAL_FRAME))
        first_group, last_group = group == 0, group == self._groups - 1
        if self._groups > 1:
            m.d.sync += group.eq(group + 1)
        with m.If(last_group):
            m.d.sync += slot.eq(slot + 1)
        frame_start = ~output.residual | (slot == 0)

        # May the tap at the head start? Entries of the blocks before are released, so that the distance to
        # `written` is less than the buffer's depth in both directions.
        closing = Signal()  # the block's last tap has started; entries remain to be released
        distance = Signal(entry_bits(config))
        sums_ready, startable, starts, window_due = Signal(), Signal(), Signal(), Signal()
        m.d.comb += [
            distance.eq(self.written - head.entry - 1),
            sums_ready.eq(~distance[-1] & (prefetch.available | ~output.residual)),
            startable.eq(fifo.r_rdy & loader.ready & ~closing & (sums_ready | ~head.inside)),
            starts.eq(first_group & frame_start & startable & ~window_due),
            fifo.r_en.eq(starts),
            prefetch.claim.eq(starts & head.inside & output.residual),
        ]

        # Vectors under way: history[k] started k frames ago (once slot 0 is over).
        step = data.StructLayout({"valid": 1, "inside": 1, "last": 1})
        frames_back = max(schedule.window_plain, schedule.window_residual // RESIDUAL_FRAME)
        history = [Signal(step, name=f"history_{k}") for k in range(frames_back)]
        with m.If(first_group & frame_start):
            m.d.sync += [
                history[0].valid.eq(starts),
                history[0].inside.eq(head.inside),
                history[0].last.eq(head.last),
                *(history[k].eq(history[k - 1]) for k in range(1, frames_back)),
            ]
        # The last command's vectors are done, however long ago they started in frames of the new one.
        with m.If(work.accept):
            m.d.sync += [vector.valid.eq(0) for vector in history]
        plain = history[schedule.window_plain - 1]
        added = history[schedule.window_residual // RESIDUAL_FRAME - 1]
        window_over = Mux(output.residual, added.valid & added.last, plain.valid & plain.last)
        m.d.comb += window_due.eq(pool_sum & window_over)

        # The slot's work is decided in its first cycle and kept for the others.
        layout = data.StructLayout(
            {
                "valid": 1,
                "work": Work,
                "inside": 1,  # there is a value to compute
                "last": 1,
                "block_last": 1,
                "entry": entry_bits(config),
            }
        )
        decided, kept, operation = Signal(layout), Signal(layout), Signal(layout)
        with m.If(frame_start):
            m.d.comb += [
                decided.valid.eq(starts | window_due),
                decided.work.eq(Mux(window_due, Work.WINDOW, Work.SUMS)),
                decided.inside.eq(head.inside | window_due),
                decided.last.eq(head.last),
                decided.block_last.eq(head.block_last),
                decided.entry.eq(head.entry),
            ]
        with m.Else():
            for kind, at in (
                (Work.OWN, schedule.own),
                (Work.RESIDUAL, schedule.residual),
                (Work.ADD, schedule.add),
            ):
                vector = history[at // RESIDUAL_FRAME]
                with m.If(slot == at % RESIDUAL_FRAME):
                    m.d.comb += [
                        decided.valid.eq(vector.valid),
                        decided.work.eq(kind),
                        decided.inside.eq(vector.inside),
                        decided.last.eq(vector.last),
                    ]
        with m.If(first_group):
            m.d.sync += kept.eq(decided)
        m.d.comb += [operation.eq(Mux(first_group, decided, kept))]

        # Read the sums; release them: a block's last entries when its last vector has started, so that
        # `written` is never more than the buffer's depth beyond an entry that is compared with it; those
        # before at once where no later window can read them again.
        base, block_end = Signal(entry_bits(config)), Signal(entry_bits(config))
        blocks_left = Signal(range(1 << 12))
        reads, read_over, block_over = Signal(), Signal(), Signal()
        remaining, after_read = Signal(entry_bits(config)), Signal(entry_bits(config))
        m.d.comb += [
            reads.eq(operation.valid & (operation.work == Work.SUMS)),
            self.sums.enable.eq(reads & operation.inside),
            self.sums.address.eq(operation.entry),
            after_read.eq(operation.entry + 1),
            read_over.eq(
                reads
                & operation.inside
                & last_group
                & (output.pool_mode == PoolMode.NONE)
                & (after_read != block_end)
            ),
            block_over.eq(reads & operation.block_last & last_group),
            remaining.eq(self.written - block_end),
        ]
        m.d.sync += self.release.valid.eq(0)
        with m.If(read_over):
            m.d.sync += [
                self.release.valid.eq(1),
                self.release.count.eq((after_read - base)[: entry_bits(config)]),
                base.eq(after_read),
            ]
        with m.If(block_over):
            m.d.sync += closing.eq(1)
        with m.Elif(closing & ~remaining[-1]):
            m.d.sync += [
                closing.eq(0),
                self.release.valid.eq(1),
                self.release.count.eq((block_end - base)[: entry_bits(config)]),
                base.eq(block_end),
                block_end.eq(block_end + work.products.entries),
                blocks_left.eq(blocks_left - 1),
            ]
            with m.If(blocks_left == 0):
                m.d.sync += work.reading.eq(0)
        m.d.comb += walk.base.eq(base)
        with m.If(work.accept):
            m.d.sync += [block_end.eq(base + work.products.entries), blocks_left.eq(work.new_blocks - 1)]

        # Parameters: of the first block before the command is taken, of the others when the block before
        # has started its last vector.
        parameter_base = Signal(range(config.parameter_vectors))
        rows = Mux(output.per_tensor, PARAMETER_ROWS_PER_TENSOR, PARAMETER_ROWS)
        m.d.comb += [
            loader.start.eq(work.prepare | (block_over & (blocks_left != 0))),
            loader.per_tensor.eq(Mux(work.prepare, work.new.per_tensor, output.per_tensor)),
            loader.address.eq(Mux(work.prepare, work.new.parameters, parameter_base + rows)),
        ]
        with m.If(loader.start):
            m.d.sync += parameter_base.eq(loader.address)
        self._prefetch = prefetch
        return operation, group

    def _pipeline(self, m: Module, work: SimpleNamespace, operation: Signal, group: Signal) -> None:
        """Operands, lanes, pooling, result."""
        config, lanes, groups = self.config, self._lanes, self._groups
        output, rescale, loader, prefetch = work.output, work.rescale, work.loader, self._prefetch

        tag_layout = data.StructLayout(
            {"valid": 1, "work": Work, "group": group_bits(groups), "inside": 1, "last": 1}
        )
        tags = [Signal(tag_layout, name=f"tag_{i}") for i in range(CLAMPED + 1)]
        m.d.sync += [
            tags[0].group.eq(group),
            *(tags[0][name].eq(operation[name]) for name in ("valid", "work", "inside", "last")),
        ]
        for before, after in pairwise(tags):
            m.d.sync += after.valid.eq(before.valid)
            with m.If(before.valid):
                m.d.sync += [after[name].eq(before[name]) for name in ("work", "group", "inside", "last")]

        def computes(stage: int) -> Value:
            return tags[stage].valid & tags[stage].inside

        def of_group(value: Value, group: Value, bits: int) -> Value:
            """The bits of a group of a vector."""
            if groups == 1:
                return value
            return Array(value.word_select(i, lanes * bits) for i in range(groups))[group]

        def buffer(name: str, bits: int) -> GroupBuffer:
            m.submodules[name] = out = GroupBuffer(lanes * bits, groups)
            m.d.comb += out.read_group_0.eq(tags[OPERANDS].group)
            return out

        own_buffer = buffer("own_buffer", 8)
        own_scaled, residual_scaled = buffer("own_scaled", SUM_BITS), buffer("residual_scaled", SUM_BITS)
        m.submodules.pool = pool = Pool(lanes, groups)

        # Operands
        first = tags[OPERANDS]
        sums = of_group(self.sums.data, first.group, SUM_BITS)
        biases = of_group(loader.biases.as_value(), first.group, SUM_BITS)
        residuals = of_group(prefetch.vector, first.group, 8)
        m.d.comb += [
            prefetch.drop.eq(
                computes(OPERANDS) & (first.work == Work.RESIDUAL) & (first.group == groups - 1)
            ),
            pool.sum_group.eq(first.group),
        ]

        def scaled(value: Value) -> Value:
            return value << RESIDUAL_LEFT_SHIFT

        right = Signal(signed(SUM_BITS))  # the operand that all channels share
        with m.Switch(first.work):
            with m.Case(Work.OWN):
                m.d.comb += right.eq(scaled(-output.zero_point))
            with m.Case(Work.RESIDUAL):
                m.d.comb += right.eq(scaled(-rescale.residual_zero_point))
            with m.Default():  # WINDOW
                m.d.comb += right.eq(rescale.pool_bias)

        second, third = tags[ADDITION], tags[LANE]
        shifts = of_group(loader.shifts.as_value(), second.group, SHIFT_BITS)
        multipliers = of_group(loader.multipliers.as_value(), third.group, MULTIPLIER_BITS)

        def constant(tag: Value, name: str, width: int) -> tuple[Signal, Value]:
            """The multiplier or shift that all channels share, and whether they do."""
            shared = Signal(width, name=f"shared_{name}")
            with m.Switch(tag.work):
                for kind, prefix in (
                    (Work.OWN, "own_"),
                    (Work.RESIDUAL, "residual_"),
                    (Work.ADD, "sum_"),
                    (Work.WINDOW, "pool_"),
                ):
                    with m.Case(kind):
                        m.d.comb += shared.eq(getattr(rescale, prefix + name))
                with m.Default():
                    m.d.comb += shared.eq(getattr(output, name))
            return shared, (tag.work != Work.SUMS) | output.per_tensor

        shared_shift, use_shared_shift = constant(second, "shift", SHIFT_BITS)
        shared_multiplier, use_shared_multiplier = constant(third, "multiplier", MULTIPLIER_BITS)

        once = Signal()
        m.d.comb += once.eq((third.work == Work.SUMS) & output.single_rounding)
        zero_point, minimum, maximum = (
            Signal(signed(8), name=name) for name in ("zero_point", "minimum", "maximum")
        )
        for kind, source, prefix in ((Work.ADD, rescale, "sum_"), (Work.WINDOW, rescale, "pool_")):
            with m.If(tags[RESCALED].work == kind):
                m.d.comb += zero_point.eq(getattr(source, f"{prefix}zero_point"))
            with m.If(tags[RESCALED + 1].work == kind):
                m.d.comb += [
                    minimum.eq(getattr(source, f"{prefix}minimum")),
                    maximum.eq(getattr(source, f"{prefix}maximum")),
                ]
        with m.If(tags[RESCALED].work == Work.SUMS):
            m.d.comb += zero_point.eq(output.zero_point)
        with m.If(tags[RESCALED + 1].work == Work.SUMS):
            m.d.comb += [minimum.eq(output.minimum), maximum.eq(output.maximum)]

        rescaled, clamped = Signal(lanes * SUM_BITS), Signal(lanes * 8)
        for i in range(lanes):

            def number(value: Value, bits: int, i: int = i) -> Value:
                return value.word_select(i, bits).as_signed()

            left_value = Signal(signed(SUM_BITS), name=f"left_value_{i}")
            right_value = Signal(signed(SUM_BITS), name=f"right_value_{i}")
            left_operand = Signal(signed(SUM_BITS), name=f"left_operand_{i}", reset_less=True)
            right_operand = Signal(signed(SUM_BITS), name=f"right_operand_{i}", reset_less=True)
            x = Signal(signed(SUM_BITS), name=f"x_{i}", reset_less=True)
            shift = Signal(signed(SHIFT_BITS), name=f"shift_{i}", reset_less=True)
            with m.Switch(first.work):
                with m.Case(Work.SUMS):
                    m.d.comb += left_value.eq(number(sums, SUM_BITS))
                    m.d.comb += right_value.eq(number(biases, SUM_BITS))
                with m.Case(Work.OWN):
                    m.d.comb += left_value.eq(scaled(number(own_buffer.read_data_0, 8)))
                    m.d.comb += right_value.eq(right)
                with m.Case(Work.RESIDUAL):
                    m.d.comb += left_value.eq(scaled(number(residuals, 8)))
                    m.d.comb += right_value.eq(right)
                with m.Case(Work.ADD):
                    m.d.comb += left_value.eq(number(own_scaled.read_data_0, SUM_BITS))
                    m.d.comb += right_value.eq(number(residual_scaled.read_data_0, SUM_BITS))
                with m.Default():  # WINDOW
                    m.d.comb += left_value.eq(pool.sums[i])
                    m.d.comb += right_value.eq(right)
            with m.If(computes(OPERANDS)):
                m.d.sync += [left_operand.eq(left_value), right_operand.eq(right_value)]
            with m.If(computes(ADDITION)):
                m.d.sync += [
                    x.eq(left_operand + right_operand),
                    shift.eq(Mux(use_shared_shift, shared_shift, shifts.word_select(i, SHIFT_BITS))),
                ]
            m.submodules[f"lane_{i}"] = lane = RequantizeLane()
            m.d.comb += [
                lane.x.eq(x),
                lane.shift.eq(shift),
                lane.once.eq(once),
                lane.multiplier.eq(
                    Mux(use_shared_multiplier, shared_multiplier, multipliers.word_select(i, MULTIPLIER_BITS))
                ),
                lane.enable.eq(Cat(computes(LANE + stage) for stage in range(lane.latency))),
                lane.zero_point.eq(zero_point),
                lane.minimum.eq(minimum),
                lane.maximum.eq(maximum),
                rescaled.word_select(i, SUM_BITS).eq(lane.rescaled),
                clamped.word_select(i, 8).eq(lane.clamped),
            ]

        # Values that come back as operands
        tag = tags[RESCALED]
        for target, kind in ((own_scaled, Work.OWN), (residual_scaled, Work.RESIDUAL)):
            m.d.comb += [
                target.write.eq(computes(RESCALED) & (tag.work == kind)),
                target.write_group.eq(tag.group),
                target.write_data.eq(rescaled),
            ]
        tag = tags[CLAMPED]
        requantized = tag.valid & (tag.work == Work.SUMS)
        m.d.comb += [
            own_buffer.write.eq(requantized & tag.inside & output.residual),
            own_buffer.write_group.eq(tag.group),
            own_buffer.write_data.eq(clamped),
        ]

        # Final values: through the pooling windows, or the rescaled sum of one
        pooled = tag.valid & (tag.work == Work.WINDOW)
        m.d.comb += [
            pool.mode.eq(output.pool_mode),
            pool.minimum.eq(rescale.pool_minimum),
            pool.maximum.eq(rescale.pool_maximum),
            pool.valid.eq(Mux(output.residual, tag.valid & (tag.work == Work.ADD), requantized)),
            pool.group.eq(tag.group),
            pool.values.eq(clamped),
            pool.inside.eq(tag.inside),
            pool.last.eq(tag.last),
        ]
        values = Mux(pooled, clamped, pool.results.as_value())
        result_valid = pooled | (pool.valid & pool.last & (output.pool_mode != PoolMode.SUM))
        assembled = Signal(8 * config.array_size, reset_less=True)
        m.d.sync += self.result.enable.eq(result_valid & (tag.group == groups - 1))
        with m.If(result_valid):
            m.d.sync += assembled.eq(Cat(assembled, values)[-8 * config.array_size :])
        m.d.comb += self.result.data.eq(assembled)
        self._results(m, work)

    def _results(self, m: Module, work: SimpleNamespace) -> None:
        """Addresses of the results, and the end of the command."""
        output, address = work.output, self.result.address
        counts = (output.out_width, output.out_height, work.taken.tile_blocks)
        strides = (output.x_stride, output.y_stride, output.block_stride)
        counters = [Signal.like(c, name=f"result_counter_{i}") for i, c in enumerate(counts)]
        # As in WindowWalk: where the present run of each loop began.
        pointers = [Signal.like(address, name=f"result_pointer_{i}", reset_less=True) for i in range(3)]
        m.d.comb += address.eq(pointers[0])
        last: Value = Const(1)
        with m.If(work.accept):
            m.d.sync += [p.eq(self._vectors(work.new.output)) for p in pointers]
        for i in range(3):
            ends = counters[i] == (counts[i] - 1)[: len(counts[i])]
            with m.If(self.result.enable & last):
                m.d.sync += counters[i].eq(Mux(ends, 0, counters[i] + 1))
                with m.If(~ends):
                    m.d.sync += [p.eq(pointers[i] + strides[i]) for p in pointers[: i + 1]]
            last = last & ends

        complete = Signal()  # the last result has been written
        ending = self.result.enable & last
        m.d.comb += work.finish.eq(work.active & ~work.reading & (complete | ending))
        with m.If(work.finish):
            m.d.sync += complete.eq(0)
        with m.Elif(ending):
            m.d.sync += complete.eq(1)
