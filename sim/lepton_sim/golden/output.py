"""OUTPUT: bias, requantization, residual add and pooling of a finished tile. The slots are those of
docs/architecture.md, section "Output stage"."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lepton_hw.config import NPUConfig
from lepton_hw.isa import (
    PARAMETER_ROWS,
    PARAMETER_ROWS_PER_TENSOR,
    RESIDUAL_LEFT_SHIFT,
    Command,
    PoolMode,
)

from ..reference.requantize import Rounding, multiply_by_quantized_multiplier, wrap_int32
from .geometry import grid_vectors
from .memories import Memories

__all__ = ["Rescales", "Tile", "output"]

_LOWEST = -128
"""Maximum over no tap."""


@dataclass(frozen=True)
class Tile:
    """A finished tile of sums.

    Attributes:
        sums: int32 [blocks, height * width, N].
    """

    height: int
    width: int
    sums: NDArray[np.int32]


@dataclass(frozen=True)
class Rescales:
    """The constants that RESCALE sets; all 0 at the start of a run."""

    residual_zero_point: int = 0
    sum_zero_point: int = 0
    sum_minimum: int = 0
    sum_maximum: int = 0
    own_multiplier: int = 0
    residual_multiplier: int = 0
    sum_multiplier: int = 0
    own_shift: int = 0
    residual_shift: int = 0
    sum_shift: int = 0
    pool_shift: int = 0
    pool_multiplier: int = 0
    pool_bias: int = 0
    pool_zero_point: int = 0
    pool_minimum: int = 0
    pool_maximum: int = 0

    @classmethod
    def of(cls, c: Command) -> Rescales:
        """What a RESCALE sets."""
        return cls(**{name: c.values[name] for name in cls.__dataclass_fields__})


def output(c: Command, config: NPUConfig, tile: Tile, rescales: Rescales, memories: Memories) -> None:
    """Execute an OUTPUT: requantize, add, pool `tile`, and write the result to the scratchpad."""
    blocks = tile.sums.shape[0]
    assert tile.sums.dtype == np.int32
    bias, multiplier, shift = _parameters(c, config, memories, blocks)
    x = wrap_int32(tile.sums.astype(np.int64) + bias)
    if c.single_rounding:
        q = _rescale_once(x, multiplier, shift)
    else:
        q = multiply_by_quantized_multiplier(x, multiplier, shift)
    q = _move(q, c.zero_point, c.minimum, c.maximum)
    q = q.reshape(blocks, tile.height, tile.width, config.array_size)
    if c.residual:
        strides = (c.residual_block_stride, c.residual_y_stride, c.residual_x_stride)
        residual = memories.vectors[grid_vectors(c.residual_input, config, strides, q.shape[:3])]
        other = residual.astype(np.int32) - np.int32(rescales.residual_zero_point)
        q = _add(q - np.int32(c.zero_point), other, rescales)
    q = _pool(c, q, rescales)
    at = grid_vectors(c.output, config, (c.block_stride, c.y_stride, c.x_stride), q.shape[:3])
    memories.vectors[at] = q  # repeated addresses keep the last value, as they do in the hardware


def _rescale_once(
    x: NDArray[np.int32], multiplier: NDArray[np.int32], shift: NDArray[np.int32]
) -> NDArray[np.int32]:
    """Rescale with one rounding; a left shift saturates first."""
    left = np.clip(x.astype(np.int64) << np.maximum(shift, 0), -(2**31), 2**31 - 1)
    return multiply_by_quantized_multiplier(left, multiplier, np.minimum(shift, 0), Rounding.SINGLE)


def _parameters(
    c: Command, config: NPUConfig, memories: Memories, blocks: int
) -> tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.int32]]:
    """Biases, multipliers and shifts, each broadcastable to [blocks, positions, N].

    Of a word that holds a multiplier the low 31 bits count, of a byte that holds a shift the low 6. A shift
    of -32 or 31 is none that the hardware promises anything for; the nearest one is taken.
    """
    n = config.array_size
    vectors = PARAMETER_ROWS_PER_TENSOR if c.per_tensor else PARAMETER_ROWS
    first = c.parameters * n
    raw = memories.parameters[first : first + blocks * vectors * n].reshape(blocks, 1, vectors * n)
    words = np.ascontiguousarray(raw[..., : 8 * n]).view("<i4").astype(np.int32)
    bias = words[..., :n]
    if c.per_tensor:
        return bias, np.full(1, c.multiplier, np.int32), np.full(1, c.shift, np.int32)
    shift = ((raw[..., 8 * n :].astype(np.int32) & 0x3F) ^ 0x20) - 0x20
    return bias, words[..., n:] & 0x7FFF_FFFF, np.clip(shift, -31, 30)


def _move(x: NDArray[np.int32], zero_point: int, minimum: int, maximum: int) -> NDArray[np.int32]:
    """Add the zero point modulo 2^32 and clamp."""
    moved = np.add(x, np.int32(zero_point))
    np.maximum(moved, np.int32(minimum), out=moved)
    return np.minimum(moved, np.int32(maximum), out=moved)


def _add(own: NDArray[np.int32], other: NDArray[np.int32], r: Rescales) -> NDArray[np.int32]:
    """Slots B, C and D: the sum of two values without their zero points."""
    s1 = multiply_by_quantized_multiplier(own << RESIDUAL_LEFT_SHIFT, r.own_multiplier, r.own_shift)
    s2 = multiply_by_quantized_multiplier(
        other << RESIDUAL_LEFT_SHIFT, r.residual_multiplier, r.residual_shift
    )
    total = multiply_by_quantized_multiplier(s1 + s2, r.sum_multiplier, r.sum_shift)  # the sum wraps
    return _move(total, r.sum_zero_point, r.sum_minimum, r.sum_maximum)


def _pool(c: Command, q: NDArray[np.int32], r: Rescales) -> NDArray[np.int32]:
    """Reduce windows of [blocks, height, width, N] to [blocks, out_height, out_width, N]."""
    summing = c.pool_mode == PoolMode.SUM
    reduce, nothing = (np.add, 0) if summing else (np.maximum, _LOWEST)
    # A window within the tile is a rectangle: first its columns, then its rows.
    q = _reduce(reduce, nothing, q, 1, (c.pool_y_start, c.pool_stride_y, c.out_height, c.pool_height))
    q = _reduce(reduce, nothing, q, 2, (c.pool_x_start, c.pool_stride_x, c.out_width, c.pool_width))
    if c.pool_mode == PoolMode.NONE:
        return q
    if summing:
        q = multiply_by_quantized_multiplier(q + np.int32(r.pool_bias), r.pool_multiplier, r.pool_shift)
        return _move(q, r.pool_zero_point, r.pool_minimum, r.pool_maximum)
    return np.minimum(np.maximum(q, np.int32(r.pool_minimum)), np.int32(r.pool_maximum))


def _reduce(
    reduce: np.ufunc, nothing: int, q: NDArray[np.int32], axis: int, windows: tuple[int, int, int, int]
) -> NDArray[np.int32]:
    """Reduce windows (start, stride, count, size) along one axis; `nothing` lies outside."""
    start, stride, count, size = windows
    length = q.shape[axis]
    first = start + np.arange(count) * stride
    if size == 1 and start == 0 and stride == 1 and count == length:
        return q
    edge = list(q.shape)
    edge[axis] = 1
    padded = np.concatenate([q, np.full(edge, nothing, np.int32)], axis)
    result = np.full((*q.shape[:axis], count, *q.shape[axis + 1 :]), nothing, np.int32)
    for tap in range(size):
        at = first + tap
        inside = (at >= 0) & (at < length)
        if inside.any():
            result = reduce(result, np.take(padded, np.where(inside, at, length), axis))
    return result
