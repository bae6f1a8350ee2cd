"""Which bytes a CONV or OUTPUT touches: the address arithmetic of docs/architecture.md, vectorized.

Passes are numbered within a block of output channels, positions row by row within the tile. Addresses are
those of block 0; block b adds b times the command's block stride.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lepton_hw.config import NPUConfig
from lepton_hw.isa import Command, Mode

__all__ = [
    "Lanes",
    "grid_vectors",
    "pass_count",
    "patch_lanes",
    "rows_samples",
    "rows_streams",
    "vector_taps",
    "weight_vectors",
]

Index = NDArray[np.int64]
Mask = NDArray[np.bool_]


def pass_count(c: Command) -> int:
    """Passes of a CONV for each block of output channels."""
    if c.mode == Mode.PATCH:
        return -(-c.kernel_height * c.row_length // c.pass_length)
    if c.mode == Mode.ROWS:
        return -(-c.kernel_height // c.rows_per_pass)
    return c.in_blocks * c.kernel_height * c.kernel_width


def weight_vectors(c: Command, config: NPUConfig, block: int, passes: Index) -> Index:
    """Vectors of the weight memory that hold the tiles of some passes, [passes, N]."""
    tiles = passes + (0 if c.restart_weights else block * pass_count(c))
    first = c.weights + tiles * config.array_size
    return (first[:, None] + np.arange(config.array_size)) % config.weight_vectors


def vector_taps(c: Command, config: NPUConfig, passes: Index) -> tuple[Index, Mask]:
    """VECTOR: the vector that each position reads in each pass.

    Returns:
        Vector addresses before wrap-around, and whether the pixel lies inside the input: both
        [out_height, out_width, passes].
    """
    in_block, tap = np.divmod(passes, c.kernel_height * c.kernel_width)
    ky, kx = np.divmod(tap, c.kernel_width)
    y = c.y_start + np.arange(c.out_height)[:, None] * c.stride_y + ky * c.dilation_y
    x = c.x_start + np.arange(c.out_width)[:, None] * c.stride_x + kx * c.dilation_x
    rows = c.input // config.array_size + in_block * c.block_stride + y * c.y_stride
    inside_y, inside_x = (y >= 0) & (y < c.in_height), (x >= 0) & (x < c.in_width)
    return rows[:, None] + (x * c.x_stride)[None], inside_y[:, None] & inside_x[None]


def rows_samples(c: Command, config: NPUConfig, passes: Index, samples: Index) -> tuple[Index, Mask]:
    """ROWS: the vectors at some places of the passes' streams, one stream a kernel row.

    Args:
        samples: [S], places in the stream; place 0 is its first lead pad.

    Returns:
        Vector addresses before wrap-around, and whether they lie inside the input (outside is padding):
        both [S, passes * rows_per_pass].
    """
    kernel_row = (passes[:, None] * c.rows_per_pass + np.arange(c.rows_per_pass)).reshape(-1)
    lead = c.kernel_width - 1 - c.valid_from
    row, i = np.divmod(samples - lead, c.row_samples)
    y = c.y_start + row[:, None] * c.stride_y + kernel_row * c.dilation_y
    x = (c.x_start + i)[:, None]
    inside = (y >= 0) & (y < c.in_height) & (x >= 0) & (x < c.in_width)
    inside &= (samples >= lead)[:, None] & (kernel_row < c.kernel_height)
    return c.input // config.array_size + y * c.y_stride + x * c.x_stride, inside


def rows_streams(c: Command) -> Index:
    """ROWS: the place in the stream of the sample that completes each output, [positions]."""
    rows = np.arange(c.out_height)[:, None] * c.row_samples
    return (c.kernel_width - 1 + rows + np.arange(c.out_width) * c.stride_x).reshape(-1)


@dataclass(frozen=True)
class Lanes:
    """PATCH: where each lane of each pass comes from.

    Attributes:
        address: byte addresses before wrap-around, [out_height, out_width, passes, N].
        inside: whether the lane's row lies inside the input (else: pad value), [out_height, 1, passes, N].
        used: lanes that are not 0, [passes, N].
    """

    address: Index
    inside: Mask
    used: Mask


def patch_lanes(c: Command, config: NPUConfig, passes: Index) -> Lanes:
    """PATCH: the byte that each lane gets at each position in each pass."""
    n = config.array_size
    lane = np.arange(n)
    start = passes[:, None] * c.pass_length
    k = start + lane
    first_row = start // c.row_length
    window = k // c.row_length - first_row
    used = (lane < c.pass_length) & (k < c.kernel_height * c.row_length) & (window < (2 if c.wide else 4))
    y = c.y_start + np.arange(c.out_height)[:, None, None] * c.stride_y + k // c.row_length * c.dilation_y
    y = y[:, None]
    byte = k % c.row_length
    base = c.input + np.arange(c.out_width)[:, None, None] * c.x_stride
    if c.wide:
        base = base + byte
    else:
        base = base - base % n + (base % n + byte) % n
    return Lanes(base + y * c.y_stride * n, (y >= 0) & (y < c.in_height), used)


def grid_vectors(
    first_byte: int, config: NPUConfig, strides: tuple[int, int, int], shape: tuple[int, int, int]
) -> Index:
    """Vector addresses of a grid [blocks, rows, pixels] in the scratchpad, with strides in vectors."""
    blocks, rows, pixels = (np.arange(count) * stride for count, stride in zip(shape, strides, strict=True))
    at: Index = first_byte // config.array_size + blocks[:, None, None] + rows[:, None] + pixels
    return at
