"""Verilog text -> shared library of the in-process simulator, cached by content.

A cache entry is a folder named by a hash of everything that decides its content: the Verilog, the harness,
all flags, Verilator's version and the processor (the code is compiled for the machine at hand). A finished
entry needs no compiler any more.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from functools import lru_cache
from pathlib import Path

from .verilator_tool import ToolError, compiler_path, verilator_binary, verilator_root, verilator_version

__all__ = ["BuildFlags", "Waves", "build_library", "cache_folder"]

_TOP = "lepton_npu"
_HARNESS = Path(__file__).with_name("harness.cpp")
_LIBRARY = f"{_TOP}.so"
_MANIFEST = "build.json"


class Waves(str, Enum):
    """Waveform support compiled into the library. Each kind is a build of its own; `NONE` is the fast one."""

    NONE = "none"
    VCD = "vcd"
    FST = "fst"


@dataclass(frozen=True)
class BuildFlags:
    """What is passed to Verilator and to the C++ compiler.

    Args:
        verilator: options of Verilator. `--no-timing`: the Verilog has no delays. Random or x values are
            not wanted here (cocotb on a 4-state simulator looks for those), so unknowns become zeros.
        compiler: options for the code that runs each cycle.
        compiler_once: options for Verilator's code that runs once (construction, waveform declarations).
        split: largest C++ function file, in Verilator's statement count; 0 keeps one file.
    """

    verilator: tuple[str, ...] = (
        "-O3",
        "--x-assign",
        "fast",
        "--x-initial",
        "fast",
        "--no-assert",
        "--no-timing",
        "--timescale",
        "1ns/1ns",
    )
    compiler: tuple[str, ...] = ("-O3", "-march=native")
    compiler_once: tuple[str, ...] = ("-O1", "-march=native")
    split: int = 0


def cache_folder() -> Path:
    """`$LEPTON_CACHE/rtl` if that variable is set, else `~/.cache/lepton/rtl`."""
    base = os.environ.get("LEPTON_CACHE", "").strip()
    return Path(base).expanduser() / "rtl" if base else Path.home() / ".cache" / "lepton" / "rtl"


@lru_cache(maxsize=1)
def _processor() -> str:
    """What `-march=native` depends on: the processor's model and feature flags."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return f"{platform.machine()} {platform.processor()}"
    wanted = ("vendor_id", "model name", "flags", "Features", "CPU part")
    first: dict[str, str] = {}
    for line in lines:
        name, _, value = line.partition(":")
        if name.strip() in wanted:
            first.setdefault(name.strip(), value.strip())
    return f"{platform.machine()} {sorted(first.items())}"


def _key(verilog: str, waves: Waves, flags: BuildFlags) -> str:
    """Cache key: 32 hexadecimal digits."""
    digest = hashlib.sha256()
    parts = (verilog, _HARNESS.read_text(), Path(__file__).read_text(), waves.value, repr(flags),
             verilator_version(), _processor(), sys.platform)  # fmt: skip
    for part in parts:
        data = part.encode()
        digest.update(len(data).to_bytes(8, "little"))
        digest.update(data)
    return digest.hexdigest()[:32]


