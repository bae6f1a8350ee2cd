"""Pack: weights and requantization constants as the NPU's memories want them.

A weight tile is N vectors of N bytes: vector r holds the weights of array row r for N output columns.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from lepton_hw.isa import PARAMETER_ROWS_PER_TENSOR
from lepton_sim.reference import Requantization

__all__ = [
    "diagonal_tiles",
    "identity_tile",
    "is_per_tensor",
    "parameter_vectors",
    "patch_tiles",
    "row_tiles",
    "vector_tiles",
]

Int8 = NDArray[np.int8]


def _pad_axis(array: NDArray, axis: int, multiple: int) -> NDArray:
    missing = -array.shape[axis] % multiple
    widths = [(0, 0)] * array.ndim
    widths[axis] = (0, missing)
    return np.pad(array, widths)


def vector_tiles(weights: Int8, n: int) -> Int8:
    """Tiles of mode VECTOR: [out block, in block, kh, kw, N rows, N columns].

    Args:
        weights: int8 [Cout, kh, kw, Cin].
        n: array size.
    """
    w = _pad_axis(_pad_axis(weights, 0, n), 3, n)
    o, kh, kw, i = w.shape
    return w.reshape(o // n, n, kh, kw, i // n, n).transpose(0, 4, 2, 3, 5, 1)


def patch_tiles(weights: Int8, n: int, pass_length: int) -> Int8:
    """Tiles of mode PATCH: [out block, pass, N rows, N columns]; K runs over [kh, kw, Cin].

    Args:
        weights: int8 [Cout, kh, kw, Cin].
        pass_length: K indices a pass.
    """
    w = _pad_axis(weights, 0, n)
    flat = _pad_axis(w.reshape(w.shape[0], -1), 1, pass_length)
    tiles = flat.reshape(w.shape[0] // n, n, -1, pass_length).transpose(0, 2, 3, 1)
    return _pad_axis(tiles, 2, n)


def row_tiles(weights: Int8, n: int, rows_per_pass: int) -> Int8:
    """Tiles of mode ROWS: [block, pass, N rows, N columns].

    Array row g * kw + t of a pass holds kernel row (pass * rows_per_pass + g), column kw - 1 - t.

    Args:
        weights: int8 [kh, kw, C].
    """
    w = _pad_axis(_pad_axis(weights, 2, n), 0, rows_per_pass)[:, ::-1]
    kh, kw, c = w.shape
    tiles = w.reshape(kh // rows_per_pass, rows_per_pass * kw, c // n, n).transpose(2, 0, 1, 3)
    return _pad_axis(tiles, 2, n)


def diagonal_tiles(weights: Int8, n: int, multiplier: int) -> list[tuple[int, Int8]]:
    """Depthwise weights as ordinary ones: for each output block, its first input block and its tiles.

    Output channel o reads input channel o // multiplier.

    Args:
        weights: int8 [kh, kw, C * multiplier].

    Returns:
        One (first input block, int8 [in block, kh, kw, N rows, N columns]) an output block.
    """
    kh, kw, channels = weights.shape
    out = []
    for start in range(0, channels, n):
        o = np.arange(start, min(start + n, channels))
        i = o // multiplier
        first, last = int(i[0]) // n, int(i[-1]) // n
        tiles = np.zeros((last - first + 1, kh, kw, n, n), np.int8)
        tiles[i // n - first, :, :, i % n, o - start] = weights[:, :, o].transpose(2, 0, 1)
        out.append((first, tiles))
    return out


def identity_tile(n: int) -> Int8:
    """The tile that passes its input on: int8 [N, N]."""
    return np.eye(n, dtype=np.int8)


def is_per_tensor(parameters: Requantization) -> bool:
    """Whether one multiplier and one shift serve all channels."""
    return bool(
        np.all(parameters.multiplier == parameters.multiplier[0])
        and np.all(parameters.shift == parameters.shift[0])
    )


def parameter_vectors(parameters: Requantization, channels: int, n: int) -> NDArray[np.uint8]:
    """The parameter memory's content for all blocks: uint8 [block, rows, N].

    Four rows of int32 biases, and unless `is_per_tensor` four of multipliers and one of int8 shifts.
    """
    blocks = -(-channels // n)

    def spread(values: NDArray[np.int32], dtype: str) -> NDArray[np.uint8]:
        full = np.zeros(blocks * n, dtype)
        full[:channels] = values
        return full.reshape(blocks, n).view(np.uint8).reshape(blocks, -1, n)

    biases = spread(parameters.bias, "<i4")
    assert biases.shape[1] == PARAMETER_ROWS_PER_TENSOR
    if is_per_tensor(parameters):
        return biases
    rows = (biases, spread(parameters.multiplier, "<i4"), spread(parameters.shift, "<i1"))
    return np.concatenate(rows, axis=1)
