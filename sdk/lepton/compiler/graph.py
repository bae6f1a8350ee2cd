"""A graph of quantized operators in integers: what the compiler takes in.

Scales are gone: every operator carries the integers of its requantization
(`lepton_sim.reference.Requantization`), so that the compiler only rearranges.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from lepton_sim.reference import AddParameters, Padding, Requantization

__all__ = [
    "Add",
    "AveragePool",
    "Conv",
    "Depthwise",
    "Graph",
    "GraphError",
    "MaxPool",
    "Mean",
    "Op",
    "Tensor",
    "macs",
    "window_output",
]


class GraphError(ValueError):
    """A graph that does not hold together; the message names operator, tensor and shapes."""


@dataclass(frozen=True)
class Tensor:
    """An int8 activation, one sample.

    Attributes:
        name: unique in the graph.
        height, width, channels: shape; a vector is 1 x 1 x channels.
        zero_point: what real 0 is; convolutions pad with it.
    """

    name: str
    height: int
    width: int
    channels: int
    zero_point: int = 0

    @property
    def shape(self) -> tuple[int, int, int]:
        """(height, width, channels)."""
        return self.height, self.width, self.channels


@dataclass(frozen=True)
class Op:
    """An operator: a name, an input tensor and an output tensor, by name."""

    name: str
    input: str
    output: str

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of all input tensors."""
        return (self.input,)


@dataclass(frozen=True)
class Conv(Op):
    """2-D convolution; fully connected is one whose kernel covers its input.

    Attributes:
        weights: int8 [Cout, kernel height, kernel width, Cin].
        parameters: bias (with the input's zero point folded in), multipliers, clamp.
    """

    weights: NDArray[np.int8]
    parameters: Requantization
    stride: tuple[int, int] = (1, 1)
    dilation: tuple[int, int] = (1, 1)
    padding: Padding = field(default_factory=Padding)

    @property
    def kernel(self) -> tuple[int, int]:
        """(height, width)."""
        return self.weights.shape[1], self.weights.shape[2]


@dataclass(frozen=True)
class Depthwise(Op):
    """Depthwise convolution. weights: int8 [kernel height, kernel width, Cin * channel multiplier]."""

    weights: NDArray[np.int8]
    parameters: Requantization
    stride: tuple[int, int] = (1, 1)
    dilation: tuple[int, int] = (1, 1)
    padding: Padding = field(default_factory=Padding)

    @property
    def kernel(self) -> tuple[int, int]:
        """(height, width)."""
        return self.weights.shape[0], self.weights.shape[1]


@dataclass(frozen=True)
class MaxPool(Op):
    """Maximum over windows; padding never wins."""

    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: Padding = field(default_factory=Padding)
    clamp_min: int = -128
    clamp_max: int = 127


@dataclass(frozen=True)
class AveragePool(Op):
    """Mean over windows, padding not counted, halves rounded away from zero."""

    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: Padding = field(default_factory=Padding)
    clamp_min: int = -128
    clamp_max: int = 127


@dataclass(frozen=True)
class Mean(Op):
    """Mean over the whole image. parameters: one channel's (`mean_requantization`); output 1 x 1 x C."""

    parameters: Requantization


@dataclass(frozen=True)
class Add(Op):
    """Sum of two tensors of one shape: `input` and `other`."""

    other: str
    parameters: AddParameters

    @property
    def inputs(self) -> tuple[str, ...]:
        return self.input, self.other


class Graph:
    """Operators in execution order, and the tensors between them.

    Args:
        tensors: all tensors.
        ops: operators; each input is a graph input or the output of an earlier operator.
        inputs, outputs: names of the graph's input and output tensors.

    Raises:
        GraphError: a name missing or defined twice, an input used before it is made, shapes that
            do not follow from each other.
    """

    def __init__(
        self, tensors: Sequence[Tensor], ops: Sequence[Op], inputs: Sequence[str], outputs: Sequence[str]
    ) -> None:
        self.tensors = {t.name: t for t in tensors}
        self.ops, self.inputs, self.outputs = list(ops), list(inputs), list(outputs)
        if len(self.tensors) != len(tensors):
            raise GraphError("two tensors have one name")
        known = set(self.inputs)
        for op in self.ops:
            for name in op.inputs:
                if name not in known:
                    raise GraphError(f"{op.name}: input {name!r} is not made by an operator before it")
            if op.output in known:
                raise GraphError(f"{op.name}: output {op.output!r} exists already")
            if op.output not in self.tensors:
                raise GraphError(f"{op.name}: no tensor {op.output!r}")
            known.add(op.output)
            self._check_shape(op)
        for name in self.outputs:
            if name not in known:
                raise GraphError(f"output {name!r} is made by no operator")

    def _check_shape(self, op: Op) -> None:
        x, y = self.tensors[op.input], self.tensors[op.output]
        expected = y.shape
        if isinstance(op, Conv):
            if op.weights.ndim != 4 or op.weights.shape[3] != x.channels:
                raise GraphError(
                    f"{op.name}: weights {op.weights.shape} must be [Cout, kh, kw, {x.channels}]"
                )
            expected = (*window_output(op, x), op.weights.shape[0])
        elif isinstance(op, Depthwise):
            if op.weights.ndim != 3 or op.weights.shape[2] % x.channels:
                raise GraphError(
                    f"{op.name}: weights {op.weights.shape} must be [kh, kw, {x.channels} * multiplier]"
                )
            expected = (*window_output(op, x), op.weights.shape[2])
        elif isinstance(op, (MaxPool, AveragePool)):
            expected = (*window_output(op, x), x.channels)
        elif isinstance(op, Mean):
            expected = (1, 1, x.channels)
        elif isinstance(op, Add):
            other = self.tensors[op.other]
            if other.shape != x.shape:
                raise GraphError(f"{op.name}: inputs have shapes {x.shape} and {other.shape}")
            expected = x.shape
        else:
            raise GraphError(f"{op.name}: no such operator: {type(op).__name__}")
        if y.shape != expected:
            raise GraphError(f"{op.name}: output {y.name} has shape {y.shape}, not {expected}")


def window_output(op: Conv | Depthwise | MaxPool | AveragePool, x: Tensor) -> tuple[int, int]:
    """Output (height, width) of a windowed operator on `x`."""
    dilation = op.dilation if isinstance(op, (Conv, Depthwise)) else (1, 1)
    top, bottom, left, right = op.padding
    size = []
    for i, (length, before, after) in enumerate(((x.height, top, bottom), (x.width, left, right))):
        reach = (op.kernel[i] - 1) * dilation[i] + 1
        if length + before + after < reach:
            raise GraphError(
                f"{op.name}: a kernel that covers {reach} does not fit {length} + padding {before}, {after}"
            )
        size.append((length + before + after - reach) // op.stride[i] + 1)
    return size[0], size[1]


def macs(op: Op, graph: Graph) -> int:
    """Multiply-accumulates of an operator; 0 for pooling and additions."""
    y = graph.tensors[op.output]
    if isinstance(op, Conv):
        return y.height * y.width * op.weights.size
    if isinstance(op, Depthwise):
        return y.height * y.width * op.weights.size
    return 0
