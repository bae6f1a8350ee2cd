"""NPU configuration: one frozen dataclass, validated on construction, with named presets."""

from __future__ import annotations

from dataclasses import dataclass, fields

__all__ = ["BANKS", "PRESETS", "ConfigError", "NPUConfig", "preset"]

BANKS = 4
"""Scratchpad banks, interleaved by vector. Four, because a pass of the 3 x 3 depthwise mode reads
three rows at once and a packed patch reads up to four vectors at once."""

ARRAY_SIZES = (4, 8, 16, 32)
BUS_WIDTHS = (32, 64, 128, 256)
SEMAPHORES = 16


class ConfigError(ValueError):
    """A configuration that cannot be built; the message names field, value and what is allowed."""


def _is_power_of_two(value: int) -> bool:
    return value > 0 and value & (value - 1) == 0


@dataclass(frozen=True)
class NPUConfig:
    """Everything that distinguishes one Lepton NPU from another.

    A *vector* is ``array_size`` bytes: one int8 for each row (or column) of the array.

    Attributes:
        array_size: rows and columns of the systolic array (N).
        bus_width: AXI4 data width in bits; at most ``8 * array_size``.
        scratchpad_bytes: activation memory, four banks together.
        weight_bytes: weight memory.
        accumulator_depth: int32 vectors of partial sums; the largest tile (output positions).
        output_depth: int32 vectors of finished sums that wait for the output stage; at least
            ``accumulator_depth`` (twice that lets a tile finish while the one before drains).
        parameter_bytes: memory of biases, multipliers and shifts.
        requantize_lanes: 32 x 31-bit multipliers of the output stage; divides ``array_size``.
        burst_beats: longest AXI burst.
        outstanding_reads: read bursts in flight.
        outstanding_writes: write bursts in flight.
        rows_mode: build the depthwise mode (ISA mode ROWS).
        patch_mode: build the thin-input packing (ISA mode PATCH).

    Raises:
        ConfigError: a field outside what is allowed.
    """

    array_size: int = 16
    bus_width: int = 128
    scratchpad_bytes: int = 128 * 1024
    weight_bytes: int = 64 * 1024
    accumulator_depth: int = 512
    output_depth: int = 1024
    parameter_bytes: int = 8 * 1024
    requantize_lanes: int = 16
    burst_beats: int = 32
    outstanding_reads: int = 16
    outstanding_writes: int = 4
    rows_mode: bool = True
    patch_mode: bool = True

    def __post_init__(self) -> None:
        for f in fields(self):
            value = getattr(self, f.name)
            kind = bool if f.type == "bool" else int
            if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
                raise ConfigError(f"{f.name} must be {kind.__name__}, not {value!r}")
        n = self.array_size
        self._one_of("array_size", ARRAY_SIZES)
        self._one_of("bus_width", tuple(w for w in BUS_WIDTHS if w <= 8 * n))
        self._power_of_two("scratchpad_bytes", BANKS * n * 16, 1 << 22)
        self._power_of_two("weight_bytes", n * n * 2, 1 << 22)
        self._power_of_two("accumulator_depth", 16, 4096)
        self._power_of_two("output_depth", self.accumulator_depth, 8192)
        self._power_of_two("parameter_bytes", n * 16, 1 << 18)
        self._one_of("requantize_lanes", tuple(2**i for i in range(n.bit_length()) if 2**i <= n))
        self._one_of("burst_beats", (4, 8, 16, 32, 64, 128, 256))
        if self.burst_beats * self.bus_bytes > 4096:
            raise ConfigError(
                f"burst_beats * bus bytes must be at most 4096 (AXI4 A3.4.1), not "
                f"{self.burst_beats} * {self.bus_bytes}"
            )
        self._one_of("outstanding_reads", (1, 2, 4, 8, 16, 32))
        self._one_of("outstanding_writes", (1, 2, 4, 8, 16))

    def _one_of(self, name: str, allowed: tuple[int, ...]) -> None:
        value = getattr(self, name)
        if value not in allowed:
            raise ConfigError(f"{name} must be one of {', '.join(map(str, allowed))}, not {value}")

    def _power_of_two(self, name: str, low: int, high: int) -> None:
        value = getattr(self, name)
        if not _is_power_of_two(value) or not low <= value <= high:
            raise ConfigError(f"{name} must be a power of two from {low} to {high}, not {value}")

    @property
    def bus_bytes(self) -> int:
        """Bytes a bus beat."""
        return self.bus_width // 8

    @property
    def scratchpad_vectors(self) -> int:
        """Vectors the scratchpad holds."""
        return self.scratchpad_bytes // self.array_size

    @property
    def weight_vectors(self) -> int:
        """Vectors the weight memory holds (a weight tile is ``array_size`` of them)."""
        return self.weight_bytes // self.array_size

    @property
    def parameter_vectors(self) -> int:
        """Vectors the parameter memory holds."""
        return self.parameter_bytes // self.array_size

    @property
    def depthwise_groups(self) -> int:
        """Kernel rows of three taps that one ROWS pass can hold (1 to 3)."""
        return min(3, self.array_size // 3)

    @property
    def depthwise_taps(self) -> int:
        """Array rows with a vertical activation path: taps that one ROWS pass can hold."""
        return 3 * self.depthwise_groups


PRESETS: dict[str, NPUConfig] = {
    "nano": NPUConfig(
        array_size=4,
        bus_width=32,
        scratchpad_bytes=4 * 1024,
        weight_bytes=1024,
        accumulator_depth=64,
        output_depth=128,
        parameter_bytes=1024,
        requantize_lanes=1,
        burst_beats=16,
        outstanding_reads=2,
        outstanding_writes=1,
        rows_mode=False,
        patch_mode=False,
    ),
    "small": NPUConfig(
        array_size=8,
        bus_width=64,
        scratchpad_bytes=64 * 1024,
        weight_bytes=32 * 1024,
        accumulator_depth=512,
        output_depth=1024,
        parameter_bytes=8 * 1024,
        requantize_lanes=8,
    ),
    "base": NPUConfig(),
    "large": NPUConfig(
        array_size=32,
        bus_width=256,
        scratchpad_bytes=256 * 1024,
        weight_bytes=256 * 1024,
        accumulator_depth=512,
        output_depth=1024,
        parameter_bytes=32 * 1024,
        requantize_lanes=32,
    ),
}


def preset(name: str) -> NPUConfig:
    """The preset called `name` (``nano``, ``small``, ``base`` or ``large``).

    Raises:
        ConfigError: no such preset.
    """
    try:
        return PRESETS[name]
    except KeyError:
        raise ConfigError(f"no preset {name!r}; the presets are {', '.join(PRESETS)}") from None
