"""The Device interface and its RTL implementation, with a stand-in that acts out each way a run can end."""

from __future__ import annotations

import re
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest

from lepton_hw.config import NPUConfig
from lepton_hw.isa import (
    COMMANDS,
    CSR,
    ISA_VERSION,
    MAGIC,
    Command,
    ErrorCode,
    Opcode,
    config_words,
    encode,
)
from lepton_sim.device import AddressError, RunResult, describe_error
from lepton_sim.rtl import HarnessError, RtlDevice

MEMORY = 1 << 20
CONFIG = NPUConfig()
INFO = COMMANDS[Opcode.LOAD].by_name["row_bytes"].bit
PROGRAM = encode([Command(Opcode.LOAD)] * 5)


@lru_cache(maxsize=2)
def standin(config: NPUConfig = CONFIG) -> str:
    values: dict[str, int] = {register.name: int(register) for register in CSR}
    values |= {"MAGIC_VALUE": MAGIC, "VERSION_VALUE": ISA_VERSION[0] << 16 | ISA_VERSION[1], "INFO": INFO}
    values |= {f"CONFIG{i}_VALUE": word for i, word in enumerate(config_words(config))}
    values |= {"ERROR": ErrorCode.FIELD, "ABORTED": ErrorCode.ABORTED}
    text = Path(__file__).with_name("csr_standin.v").read_text()
    return re.sub(
        r"`([A-Z0-9_]+)",
        lambda match: f"32'd{values[match[1]]}",
        text[text.index("module") :],
    )


@pytest.fixture
def device() -> RtlDevice:
    device = RtlDevice(CONFIG, verilog=standin(), memory_bytes=MEMORY, watchdog=500)
    device.write(0x1000, PROGRAM)
    return device


def run(device: RtlDevice, commands: int, **options: object) -> RunResult:
    return device.run(0x1000, 64 * commands, **options)  # type: ignore[arg-type]


def test_a_good_run_returns_cycles_and_counters(device: RtlDevice) -> None:
    for _ in range(2):
        result = run(device, 1)
        assert result.error is None
        assert result.cycles == result.counters["cycles"] == 501
        assert set(result.counters) == {register.name.lower() for register in CSR if register >= CSR.CYCLES}


def test_an_error_is_told_in_words(device: RtlDevice) -> None:
    error = run(device, 2).error
    assert error is not None
    assert (error.code, error.command, error.info) == (ErrorCode.FIELD, 1, INFO)
    assert (
        str(error)
        == f"command 1 (LOAD): field row_bytes has a value that is not allowed [FIELD, info {INFO}]"
    )
    assert run(device, 1).error is None


def test_a_run_that_takes_too_long_is_aborted(device: RtlDevice) -> None:
    error = run(device, 3, max_cycles=2000).error
    assert error is not None
    assert error.code is ErrorCode.ABORTED
    assert "max_cycles" in str(error)
    assert run(device, 1).error is None


def test_an_npu_that_ignores_abort_is_reported_and_reset(device: RtlDevice) -> None:
    with pytest.raises(HarnessError, match="did not end its run within 2000 cycles, and did not obey ABORT"):
        run(device, 4, max_cycles=2000)
    assert run(device, 1).error is None


def test_an_interrupt_without_an_outcome_is_reported(device: RtlDevice) -> None:
    with pytest.raises(HarnessError, match="neither DONE nor ERROR"):
        run(device, 5)
    assert run(device, 1).error is None


@pytest.mark.parametrize(
    ("window", "registers"),
    [
        (None, (0, MEMORY - 1)),
        ((64, 127), (64, 127)),
        ((7, 7), (7, 7)),
        ((0, -1), (1, 0)),
        ((64, 63), (1, 0)),
    ],
)
def test_windows_reach_the_registers(
    device: RtlDevice, window: tuple[int, int] | None, registers: tuple[int, int]
) -> None:
    counters = run(device, 1, write_window=window).counters
    assert (counters["bytes_read"], counters["bytes_written"]) == registers


