"""A component without logic: ports of which every signal is an input, so that a bench drives both sides."""

from __future__ import annotations

from collections.abc import Mapping

from amaranth.hdl import Module
from amaranth.lib import wiring
from amaranth.lib.wiring import In

__all__ = ["Channels", "Wires", "axi4_channels", "axi_lite_channels"]

#: Payload fields of each channel with their widths in bits: {"aw": {"addr": 32, ...}, ...}.
Channels = Mapping[str, Mapping[str, int]]


def axi4_channels(data_width: int, *, id_width: int = 1) -> Channels:
    """Payload fields of AXI4 with 32-bit addresses."""
    address = {"id": id_width, "addr": 32, "len": 8, "size": 3, "burst": 2, "lock": 1, "cache": 4, "prot": 3}
    return {
        "aw": address,
        "w": {"data": data_width, "strb": data_width // 8, "last": 1},
        "b": {"id": id_width, "resp": 2},
        "ar": address,
        "r": {"id": id_width, "data": data_width, "resp": 2, "last": 1},
    }


def axi_lite_channels(data_width: int) -> Channels:
    """Payload fields of AXI4-Lite with 12-bit addresses."""
    return {
        "aw": {"addr": 12, "prot": 3},
        "w": {"data": data_width, "strb": data_width // 8},
        "b": {"resp": 2},
        "ar": {"addr": 12, "prot": 3},
        "r": {"data": data_width, "resp": 2},
    }


class Wires(wiring.Component):
    """Ports `<prefix>_<channel><field>`, with `valid` and `ready` for each channel; `clk`, `rst`, `extra`.

    Arguments:
        ports: channels of each port, by prefix.
        extra: names of further one-bit signals.
    """

    def __init__(self, ports: Mapping[str, Channels], *, extra: tuple[str, ...] = ()) -> None:
        members = {name: In(1) for name in ("clk", "rst", *extra)}
        for prefix, channels in ports.items():
            for channel, fields in channels.items():
                for field, width in {**fields, "valid": 1, "ready": 1}.items():
                    members[f"{prefix}_{channel}{field}"] = In(width)
        super().__init__(members)

    def elaborate(self, platform: object) -> Module:
        return Module()
