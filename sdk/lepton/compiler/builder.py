"""Build an integer graph operator by operator, with output scales calibrated on sample data.

Every operator added runs at once on the calibration samples, in integers; the range of its real results
gives the scale and zero point of its output, as TFLite's post-training quantization chooses them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lepton_sim.reference import (
    Activation,
    Padding,
    QuantParams,
    add_parameters,
    conv2d_sums,
    convolution_requantization,
    depthwise_conv2d_sums,
    fully_connected_requantization,
    same_padding,
    wrap_int32,
)

from .graph import Add, AveragePool, Conv, Depthwise, Graph, GraphError, MaxPool, Op, Tensor
from .reference import evaluate

__all__ = ["GraphBuilder", "quant_of_range", "quantize_weights"]

Int8 = NDArray[np.int8]


def quant_of_range(low: float, high: float) -> QuantParams:
    """The quantization that spreads [low, high], widened to hold 0, over all int8 values."""
    low, high = min(0.0, float(low)), max(0.0, float(high))
    scale = (high - low) / 255 or 1.0
    return QuantParams(scale, round(-128 - low / scale))


def quantize_weights(
    weights: NDArray[np.floating], channel_axis: int | None
) -> tuple[Int8, NDArray[np.float64]]:
    """Round float weights to symmetric int8 in [-127, 127].

    Args:
        weights: of any shape.
        channel_axis: axis that gets a scale for each index, None for one scale in all.

    Returns:
        int8 of the same shape, and the scales, float64 [channels] or [1].
    """
    if channel_axis is None:
        largest = np.abs(weights).max(keepdims=True)
    else:
        axes = tuple(i for i in range(weights.ndim) if i != channel_axis % weights.ndim)
        largest = np.abs(weights).max(axis=axes, keepdims=True)
    scales = np.where(largest > 0, largest, 1.0) / 127
    return np.rint(weights / scales).astype(np.int8), scales.reshape(-1).astype(np.float64)


class GraphBuilder:
    """A graph in the making. Methods add an operator and return the name of its output tensor.

    Convolutions take int8 weights with their scales and a bias in real units. Tensors are named
    as the operators that make them.

    Args:
        inputs: for each graph input the calibration samples, int8 [N, H, W, C], and their quantization.
    """

    def __init__(self, inputs: Mapping[str, tuple[Int8, QuantParams]]) -> None:
        self._inputs = list(inputs)
        self._ops: list[Op] = []
        self._tensors: list[Tensor] = []
        self._values: dict[str, Int8] = {}
        self._quants: dict[str, QuantParams] = {}
        for name, (samples, quant) in inputs.items():
            self._keep(name, samples, quant)

    def value(self, name: str) -> Int8:
        """A tensor's calibration values, int8 [N, H, W, C]."""
        return self._values[name]

    def quant(self, name: str) -> QuantParams:
        """A tensor's quantization."""
        return self._quants[name]

    def conv(
        self,
        name: str,
        x: str,
        weights: Int8,
        weight_scales: ArrayLike,
        bias: ArrayLike,
        *,
        stride: int = 1,
        padding: str = "same",
        activation: Activation = Activation.NONE,
    ) -> str:
        """Add a convolution.

        Args:
            weights: int8 [Cout, kh, kw, Cin].
            weight_scales: one an output channel, or one.
            bias: float [Cout], real.
            padding: ``"same"`` (TensorFlow's rule) or ``"valid"``.
        """
        pads = self._padding(x, weights.shape[1:3], stride, padding)
        source = self._quants[x]
        integers = _integer_bias(bias, source, weight_scales)
        sums = conv2d_sums(self._values[x], weights, stride=stride, padding=pads, pad_value=source.zero_point)
        folded = integers - source.zero_point * weights.sum(axis=(1, 2, 3), dtype=np.int64)
        quant = _output_quant((sums + folded) * _sum_scales(source, weight_scales), activation)
        parameters = convolution_requantization(
            weights, integers, 0, source, weight_scales, quant, activation
        )
        return self._add(Conv(name, x, name, weights, parameters, (stride, stride), padding=pads), quant)

    def depthwise(
        self,
        name: str,
        x: str,
        weights: Int8,
        weight_scales: ArrayLike,
        bias: ArrayLike,
        *,
        stride: int = 1,
        padding: str = "same",
        activation: Activation = Activation.NONE,
    ) -> str:
        """Add a depthwise convolution; weights: int8 [kh, kw, C * multiplier], the rest as for `conv`."""
        pads = self._padding(x, weights.shape[:2], stride, padding)
        source, kernel = self._quants[x], weights[np.newaxis]
        integers = _integer_bias(bias, source, weight_scales)
        sums = depthwise_conv2d_sums(
            self._values[x], kernel, stride=stride, padding=pads, pad_value=source.zero_point
        )
        folded = integers - source.zero_point * weights.sum(axis=(0, 1), dtype=np.int64)
        quant = _output_quant((sums + folded) * _sum_scales(source, weight_scales), activation)
        parameters = convolution_requantization(kernel, integers, 3, source, weight_scales, quant, activation)
        op = Depthwise(name, x, name, weights, parameters, (stride, stride), padding=pads)
        return self._add(op, quant)

    def dense(
        self,
        name: str,
        x: str,
        weights: Int8,
        weight_scale: float,
        bias: ArrayLike,
        *,
        activation: Activation = Activation.NONE,
    ) -> str:
        """Add a fully connected operator: a convolution whose kernel covers its input, rounded once.

        Args:
            weights: int8 [Cout, K], K running over height, width, channels of `x`.
            weight_scale: one scale in all.
            bias: float [Cout], real.
        """
        source, values = self._quants[x], self._values[x]
        integers = _integer_bias(bias, source, weight_scale)
        kernel = weights.reshape(len(weights), *values.shape[1:])
        folded = integers - source.zero_point * weights.sum(axis=1, dtype=np.int64)
        quant = _output_quant(
            (conv2d_sums(values, kernel) + folded) * _sum_scales(source, weight_scale), activation
        )
        parameters = fully_connected_requantization(
            weights, integers, source, weight_scale, quant, activation
        )
        return self._add(Conv(name, x, name, kernel, parameters), quant)

    def max_pool(self, name: str, x: str, size: int) -> str:
        """Add the maximum over `size` x `size` windows that do not overlap."""
        return self._add(MaxPool(name, x, name, (size, size), (size, size)), self._quants[x])

    def global_average_pool(self, name: str, x: str) -> str:
        """Add the average over the whole image (an AVERAGE_POOL_2D that covers it)."""
        size = self._values[x].shape[1:3]
        return self._add(AveragePool(name, x, name, size, size), self._quants[x])

    def add(self, name: str, a: str, b: str, *, activation: Activation = Activation.NONE) -> str:
        """Add the sum of two tensors."""
        total = sum(
            self._quants[i].scale * (self._values[i].astype(np.float64) - self._quants[i].zero_point)
            for i in (a, b)
        )
        quant = _output_quant(np.asarray(total), activation)
        parameters = add_parameters(self._quants[a], self._quants[b], quant, activation)
        return self._add(Add(name, a, name, b, parameters), quant)

    def graph(self, *outputs: str) -> Graph:
        """The finished graph with these output tensors."""
        return Graph(self._tensors, self._ops, self._inputs, outputs)

    def _padding(self, x: str, kernel: Sequence[int], stride: int, padding: str) -> Padding:
        if padding not in ("same", "valid"):
            raise GraphError(f"padding must be 'same' or 'valid', not {padding!r}")
        if padding == "valid":
            return Padding()
        height, width = self._values[x].shape[1:3]
        return same_padding((height, width), (kernel[0], kernel[1]), (stride, stride))

    def _add(self, op: Op, quant: QuantParams) -> str:
        values = [self._values[name] for name in op.inputs]
        self._ops.append(op)
        self._keep(op.output, evaluate(op, self._quants[op.input].zero_point, *values), quant)
        return op.output

    def _keep(self, name: str, samples: Int8, quant: QuantParams) -> None:
        _, height, width, channels = samples.shape
        self._tensors.append(Tensor(name, height, width, channels, quant.zero_point))
        self._values[name], self._quants[name] = samples, quant


def _sum_scales(source: QuantParams, weight_scales: ArrayLike) -> NDArray[np.float64]:
    """What one unit of a sum is worth, by output channel."""
    return source.scale * np.atleast_1d(np.asarray(weight_scales, np.float64))


def _integer_bias(bias: ArrayLike, source: QuantParams, weight_scales: ArrayLike) -> NDArray[np.int32]:
    real = np.asarray(bias, np.float64)
    return wrap_int32(np.rint(real / _sum_scales(source, weight_scales)).astype(np.int64))


def _output_quant(real: NDArray[np.float64], activation: Activation) -> QuantParams:
    """The output quantization for real results `real`, before the activation."""
    low, high = float(real.min()), float(real.max())
    if activation is not Activation.NONE:
        low = 0.0
    if activation is Activation.RELU6:
        high = min(high, 6.0)
    return quant_of_range(low, high)
