"""CONV: sums of an output tile. int8 products are added in float32 where that is exact, then in int32."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from lepton_hw.config import NPUConfig
from lepton_hw.isa import Command, Mode

from .geometry import pass_count, patch_lanes, rows_samples, rows_streams, vector_taps, weight_vectors
from .memories import Memories

__all__ = ["convolve"]

# |a * b| <= 2^14 for int8, so 2^10 products add up within float32's 2^24 of exact integers, in any order.
_EXACT_TERMS = 2**10
# Elements of a gathered matrix: bounds the memory that a huge command takes.
_MATRIX_ELEMENTS = 2**22


def convolve(c: Command, config: NPUConfig, memories: Memories) -> NDArray[np.int32]:
    """The sums of all passes of a CONV, modulo 2^32: int32 [out_blocks, positions, N]."""
    if c.mode == Mode.ROWS:
        return np.stack([_rows(c, config, memories, block) for block in range(c.out_blocks)])
    if c.out_block_stride == 0:
        return _matrix(c, config, memories, range(c.out_blocks))
    return np.concatenate([_matrix(c, config, memories, range(b, b + 1)) for b in range(c.out_blocks)])


def _chunks(passes: int, positions: int, terms: int) -> Iterator[NDArray[np.int64]]:
    """Numbers of the passes, in pieces whose products add up exactly; `terms` products a pass."""
    step = max(1, min(_EXACT_TERMS, _MATRIX_ELEMENTS // positions) // terms)
    for first in range(0, passes, step):
        yield np.arange(first, min(first + step, passes))


def _matrix(c: Command, config: NPUConfig, memories: Memories, blocks: range) -> NDArray[np.int32]:
    """VECTOR and PATCH: activations [positions, K] times weights [K, channels], for blocks of one input."""
    n, positions = config.array_size, c.out_height * c.out_width
    sums = np.zeros((positions, len(blocks) * n), np.int32)
    for passes in _chunks(pass_count(c), positions, n):
        tiles = [memories.weights[weight_vectors(c, config, block, passes)] for block in blocks]
        weights = np.stack(tiles, axis=2)  # [passes, lane, block, channel]
        offset = blocks[0] * c.out_block_stride
        if c.mode == Mode.PATCH:
            patch = patch_lanes(c, config, passes)
            weights[~patch.used] = 0
            size = config.scratchpad_bytes
            address = (patch.address + offset * n) % size
            lanes = memories.padded(c.pad_value).reshape(-1)[np.where(patch.inside, address, size)]
        else:
            address, inside = vector_taps(c, config, passes)
            address = (address + offset) % config.scratchpad_vectors
            lanes = memories.padded(c.pad_value)[np.where(inside, address, config.scratchpad_vectors)]
        matrix = lanes.reshape(positions, -1).astype(np.float32)
        sums += (matrix @ weights.reshape(matrix.shape[1], -1).astype(np.float32)).astype(np.int32)
    return sums.reshape(positions, len(blocks), n).swapaxes(0, 1)


def _rows(c: Command, config: NPUConfig, memories: Memories, block: int) -> NDArray[np.int32]:
    """ROWS: each column a FIR filter over the streams of its channel, one stream a kernel row.

    Array row 3g + t holds tap t of the pass's kernel row g, and multiplies the sample t before the newest.
    """
    n, taps = config.array_size, c.kernel_width
    newest = rows_streams(c)
    sums = np.zeros((len(newest), n), np.int32)
    array_row = 3 * np.arange(c.rows_per_pass)[:, None] + np.arange(taps)  # [kernel row, tap]
    samples = (newest[:, None] - np.arange(taps)).reshape(-1)
    for passes in _chunks(pass_count(c), len(samples) * n, c.rows_per_pass * taps):
        tiles = memories.weights[weight_vectors(c, config, block, passes)]  # [pass, array row, channel]
        weights = tiles[:, array_row].reshape(-1, taps, n)  # [pass * kernel row, tap, channel]
        address, inside = rows_samples(c, config, passes, samples)
        address = (address + block * c.out_block_stride) % config.scratchpad_vectors
        stream = memories.padded(c.pad_value)[np.where(inside, address, config.scratchpad_vectors)]
        stream = stream.reshape(len(newest), taps, -1, n)  # [position, tap, pass * kernel row, channel]
        sums += np.einsum("ptrc,rtc->pc", stream.astype(np.int32), weights.astype(np.int32))
    return sums