def test_verilog_of_another_configuration_is_refused() -> None:
    other = NPUConfig(scratchpad_bytes=CONFIG.scratchpad_bytes // 2)
    with pytest.raises(HarnessError, match=r"another NPU: CONFIG1 reads .*NPUConfig\(.* needs "):
        RtlDevice(other, verilog=standin(), memory_bytes=MEMORY)


def test_memory_is_read_and_written(device: RtlDevice) -> None:
    data = np.arange(-50, 50, dtype=np.int16).reshape(10, 10)
    device.write(0x2003, data.T)
    np.testing.assert_array_equal(device.read(0x2003, 200).view(np.int16).reshape(10, 10), data.T)
    copy = device.read(0x2003, 4)
    copy[:] = 0
    assert device.read(0x2003, 200).any()
    device.write(MEMORY - 3, b"abc")
    assert device.read(MEMORY - 3, 3).tobytes() == b"abc"
    assert device.memory[-1] == ord("c")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda d: d.read(MEMORY - 3, 4), r"read: 4 bytes at address 0xffffd are not .* 0x0 to 0xfffff"),
        (lambda d: d.read(-1, 1), "read: 1 bytes at address -0x1"),
        (lambda d: d.read(0, -1), "must not be negative, it is -1"),
        (lambda d: d.write(MEMORY, b"x"), "write: 1 bytes at address 0x100000"),
        (lambda d: d.run(32, 64), "program_address must be a multiple of 64, not 32"),
        (lambda d: d.run(64, 65), "program_bytes must be a multiple of 64, not 65"),
        (lambda d: d.run(64, 0), "program_bytes must be positive, not 0"),
        (lambda d: d.run(MEMORY - 64, 128), "program: 128 bytes at address 0xfffc0"),
        (lambda d: d.run(0, 64, read_window=(0, MEMORY)), r"read_window must be .* not \(0x0, 0x100000\)"),
        (lambda d: d.run(0, 64, write_window=(9, 5)), r"write_window must be .* not \(0x9, 0x5\)"),
        (lambda d: d.run(0, 64, write_window=(-4, 5)), r"write_window must be .* not \(-0x4, 0x5\)"),
        (lambda d: d.run(0, 64, max_cycles=0), "max_cycles must be positive, not 0"),
        (lambda d: d.record("run.txt"), "not to 'run.txt'"),
        (lambda d: d.record("run.vcd", first=5, last=5), "at least one cycle: first 5, last 5"),
        (lambda d: RtlDevice(CONFIG, memory_bytes=5), r"memory_bytes must be a multiple of 4096 .* not 5"),
        (lambda d: RtlDevice(CONFIG, watchdog=-1), "watchdog must be in .* not -1"),
        (lambda d: RtlDevice(CONFIG, latency=0), "latency must be in"),
    ],
)  # fmt: skip
def test_bad_arguments_are_named(device: RtlDevice, call: object, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        call(device)  # type: ignore[operator]
    assert isinstance(caught.value, AddressError) == (
        "0x" in message or "program_" in message or "negat" in message
    )


def test_waveforms_of_a_window_of_the_next_run(device: RtlDevice, tmp_path: Path) -> None:
    path = tmp_path / "run.vcd"
    assert run(device, 1).error is None
    device.record(path, first=100, last=120)
    assert run(device, 1).cycles == 501
    times = [int(time) for time in re.findall(r"^#(\d+)$", path.read_text(), re.MULTILINE)]
    assert len(times) == 40  # both edges of 20 cycles
    size = path.stat().st_size
    assert run(device, 1).cycles == 501
    assert path.stat().st_size == size
    assert device.read(0x1000, len(PROGRAM)).tobytes() == PROGRAM  # the memory is still the same


@pytest.mark.parametrize("code", [code for code in ErrorCode if code is not ErrorCode.NONE])
def test_every_error_code_has_words(code: ErrorCode) -> None:
    error = describe_error(code, 1, INFO if code in (3, 4, 5, 6, 8) else 3, PROGRAM)
    assert str(error).startswith("command 1 (LOAD): ")
    assert code.name in str(error)
    assert "unknown" not in str(error)
    assert "{" not in str(error)


def test_an_error_in_a_command_that_is_none() -> None:
    error = describe_error(ErrorCode.OPCODE, 2, 99, bytes([99]) * 192)
    assert str(error) == "command 2: there is no opcode 99 [OPCODE, info 99]"
    assert "command 7" in str(describe_error(ErrorCode.PROGRAM, 7, 0, PROGRAM))
