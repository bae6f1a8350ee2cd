"""Run a graph through the reference operators: what every compiled program must reproduce byte for byte."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from lepton_sim.reference import (
    add_integer,
    average_pool2d_integer,
    conv2d_integer,
    depthwise_conv2d_integer,
    max_pool2d_integer,
    mean_integer,
)

from .graph import Add, AveragePool, Conv, Depthwise, Graph, GraphError, MaxPool, Mean, Op

__all__ = ["evaluate", "run_reference", "run_reference_batch"]

Int8 = NDArray[np.int8]


def evaluate(op: Op, pad_value: int, *inputs: Int8) -> Int8:
    """Run one operator on a batch.

    Args:
        op: the operator.
        pad_value: zero point of its input tensor.
        inputs: its tensors, int8 [N, H, W, C] each.

    Returns:
        int8 [N, Ho, Wo, Cout].

    Raises:
        GraphError: an operator of unknown type.
    """
    x = inputs[0]
    if isinstance(op, Conv):
        return conv2d_integer(
            x, op.weights, op.parameters,
            stride=op.stride, dilation=op.dilation, padding=op.padding, pad_value=pad_value,
        )  # fmt: skip
    if isinstance(op, Depthwise):
        return depthwise_conv2d_integer(
            x, op.weights[np.newaxis], op.parameters,
            stride=op.stride, dilation=op.dilation, padding=op.padding, pad_value=pad_value,
        )  # fmt: skip
    if isinstance(op, (MaxPool, AveragePool)):
        pool = max_pool2d_integer if isinstance(op, MaxPool) else average_pool2d_integer
        return pool(
            x, op.kernel, stride=op.stride, padding=op.padding,
            clamp_min=op.clamp_min, clamp_max=op.clamp_max,
        )  # fmt: skip
    if isinstance(op, Mean):
        return mean_integer(x, (1, 2), op.parameters, keep_dims=True)
    if isinstance(op, Add):
        return add_integer(x, inputs[1], op.parameters)
    raise GraphError(f"{op.name}: no such operator: {type(op).__name__}")


def run_reference_batch(graph: Graph, inputs: Mapping[str, Int8]) -> dict[str, Int8]:
    """Compute every tensor of a graph for a batch of samples.

    Args:
        graph: the operators.
        inputs: int8 [N, height, width, channels] by name, one N for all.

    Returns:
        All tensors by name, int8 [N, height, width, channels], inputs included.

    Raises:
        GraphError: an input missing, unknown, or of another shape or dtype.
    """
    if set(inputs) != set(graph.inputs):
        raise GraphError(f"inputs must be {sorted(graph.inputs)}, not {sorted(inputs)}")
    values = {name: np.asarray(value) for name, value in inputs.items()}
    samples = {len(value) if value.ndim else 0 for value in values.values()}
    for name, value in values.items():
        shape = graph.tensors[name].shape
        if value.dtype != np.int8 or value.shape[1:] != shape or len(samples) != 1:
            raise GraphError(
                f"input {name!r} must be int8 of shape {shape} for each of the samples, as many as of the "
                f"other inputs, not {value.dtype} of shape {value.shape}"
            )
    for op in graph.ops:
        pad_value = graph.tensors[op.input].zero_point
        values[op.output] = evaluate(op, pad_value, *(values[name] for name in op.inputs))
    return values


def run_reference(graph: Graph, inputs: Mapping[str, Int8]) -> dict[str, Int8]:
    """Compute every tensor of a graph for one sample.

    Args:
        graph: the operators.
        inputs: int8 [height, width, channels] by name.

    Returns:
        All tensors by name, int8 [height, width, channels], inputs included.

    Raises:
        GraphError: an input missing, unknown, or of another shape or dtype.
    """
    batch = {name: np.asarray(value)[np.newaxis] for name, value in inputs.items()}
    return {name: value[0] for name, value in run_reference_batch(graph, batch).items()}
