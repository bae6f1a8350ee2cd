"""Every byte that a command touches, in which memory, reading or writing."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lepton_hw.config import NPUConfig
from lepton_hw.isa import (
    PARAMETER_ROWS,
    PARAMETER_ROWS_PER_TENSOR,
    Command,
    Mode,
    Opcode,
    PoolMode,
    Target,
)

from .geometry import grid_vectors, pass_count, patch_lanes, rows_samples, vector_taps, weight_vectors

__all__ = ["Access", "TileShape", "accesses", "feeds_itself", "overlap", "tile_shapes"]

Index = NDArray[np.int64]
TileShape = tuple[int, int, int]
"""Blocks, height and width of a tile."""
_PASSES_AT_ONCE = 64


@dataclass(frozen=True)
class Access:
    """Bytes of one memory that a command reads or writes, as runs of bytes that do not meet.

    Attributes:
        memory: "scratchpad", "weights", "parameters" or "external memory".
        starts, ends: first byte of each run and the one behind it, ascending.
    """

    memory: str
    writes: bool
    starts: Index
    ends: Index


def overlap(a: Access, b: Access) -> bool:
    """Do two accesses touch a common byte?"""
    if a.memory != b.memory:
        return False
    after = np.searchsorted(b.ends, a.starts, side="right")  # first run of b that ends behind the start
    found = after < len(b.starts)
    return bool((b.starts[after[found]] < a.ends[found]).any())


def tile_shapes(commands: list[Command]) -> list[TileShape]:
    """For each command, (blocks, height, width) of the tile that its OUTPUT takes; else zeros."""
    tile: TileShape = (0, 0, 0)
    tiles = []
    for c in commands:
        if c.opcode is Opcode.CONV:
            tile = (c.out_blocks, c.out_height, c.out_width)
        tiles.append(tile)
    return tiles


def _runs(memory: str, writes: bool, starts: Index, length: int) -> Access:
    """Runs of `length` bytes, joined where they meet or overlap."""
    starts = np.unique(starts)
    ends = starts + length
    if len(starts) > 1:
        gap = starts[1:] > ends[:-1]
        starts, ends = starts[np.r_[True, gap]], ends[np.r_[gap, True]]
    return Access(memory, writes, starts, ends)


def accesses(c: Command, config: NPUConfig, tile: TileShape) -> list[Access]:
    """Every byte a command touches."""
    n = config.array_size
    if c.opcode in (Opcode.LOAD, Opcode.FILL, Opcode.STORE):
        rows = np.arange(c.rows)
        local = c.local_address + rows * c.local_stride
        memory = Target(c.target).name.lower() if c.opcode is Opcode.LOAD else "scratchpad"
        out = [_runs(memory, c.opcode is not Opcode.STORE, local, c.row_bytes)]
        if c.opcode is not Opcode.FILL:
            writes = c.opcode is Opcode.STORE
            out.append(_runs("external memory", writes, c.address + rows * c.stride, c.row_bytes))
        return out
    if c.opcode is Opcode.CONV:
        return [
            _runs("scratchpad", False, _conv_bytes(c, config), 1 if c.mode == Mode.PATCH else n),
            _runs("weights", False, _conv_weights(c, config) * n, n),
        ]
    if c.opcode is Opcode.OUTPUT:
        per_block = PARAMETER_ROWS_PER_TENSOR if c.per_tensor else PARAMETER_ROWS
        vectors = c.parameters + np.arange(tile[0] * per_block)
        out = [
            _runs("parameters", False, vectors * n, n),
            _runs("scratchpad", True, _written(c, config, tile).reshape(-1) * n, n),
        ]
        if c.residual:
            out.append(_runs("scratchpad", False, _residuals(c, config, tile).reshape(-1) * n, n))
        return out
    return []


def _conv_bytes(c: Command, config: NPUConfig) -> Index:
    """First bytes of the vectors (PATCH: the bytes) that a CONV reads in the scratchpad."""
    n, size = config.array_size, config.scratchpad_bytes
    total, found = pass_count(c), []
    for first in range(0, total, _PASSES_AT_ONCE):
        passes = np.arange(first, min(first + _PASSES_AT_ONCE, total))
        if c.mode == Mode.PATCH:
            lanes = patch_lanes(c, config, passes)
            read = np.broadcast_to(lanes.inside & lanes.used, lanes.address.shape)
            address = lanes.address[read]
        elif c.mode == Mode.ROWS:
            samples = np.arange(c.kernel_width - 1 - c.valid_from + c.out_height * c.row_samples)
            vectors, read = rows_samples(c, config, passes, samples)
            address = vectors[read] * n
        else:
            vectors, read = vector_taps(c, config, passes)
            address = vectors[read] * n
        found.append(np.unique(address))
    address = np.unique(np.concatenate(found))
    blocks = np.arange(c.out_blocks if c.out_block_stride else 1) * c.out_block_stride * n
    return (address + blocks[:, None]).reshape(-1) % size


def _conv_weights(c: Command, config: NPUConfig) -> Index:
    """Vectors of the weight memory that a CONV reads."""
    total = pass_count(c) * (1 if c.restart_weights else c.out_blocks)
    if total * config.array_size >= config.weight_vectors:
        return np.arange(config.weight_vectors)
    return weight_vectors(c, config, 0, np.arange(total)).reshape(-1)


def _written(c: Command, config: NPUConfig, tile: TileShape) -> Index:
    """Vectors that an OUTPUT writes, [blocks, out_height, out_width]."""
    strides = (c.block_stride, c.y_stride, c.x_stride)
    return grid_vectors(c.output, config, strides, (tile[0], c.out_height, c.out_width))


def _residuals(c: Command, config: NPUConfig, tile: TileShape) -> Index:
    """Vectors that an OUTPUT may read as residuals, [blocks, tile height, tile width]."""
    strides = (c.residual_block_stride, c.residual_y_stride, c.residual_x_stride)
    return grid_vectors(c.residual_input, config, strides, tile)


def feeds_itself(c: Command, config: NPUConfig, tile: TileShape) -> bool:
    """Does an OUTPUT read a residual from where one of its earlier outputs was written?"""
    _, height, width = tile
    written, read = _written(c, config, tile), _residuals(c, config, tile)
    outputs = np.arange(written.size).reshape(written.shape)
    # The last output whose window holds a tile position; pooling NONE has windows of one position.
    stride_y, stride_x = (1, 1) if c.pool_mode == PoolMode.NONE else (c.pool_stride_y, c.pool_stride_x)
    oy = np.minimum((np.arange(height) - c.pool_y_start) // stride_y, c.out_height - 1)
    ox = np.minimum((np.arange(width) - c.pool_x_start) // stride_x, c.out_width - 1)
    last = outputs[:, np.maximum(oy, 0)][:, :, np.maximum(ox, 0)]
    first_written = np.full(config.scratchpad_vectors, written.size)
    np.minimum.at(first_written, written.reshape(-1), outputs.reshape(-1))
    return bool((first_written[read] < last).any())
