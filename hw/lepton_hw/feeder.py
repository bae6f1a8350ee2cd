"""Activation feeder: hardware loops that turn a CONV into passes of vectors for the array.

Pipeline of one position (cycle T at S0):

====  ====================================================================================
T     S0  loop counters; addresses and coordinates by increments; the pass may start
T+1   S1  four scratchpad reads (`scratchpad` ports); padding, rotation and lane bounds known
T+3   S3  the vectors arrive
T+4   S4  each is rotated to its lanes (PATCH)
T+5   S5  lanes chosen, padding filled in: the array's input; row 0 of the weight tile beside it
====  ====================================================================================

While one CONV runs, the products that the next one needs (strides in vectors) are made by one
multiplier; so commands follow each other without a gap. Addresses are kept modulo the size of the
scratchpad: what is outside the image is never read, and the rest has been checked.
"""

from __future__ import annotations

from types import SimpleNamespace

from amaranth.hdl import Cat, Const, Module, Mux, Signal, Value, signed
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from .config import NPUConfig
from .interfaces import PassTag, Source, UnitPort, VectorRead, command_fields, lanes
from .isa import Mode, Opcode, Unit

__all__ = ["ActivationFeeder"]

PORTS = 4
COORDINATE_BITS = 22  # |start| < 2**15, outputs * stride < 2**12 * 2**8, kernel * dilation < 2**16
S0_TO_ARRAY = 5


