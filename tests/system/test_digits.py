"""The digits example: real handwritten digits through the int8 network."""

import importlib
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lepton.compiler import Graph, compile_graph
from lepton.compiler.graph_file import load_graph
from lepton.compiler.reference import run_reference_batch
from lepton_hw.config import preset
from lepton_sim.golden import GoldenDevice

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture
def digits(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The example's module of data."""
    monkeypatch.syspath_prepend(EXAMPLES)
    return importlib.import_module("digits")


@pytest.fixture
def case(digits: Any) -> tuple[Graph, dict[str, Any], np.ndarray, np.ndarray]:
    """Graph, extras, the held-out scans as int8 [360, 8, 8, 1], and their labels."""
    graph, extras = load_graph(digits.NETWORK_FILE)
    scans, labels = digits.load_scans()
    _, held_out = digits.split(len(scans))
    x = digits.quantize_scans(scans[held_out], float(extras["input_scale"]), int(extras["input_zero_point"]))
    return graph, extras, x, labels[held_out]


def test_split_is_fixed_and_disjoint(digits: Any) -> None:
    """No held-out scan is trained on, and the split of the committed network stays."""
    training, held_out = digits.split(1797)
    assert sorted([*training, *held_out]) == list(range(1797))
    assert len(held_out) == 360
    assert np.array_equal(held_out, digits.split(1797)[1])


def test_missing_scikit_learn_is_explained(digits: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without scikit-learn the message says how to get it."""
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(SystemExit, match="make setup"):
        digits.load_scans()


def test_accuracy(digits: Any, case: Any) -> None:
    """At least 95 % of the held-out scans, and as good as in floating point to half a percent."""
    graph, extras, x, labels = case
    logits = run_reference_batch(graph, {digits.INPUT: x})[graph.outputs[0]]
    accuracy = float((logits.reshape(len(x), -1).argmax(axis=1) == labels).mean())
    assert accuracy >= 0.95
    assert accuracy >= float(extras["float_accuracy"]) - 0.005


@pytest.mark.parametrize("name", ["nano", "small", "base", "large"])
def test_compiled_program_equals_the_reference(digits: Any, case: Any, name: str) -> None:
    """The compiled network on the golden model gives the reference operators' bytes."""
    graph, _, x, _ = case
    x = x[:40]
    expected = run_reference_batch(graph, {digits.INPUT: x})
    config = preset(name)
    program, device = compile_graph(graph, config), GoldenDevice(config)
    program.load(device)
    for i, scan in enumerate(x):
        outputs = program.run(device, {digits.INPUT: scan}, load=False).outputs
        assert set(outputs) == set(graph.outputs)
        for tensor, value in outputs.items():
            assert np.array_equal(value, expected[tensor][i]), f"scan {i}, tensor {tensor}"


@pytest.mark.slow
def test_demo_on_rtl() -> None:
    """The demo script runs to its end, with the golden model's bytes."""
    command = [sys.executable, str(EXAMPLES / "digits_demo.py"), "--scans", "4"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "4 of 4 outputs" in done.stdout
    assert "whole network" in done.stdout
