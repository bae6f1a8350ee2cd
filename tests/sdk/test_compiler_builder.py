"""The graph builder: quantization of weights and outputs, against arithmetic on real numbers."""

import numpy as np
import pytest

from lepton.compiler import Conv, GraphError
from lepton.compiler.builder import GraphBuilder, quant_of_range, quantize_weights
from lepton_sim.reference import Activation, QuantParams


def real(net: GraphBuilder, name: str) -> np.ndarray:
    quant = net.quant(name)
    return quant.scale * (net.value(name).astype(float) - quant.zero_point)


@pytest.fixture
def net() -> GraphBuilder:
    x = np.random.default_rng(5).integers(-128, 128, (8, 6, 6, 4)).astype(np.int8)
    return GraphBuilder({"x": (x, QuantParams(0.02, 10))})


@pytest.mark.parametrize(
    ("low", "high", "zero_point"), [(0, 6, -128), (-1, 1, 0), (-3, 0, 127), (2, 6, -128), (-5, -1, 127)]
)
def test_range_holds_zero_exactly(low: float, high: float, zero_point: int) -> None:
    """Zero has an int8 of its own, and 255 steps cover the range."""
    quant = quant_of_range(low, high)
    assert quant.scale == pytest.approx((max(high, 0) - min(low, 0)) / 255)
    assert quant.zero_point == zero_point


def test_weights_round_to_half_a_step() -> None:
    """Each channel's largest weight becomes 127; a channel of zeros stays zeros."""
    weights = np.random.default_rng(1).normal(size=(3, 3, 3, 2))
    weights[1] = 0
    integers, scales = quantize_weights(weights, 0)
    assert scales.shape == (3,)
    assert np.abs(integers).max(axis=(1, 2, 3)).tolist() == [127, 0, 127]
    assert np.abs(integers * scales.reshape(3, 1, 1, 1) - weights).max() <= scales.max() * 0.5001
    assert quantize_weights(weights, None)[1].shape == (1,)


@pytest.mark.parametrize("activation", list(Activation))
def test_convolutions_follow_real_arithmetic(net: GraphBuilder, activation: Activation) -> None:
    """Each kind of convolution is within a step of the same in floating point."""
    rng = np.random.default_rng(2)
    weights, bias = rng.integers(-127, 128, (5, 1, 1, 4)).astype(np.int8), rng.normal(size=5)
    scales = rng.uniform(0.01, 0.03, 5)
    x = real(net, "x")
    bounds = {Activation.NONE: (-np.inf, np.inf), Activation.RELU: (0, np.inf), Activation.RELU6: (0, 6)}
    expected = np.clip(x @ (weights[:, 0, 0] * scales[:, None]).T + bias, *bounds[activation])
    net.conv("conv", "x", weights, scales, bias, activation=activation)
    assert np.abs(real(net, "conv") - expected).max() <= 1.01 * net.quant("conv").scale

    expected = np.clip(x * weights[0, 0, 0] * scales[:4] + bias[:4], *bounds[activation])
    net.depthwise("dw", "x", weights[:1, :, 0], scales[:4], bias[:4], activation=activation)
    assert np.abs(real(net, "dw") - expected).max() <= 1.01 * net.quant("dw").scale

    matrix = rng.integers(-127, 128, (7, 6 * 6 * 4)).astype(np.int8)
    expected = np.clip(x.reshape(8, -1) @ (0.001 * matrix.T) + 0.3, *bounds[activation])
    net.dense("dense", "x", matrix, 0.001, np.full(7, 0.3), activation=activation)
    assert np.abs(real(net, "dense")[:, 0, 0] - expected).max() <= 1.01 * net.quant("dense").scale
    assert expected.std() > 20 * net.quant("dense").scale


def test_add_and_pools(net: GraphBuilder) -> None:
    """Sums of differently scaled tensors; maximum and average keep their input's quantization."""
    ones = np.eye(4, dtype=np.int8).reshape(4, 1, 1, 4)
    y = net.conv("y", "x", ones, 3.0, np.zeros(4))
    total = net.add("total", "x", y, activation=Activation.RELU)
    expected = np.maximum(real(net, "x") + real(net, y), 0)
    assert np.abs(real(net, total) - expected).max() <= 1.01 * net.quant(total).scale
    net.max_pool("largest", total, 2)
    net.global_average_pool("mean", "largest")
    assert net.quant("mean") == net.quant(total)
    graph = net.graph("mean")
    assert graph.tensors["mean"].shape == (1, 1, 4) and graph.outputs == ["mean"]
    assert graph.tensors["x"].zero_point == 10
    assert isinstance(graph.ops[0], Conv)


def test_unknown_padding_is_named(net: GraphBuilder) -> None:
    """Only TensorFlow's two words are taken."""
    with pytest.raises(GraphError, match="padding must be 'same' or 'valid', not 'full'"):
        net.conv("c", "x", np.zeros((1, 3, 3, 4), np.int8), 1.0, np.zeros(1), padding="full")
