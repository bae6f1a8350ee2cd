"""The harness itself: a failing test fails, a missing one too, seeds replay, builds are reused."""

from __future__ import annotations

import os
import random
from pathlib import Path
from typing import Any

import cocotb
import pytest
from amaranth.hdl import Module, Signal, signed
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out
from cocotb.triggers import RisingEdge

import bench
from bench import BenchError, run_bench
from stimulus import rng, start


class Adder(wiring.Component):
    """Sum of two bytes, one cycle late."""

    def __init__(self) -> None:
        super().__init__({"a": In(8), "b": In(8), "total": Out(9)})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.d.sync += self.total.eq(self.a + self.b)
        return m


@cocotb.test()
async def adds(dut: Any) -> None:
    """Random sums; the sum seen at an edge belongs to the inputs of the edge before."""
    await start(dut)
    random_source = rng()
    a = b = 0
    for _ in range(200):
        dut.a.value, dut.b.value = (pair := (random_source.randrange(256), random_source.randrange(256)))
        await RisingEdge(dut.clk)
        assert int(dut.total.value) == a + b
        a, b = pair


@cocotb.test()
async def fails(dut: Any) -> None:
    """Says on purpose that the sum is wrong."""
    await start(dut)
    assert int(dut.total.value) == 511, "not 511"


@cocotb.test()
async def writes_its_draw(dut: Any) -> None:
    """Leaves what the seed makes of it in a file."""
    Path(os.environ["DRAW"]).write_text(f"{rng('a').random()} {rng('b').random()} {random.random()}")


def test_component_on_a_simulator(simulator: str) -> None:
    run_bench(Adder, __name__, simulator=simulator, tests="adds", top="adder")


def test_ports_by_name() -> None:
    def design() -> tuple[Module, dict[str, Any]]:
        m = Module()
        a, b, total = Signal(8), Signal(8), Signal(signed(9))
        m.d.sync += total.eq(a + b)
        return m, {"a": a, "b": b, "total": total}

    run_bench(design, __name__, tests="adds", top="named_adder")


def test_failure_names_test_seed_and_log() -> None:
    with pytest.raises(BenchError, match=r"(?s)fails: .*not 511.*LEPTON_SEED=99.*simulation\.log"):
        run_bench(Adder, __name__, tests=["adds", "fails"], seed=99, top="adder")


def test_no_such_cocotb_test_is_a_failure() -> None:
    with pytest.raises(BenchError, match="no test ran"):
        run_bench(Adder, __name__, tests="absent", top="adder")


def test_import_error_is_a_failure() -> None:
    with pytest.raises(BenchError, match="no test ran"):
        run_bench(Adder, "no_such_module", top="adder")


def test_seed_replays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def draw(seed: str | None) -> str:
        monkeypatch.delenv("LEPTON_SEED", raising=False)
        if seed is not None:
            monkeypatch.setenv("LEPTON_SEED", seed)
        file = tmp_path / "draw"
        run_bench(Adder, __name__, tests="writes_its_draw", env={"DRAW": file}, top="adder")
        return file.read_text()

    assert draw("5") == draw("0x5")
    assert draw(None) == draw(None)
    assert len({draw("5"), draw("6"), draw(None), draw("random")}) == 4
    assert len(set(draw("5").split())) == 3
    with pytest.raises(ValueError, match="LEPTON_SEED must be a number or 'random', not 'x'"):
        draw("x")


def test_builds_are_reused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not bench.simulator_available("icarus"):
        pytest.skip("needs a quick build: icarus is not installed")
    monkeypatch.setattr(bench, "_BUILDS", tmp_path)
    for _ in range(2):
        run_bench(Adder, __name__, simulator="icarus", tests="adds", top="adder")
    (build,) = tmp_path.glob("adder-*/sim.vvp")
    built = build.stat().st_mtime_ns
    run_bench(Adder, __name__, simulator="icarus", tests="adds", top="adder")
    assert build.stat().st_mtime_ns == built
    # A build that was interrupted lacks its mark and is made again.
    (build.parent / "complete").unlink()
    build.write_text("broken")
    run_bench(Adder, __name__, simulator="icarus", tests="adds", top="adder")
    assert len(list(tmp_path.glob("adder-*/sim.vvp"))) == 1


def test_waveforms_are_written(capsys: pytest.CaptureFixture[str], simulator: str) -> None:
    run_bench(Adder, __name__, simulator=simulator, tests="adds", top="adder", waves=True)
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("waveforms: "))
    file = Path(line.removeprefix("waveforms: "))
    assert file.stat().st_size > 100


def test_unknown_simulator_is_named() -> None:
    with pytest.raises(ValueError, match="Simulator must be one of verilator, icarus, not 'spice'"):
        run_bench(Adder, __name__, simulator="spice")
