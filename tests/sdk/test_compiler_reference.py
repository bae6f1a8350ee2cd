"""Graphs through the reference operators."""

import numpy as np
import pytest

from lepton.compiler import (
    Add,
    AveragePool,
    Conv,
    Depthwise,
    Graph,
    GraphError,
    MaxPool,
    Mean,
    Tensor,
)
from lepton.compiler.reference import run_reference, run_reference_batch
from lepton_sim.reference import (
    Activation,
    Padding,
    QuantParams,
    Requantization,
    add_parameters,
    mean_requantization,
)

IDENTITY = Requantization([0], [1 << 30], [1])


def quantized(channels: int, shift: int) -> Requantization:
    """sum * 2^shift, clamped to int8."""
    return Requantization(np.zeros(channels, int), np.full(channels, 1 << 30), np.full(channels, shift + 1))


def test_convolution_pads_with_the_zero_point() -> None:
    """A 2 x 2 kernel of ones over one pixel: three taps see the padding."""
    weights = np.ones((1, 2, 2, 1), np.int8)
    op = Conv("c", "x", "y", weights, IDENTITY, padding=Padding(0, 1, 0, 1))
    graph = Graph([Tensor("x", 1, 1, 1, zero_point=5), Tensor("y", 1, 1, 1)], [op], ["x"], ["y"])
    values = run_reference(graph, {"x": np.array([[[7]]], np.int8)})
    assert values["y"].tolist() == [[[7 + 3 * 5]]]
    assert values["x"].tolist() == [[[7]]]


def test_every_operator() -> None:
    """A graph with all operators, each result worked out by hand from the one before."""
    x = np.arange(-16, 16, dtype=np.int8).reshape(4, 4, 2)
    swap = np.array([[0, 1], [1, 0]], np.int8).reshape(2, 1, 1, 2)
    quant = QuantParams(0.5)
    ops = [
        Conv("conv", "x", "conv", swap, IDENTITY, stride=(1, 1)),
        Depthwise("dw", "conv", "dw", np.array([[[1, -1, 2, 3]]], np.int8), quantized(4, -1)),
        MaxPool("max", "dw", "max", (2, 2), (2, 2), clamp_min=0),
        AveragePool("average", "dw", "average", (2, 2), (2, 2)),
        Add("add", "max", "add", "average", add_parameters(quant, quant, quant, Activation.NONE)),
        Mean("mean", "add", "mean", mean_requantization(4, quant, quant)),
    ]
    shapes = {
        "x": (4, 4, 2), "conv": (4, 4, 2), "dw": (4, 4, 4), "max": (2, 2, 4), "average": (2, 2, 4),
        "add": (2, 2, 4), "mean": (1, 1, 4),
    }  # fmt: skip
    graph = Graph([Tensor(n, *s) for n, s in shapes.items()], ops, ["x"], ["mean"])
    values = run_reference(graph, {"x": x})
    assert {name: value.shape for name, value in values.items()} == shapes
    assert all(value.dtype == np.int8 for value in values.values())

    def away(real: np.ndarray) -> np.ndarray:
        return np.sign(real) * np.floor(np.abs(real) + 0.5)

    def windows(value: np.ndarray) -> np.ndarray:
        return value.reshape(2, 2, 2, 2, 4).astype(float)

    assert np.array_equal(values["conv"], x[..., ::-1])
    expanded = values["conv"].repeat(2, axis=2) * np.array([1, -1, 2, 3]) / 2
    assert np.array_equal(values["dw"], np.floor(expanded + 0.5))  # the first rounding, half up, decides
    assert np.array_equal(values["max"], np.maximum(windows(values["dw"]).max(axis=(1, 3)), 0))
    assert np.array_equal(values["average"], away(windows(values["dw"]).mean(axis=(1, 3))))
    assert np.array_equal(values["add"], np.clip(values["max"] + values["average"].astype(int), -128, 127))
    exact = values["add"].astype(float).mean(axis=(0, 1))
    assert np.abs(values["mean"][0, 0] - exact).max() <= 0.5


def test_batch_equals_samples_one_by_one() -> None:
    """The batched run gives each sample what it gets alone."""
    rng = np.random.default_rng(3)
    weights = rng.integers(-127, 128, (5, 3, 3, 2)).astype(np.int8)
    op = Conv("c", "x", "y", weights, quantized(5, -9), (2, 1), (1, 2), Padding(1, 0, 2, 1))
    graph = Graph([Tensor("x", 6, 7, 2, -3), Tensor("y", 3, 6, 5)], [op], ["x"], ["y"])
    x = rng.integers(-128, 128, (4, 6, 7, 2)).astype(np.int8)
    batch = run_reference_batch(graph, {"x": x})["y"]
    assert len(np.unique(batch)) > 50
    for sample, expected in zip(x, batch, strict=True):
        assert np.array_equal(run_reference(graph, {"x": sample})["y"], expected)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({}, r"inputs must be \['x'\]"),
        ({"x": np.zeros((2, 2, 1), np.int8), "z": np.zeros(1, np.int8)}, "'z'"),
        ({"x": np.zeros((2, 3, 1), np.int8)}, r"shape \(2, 2, 1\).*int8 of shape \(1, 2, 3, 1\)"),
        ({"x": np.zeros((2, 2, 1), np.int16)}, "not int16"),
    ],
    ids=["missing", "unknown", "shape", "dtype"],
)
def test_wrong_inputs_are_named(inputs: dict[str, np.ndarray], message: str) -> None:
    """An input that does not fit is refused with its name and what was expected."""
    op = MaxPool("p", "x", "y", (2, 2), (2, 2))
    graph = Graph([Tensor("x", 2, 2, 1), Tensor("y", 1, 1, 1)], [op], ["x"], ["y"])
    with pytest.raises(GraphError, match=message):
        run_reference(graph, inputs)
