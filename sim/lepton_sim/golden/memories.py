"""The on-chip memories of the golden model, and copies of rows in and out of them."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.lib.stride_tricks import as_strided
from numpy.typing import NDArray

from lepton_hw.config import NPUConfig

__all__ = ["Memories", "read_rows", "write_rows"]


class Memories:
    """Scratchpad, weight and parameter memory. They keep their contents from run to run.

    Attributes:
        scratchpad: uint8 [scratchpad_bytes].
        weights: int8 [weight_vectors, N].
        parameters: uint8 [parameter_bytes].
    """

    def __init__(self, config: NPUConfig) -> None:
        self.array_size = config.array_size
        # One vector more than there is: what gathers find at addresses in the padding.
        self._scratchpad = np.zeros(config.scratchpad_bytes + config.array_size, np.uint8)
        self.scratchpad = self._scratchpad[: config.scratchpad_bytes]
        self.weights = np.zeros((config.weight_vectors, config.array_size), np.int8)
        self.parameters = np.zeros(config.parameter_bytes, np.uint8)

    @property
    def vectors(self) -> NDArray[np.int8]:
        """The scratchpad as int8 [scratchpad_vectors, N]."""
        return self.scratchpad.view(np.int8).reshape(-1, self.array_size)

    def padded(self, pad_value: int) -> NDArray[np.int8]:
        """The scratchpad and after it one vector of `pad_value`, int8 [scratchpad_vectors + 1, N]."""
        whole = self._scratchpad.view(np.int8).reshape(-1, self.array_size)
        whole[-1] = pad_value
        return whole


def read_rows(
    memory: NDArray[np.uint8], address: int, stride: int, rows: int, row_bytes: int
) -> NDArray[np.uint8]:
    """A view of `rows` rows of a byte memory, uint8 [rows, row_bytes]; they may overlap.

    Raises:
        ValueError: they are not all within the memory.
    """
    end = address + (rows - 1) * stride + row_bytes
    if min(address, stride) < 0 or end > memory.size:
        raise ValueError(f"rows from byte {address} to {end} do not lie within {memory.size} bytes")
    return as_strided(memory[address:], (rows, row_bytes), (stride, 1), writeable=False)


def write_rows(
    memory: NDArray[np.uint8], address: int, stride: int, rows: NDArray[Any] | int, shape: tuple[int, int]
) -> None:
    """Write rows of `shape` (rows, bytes a row), one after the other: where they overlap, the last one stays.

    Args:
        rows: uint8 of that shape, or one byte for all.

    Raises:
        ValueError: they are not all within the memory.
    """
    count, row_bytes = shape
    end = address + (count - 1) * stride + row_bytes
    if min(address, stride) < 0 or end > memory.size:
        raise ValueError(f"rows from byte {address} to {end} do not lie within {memory.size} bytes")
    source = np.broadcast_to(np.asarray(rows, np.uint8), shape)
    if stride >= row_bytes or count == 1:
        as_strided(memory[address:], shape, (stride, 1))[...] = source
        return
    for i in range(count):
        start = address + i * stride
        memory[start : start + row_bytes] = source[i]
