"""The order and addresses of pooling taps against nested loops in Python."""

from __future__ import annotations

from itertools import product

import cocotb
from amaranth.hdl import Module
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out
from cocotb.triggers import RisingEdge

from bench import run_bench
from lepton_hw.config import preset
from lepton_hw.windows import WindowProducts, WindowWalk, entry_bits, tap_layout
from stimulus import CLOCK_NS, rng, start
from stream_driver import StreamSink

_CONFIG = preset("small")
_ENTRIES = 2 * _CONFIG.output_depth  # pointers are modulo these
_VECTORS = _CONFIG.scratchpad_vectors
_LAYOUT = tap_layout(_CONFIG)
_FIELDS = {
    "tile_height": 16,
    "tile_width": 16,
    "tile_blocks": 12,
    "out_height": 16,
    "out_width": 16,
    "pool_height": 8,
    "pool_width": 8,
    "stride_y": 8,
    "stride_x": 8,
    "y_start": 16,
    "x_start": 16,
    "residual_input": _VECTORS.bit_length() - 1,
    "residual_y_stride": _VECTORS.bit_length() - 1,
    "residual_x_stride": _VECTORS.bit_length() - 1,
    "residual_block_stride": _VECTORS.bit_length() - 1,
}
_OF_PRODUCTS = ("entries", "entry_start", "entry_row_step", "entry_step")
_OF_PRODUCTS += ("residual_start", "residual_row_step", "residual_step")


class _Windows(wiring.Component):
    """Products and walk with common inputs."""

    def __init__(self) -> None:
        ports = {name: In(width) for name, width in _FIELDS.items()}
        ports |= {"prepare": In(1), "prepared": Out(1), "go": In(1), "base": In(entry_bits(_CONFIG))}
        super().__init__(ports | {"busy": Out(1), "taps": Out(stream.Signature(_LAYOUT))})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.submodules.products = products = WindowProducts(_CONFIG)
        m.submodules.walk = walk = WindowWalk(_CONFIG)
        wiring.connect(m, wiring.flipped(self.taps), walk.taps)
        for part in (products, walk):
            m.d.comb += [
                getattr(part, name).eq(getattr(self, name))
                for name in _FIELDS
                if name in part.signature.members
            ]
        m.d.comb += [getattr(walk, name).eq(getattr(products, name)) for name in _OF_PRODUCTS]
        m.d.comb += [
            products.start.eq(self.prepare),
            self.prepared.eq(products.done),
            walk.start.eq(self.go),
            walk.base.eq(self.base),
            self.busy.eq(walk.busy),
        ]
        return m


def _taps(f, base):
    """All taps that must come: inside, last, block_last, entry and residual (these two count if inside)."""
    out = []
    for block, oy, ox in product(range(f["tile_blocks"]), range(f["out_height"]), range(f["out_width"])):
        for py, px in product(range(f["pool_height"]), range(f["pool_width"])):
            y = f["y_start"] + oy * f["stride_y"] + py
            x = f["x_start"] + ox * f["stride_x"] + px
            inside = 0 <= y < f["tile_height"] and 0 <= x < f["tile_width"]
            last = (py, px) == (f["pool_height"] - 1, f["pool_width"] - 1)
            block_last = last and (oy, ox) == (f["out_height"] - 1, f["out_width"] - 1)
            if inside or last:
                entry = base + (block * f["tile_height"] + y) * f["tile_width"] + x
                residual = f["residual_input"] + block * f["residual_block_stride"]
                residual += y * f["residual_y_stride"] + x * f["residual_x_stride"]
                out.append((inside, last, block_last, entry % _ENTRIES, residual % _VECTORS))
    return out


def _random_fields(random):
    def small(high):
        return random.randint(1, high)

    f = {name: random.getrandbits(width) for name, width in _FIELDS.items()}  # residual strides: anything
    f |= {"tile_height": small(8), "tile_width": small(8), "tile_blocks": small(3)}
    f |= {"out_height": small(5), "out_width": small(5), "pool_height": small(4), "pool_width": small(4)}
    f |= {"stride_y": small(3), "stride_x": small(3)}
    f |= {"y_start": random.randint(-5, 5), "x_start": random.randint(-5, 5)}
    if random.random() < 0.3:  # far out, so that only the last windows meet the tile, or none
        f |= {"stride_y": random.randint(100, 255), "stride_x": random.randint(1, 255)}
        f["y_start"] = random.choice((-(2**15), -f["stride_y"] * (f["out_height"] - 1), 2**15 - 1))
        f["x_start"] = random.choice((-f["stride_x"] * (f["out_width"] - 1), 0))
    return f


@cocotb.test()
async def taps_come_in_order(dut):
    """Random windows, with a base that wraps around; the user of the taps pauses."""
    random = rng()
    sink = StreamSink(dut, "taps", stall=0.2)
    await start(dut)
    for _ in range(150):
        f, base = _random_fields(random), random.randrange(_ENTRIES)
        for name, width in _FIELDS.items():
            getattr(dut, name).value = f[name] % (1 << width)
        dut.base.value = base
        dut.prepare.value = 1
        await RisingEdge(dut.clk)
        dut.prepare.value = 0
        cycles = 0
        await RisingEdge(dut.clk)
        while not dut.prepared.value:
            cycles += 1
            assert cycles < 80, f"no products after {cycles} cycles of {CLOCK_NS} ns"
            await RisingEdge(dut.clk)
        if max(abs(f[name]) for name in ("y_start", "x_start", "stride_y", "stride_x")) <= 1:
            assert cycles <= 5 + f["tile_height"].bit_length()
        dut.go.value = 1
        await RisingEdge(dut.clk)
        dut.go.value = 0
        wanted = _taps(f, base)
        for inside, last, block_last, entry, residual in wanted:
            got = data.Const(_LAYOUT, (await sink.receive(1))[0])
            assert (got.inside, got.last, got.block_last) == (inside, last, block_last), f
            if inside:
                assert (got.entry, got.residual) == (entry, residual), f
        for _ in range(3):
            await RisingEdge(dut.clk)
        assert not dut.busy.value
        sink.assert_empty()


@cocotb.test()
async def far_windows(dut):
    """The furthest windows that a command can name are still outside: coordinates do not wrap around."""
    sink = StreamSink(dut, "taps")
    await start(dut)
    f = dict.fromkeys(_FIELDS, 1) | {
        "out_height": 2**16 - 1,
        "stride_y": 255,
        "y_start": 2**15 - 1,
        "x_start": 0,
    }
    f |= {"tile_height": 2**16 - 1, "pool_height": 1}
    for name, width in _FIELDS.items():
        getattr(dut, name).value = f[name] % (1 << width)
    dut.base.value = 0
    for name, cycles in (("prepare", 60), ("go", 1)):
        getattr(dut, name).value = 1
        await RisingEdge(dut.clk)
        getattr(dut, name).value = 0
        for _ in range(cycles):
            await RisingEdge(dut.clk)
    inside = [data.Const(_LAYOUT, tap).inside for tap in await sink.receive(2**16 - 1)]
    assert inside == [2**15 - 1 + 255 * oy < 2**16 - 1 for oy in range(2**16 - 1)]


def test_windows(simulator):
    tests = ["taps_come_in_order", "far_windows"] if simulator == "verilator" else "taps_come_in_order"
    run_bench(_Windows, __name__, simulator=simulator, tests=tests)
