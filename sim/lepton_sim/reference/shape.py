"""Operators that move values without changing them: pad and reshape."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .arguments import check_tensor
from .quantization import QuantParams

__all__ = ["pad", "reshape"]


def pad(
    x: NDArray[np.int8], paddings: Sequence[tuple[int, int]] | NDArray[Any], *, quant: QuantParams
) -> NDArray[np.int8]:
    """Surround a tensor with zeros (TFLite ``PAD``), that is with its zero point.

    Arguments:
        x: int8 of any shape.
        paddings: (before, after) for each dimension.
        quant: of input and output both.

    Raises:
        TypeError, ValueError: another dtype, paddings of another length or below 0.
    """
    check_tensor("x", x)
    amounts = [tuple(int(n) for n in pair) for pair in paddings]
    if len(amounts) != x.ndim or any(len(pair) != 2 or min(pair) < 0 for pair in amounts):
        raise ValueError(f"paddings must be {x.ndim} pairs of at least 0, one a dimension, not {amounts}")
    return np.pad(x, amounts, constant_values=quant.zero_point)


def reshape(x: NDArray[np.int8], shape: Sequence[int]) -> NDArray[np.int8]:
    """Give the same values another shape (TFLite ``RESHAPE``); one dimension may be -1, for the rest.

    Raises:
        TypeError, ValueError: another dtype, a shape that holds another number of values.
    """
    check_tensor("x", x)
    wanted = tuple(int(n) for n in shape)
    known = math.prod(n for n in wanted if n != -1)
    unknown = wanted.count(-1)
    fits = x.size == known if unknown == 0 else known > 0 and x.size % known == 0
    if unknown > 1 or any(n < -1 for n in wanted) or not fits:
        raise ValueError(f"{x.size} values of shape {x.shape} cannot take the shape {wanted}")
    return x.reshape(wanted)
