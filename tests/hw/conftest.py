"""Fixtures of the hardware tests."""

from __future__ import annotations

import pytest

from bench import SIMULATORS, simulator_available


@pytest.fixture(params=SIMULATORS)
def simulator(request: pytest.FixtureRequest) -> str:
    """Each simulator in turn; skips those that are not installed."""
    if not simulator_available(request.param):
        pytest.skip(f"{request.param} is not installed (optional: apt install {_PACKAGES[request.param]})")
    return request.param


_PACKAGES = {"verilator": "verilator", "icarus": "iverilog"}
