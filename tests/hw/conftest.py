"""Fixtures of the hardware tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench import SIMULATORS, simulator_available


@pytest.fixture(params=SIMULATORS)
def simulator(request: pytest.FixtureRequest) -> str:
    """Each simulator in turn; skips those that are not installed."""
    if not simulator_available(request.param):
        pytest.skip(f"{request.param} is not installed (optional: apt install {_PACKAGES[request.param]})")
    return request.param


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave what mostly takes building time to the slow suite: the largest array, and a second simulator
    on anything but the smallest."""
    for item in items:
        if Path(__file__).parent not in item.path.parents:
            continue
        values = getattr(item, "callspec", None)
        names = {v for v in values.params.values() if isinstance(v, str)} if values else set()
        if "large" in names or ("icarus" in names and names & {"small", "base"}):
            item.add_marker(pytest.mark.slow)


_PACKAGES = {"verilator": "verilator", "icarus": "iverilog"}
