"""The C++ harness: memory timing, bus rules, waveforms; driven by a copy engine in the NPU's place."""

from __future__ import annotations

import re
import subprocess
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest

from lepton_sim.rtl.build import BuildFlags, Waves, build_library
from lepton_sim.rtl.harness import Harness, HarnessError, MemoryTiming
from lepton_sim.rtl.verilator_tool import ToolError, compiler_path

# Registers of copy_engine.v and bits in two of them.
SOURCE, DESTINATION, BEATS, BURST, CONTROL, STATUS, OUTSTANDING = 0x04, 0x08, 0x0C, 0x10, 0x14, 0x18, 0x20
LATENCY, CYCLES, WRITE_LATENCY, TAKEN = 0x24, 0x28, 0x2C, 0x30
START, NO_WRITES, NO_READS, SLOW, BREAK_RULE, DATA_FIRST, NARROW = (1 << i for i in range(7))
DONE, UNSTABLE = 1, 1 << 5
DECERR = 3
MEMORY = 1 << 20
WIDTHS = (32, 64, 128, 256)
QUICK = BuildFlags(compiler=("-O1",), compiler_once=("-O0",))


@lru_cache(maxsize=8)
def library(width: int, waves: Waves = Waves.NONE) -> Path:
    verilog = Path(__file__).with_name("copy_engine.v").read_text().replace("`DATA_WIDTH", str(width))
    return build_library(verilog, waves=waves, flags=QUICK)


class Copier:
    """The copy engine in its harness."""

    def __init__(
        self, width: int = 128, timing: MemoryTiming | None = None, waves: Waves = Waves.NONE, seed: int = 1
    ) -> None:
        self.rng = np.random.default_rng(seed)
        self.memory = self.rng.integers(0, 256, MEMORY, dtype=np.uint8)
        self.harness = Harness(library(width, waves), self.memory, timing)
        self.bytes = width // 8

    def start(
        self, source: int, destination: int, beats: int, burst: int = 16, outstanding: int = 8, mode: int = 0
    ) -> None:
        for register, value in (
            (SOURCE, source),
            (DESTINATION, destination),
            (BEATS, beats),
            (BURST, burst),
            (OUTSTANDING, outstanding),
            (CONTROL, START | mode),
        ):
            self.harness.csr_write(register, value)

    def run(self, *arguments: int, **options: int) -> int:
        """Runs to the interrupt; returns the status without DONE."""
        self.start(*arguments, **options)
        self.harness.run_until_irq(1_000_000)
        assert self.harness.irq
        status = self.harness.csr_read(STATUS)
        assert status & DONE
        return status & ~DONE

    def get(self, register: int) -> int:
        return self.harness.csr_read(register)


