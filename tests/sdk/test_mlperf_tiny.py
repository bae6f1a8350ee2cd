"""The four MLPerf Tiny networks: arithmetic, shapes, and numbers worth testing with."""

from functools import cache

import numpy as np
import pytest

from lepton.compiler import AveragePool, Conv, Depthwise, Graph, Op, macs
from lepton.compiler.mlperf_tiny import networks
from lepton.compiler.reference import run_reference_batch
from lepton_sim.reference import Padding, Rounding

NAMES = ["resnet8", "dscnn", "mobilenetv1", "autoencoder"]


@cache
def network(name: str) -> Graph:
    return networks()[name]()


def run(graph: Graph, samples: int, seed: int = 11) -> dict[str, np.ndarray]:
    shape = graph.tensors["input"].shape
    x = np.random.default_rng(seed).integers(-128, 128, (samples, *shape)).astype(np.int8)
    return run_reference_batch(graph, {"input": x})


def operator(graph: Graph, name: str) -> Op:
    return next(op for op in graph.ops if op.name == name)


def test_names() -> None:
    """The table holds the four networks."""
    assert list(networks()) == NAMES


@pytest.mark.parametrize(
    ("name", "total", "operators", "output"),
    [
        ("resnet8", 12_501_632, 14, 10),
        ("dscnn", 2_656_768, 11, 12),
        ("mobilenetv1", 7_489_664, 29, 2),
        ("autoencoder", 264_192, 10, 640),
    ],
)
def test_size(name: str, total: int, operators: int, output: int) -> None:
    """Multiply-accumulates as published for the benchmark's models, and the last tensor."""
    graph = network(name)
    assert sum(macs(op, graph) for op in graph.ops) == total
    assert len(graph.ops) == operators
    assert graph.tensors[graph.outputs[0]].shape == (1, 1, output)


@pytest.mark.parametrize(
    ("name", "layer", "kernel", "stride", "padding", "output"),
    [
        ("resnet8", "conv1", (3, 3), (1, 1), (1, 1, 1, 1), (32, 32, 16)),
        ("resnet8", "stack2_conv1", (3, 3), (2, 2), (0, 1, 0, 1), (16, 16, 32)),
        ("resnet8", "stack3_shortcut", (1, 1), (2, 2), (0, 0, 0, 0), (8, 8, 64)),
        ("resnet8", "dense", (1, 1), (1, 1), (0, 0, 0, 0), (1, 1, 10)),
        ("dscnn", "conv1", (10, 4), (2, 2), (4, 5, 1, 1), (25, 5, 64)),
        ("dscnn", "depthwise1", (3, 3), (1, 1), (1, 1, 1, 1), (25, 5, 64)),
        ("mobilenetv1", "conv1", (3, 3), (2, 2), (0, 1, 0, 1), (48, 48, 8)),
        ("mobilenetv1", "depthwise2", (3, 3), (2, 2), (0, 1, 0, 1), (24, 24, 16)),
        ("mobilenetv1", "depthwise13", (3, 3), (1, 1), (1, 1, 1, 1), (3, 3, 256)),
    ],
)
def test_geometry(name, layer, kernel, stride, padding, output) -> None:
    """Strides and TensorFlow's asymmetric paddings, where they matter."""
    graph = network(name)
    op = operator(graph, layer)
    assert isinstance(op, (Conv, Depthwise))
    assert (op.kernel, op.stride, op.padding) == (kernel, stride, Padding(*padding))
    assert graph.tensors[op.output].shape == output


@pytest.mark.parametrize(
    ("name", "window"), [("resnet8", (8, 8)), ("dscnn", (25, 5)), ("mobilenetv1", (3, 3))]
)
def test_global_pooling_is_average_pool(name: str, window: tuple[int, int]) -> None:
    """The benchmark's models pool with AVERAGE_POOL_2D over the whole image."""
    op = operator(network(name), "pool")
    assert isinstance(op, AveragePool) and op.kernel == window


@pytest.mark.parametrize("name", NAMES)
def test_requantization_kinds(name: str) -> None:
    """Convolutions have a scale a channel and round twice; dense layers have one scale and round once."""
    for op in network(name).ops:
        if isinstance(op, (Conv, Depthwise)):
            p, dense = op.parameters, op.name.startswith("dense")
            assert p.rounding is (Rounding.SINGLE if dense else Rounding.DOUBLE), op.name
            per_channel = len(set(zip(p.multiplier.tolist(), p.shift.tolist(), strict=True))) > 1
            assert per_channel is not dense, op.name


@pytest.mark.parametrize("name", NAMES)
def test_activations_are_worth_comparing(name: str) -> None:
    """No tensor is stuck at a bound, near constant, or independent of the input."""
    graph = network(name)
    values = run(graph, 32)
    for op in graph.ops:
        y = values[op.output]
        assert (y == 127).mean() < 0.05, f"{op.name} saturates"
        assert (y == graph.tensors[op.output].zero_point).mean() < 0.75, f"{op.name} is mostly zero"
        assert len(np.unique(y)) > 25, f"{op.name} has few distinct values"
        assert y.astype(float).std(axis=0).mean() > 1, f"{op.name} hardly depends on the input"


@pytest.mark.parametrize("name", NAMES)
def test_every_weight_range_is_used(name: str) -> None:
    """Weights are symmetric int8 that reach both ends of their range."""
    for op in network(name).ops:
        if isinstance(op, (Conv, Depthwise)):
            assert op.weights.dtype == np.int8
            assert -127 <= op.weights.min() < -60 and 60 < op.weights.max() <= 127, op.name


def test_same_graph_every_time() -> None:
    """Two calls give the same weights and integers."""
    a, b = networks()["dscnn"](), network("dscnn")
    assert a is not b
    for first, second in zip(a.ops, b.ops, strict=True):
        if isinstance(first, (Conv, Depthwise)):
            assert isinstance(second, (Conv, Depthwise))
            assert np.array_equal(first.weights, second.weights)
            assert np.array_equal(first.parameters.bias, second.parameters.bias)
            assert np.array_equal(first.parameters.multiplier, second.parameters.multiplier)
