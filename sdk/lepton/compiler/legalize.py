"""Legalize: rewrite operators that one tile of the accumulators cannot hold."""

from __future__ import annotations

import numpy as np

from lepton_hw.config import NPUConfig
from lepton_sim.reference import Padding, Requantization, average_pool_multiplier

from .graph import AveragePool, Depthwise, Graph, GraphError, MaxPool, Mean, Op, Tensor, window_output

__all__ = ["legalize"]

LONGEST_KERNEL = 255
"""Taps that the ISA's kernel fields can count."""


def legalize(graph: Graph, config: NPUConfig) -> Graph:
    """The same function with pooling windows that fit a tile.

    A maximum over a large window becomes one over its rows and one over its columns. A mean over a
    large window becomes a depthwise convolution with ones, which the array sums up.

    Raises:
        GraphError: an average pooling with padding whose window is larger than a tile.
    """
    ops: list[Op] = []
    tensors = dict(graph.tensors)
    for op in graph.ops:
        x = tensors[op.input]
        window = (x.height, x.width) if isinstance(op, Mean) else getattr(op, "kernel", (1, 1))
        if (
            not isinstance(op, (MaxPool, AveragePool, Mean))
            or window[0] * window[1] <= config.accumulator_depth
        ):
            ops.append(op)
        elif isinstance(op, MaxPool):
            top, bottom, left, right = op.padding
            rows = MaxPool(
                f"{op.name} rows", op.input, f"{op.output} rows", (op.kernel[0], 1), (op.stride[0], 1),
                Padding(top, bottom, 0, 0),
            )  # fmt: skip
            middle = Tensor(rows.output, window_output(rows, x)[0], x.width, x.channels, x.zero_point)
            tensors[middle.name] = middle
            ops += [
                rows,
                MaxPool(
                    op.name, middle.name, op.output, (1, op.kernel[1]), (1, op.stride[1]),
                    Padding(0, 0, left, right), op.clamp_min, op.clamp_max,
                ),
            ]  # fmt: skip
        else:
            ops.append(_as_depthwise(op, x, window))
    return Graph(list(tensors.values()), ops, graph.inputs, graph.outputs)


def _as_depthwise(op: AveragePool | Mean, x: Tensor, window: tuple[int, int]) -> Depthwise:
    if isinstance(op, AveragePool) and any(op.padding):
        raise GraphError(f"{op.name}: a padded average pooling of {window} is larger than a tile")
    if max(window) > LONGEST_KERNEL:
        raise GraphError(f"{op.name}: a mean over {window} has more than {LONGEST_KERNEL} taps a side")
    ones = np.ones((*window, x.channels), np.int8)
    if isinstance(op, Mean):
        return Depthwise(op.name, op.input, op.output, ones, op.parameters)
    multiplier, shift = average_pool_multiplier(window[0] * window[1])
    bias, factor, shifts = (np.array([v], np.int32) for v in (0, multiplier, shift))
    parameters = Requantization(bias, factor, shifts, clamp_min=op.clamp_min, clamp_max=op.clamp_max)
    return Depthwise(op.name, op.input, op.output, ones, parameters, op.stride)
