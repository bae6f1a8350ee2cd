"""The compute path's blocks as Verilog: clean in Verilator's lint, no latches or warnings in yosys."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from amaranth.back import verilog
from amaranth.hdl import Elaboratable

from lepton_hw.accumulator import Accumulator
from lepton_hw.array import SystolicArray
from lepton_hw.config import PRESETS
from lepton_hw.output_buffer import OutputBuffer
from lepton_hw.verilog import use_packaged_yosys
from lepton_sim.rtl.verilator_tool import verilator_binary, verilator_environment

_WAIVED = {
    "UNUSEDSIGNAL": "Amaranth writes a net for every signal, member and element, read or not",
    "PROCASSINIT": "a register has its power-on value in its declaration, and is assigned in a process",
    "WIDTHEXPAND": "Amaranth computes widths itself: the narrower operand of a sum is meant to be extended",
    "DECLFILENAME": "all modules of a design are in one file",
}

_BLOCKS: dict[str, Callable[[str], Elaboratable]] = {
    "array": lambda preset: SystolicArray(PRESETS[preset]),
    "accumulator": lambda preset: Accumulator(PRESETS[preset]),
    "output_buffer": lambda preset: OutputBuffer(PRESETS[preset]),
}


def _written(block: str, preset: str, folder: Path) -> Path:
    use_packaged_yosys()
    path = folder / f"{block}.v"
    path.write_text(verilog.convert(_BLOCKS[block](preset), name="top", emit_src=False))
    return path


@pytest.mark.parametrize("preset", ["nano", "small"])
@pytest.mark.parametrize("block", _BLOCKS)
def test_verilog(block: str, preset: str, tmp_path: Path) -> None:
    """nano without mode ROWS, small with it; the other presets have the same code."""
    source = _written(block, preset, tmp_path)
    lint = subprocess.run(
        [verilator_binary(), "--lint-only", "-Wall", *(f"-Wno-{name}" for name in _WAIVED), source],
        env=verilator_environment(),
        capture_output=True,
        text=True,
    )
    assert lint.returncode == 0 and not lint.stderr, lint.stderr

    script = f"read_verilog {source.name}; hierarchy -check -top top; proc; opt; check -assert; "
    script += "select -assert-none t:$dlatch t:$adlatch t:$dlatchsr"
    yosys = subprocess.run(
        [os.environ.get("YOSYS", "yosys"), "-Q", "-p", script],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    report = yosys.stdout + yosys.stderr
    assert yosys.returncode == 0 and "Warning" not in report, report[-2000:]