class ActivationFeeder(wiring.Component):
    """The COMPUTE unit's front: reads activations and weights, and drives the array.

    Args:
        config: the NPU's configuration.
        scratchpad_latency: of the four scratchpad ports; must be 2.
        weight_latency: of the weight memory's port, 1 to 3.
        drain: cycles that a vector needs from here until its sums are out of the way; `busy` stays
            up that long after a `clear`.

    Members:
        port: commands (CONV).
        scratchpad: four vector reads; ports 1 to 3 serve modes ROWS and PATCH.
        weights: reads of weight tiles.
        room: free entries of the output buffer.
        reserve_valid, reserve_count: entries taken, when the last pass of a block starts.
        vector, groups, first, source, tag: to the array; see SystolicArray.
        array_busy, waiting_output, waiting_weights: events for the counters.
    """

    def __init__(
        self, config: NPUConfig, *, scratchpad_latency: int = 2, weight_latency: int = 1, drain: int = 128
    ) -> None:
        if scratchpad_latency != 2:
            raise ValueError(f"scratchpad_latency must be 2, not {scratchpad_latency}")
        if not 1 <= weight_latency <= 3:
            raise ValueError(f"weight_latency must be 1 to 3, not {weight_latency}")
        self.config = config
        self._weight_latency = weight_latency
        self._drain = drain
        width = 8 * config.array_size
        super().__init__(
            {
                "port": In(UnitPort(Unit.COMPUTE)),
                "scratchpad": Out(VectorRead(config.scratchpad_vectors, width, scratchpad_latency)).array(
                    PORTS
                ),
                "weights": Out(VectorRead(config.weight_vectors, width, weight_latency)),
                "room": In(range(config.output_depth + 1)),
                "reserve_valid": Out(1),
                "reserve_count": Out(range(config.accumulator_depth + 1)),
                "vector": Out(lanes(config)),
                "groups": Out(data.ArrayLayout(lanes(config), 2)),
                "first": Out(1),
                "source": Out(Source),
                "tag": Out(PassTag),
                "array_busy": Out(1),
                "waiting_output": Out(1),
                "waiting_weights": Out(1),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        clear = self.port.clear
        setup = self._setup(m, clear)
        loops = self._loops(m, clear, setup)
        self._weight_reader(m, clear, loops)
        self._datapath(m, loops)
        return m

    # -- before a command starts: its products ------------------------------------------------

    def _setup(self, m: Module, clear: Value) -> SimpleNamespace:
        """Makes the products of the command at the head of the queue, one a cycle."""
        config = self.config
        address_bits = (config.scratchpad_vectors - 1).bit_length()
        product_bits = max(address_bits, (config.accumulator_depth).bit_length(), 14)
        command = self.port.command
        f = command_fields(Opcode.CONV, command.payload.words)

        quotient, remainder = Signal(8), Signal(8)
        names = ("row", "tile_row", "start_y", "column", "tap", "start_x", "pass_", "pass_y", "tile")
        products = SimpleNamespace(**{name: Signal(product_bits, name=f"product_{name}") for name in names})
        operands: dict[str, tuple[Value, Value]] = {
            "row": (f.dilation_y, f.y_stride),  # kernel row to kernel row
            "tile_row": (f.stride_y, f.y_stride),  # output row to output row
            "start_y": (f.y_start, f.y_stride),
            "column": (f.stride_x, f.x_stride),  # output to output
            "tap": (f.dilation_x, f.x_stride),  # kernel tap to kernel tap
            "start_x": (f.x_start, f.x_stride),
            "pass_": (quotient, products.row),  # kernel rows of a pass
            "pass_y": (quotient, f.dilation_y),  # the same as a coordinate
            "tile": (f.out_height, f.out_width),
        }
        step = Signal(range(len(names) + 1))
        left, right = Signal(product_bits), Signal(product_bits)
        with m.Switch(step):
            for i, name in enumerate(names):
                with m.Case(i):
                    m.d.comb += [left.eq(operands[name][0]), right.eq(operands[name][1])]
        product = Signal(product_bits)
        m.d.comb += product.eq(left * right)

        ready = Signal()
        taken = Signal()
        with m.FSM(name="setup"):
            with m.State("IDLE"):
                m.d.sync += step.eq(0)
                with m.Switch(f.mode):
                    with m.Case(Mode.PATCH):
                        m.d.sync += [quotient.eq(0), remainder.eq(f.pass_length)]
                    with m.Case(Mode.ROWS):
                        m.d.sync += [quotient.eq(f.rows_per_pass), remainder.eq(0)]
                    with m.Default():
                        m.d.sync += [quotient.eq(1), remainder.eq(0)]
                with m.If(command.valid & ~clear):
                    m.next = "DIVIDE"
            with m.State("DIVIDE"):
                # PATCH: pass_length = quotient * row_length + remainder. Others: nothing to do.
                with m.If((f.mode == Mode.PATCH) & (remainder >= f.row_length)):
                    m.d.sync += [remainder.eq(remainder - f.row_length), quotient.eq(quotient + 1)]
                with m.Else():
                    m.next = "MULTIPLY"
                with m.If(clear):
                    m.next = "IDLE"
            with m.State("MULTIPLY"):
                m.d.sync += step.eq(step + 1)
                with m.Switch(step):
                    for i, name in enumerate(names):
                        with m.Case(i):
                            m.d.sync += getattr(products, name).eq(product)
                with m.If(step == len(names) - 1):
                    m.next = "READY"
                with m.If(clear):
                    m.next = "IDLE"
            with m.State("READY"):
                m.d.comb += ready.eq(1)
                with m.If(taken | clear):
                    m.next = "IDLE"
        m.d.comb += command.ready.eq(taken)
        return SimpleNamespace(
            fields=f, products=products, quotient=quotient, remainder=remainder, ready=ready, taken=taken
        )

    # -- S0: the loops -----------------------------------------------------------------------

    def _loops(self, m: Module, clear: Value, setup: SimpleNamespace) -> SimpleNamespace:
        config = self.config
        n = config.array_size
        log2_n = n.bit_length() - 1
        address_bits = (config.scratchpad_vectors - 1).bit_length()

        words = Signal.like(self.port.command.payload.words)
        f = command_fields(Opcode.CONV, words)
        p = SimpleNamespace(
            **{name: Signal.like(value, name=f"p_{name}") for name, value in vars(setup.products).items()}
        )
        quotient, remainder = Signal(8), Signal(8)
        patch = Signal()
        rows = Signal()
        vector = Signal()
        m.d.comb += [
            patch.eq((f.mode == Mode.PATCH) if config.patch_mode else 0),
            rows.eq((f.mode == Mode.ROWS) if config.rows_mode else 0),
            vector.eq(~patch & ~rows),
        ]

        active = Signal()
        # nested loops, outermost first; each level keeps the address at which it started
        out_block, in_block = Signal(12), Signal(12)
        kernel_y, kernel_x = Signal(9), Signal(8)
        row_byte = Signal(8)  # PATCH: byte of kernel row kernel_y at which the pass starts
        row, sample = Signal(16), Signal(16)
        lead = Signal(8)  # ROWS: pad samples still to come before the first row
        at_block, at_in_block, at_kernel_y, at_pass, at_row = (
            Signal(address_bits, name=f"at_{name}")
            for name in ("block", "in_block", "kernel_y", "pass", "row")
        )
        at = Signal(address_bits + log2_n)  # of the position, in bytes
        y_kernel, y = Signal(signed(COORDINATE_BITS)), Signal(signed(COORDINATE_BITS))
        x_pass, x = Signal(signed(COORDINATE_BITS)), Signal(signed(COORDINATE_BITS))
        weight = Signal(range(config.weight_vectors))
        # ROWS: which samples complete an output
        countdown, outputs_left = Signal(8), Signal(16)
        pass_start = Signal()  # the position is the first of its pass

        # last of each loop
        row_byte_sum = Signal(9)
        carry = Signal()
        kernel_y_next = Signal(10)
        m.d.comb += [
            row_byte_sum.eq(row_byte + remainder),
            carry.eq(patch & (row_byte_sum >= f.row_length)),
            kernel_y_next.eq(kernel_y + quotient + carry),
        ]
        samples = Mux(rows, f.row_samples, f.out_width)
        last_sample, last_row, last_kernel_x, last_kernel_y, last_in_block, last_out_block = (
            Signal(name=f"last_{name}")
            for name in ("sample", "row", "kernel_x", "kernel_y", "in_block", "out_block")
        )
        m.d.comb += [
            last_sample.eq((sample + 1 == samples) & (lead == 0)),
            last_row.eq(row + 1 == f.out_height),
            last_kernel_x.eq(~vector | (kernel_x + 1 == f.kernel_width)),
            last_kernel_y.eq(kernel_y_next >= f.kernel_height),
            last_in_block.eq(in_block + 1 == f.in_blocks),
            last_out_block.eq(out_block + 1 == f.out_blocks),
        ]
        last_pass = Signal()  # of a block
        finish = Signal()
        overwrite = Signal()
        m.d.comb += [
            last_pass.eq(last_kernel_x & last_kernel_y & last_in_block),
            finish.eq(last_pass & f.last),
            overwrite.eq(f.first & (kernel_x == 0) & (kernel_y == 0) & (in_block == 0) & (row_byte == 0)),
        ]

        # a pass starts when the weights of the one before are through and its results have room
        since_start = Signal(range(n + 1), init=n)
        go, weights_free, has_room = Signal(), Signal(), Signal()
        m.d.comb += [
            weights_free.eq(since_start == n),
            has_room.eq(~finish | (self.room >= p.tile)),
            go.eq(active & (~pass_start | (weights_free & has_room))),
            self.array_busy.eq(go),
            self.waiting_output.eq(active & pass_start & ~has_room),
            self.waiting_weights.eq(active & pass_start & has_room & ~weights_free),
            self.reserve_valid.eq(go & pass_start & finish),
            self.reserve_count.eq(p.tile),
        ]
        with m.If(go & pass_start):
            m.d.sync += since_start.eq(1)
        with m.Elif(~weights_free):
            m.d.sync += since_start.eq(since_start + 1)

        # next position
        step = Signal(address_bits + log2_n)
        m.d.comb += step.eq(Mux(patch, f.x_stride, Mux(rows, f.x_stride, p.column) << log2_n))
        input_offset = f.input[:log2_n]  # PATCH only; 0 by the checks in the other modes

        def at_byte(vector_address: Value) -> Value:
            return Cat(input_offset, vector_address[:address_bits])

        end_of_pass, end_of_command = Signal(), Signal()
        next_row = Signal(address_bits)
        m.d.comb += [
            end_of_pass.eq(go & last_sample & last_row),
            end_of_command.eq(end_of_pass & last_pass & last_out_block),
            next_row.eq(at_row + p.tile_row),
        ]
        with m.If(go):
            m.d.sync += pass_start.eq(0)
            with m.If(lead != 0):
                m.d.sync += lead.eq(lead - 1)
            with m.Else():
                m.d.sync += [
                    sample.eq(sample + 1),
                    at.eq(at + step),
                    x.eq(x + Mux(rows, 1, f.stride_x)),
                ]
                with m.If(countdown == 0):
                    m.d.sync += countdown.eq(f.stride_x - 1)
                    with m.If(outputs_left != 0):
                        m.d.sync += outputs_left.eq(outputs_left - 1)
                with m.Else():
                    m.d.sync += countdown.eq(countdown - 1)
            with m.If(last_sample):
                m.d.sync += [
                    sample.eq(0),
                    row.eq(row + 1),
                    y.eq(y + f.stride_y),
                    x.eq(x_pass),
                    at_row.eq(next_row),
                    at.eq(at_byte(next_row)),
                    countdown.eq(f.valid_from),
                    outputs_left.eq(f.out_width),
                ]

        # next pass
        next_at_pass = Signal(address_bits)
        next_y, next_x = Signal(signed(COORDINATE_BITS)), Signal(signed(COORDINATE_BITS))
        kernel_step = Signal(address_bits)
        m.d.comb += [
            kernel_step.eq(p.pass_ + Mux(carry, p.row, 0)),
            next_y.eq(f.y_start),
            next_x.eq(f.x_start),
        ]
        with m.If(~last_kernel_x):
            m.d.comb += [
                next_at_pass.eq(at_pass + p.tap),
                next_x.eq(x_pass + f.dilation_x),
                next_y.eq(y_kernel),
            ]
        with m.Elif(~last_kernel_y):
            m.d.comb += [
                next_at_pass.eq(at_kernel_y + kernel_step),
                next_y.eq(y_kernel + p.pass_y + Mux(carry, f.dilation_y, 0)),
            ]
        with m.Elif(~last_in_block):
            m.d.comb += next_at_pass.eq(at_in_block + f.block_stride)
        with m.Else():
            m.d.comb += next_at_pass.eq(at_block + f.out_block_stride)

        def begin_pass(at_start: Value, y_start: Value, x_start: Value, fields: SimpleNamespace) -> list:
            offset = fields.input[:log2_n]
            is_rows = (fields.mode == Mode.ROWS) if config.rows_mode else Const(0)
            return [
                pass_start.eq(1),
                row.eq(0),
                sample.eq(0),
                lead.eq(Mux(is_rows, fields.kernel_width - 1 - fields.valid_from, 0)),
                countdown.eq(fields.valid_from),
                outputs_left.eq(fields.out_width),
                at_pass.eq(at_start),
                at_row.eq(at_start),
                at.eq(Cat(offset, at_start[:address_bits])),
                y_kernel.eq(y_start),
                y.eq(y_start),
                x_pass.eq(x_start),
                x.eq(x_start),
            ]

        with m.If(end_of_pass):
            m.d.sync += begin_pass(next_at_pass, next_y, next_x, f)
            m.d.sync += [kernel_x.eq(kernel_x + 1), weight.eq(weight + n)]
            with m.If(last_kernel_x):
                m.d.sync += [
                    kernel_x.eq(0),
                    kernel_y.eq(kernel_y_next),
                    at_kernel_y.eq(next_at_pass),
                    row_byte.eq(Mux(carry, row_byte_sum - f.row_length, row_byte_sum)),
                ]
                with m.If(last_kernel_y):
                    m.d.sync += [
                        kernel_y.eq(0),
                        row_byte.eq(0),
                        in_block.eq(in_block + 1),
                        at_in_block.eq(next_at_pass),
                    ]
                    with m.If(last_in_block):
                        m.d.sync += [
                            in_block.eq(0),
                            out_block.eq(out_block + 1),
                            at_block.eq(next_at_pass),
                        ]
                        with m.If(f.restart_weights):
                            m.d.sync += weight.eq(f.weights)
                        with m.If(last_out_block):
                            m.d.sync += active.eq(0)

        # next command
        s, sp = setup.fields, setup.products
        start_at = Signal(address_bits)
        start_x = Mux((s.mode == Mode.PATCH) if config.patch_mode else Const(0), 0, sp.start_x)
        m.d.comb += start_at.eq((s.input >> log2_n) + sp.start_y + start_x)
        m.d.comb += setup.taken.eq(setup.ready & (~active | end_of_command) & ~clear)
        with m.If(setup.taken):
            m.d.sync += [
                active.eq(1),
                words.eq(self.port.command.payload.words),
                *(getattr(p, name).eq(value) for name, value in vars(sp).items()),
                quotient.eq(setup.quotient),
                remainder.eq(setup.remainder),
                out_block.eq(0),
                in_block.eq(0),
                kernel_y.eq(0),
                kernel_x.eq(0),
                row_byte.eq(0),
                weight.eq(s.weights),
                at_block.eq(start_at),
                at_in_block.eq(start_at),
                at_kernel_y.eq(start_at),
                *begin_pass(start_at, s.y_start, s.x_start, s),
            ]
        with m.If(clear):
            m.d.sync += active.eq(0)

        sample_valid = Mux(rows, (lead == 0) & (countdown == 0) & (outputs_left != 0), 1)
        return SimpleNamespace(
            f=f, p=p, patch=patch, rows=rows, active=active, go=go, pass_start=pass_start, at=at, x=x, y=y,
            kernel_y=kernel_y, row_byte=row_byte, weight=weight, lead=lead, sample_valid=sample_valid,
            overwrite=overwrite, finish=finish, end_of_command=end_of_command,
            last_of_command=last_pass & last_out_block,
        )  # fmt: skip

    # -- weights, beside the first N vectors of a pass -----------------------------------------

    def _weight_reader(self, m: Module, clear: Value, loops: SimpleNamespace) -> None:
        n = self.config.array_size
        # S0 at T; the read of row 0 is at T + S0_TO_ARRAY - latency, out of the registers below
        start, address, last = loops.go & loops.pass_start, loops.weight, loops.last_of_command
        for i in range(S0_TO_ARRAY - self._weight_latency - 1):
            delayed = [
                Signal.like(Value.cast(v), name=f"weight_{what}_{i}")
                for what, v in (("start", start), ("at", address), ("last", last))
            ]
            m.d.sync += [d.eq(v) for d, v in zip(delayed, (start, address, last), strict=True)]
            with m.If(clear):
                m.d.sync += delayed[0].eq(0)
            start, address, last = delayed
        reading, row = Signal(), Signal(range(n))
        at = Signal.like(loops.weight)
        last_tile = Signal()
        with m.If(start):
            m.d.sync += [reading.eq(1), row.eq(0), at.eq(address), last_tile.eq(last)]
        with m.Elif(reading):
            m.d.sync += [row.eq(row + 1), at.eq(at + 1)]
            with m.If(row == n - 1):
                m.d.sync += reading.eq(0)
        m.d.comb += [self.weights.enable.eq(reading), self.weights.address.eq(at)]

        # a CONV is done when both its last vector and its last weights have been read
        inputs_read, weights_read = Signal(3), Signal(3)
        weights_end = reading & (row == n - 1) & last_tile
        done = (inputs_read != 0) & (weights_read != 0)
        # after a clear, vectors that are under way still reach the accumulators: busy until they have
        draining, cleared = Signal(range(self._drain + 1)), Signal()
        m.d.sync += [
            inputs_read.eq(inputs_read + loops.end_of_command - done),
            weights_read.eq(weights_read + weights_end - done),
        ]
        with m.If(loops.go):
            m.d.sync += draining.eq(self._drain)
        with m.Elif(draining != 0):
            m.d.sync += draining.eq(draining - 1)
        with m.Else():
            m.d.sync += cleared.eq(0)
        with m.If(clear):
            m.d.sync += [inputs_read.eq(0), weights_read.eq(0), reading.eq(0), cleared.eq(1)]
        m.d.comb += [
            self.port.done.eq(done),
            self.port.busy.eq(
                loops.active
                | reading
                | (inputs_read != 0)
                | (weights_read != 0)
                | (cleared & (draining != 0))
                | self.port.command.valid
            ),
        ]

    # -- S1 to S5: from addresses to lanes -------------------------------------------------------

    def _datapath(self, m: Module, loops: SimpleNamespace) -> None:
        config = self.config
        n = config.array_size
        log2_n = n.bit_length() - 1
        f, p = loops.f, loops.p
        has_groups, has_patch = config.rows_mode, config.patch_mode
        windows = 4 if has_patch else 3 if has_groups else 1

        # S0 -> S1: where each window is, and whether it is inside the image and the kernel
        address_bits = (config.scratchpad_vectors - 1).bit_length()
        at_vector = loops.at[log2_n:]
        offset = loops.at[:log2_n]
        x_inside = (loops.x >= 0) & (loops.x < f.in_width)
        wide = loops.patch & f.wide if has_patch else Const(0)
        steps = [Const(0), p.row, p.row << 1, p.row + (p.row << 1)]
        y_steps = [Const(0), f.dilation_y, f.dilation_y << 1, f.dilation_y + (f.dilation_y << 1)]
        in_kernel, inside = [], []
        for j in range(windows):
            window_y = Signal(signed(COORDINATE_BITS + 1), name=f"window_y_{j}")
            k, i = Signal(name=f"in_kernel_{j}"), Signal(name=f"inside_{j}")
            m.d.comb += [
                window_y.eq(loops.y + y_steps[j]),
                k.eq(loops.kernel_y + j < f.kernel_height),
                i.eq(
                    (window_y >= 0) & (window_y < f.in_height) & (loops.patch | x_inside) & (loops.lead == 0)
                ),
            ]
            in_kernel.append(k)
            inside.append(i)

        s1_pad = Signal(windows)
        for j, port in enumerate(self.scratchpad):
            enable, address = Signal(name=f"s1_enable_{j}"), Signal(address_bits, name=f"s1_address_{j}")
            if j < windows:
                narrow_used = {
                    0: Const(1),
                    1: loops.patch | (loops.rows & (f.rows_per_pass > 1)),
                    2: loops.patch | (loops.rows & (f.rows_per_pass > 2)),
                    3: loops.patch,
                }[j]
                wide_window = j // 2
                m.d.sync += [
                    s1_pad[j].eq(~inside[j] | ~in_kernel[j]),
                    enable.eq(
                        loops.go
                        & Mux(
                            wide,
                            inside[wide_window] & in_kernel[wide_window],
                            narrow_used & inside[j] & in_kernel[j],
                        )
                    ),
                    address.eq(
                        at_vector + Mux(wide, steps[wide_window] + (j & 1), steps[j])
                        if has_patch
                        else at_vector + steps[j]
                    ),
                ]
            m.d.comb += [port.enable.eq(enable), port.address.eq(address)]

        # what travels with the position
        side = {
            "tag": PassTag,
            "first": 1,
            "source": 2,
            "pad": windows,
            "pad_value": 8,
        }
        if has_patch:
            bound = signed(log2_n + 3)
            side |= {
                "patch": 1,
                "wide": 1,
                "in_kernel": windows,
                "rotate": data.ArrayLayout(log2_n, 4),
                "begin": data.ArrayLayout(bound, 5),  # first lane of window j
                "cross": data.ArrayLayout(bound, 2),  # wide: first lane of window j beyond its vector
                "length": log2_n + 1,
            }
        layout = data.StructLayout(side)
        s1 = Signal(layout)
        m.d.sync += [
            s1.tag.valid.eq(loops.go & loops.sample_valid),
            s1.tag.start.eq(loops.go & loops.pass_start),
            s1.tag.overwrite.eq(loops.overwrite),
            s1.tag.finish.eq(loops.finish),
            s1.first.eq(loops.go & loops.pass_start),
            s1.source.eq(
                Mux(
                    loops.rows,
                    Mux(f.rows_per_pass > 1, Source.GROUPS, Source.CHAIN),
                    Source.LEFT,
                )
            ),
            s1.pad_value.eq(f.pad_value),
        ]
        if has_patch:
            # lane i holds byte row_byte + i of the kernel rows laid end to end; saturated, because
            # what is at N or beyond is no lane
            begins: list[Value] = [-loops.row_byte]
            for _ in range(4):
                begins.append(begins[-1] + f.row_length)
            for j, begin in enumerate(begins):
                clipped = Signal(signed(log2_n + 3), name=f"begin_{j}")
                m.d.comb += clipped.eq(Mux(begin > n, n, begin))
                m.d.sync += s1.begin[j].eq(clipped)
                if j < 2:
                    m.d.sync += s1.cross[j].eq(clipped + n - offset)
            for j in range(4):
                window_begin = Mux(wide, begins[j // 2], begins[j])
                m.d.sync += s1.rotate[j].eq((offset - window_begin)[:log2_n])
            m.d.sync += [
                s1.patch.eq(loops.patch),
                s1.wide.eq(wide),
                s1.in_kernel.eq(Cat(in_kernel)),
                s1.length.eq(Mux(f.pass_length > n, n, f.pass_length)),
            ]
        s2, s3, s4 = (Signal(layout, name=f"s{i}") for i in (2, 3, 4))
        m.d.sync += [s2.eq(s1), s2.pad.eq(s1_pad), s3.eq(s2), s4.eq(s3)]

        # S3 -> S4: rotate
        words = [Signal(8 * n, name=f"s4_word_{j}") for j in range(windows)]
        for j, word in enumerate(words):
            fetched = self.scratchpad[j].data
            if has_patch:
                rotated = Signal(8 * n, name=f"rotated_{j}")
                with m.If(s3.patch):
                    value: Value = fetched
                    for bit in range(log2_n):
                        by = 8 << bit
                        value = Mux(s3.rotate[j][bit], Cat(value[by:], value[:by]), value)
                    m.d.comb += rotated.eq(value)
                with m.Else():
                    m.d.comb += rotated.eq(fetched)
                m.d.sync += word.eq(rotated)
            else:
                m.d.sync += word.eq(fetched)

        # S4 -> S5: choose lanes, fill in padding
        def byte(word: Value, lane: int) -> Value:
            return word[8 * lane : 8 * lane + 8]

        m.d.sync += [
            self.tag.eq(s4.tag),
            self.first.eq(s4.first),
            self.source.eq(s4.source),
        ]
        plain = Mux(s4.pad[0], s4.pad_value.replicate(n), words[0])
        if has_patch:
            lane_values = Signal(8 * n)
            with m.If(s4.patch):
                for i in range(n):
                    value = Signal(8, name=f"lane_{i}")
                    window = [Signal(name=f"lane_{i}_window_{j}") for j in range(4)]
                    for j in range(4):
                        m.d.comb += window[j].eq(
                            (s4.begin[j] <= i) & (s4.begin[j + 1] > i) & s4.in_kernel[j] & (s4.length > i)
                        )
                    with m.If(s4.wide):
                        for j in range(2):
                            with m.If(window[j]):
                                beyond = s4.cross[j] <= i
                                m.d.comb += value.eq(
                                    Mux(
                                        s4.pad[j],
                                        s4.pad_value,
                                        Mux(beyond, byte(words[2 * j + 1], i), byte(words[2 * j], i)),
                                    )
                                )
                    with m.Else():
                        for j in range(4):
                            with m.If(window[j]):
                                m.d.comb += value.eq(Mux(s4.pad[j], s4.pad_value, byte(words[j], i)))
                    m.d.comb += byte(lane_values, i).eq(value)
            with m.Else():
                m.d.comb += lane_values.eq(plain)
            m.d.sync += self.vector.as_value().eq(lane_values)
        else:
            m.d.sync += self.vector.as_value().eq(plain)
        if has_groups:
            for g in range(2):
                m.d.sync += (
                    self.groups[g].as_value().eq(Mux(s4.pad[g + 1], s4.pad_value.replicate(n), words[g + 1]))
                )
