"""Vectors of signed integers as the packed words that Amaranth's arrays are on a port."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

__all__ = ["pack", "unpack"]


def pack(values: NDArray[np.int64], bits: int) -> list[int]:
    """One word a row: element i of a row in bits i * `bits` and up, in two's complement.

    Arguments:
        values: shape (rows, elements), signed, each within `bits` bits.
        bits: of an element.
    """
    rows, elements = values.shape
    ones = (values[:, :, None] >> np.arange(bits) & 1).astype(np.uint8).reshape(rows, elements * bits)
    packed = np.packbits(ones, axis=1, bitorder="little")
    return [int.from_bytes(row.tobytes(), "little") for row in packed]


def unpack(words: Sequence[int], bits: int, elements: int) -> NDArray[np.int64]:
    """The reverse of pack(): shape (len(words), elements)."""
    size = -(-bits * elements // 8)
    raw = np.frombuffer(b"".join(word.to_bytes(size, "little") for word in words), np.uint8)
    ones = np.unpackbits(raw.reshape(len(words), size), axis=1, bitorder="little", count=bits * elements)
    weights = np.int64(1) << np.arange(bits, dtype=np.int64)
    weights[-1] = -weights[-1]
    return ones.reshape(len(words), elements, bits).astype(np.int64) @ weights