def _digest_of(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _is_complete(entry: Path) -> bool:
    """Whether an entry's library is there and byte for byte what the build wrote."""
    try:
        manifest = json.loads((entry / _MANIFEST).read_text())
        return bool(manifest["sha256"] == _digest_of(entry / _LIBRARY))
    except (OSError, ValueError, KeyError, TypeError):
        return False


@contextmanager
def _locked(path: Path, progress: Callable[[str], None] | None) -> Iterator[None]:
    """Holds an exclusive lock on `path`; the system releases it even if this process is killed."""
    with path.open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if progress is not None:
                progress("waiting for another process that builds the same RTL simulator")
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def _run(command: list[str], folder: Path, what: str, remedy: str) -> None:
    """Runs one step of the build.

    Raises:
        ToolError: it could not be started or failed; the message ends with its last lines and the remedy.
    """
    environment = {**os.environ, "VERILATOR_ROOT": str(verilator_root())}
    try:
        done = subprocess.run(
            command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            errors="replace",
        )  # fmt: skip
    except OSError as error:
        raise ToolError(f"{what} could not be started ({error}). {remedy}") from error
    if done.returncode != 0:
        tail = "\n".join(done.stdout.strip().splitlines()[-20:])
        raise ToolError(f"{what} failed with exit code {done.returncode}. {remedy}\nIts last lines:\n{tail}")


def _dual_edge(verilog: str) -> str:
    """The same design clocked by both edges of `clk`, see harness.cpp.

    Raises:
        ValueError: the design also uses falling edges, so that both edges cannot mean the same.
    """
    if re.search(r"\bnegedge\b", verilog):
        raise ValueError("the Verilog uses negedge; the RTL simulator needs a design with rising edges only")
    return re.sub(r"\bposedge\b", "edge", verilog)


def _compile(verilog: str, waves: Waves, flags: BuildFlags, folder: Path) -> None:
    """Builds `folder / lepton_npu.so`; every intermediate file goes to `folder / "obj"`."""
    objects = folder / "obj"
    objects.mkdir(parents=True)
    source = objects / f"{_TOP}.v"
    source.write_text(verilog if waves is not Waves.NONE else _dual_edge(verilog))
    defines = {
        Waves.NONE: ["-DLEPTON_DUAL_EDGE", "-DVM_TRACE=0"],
        Waves.VCD: ["-DLEPTON_TRACE_VCD", "-DVM_TRACE=1", "-DVM_TRACE_VCD=1"],
        Waves.FST: ["-DLEPTON_TRACE_FST", "-DVM_TRACE=1", "-DVM_TRACE_FST=1"],
    }[waves]
    trace = {Waves.NONE: [], Waves.VCD: ["--trace-vcd"], Waves.FST: ["--trace-fst"]}[waves]

    # Deep expressions overflow the usual 8 MiB stack of verilator_bin, so its own script lifts the limit too.
    shell = ["sh", "-c", 'ulimit -s unlimited 2>/dev/null; exec "$@"', "sh"]
    verilate = [
        *shell, str(verilator_binary()), "--cc", "--top-module", _TOP, "--prefix", f"V{_TOP}", "-Wno-fatal",
        "-Wno-lint", "-Wno-style", "--output-split", str(flags.split), "-CFLAGS", "-fPIC", *trace,
        *flags.verilator, "--Mdir", str(objects), str(source),
    ]  # fmt: skip
    _run(verilate, objects, "Verilator", "If the Verilog is Lepton's own, this is a bug; please report it.")

    compiler = compiler_path()
    include = verilator_root() / "include"
    runtime = ["verilated.cpp", "verilated_threads.cpp"]
    if waves is not Waves.NONE:
        runtime.append(f"verilated_{waves.value}_c.cpp")
    common = [
        "-std=c++17", "-fPIC", "-fvisibility=hidden", "-w", f"-I{objects}", f"-I{include}",
        f"-I{include / 'vltstd'}", "-DVERILATOR=1", "-DVM_COVERAGE=0", "-DVM_SC=0", "-DVM_TIMING=0",
        "-DVL_TIME_CONTEXT", "-DVL_USER_FATAL", "-DVL_USER_STOP", "-DVL_USER_FINISH", *defines,
    ]  # fmt: skip
    if "clang" not in Path(compiler).name:
        # GCC makes some template symbols unique in the whole process; two simulators would then share them.
        common.append("-fno-gnu-unique")
    sources = [_HARNESS, *sorted(objects.glob(f"V{_TOP}*.cpp")), *(include / name for name in runtime)]

    def compile_one(path: Path) -> Path:
        target = objects / f"{path.stem}.o"
        once = "__Slow" in path.stem or "__Trace" in path.stem or path.parent == include
        optimize = flags.compiler_once if once else flags.compiler
        command = [compiler, *optimize, *common, "-c", "-o", str(target), str(path)]
        _run(command, objects, f"{Path(compiler).name} on {path.name}", _remedy(waves))
        return target

    # The largest file first, so that it does not run alone at the end.
    sources.sort(key=lambda path: -path.stat().st_size)
    with ThreadPoolExecutor(max_workers=os.cpu_count() or 1) as pool:
        linked = [str(target) for target in pool.map(compile_one, sources)]
    libraries = ["-lpthread"] + (["-llz4", "-lz"] if waves is Waves.FST else [])
    link = [compiler, "-shared", "-Wl,-Bsymbolic", "-o", str(folder / _LIBRARY), *linked, *libraries]
    _run(link, objects, f"{Path(compiler).name} (linking)", _remedy(waves))
    shutil.rmtree(objects)


def _remedy(waves: Waves) -> str:
    if waves is Waves.FST:
        return (
            "FST waveforms need two libraries: apt install g++ zlib1g-dev liblz4-dev; "
            "VCD waveforms (a file name ending in .vcd) need neither."
        )
    return "Is the C++ compiler complete (C++17 headers)? Install it: apt install g++"


def build_library(
    verilog: str,
    *,
    waves: Waves = Waves.NONE,
    flags: BuildFlags | None = None,
    progress: Callable[[str], None] | None = None,
) -> Path:
    """The shared library that simulates `verilog`, from the cache or built now.

    Any number of processes may call this at once: one of them builds, the others wait for it. An entry that
    is incomplete or altered is built again.

    Args:
        verilog: text with a module `lepton_npu` whose ports are those of the NPU.
        waves: kind of waveform file that the library can write.
        flags: options of Verilator and of the compiler.
        progress: called with one line of text when a build starts or is waited for.

    Returns:
        Path of the library.

    Raises:
        ToolError: Verilator or the compiler is missing or failed, or the cache folder cannot be written.
        ValueError: the Verilog uses falling clock edges.
    """
    flags = BuildFlags() if flags is None else flags
    cache = cache_folder()
    key = _key(verilog, waves, flags)
    entry = cache / key
    if _is_complete(entry):
        return entry / _LIBRARY
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with _locked(cache / f"{key}.lock", progress):
            if not _is_complete(entry):
                _build_entry(verilog, waves, flags, entry, progress)
    except OSError as error:
        raise ToolError(
            f"the cache folder {cache} cannot be written ({error}). "
            "Set LEPTON_CACHE to a folder that can be, or make room or correct its permissions."
        ) from error
    return entry / _LIBRARY


def _build_entry(
    verilog: str, waves: Waves, flags: BuildFlags, entry: Path, progress: Callable[[str], None] | None
) -> None:
    """Fills `entry`; called with its lock held. The folder appears only when it is complete."""
    if progress is not None:
        variant = "" if waves is Waves.NONE else f" with {waves.value.upper()} waveforms"
        progress(f"building the RTL simulator{variant} (once for this configuration; takes some minutes)")
    # What is missing should be told before Verilator and the compiler run for half a minute.
    compiler = compiler_path()
    if waves is Waves.FST:
        probe = [
            compiler,
            "-fsyntax-only",
            "-include",
            "lz4.h",
            "-include",
            "zlib.h",
            "-x",
            "c++",
            os.devnull,
        ]
        _run(probe, entry.parent, "a check for the headers lz4.h and zlib.h", _remedy(waves))
    work = entry.with_name(f"{entry.name}.building")
    shutil.rmtree(work, ignore_errors=True)  # left by a build that was killed
    work.mkdir()
    try:
        _compile(verilog, waves, flags, work)
        manifest = {"sha256": _digest_of(work / _LIBRARY), "verilator": verilator_version()}
        (work / _MANIFEST).write_text(json.dumps(manifest, indent=2))
        shutil.rmtree(entry, ignore_errors=True)  # a broken entry
        work.rename(entry)
    finally:
        shutil.rmtree(work, ignore_errors=True)
