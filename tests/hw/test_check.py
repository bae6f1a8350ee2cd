"""The command checker against isa.Checker: same code and info for thousands of right and wrong commands."""

from __future__ import annotations

import dataclasses
import os
from collections import Counter
from typing import Any

import cocotb
import pytest
from amaranth.hdl import Shape
from cocotb.triggers import ReadOnly, RisingEdge

from bench import run_bench
from command_source import CommandSource, verdict
from lepton_hw.check import CommandChecker, Verdict
from lepton_hw.config import PRESETS, NPUConfig
from lepton_hw.csr import Settings
from lepton_hw.isa import COMMAND_BYTES, Checker, ErrorCode, encode
from stimulus import rng, start

WINDOWS = {
    "all": ((0, 0xFFFF_FFFF), (0, 0xFFFF_FFFF)),
    "part": ((0x1_0000, 0x1_FFFF), (0x8000_0040, 0x8000_1FFF)),
    "edge": ((0xFFFF_F000, 0xFFFF_FFFF), (0, 0xFFF)),
    "closed": ((1, 0), (1, 0)),
}
CONFIGS = {
    **PRESETS,
    "odd": dataclasses.replace(
        PRESETS["base"], bus_width=32, patch_mode=False, array_size=8, requantize_lanes=2
    ),
}


def pack(struct: Any, **values: int) -> int:
    """The bits of a data.Struct whose other members are 0."""
    layout = struct.as_shape()
    return sum(value << layout[name].offset for name, value in values.items())


def unpack(struct: Any, bits: int) -> dict[str, int]:
    """The members of a data.Struct from its bits."""
    layout = struct.as_shape()
    return {name: bits >> f.offset & ((1 << Shape.cast(f.shape).width) - 1) for name, f in layout}