@pytest.mark.parametrize("width", WIDTHS)
def test_copies_are_exact_at_every_bus_width(width: int) -> None:
    """Back-to-back copies of random sizes, bursts and memory timings leave exactly the right bytes."""
    for seed in range(12):
        rng = np.random.default_rng(seed)
        timing = MemoryTiming(
            latency=int(rng.integers(1, 50)),
            write_latency=int(rng.integers(1, 50)),
            outstanding=int(rng.integers(1, 9)),
            bandwidth=None if seed % 3 == 0 else (int(rng.integers(1, 4)), int(rng.integers(1, 5))),
        )
        copier = Copier(width, timing, seed=seed)
        expected = copier.memory.copy()
        for _ in range(3):
            burst = int(2 ** rng.integers(0, 5 if width == 256 else 6))
            align = burst * copier.bytes
            beats = int(rng.integers(1, 400))
            source = int(rng.integers(0, MEMORY // 2 // align - 400)) * align
            destination = MEMORY // 2 + int(rng.integers(0, MEMORY // 2 // align - 400)) * align
            mode = int(rng.choice([0, SLOW]))
            status = copier.run(source, destination, beats, burst, int(rng.integers(1, 20)), mode)
            assert status == 0, f"seed {seed}"
            size = beats * copier.bytes
            expected[destination : destination + size] = expected[source : source + size]
            np.testing.assert_array_equal(copier.memory, expected, err_msg=f"seed {seed}")


@pytest.mark.parametrize("latency", [1, 2, 32, 100])
def test_read_latency_counts_from_the_address_to_the_first_beat(latency: int) -> None:
    copier = Copier(timing=MemoryTiming(latency=latency))
    assert copier.run(0, 0, 1, mode=NO_WRITES) == 0
    assert copier.get(LATENCY) == latency


@pytest.mark.parametrize("latency", [1, 2, 32, 100])
def test_write_latency_counts_from_the_last_beat_to_the_response(latency: int) -> None:
    copier = Copier(timing=MemoryTiming(write_latency=latency))
    assert copier.run(0, 0, 16, mode=NO_READS) == 0
    # The engine starts to count one cycle after the last beat.
    assert copier.get(WRITE_LATENCY) == latency - 1


def test_outstanding_bursts_hide_the_latency() -> None:
    """With enough bursts in flight 512 beats take 512 cycles and one latency; one at a time, 32 latencies."""
    copier = Copier(timing=MemoryTiming(latency=40))
    copier.run(0, 0, 512, burst=16, outstanding=8, mode=NO_WRITES)
    assert 512 + 40 <= copier.get(CYCLES) <= 512 + 40 + 3
    copier.run(0, 0, 512, burst=16, outstanding=1, mode=NO_WRITES)
    assert 32 * (16 + 40) <= copier.get(CYCLES) <= 32 * (16 + 40 + 2)


def test_memory_limits_the_bursts_it_accepts() -> None:
    copier = Copier(timing=MemoryTiming(latency=40, outstanding=2))
    copier.run(0, 0, 512, burst=16, outstanding=16, mode=NO_WRITES)
    # Two bursts of 16 in the round trip of about 41 + 16 cycles.
    assert 16 * (40 + 16) <= copier.get(CYCLES) <= 16 * (40 + 20)


@pytest.mark.parametrize(("beats", "cycles"), [(1, 1), (1, 4), (3, 4), (3, 2), (2, 1)])
def test_bandwidth_limit_is_kept_and_used(beats: int, cycles: int) -> None:
    copier = Copier(timing=MemoryTiming(latency=1, bandwidth=(beats, cycles)))
    # One direction: never more than a beat a cycle.
    copier.run(0, 0, 600, burst=32, mode=NO_WRITES)
    ideal = 600 * max(1.0, cycles / beats)
    assert ideal - 4 <= copier.get(CYCLES) <= ideal + 8
    # Both: they share the limit.
    copier.run(0, MEMORY // 2, 600, burst=32)
    ideal = 600 * max(1.0, 2 * cycles / beats)
    assert ideal - 4 <= copier.get(CYCLES) <= ideal + 60


@pytest.mark.parametrize("bandwidth", [None, (1, 3), (2, 3)])
def test_read_data_is_stable_until_taken(bandwidth: tuple[int, int] | None) -> None:
    """The engine holds RREADY low in every second cycle and watches RVALID and the payload meanwhile."""
    copier = Copier(timing=MemoryTiming(latency=3, bandwidth=bandwidth))
    status = copier.run(0, MEMORY // 2, 300, mode=SLOW)
    assert status & UNSTABLE == 0
    assert copier.get(TAKEN) == 300
    np.testing.assert_array_equal(copier.memory[: 300 * 16], copier.memory[MEMORY // 2 :][: 300 * 16])


def test_reads_outside_the_memory_answer_decerr() -> None:
    copier = Copier()
    assert copier.run(MEMORY - 256, 0, 16, mode=NO_WRITES) == 0
    assert copier.run(MEMORY, 0, 1, mode=NO_WRITES) == DECERR << 1
    assert copier.run(0xFFFF_FF00, 0, 16, mode=NO_WRITES) == DECERR << 1
    assert copier.run(0, 0, 16, mode=NO_WRITES) == 0


def test_writes_outside_the_memory_answer_decerr_and_leave_no_trace() -> None:
    copier = Copier()
    before = copier.memory.copy()
    assert copier.run(0, MEMORY, 16, mode=NO_READS) == DECERR << 3
    assert copier.run(0, 0x8000_0000, 64) == DECERR << 3
    np.testing.assert_array_equal(copier.memory, before)


def test_a_run_of_bursts_across_the_end_writes_what_is_inside() -> None:
    copier = Copier()
    before = copier.memory.copy()
    assert copier.run(0, MEMORY - 256, 32) == DECERR << 3
    before[-256:] = before[:256]
    np.testing.assert_array_equal(copier.memory, before)


def test_write_data_may_come_before_its_address() -> None:
    copier = Copier()
    assert copier.run(0, MEMORY // 2, 100, mode=DATA_FIRST) == 0
    np.testing.assert_array_equal(copier.memory[:1600], copier.memory[MEMORY // 2 :][:1600])


@pytest.mark.parametrize("width", WIDTHS)
def test_narrow_bursts_touch_their_lanes_only(width: int) -> None:
    """Beats of two bytes, on the lanes that their addresses name; strobes keep the rest."""
    copier = Copier(width)
    expected = copier.memory.copy()
    # Source equal to destination: the engine writes whole words back, under a strobe of two lanes.
    expected_status = copier.run(0x1002, 0x1002, 40, burst=8, mode=NARROW)
    assert expected_status == 0
    np.testing.assert_array_equal(copier.memory, expected)
    copier.run(0, 0x2002, 3, burst=8, mode=NARROW | NO_READS)
    changed = np.flatnonzero(copier.memory != expected)
    assert changed.size
    assert changed.min() >= 0x2002
    assert changed.max() < 0x2008


def test_crossing_4_kib_is_reported_and_reset_recovers() -> None:
    copier = Copier()
    with pytest.raises(HarnessError, match=r"AXI4 rule broken by the NPU on AR in cycle \d+: .*4 KiB"):
        copier.run(0, 0, 16, mode=NO_WRITES | BREAK_RULE)
    with pytest.raises(HarnessError, match="4 KiB"):
        copier.harness.step(1)
    copier.harness.reset()
    assert copier.run(0, MEMORY // 2, 16) == 0


def test_reset_in_the_middle_of_a_copy() -> None:
    for cycles in range(3, 120, 9):
        copier = Copier(timing=MemoryTiming(latency=10, bandwidth=(1, 2)))
        copier.start(0, MEMORY // 2, 200)
        copier.harness.step(cycles)
        copier.harness.reset()
        assert not copier.harness.irq
        assert copier.run(4096, MEMORY // 2, 50) == 0
        np.testing.assert_array_equal(copier.memory[4096:4896], copier.memory[MEMORY // 2 :][:800])


def test_csr_errors_are_raised() -> None:
    harness = Copier().harness
    assert harness.csr_read(0) == 0x434F5059
    with pytest.raises(HarnessError, match="CSR read at 0x100: SLVERR"):
        harness.csr_read(0x100)
    with pytest.raises(HarnessError, match="CSR write of 0x5 at 0x100: SLVERR"):
        harness.csr_write(0x100, 5)
    harness.csr_write(SOURCE, 0xDEADBEEF)
    assert harness.csr_read(SOURCE) == 0xDEADBEEF


def test_run_stops_at_max_cycles_and_goes_on() -> None:
    copier = Copier()
    copier.start(0, MEMORY // 2, 2000)
    before = copier.harness.cycle
    assert copier.harness.run_until_irq(777) == 777
    assert copier.harness.cycle == before + 777
    assert not copier.harness.irq
    rest = copier.harness.run_until_irq(1_000_000)
    assert copier.harness.irq
    assert copier.harness.cycle == before + 777 + rest
    assert copier.harness.run_until_irq(10) == 0
    assert copier.harness.traffic == (2000, 2000)


def test_simulators_of_two_widths_live_side_by_side() -> None:
    narrow, wide = Copier(32), Copier(256)
    assert (narrow.harness.bus_bytes, wide.harness.bus_bytes) == (4, 32)
    narrow.start(0, MEMORY // 2, 300)
    wide.start(0, MEMORY // 2, 300)
    for _ in range(200):
        narrow.harness.step(7)
        wide.harness.step(7)
    for copier in (narrow, wide):
        size = 300 * copier.bytes
        np.testing.assert_array_equal(copier.memory[:size], copier.memory[MEMORY // 2 :][:size])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"latency": 0}, r"latency must be in 1\.\."),
        ({"write_latency": 0}, r"write_latency must be in 1\.\."),
        ({"outstanding": 5000}, r"outstanding must be in 1\.\.4096, not 5000"),
        ({"bandwidth": (0, 1)}, r"bandwidth must be two numbers in .* not \(0, 1\)"),
    ],
)
def test_timing_is_checked(options: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MemoryTiming(**options)  # type: ignore[arg-type]


@pytest.mark.parametrize("memory", [np.zeros(5000, np.uint8), np.zeros(4096, np.int8), np.zeros(0, np.uint8)])
def test_memory_is_checked(memory: np.ndarray) -> None:
    with pytest.raises(ValueError, match="memory"):
        Harness(library(128), memory)


def test_closed_simulator_is_refused() -> None:
    harness = Copier().harness
    harness.close()
    harness.close()
    with pytest.raises(ValueError, match="closed"):
        harness.step(1)


def test_waveforms_hold_the_window_and_nothing_else(tmp_path: Path) -> None:
    traced = Copier(waves=Waves.VCD)
    plain = Copier()
    path = tmp_path / "run.vcd"
    traced.start(0, MEMORY // 2, 100)
    begin = traced.harness.cycle
    traced.harness.trace_open(path, begin + 20, begin + 70)
    cycles = traced.harness.run_until_irq(10_000)
    traced.harness.trace_close()
    text = path.read_text()
    times = [int(match) for match in re.findall(r"^#(\d+)$", text, re.MULTILINE)]
    assert times[0] == 10 * (begin + 20)
    assert times[-1] == 10 * (begin + 69) + 5
    assert re.search(r"\$var wire +1 \S+ m_axi_rvalid ", text)
    clock = re.search(r"\$var wire +1 (\S+) clk ", text)
    assert clock is not None
    assert text.count(f"\n1{clock[1]}\n") == 50  # one rising edge a cycle
    # The build with waveforms clocks in another way; it has to take the same number of cycles.
    plain.start(0, MEMORY // 2, 100)
    assert plain.harness.run_until_irq(10_000) == cycles
    np.testing.assert_array_equal(plain.memory, traced.memory)


def test_waveforms_need_their_own_build_and_a_writable_file(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="this build has none"):
        Copier().harness.trace_open(tmp_path / "run.vcd", 0, 10)
    with pytest.raises(OSError, match="cannot write waveforms"):
        Copier(waves=Waves.VCD).harness.trace_open(tmp_path / "nowhere" / "run.vcd", 0, 10)


def test_fst_waveforms_or_what_they_need(tmp_path: Path) -> None:
    """With the libraries an FST file; without them an error that names them and the other format."""
    has_headers = subprocess.run(
        [compiler_path(), "-E", "-x", "c++", "-"],
        input=b"#include <lz4.h>\n#include <zlib.h>",
        capture_output=True,
    )
    if has_headers.returncode != 0:
        with pytest.raises(ToolError, match=r"(?s)zlib1g-dev liblz4-dev.*\.vcd"):
            Copier(waves=Waves.FST)
        return
    copier = Copier(waves=Waves.FST)
    path = tmp_path / "run.fst"
    copier.harness.trace_open(path, 0, 1 << 63)
    assert copier.run(0, MEMORY // 2, 100) == 0
    copier.harness.trace_close()
    data = path.read_bytes()
    assert data[0] == 0  # FST_BL_HDR, the header block
    assert len(data) > 1000
