"""The four networks of the MLPerf Tiny benchmark, at its shapes, with random weights.

Cycles and byte-exactness do not depend on training, so these stand in for the trained models and need
no files. Structure, strides and paddings are those of the benchmark's TFLite models (batch
normalization folded, ReLU fused), up to the last dense layer; the softmax stays on the host.
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod

import numpy as np
from numpy.typing import NDArray

from lepton_sim.reference import (
    Activation,
    QuantParams,
    conv2d_sums,
    depthwise_conv2d_sums,
    same_padding,
)

from .builder import GraphBuilder
from .graph import Graph

__all__ = ["autoencoder", "dscnn", "mobilenetv1", "networks", "resnet8"]

INPUT = "input"
_SEED = 2024
_SAMPLES = 32


class _RandomNetwork(GraphBuilder):
    """A builder that draws weights, normalized so that every output channel has mean beta and deviation 1.

    Without that, activations of deep random networks shrink or blow up and no longer depend on the input.
    """

    def __init__(self, shape: tuple[int, int, int], quant: QuantParams, samples: int = _SAMPLES) -> None:
        self._rng = np.random.default_rng(_SEED)
        calibration = self._rng.integers(-128, 128, (samples, *shape)).astype(np.int8)
        super().__init__({INPUT: (calibration, quant)})

    def _weights(self, *shape: int) -> NDArray[np.int8]:
        # A deviation of 127 / 3: the largest of a few dozen weights use the whole range.
        return np.clip(np.rint(self._rng.normal(0, 127 / 3, shape)), -127, 127).astype(np.int8)

    def _normalize(
        self, x: str, weights: NDArray[np.int8], sums: NDArray[np.int32], channel_axis: int
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Weight scales and real biases [Cout] that give `sums` (last axis Cout) mean beta, deviation 1."""
        axes = tuple(i for i in range(weights.ndim) if i != channel_axis)
        flat = sums.reshape(-1, sums.shape[-1]) - self.quant(x).zero_point * weights.sum(
            axis=axes, dtype=np.int64
        )
        deviation = np.maximum(flat.std(axis=0), 1.0)
        beta = self._rng.normal(0, 0.3, sums.shape[-1])
        return 1 / (deviation * self.quant(x).scale), beta - flat.mean(axis=0) / deviation

    def random_conv(
        self,
        name: str,
        x: str,
        channels: int,
        kernel: tuple[int, int],
        stride: int = 1,
        activation: Activation = Activation.RELU,
    ) -> str:
        """Add a SAME convolution."""
        values = self.value(x)
        height, width = values.shape[1:3]
        weights = self._weights(channels, *kernel, values.shape[3])
        pads = same_padding((height, width), kernel, (stride, stride))
        sums = conv2d_sums(values, weights, stride=stride, padding=pads, pad_value=self.quant(x).zero_point)
        scales, bias = self._normalize(x, weights, sums, 0)
        return self.conv(name, x, weights, scales, bias, stride=stride, activation=activation)

    def random_depthwise(self, name: str, x: str, stride: int = 1) -> str:
        """Add a 3 x 3 SAME depthwise convolution with ReLU."""
        values = self.value(x)
        height, width = values.shape[1:3]
        weights = self._weights(3, 3, values.shape[3])
        pads = same_padding((height, width), (3, 3), (stride, stride))
        sums = depthwise_conv2d_sums(
            values, weights[np.newaxis], stride=stride, padding=pads, pad_value=self.quant(x).zero_point
        )
        scales, bias = self._normalize(x, weights, sums, 2)
        return self.depthwise(name, x, weights, scales, bias, stride=stride, activation=Activation.RELU)

    def random_dense(self, name: str, x: str, channels: int, activation: Activation) -> str:
        """Add a fully connected operator; one scale for all channels, as the benchmark's models have."""
        values = self.value(x)
        weights = self._weights(channels, prod(values.shape[1:]))
        sums = conv2d_sums(values, weights.reshape(channels, *values.shape[1:]))
        scales, bias = self._normalize(x, weights, sums, 0)
        common = float(np.median(scales))
        return self.dense(name, x, weights, common, bias * common / scales, activation=activation)


def resnet8() -> Graph:
    """Image classification: ResNet-8 on 32 x 32 x 3, 10 classes; 12,501,632 multiply-accumulates."""
    net = _RandomNetwork((32, 32, 3), QuantParams(1.0, -128))
    x = net.random_conv("conv1", INPUT, 16, (3, 3))
    for stack, channels, stride in ((1, 16, 1), (2, 32, 2), (3, 64, 2)):
        y = net.random_conv(f"stack{stack}_conv1", x, channels, (3, 3), stride)
        y = net.random_conv(f"stack{stack}_conv2", y, channels, (3, 3), activation=Activation.NONE)
        if stride > 1:
            x = net.random_conv(f"stack{stack}_shortcut", x, channels, (1, 1), stride, Activation.NONE)
        x = net.add(f"stack{stack}_add", x, y, activation=Activation.RELU)
    x = net.global_average_pool("pool", x)
    return net.graph(net.random_dense("dense", x, 10, Activation.NONE))


def dscnn() -> Graph:
    """Keyword spotting: DS-CNN on 49 x 10 x 1, 12 words; 2,656,768 multiply-accumulates."""
    net = _RandomNetwork((49, 10, 1), QuantParams(0.5847, 83))
    x = net.random_conv("conv1", INPUT, 64, (10, 4), 2)
    for i in range(1, 5):
        x = net.random_depthwise(f"depthwise{i}", x)
        x = net.random_conv(f"pointwise{i}", x, 64, (1, 1))
    x = net.global_average_pool("pool", x)
    return net.graph(net.random_dense("dense", x, 12, Activation.NONE))


def mobilenetv1() -> Graph:
    """Visual wake words: MobileNetV1 x 0.25 on 96 x 96 x 3, 2 classes; 7,489,664 multiply-accumulates."""
    net = _RandomNetwork((96, 96, 3), QuantParams(1 / 255, -128))
    x = net.random_conv("conv1", INPUT, 8, (3, 3), 2)
    widths = [16, 32, 32, 64, 64, 128, 128, 128, 128, 128, 128, 256, 256]
    halved = {2, 4, 6, 12}
    for i, channels in enumerate(widths, 1):
        x = net.random_depthwise(f"depthwise{i}", x, 2 if i in halved else 1)
        x = net.random_conv(f"pointwise{i}", x, channels, (1, 1))
    x = net.global_average_pool("pool", x)
    return net.graph(net.random_dense("dense", x, 2, Activation.NONE))


def autoencoder() -> Graph:
    """Anomaly detection: ten dense layers from 640 to 8 and back; 264,192 multiply-accumulates."""
    # Each sample gives only one value a channel, so statistics take more of them.
    net = _RandomNetwork((1, 1, 640), QuantParams(0.4, 90), samples=256)
    x = INPUT
    for i, channels in enumerate([128, 128, 128, 128, 8, 128, 128, 128, 128], 1):
        x = net.random_dense(f"dense{i}", x, channels, Activation.RELU)
    return net.graph(net.random_dense("dense10", x, 640, Activation.NONE))


def networks() -> dict[str, Callable[[], Graph]]:
    """Builders of the four networks by name; each gives the same graph every time."""
    return {
        "resnet8": resnet8,
        "dscnn": dscnn,
        "mobilenetv1": mobilenetv1,
        "autoencoder": autoencoder,
    }
