"""NPUConfig: what can be built, what cannot, and in which words."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import pytest

from lepton_hw.config import PRESETS, ConfigError, NPUConfig, preset
from lepton_hw.isa import config_words


def test_presets() -> None:
    assert list(PRESETS) == ["nano", "small", "base", "large"]
    assert [c.array_size for c in PRESETS.values()] == [4, 8, 16, 32]
    assert preset("base") is PRESETS["base"]
    assert preset("base") == NPUConfig()
    with pytest.raises(ConfigError, match="no preset 'huge'; the presets are nano, small, base, large"):
        preset("huge")


@pytest.mark.parametrize("name", PRESETS)
def test_sizes_follow(name: str) -> None:
    c = PRESETS[name]
    assert c.bus_bytes * 8 == c.bus_width
    assert c.scratchpad_vectors * c.array_size == c.scratchpad_bytes
    assert c.weight_vectors * c.array_size == c.weight_bytes
    assert c.parameter_vectors * c.array_size == c.parameter_bytes
    assert c.depthwise_taps == 3 * c.depthwise_groups <= c.array_size
    with pytest.raises(dataclasses.FrozenInstanceError):
        c.array_size = 4  # type: ignore[misc]


def test_depthwise_rows() -> None:
    sizes = {"array_size": 4, "bus_width": 32, "requantize_lanes": 4}
    assert NPUConfig(**sizes).depthwise_groups == 1  # type: ignore[arg-type]
    assert [PRESETS[p].depthwise_groups for p in ("small", "base", "large")] == [2, 3, 3]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"array_size": 12}, "array_size must be one of 4, 8, 16, 32, not 12"),
        ({"array_size": 16.0}, "array_size must be int, not 16.0"),
        ({"array_size": True}, "array_size must be int, not True"),
        ({"rows_mode": 1}, "rows_mode must be bool, not 1"),
        ({"patch_mode": None}, "patch_mode must be bool, not None"),
        ({"bus_width": 256}, "bus_width must be one of 32, 64, 128, not 256"),
        ({"bus_width": 48}, "bus_width must be one of 32, 64, 128, not 48"),
        (
            {"scratchpad_bytes": 100_000},
            "scratchpad_bytes must be a power of two from 1024 to 4194304, not 100000",
        ),
        ({"scratchpad_bytes": 512}, "scratchpad_bytes must be a power of two from 1024 to 4194304, not 512"),
        ({"weight_bytes": 256}, "weight_bytes must be a power of two from 512 to 4194304, not 256"),
        ({"weight_bytes": 0}, "weight_bytes must be a power of two from 512"),
        ({"accumulator_depth": 8}, "accumulator_depth must be a power of two from 16 to 4096, not 8"),
        ({"accumulator_depth": -16}, "accumulator_depth must be a power of two from 16 to 4096, not -16"),
        ({"output_depth": 256}, "output_depth must be a power of two from 512 to 8192, not 256"),
        ({"parameter_bytes": 128}, "parameter_bytes must be a power of two from 256 to 262144, not 128"),
        ({"requantize_lanes": 32}, "requantize_lanes must be one of 1, 2, 4, 8, 16, not 32"),
        ({"requantize_lanes": 0}, "requantize_lanes must be one of 1, 2, 4, 8, 16, not 0"),
        ({"burst_beats": 2}, "burst_beats must be one of 4, 8, 16, 32, 64, 128, 256, not 2"),
        ({"outstanding_reads": 3}, "outstanding_reads must be one of 1, 2, 4, 8, 16, 32, not 3"),
        ({"outstanding_writes": 32}, "outstanding_writes must be one of 1, 2, 4, 8, 16, not 32"),
    ],
)
def test_what_cannot_be_built(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError) as refused:
        NPUConfig(**changes)
    assert words in str(refused.value)


def test_bursts_stay_within_4_kib() -> None:
    large = dataclasses.asdict(PRESETS["large"])
    NPUConfig(**large | {"burst_beats": 128})
    with pytest.raises(ConfigError, match=r"at most 4096 .*, not 256 \* 32"):
        NPUConfig(**large | {"burst_beats": 256})


def test_configurations_show_in_their_words() -> None:
    """Whatever a program depends on differs in CONFIG0 to CONFIG2."""
    base = dataclasses.asdict(NPUConfig())
    other = {
        "bus_width": 64, "scratchpad_bytes": 1 << 16, "weight_bytes": 1 << 15, "accumulator_depth": 256,
        "output_depth": 2048, "parameter_bytes": 1 << 12, "requantize_lanes": 4, "burst_beats": 16,
        "outstanding_reads": 8, "outstanding_writes": 2, "rows_mode": False, "patch_mode": False,
    }  # fmt: skip
    assert set(other) == set(base) - {"array_size"}
    configs = [*PRESETS.values(), *(NPUConfig(**base | {name: value}) for name, value in other.items())]
    for a, b in itertools.combinations(configs, 2):
        assert config_words(a) != config_words(b)
    assert all(0 <= word < 1 << 32 for c in configs for word in config_words(c))