class Port:
    """Feeds commands and takes verdicts."""

    def __init__(self, dut: Any, config: NPUConfig, stall: float) -> None:
        self.dut, self.config = dut, config
        self.random = rng("stall")
        self.stall = stall

    async def feed(self, raw: bytes, responses: list[int] | None = None) -> None:
        """One command, beat by beat, with gaps."""
        dut, size = self.dut, self.config.bus_bytes
        for i in range(0, COMMAND_BYTES, size):
            while self.random.random() < self.stall:
                await RisingEdge(dut.clk)
            response = responses[i // size] if responses else 0
            dut.beats__payload.value = int.from_bytes(raw[i : i + size], "little") | response << 8 * size
            dut.beats__valid.value = 1
            await ReadOnly()
            while not dut.beats__ready.value:
                await RisingEdge(dut.clk)
                await ReadOnly()
            await RisingEdge(dut.clk)
            dut.beats__valid.value = 0

    async def verdict(self) -> tuple[dict[str, int], int]:
        """The next verdict and the cycles it took."""
        dut = self.dut
        cycles = 0
        await ReadOnly()
        while not dut.result__valid.value:
            cycles += 1
            assert cycles < 200, "no verdict"
            await RisingEdge(dut.clk)
            await ReadOnly()
        out = unpack(Verdict, int(dut.result__payload.value))
        await RisingEdge(dut.clk)
        while self.random.random() < self.stall:
            await RisingEdge(dut.clk)
        dut.result__ready.value = 1
        await RisingEdge(dut.clk)
        dut.result__ready.value = 0
        return out, cycles


def settings(read: tuple[int, int], write: tuple[int, int], **program: int) -> int:
    """Bits of the settings port."""
    return pack(
        Settings, read_first=read[0], read_last=read[1], write_first=write[0], write_last=write[1], **program
    )


@cocotb.test()
async def agrees_with_the_model(dut: Any) -> None:
    """Random commands in all windows; the model's tile follows the same accepted commands."""
    config = CONFIGS[os.environ["CONFIG"]]
    await start(dut)
    port = Port(dut, config, float(os.environ["STALL"]))
    random = rng()
    seen: Counter[ErrorCode] = Counter()
    slowest = 0
    for name, (read, write) in WINDOWS.items():
        dut.settings.value = settings(read, write)
        checker = Checker(config, read, write)
        if (tile := getattr(port, "tile", None)) is not None:
            checker.tile = tile
        source = CommandSource(config, read, write, random)
        for i in range(int(os.environ["COMMANDS"]) if name != "closed" else 50):
            raw = source.any_raw(checker)
            tile = checker.tile
            expected = verdict(raw, checker)
            await port.feed(raw)
            got, cycles = await port.verdict()
            slowest = max(slowest, cycles)
            code, info = (expected.code, expected.info) if expected else (ErrorCode.NONE, 0)
            where = f"{name} {i}: {raw.hex()} {expected}"
            assert (ErrorCode(got["code"]), got["info"]) == (code, info), where
            assert got["command"] == int.from_bytes(raw, "little"), where
            if tile is not None:
                assert (got["tile_height"], got["tile_width"], got["tile_blocks"]) == (
                    tile.height,
                    tile.width,
                    tile.blocks,
                ), where
            seen[code] += 1
        port.tile = checker.tile
    dut._log.info("verdicts %s, slowest %d cycles", {c.name: n for c, n in seen.items()}, slowest)
    wanted = {ErrorCode(i) for i in range(ErrorCode.UNSUPPORTED)}
    if not (config.patch_mode and config.rows_mode):
        wanted.add(ErrorCode.UNSUPPORTED)
    assert all(seen[code] for code in wanted), seen
    assert slowest <= 24, slowest


@cocotb.test()
async def checks_the_program(dut: Any) -> None:
    """Address and length of the program: multiples of 64, not empty, inside the read window, no wrap."""
    await start(dut)
    port = Port(dut, CONFIGS[os.environ["CONFIG"]], 0)
    random = rng()
    for i in range(200):
        first = random.choice((0, 64, 0x1000, random.randrange(1 << 32)))
        last = random.choice((0xFFFF_FFFF, first + random.randrange(1 << 12), random.randrange(1 << 32)))
        last &= 0xFFFF_FFFF
        address = random.choice((first, first + 64, first - 64, random.randrange(1 << 32))) & 0xFFFF_FFFF
        if random.randrange(8):
            address &= ~63
        sizes = (0, 64, last + 1 - address, last + 65 - address, (1 << 32) - 64, random.randrange(1 << 32))
        size = random.choice(sizes) & 0xFFFF_FFFF & (~63 if random.randrange(8) else 0xFFFF_FFFF)
        inside = first <= address and address + size <= last + 1
        good = address % 64 == 0 and size % 64 == 0 and size > 0 and inside
        dut.settings.value = settings((first, last), (1, 0), program_address=address, program_bytes=size)
        dut.check_program.value = 1
        await RisingEdge(dut.clk)
        dut.check_program.value = 0
        got, _ = await port.verdict()
        where = (i, first, last, address, size)
        assert (got["code"], got["info"]) == (0 if good else ErrorCode.PROGRAM, 0), where


@cocotb.test()
async def reports_fetch_errors(dut: Any) -> None:
    """A bad response on any beat outranks all else about the command; the next command is judged afresh."""
    config = CONFIGS[os.environ["CONFIG"]]
    await start(dut)
    port = Port(dut, config, 0.2)
    random = rng()
    read, write = WINDOWS["all"]
    dut.settings.value = settings(read, write)
    checker = Checker(config, read, write)
    source = CommandSource(config, read, write, random)
    beats = COMMAND_BYTES // config.bus_bytes
    for beat in range(beats):
        responses = [0] * beats
        responses[beat] = random.choice((2, 3))
        await port.feed(source.any_raw(checker), responses)
        got, _ = await port.verdict()
        assert (got["code"], got["info"]) == (ErrorCode.FETCH_BUS, responses[beat])
        await port.feed(encode([source.correct(checker)]))
        got, _ = await port.verdict()
        assert got["code"] == 0


@pytest.mark.parametrize("config", ["nano", "base", "odd"])
def test_check(config: str, simulator: str) -> None:
    commands = 3000 if simulator == "verilator" else 400
    env = {"CONFIG": config, "COMMANDS": commands, "STALL": 0.1 if config == "odd" else 0}
    run_bench(lambda: CommandChecker(CONFIGS[config]), __name__, simulator=simulator, env=env)


@pytest.mark.slow
@pytest.mark.parametrize("config", CONFIGS)
def test_check_long(config: str) -> None:
    env = {"CONFIG": config, "COMMANDS": 50_000, "STALL": 0}
    run_bench(lambda: CommandChecker(CONFIGS[config]), __name__, env=env)
