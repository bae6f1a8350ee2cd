"""Maximum and average pooling, NHWC, int8; and average pooling as a fixed-point multiplication.

Input and output share one quantization (the TFLite operators demand it), so no rescaling takes place.
Padding takes no part: it never is the maximum, and averages divide by the values truly under the window.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .arguments import check_tensor
from .quantization import INT8_MAX, INT8_MIN, Activation, QuantParams, activation_range
from .requantize import Rounding
from .window import Padding, Window

__all__ = [
    "average_pool2d",
    "average_pool2d_integer",
    "average_pool_multiplier",
    "divide_rounding_away",
    "max_pool2d",
    "max_pool2d_integer",
    "sum_pool2d",
]


def _pooling_window(
    x: NDArray[np.int8],
    window: int | tuple[int, int],
    stride: int | tuple[int, int] | None,
    padding: Padding | str,
) -> Window:
    """Check a pooling's arguments; the stride is the window where it is None."""
    check_tensor("x", x, rank=4)
    return Window(x.shape, window, window if stride is None else stride, 1, padding)


def _counts(walk: Window, size: tuple[int, int]) -> NDArray[np.int64]:
    """Return how many real values lie under the window at each output position, [Ho, Wo]."""
    sides = []
    for axis, before in ((0, walk.padding.top), (1, walk.padding.left)):
        first = np.arange(walk.output[axis]) * walk.stride[axis] - before
        inside = np.minimum(first + walk.kernel[axis], size[axis]) - np.maximum(first, 0)
        sides.append(np.maximum(inside, 0))
    counts = np.outer(sides[0], sides[1])
    if np.any(counts == 0):
        raise ValueError(
            f"padding {tuple(walk.padding)} leaves a window of {walk.kernel} with no value in it"
        )
    return counts


def max_pool2d_integer(
    x: NDArray[np.int8],
    window: int | tuple[int, int],
    *,
    stride: int | tuple[int, int] | None = None,
    padding: Padding | str = "valid",
    clamp_min: int = INT8_MIN,
    clamp_max: int = INT8_MAX,
) -> NDArray[np.int8]:
    """Return the maximum under each window, clamped: int8 [N, Ho, Wo, C] of int8 [N, H, W, C]."""
    walk = _pooling_window(x, window, stride, padding)
    _counts(walk, x.shape[1:3])
    result = np.full((x.shape[0], *walk.output, x.shape[3]), INT8_MIN, np.int8)
    for _, _, seen in walk.taps(walk.pad(x, INT8_MIN)):
        np.maximum(result, seen, out=result)
    return np.clip(result, clamp_min, clamp_max).astype(np.int8)


def max_pool2d(
    x: NDArray[np.int8],
    window: int | tuple[int, int],
    *,
    quant: QuantParams,
    stride: int | tuple[int, int] | None = None,
    padding: Padding | str = "valid",
    activation: Activation = Activation.NONE,
) -> NDArray[np.int8]:
    """Take the maximum under each window (TFLite ``MAX_POOL_2D``).

    Arguments:
        x: int8 [N, H, W, C].
        window, stride: vertical and horizontal, or one number; the stride is the window unless given.
        quant: of input and output both.
        padding: ``"same"``, ``"valid"`` or explicit amounts.

    Returns:
        int8 [N, Ho, Wo, C].

    Raises:
        TypeError, ValueError: a tensor of another dtype or rank, a geometry that does not fit.
    """
    low, high = activation_range(activation, quant)
    return max_pool2d_integer(x, window, stride=stride, padding=padding, clamp_min=low, clamp_max=high)


def sum_pool2d(
    x: NDArray[np.int8],
    window: int | tuple[int, int],
    *,
    stride: int | tuple[int, int] | None = None,
    padding: Padding | str = "valid",
) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """Return the sum under each window, int32 [N, Ho, Wo, C], and how many values each adds, [Ho, Wo]."""
    walk = _pooling_window(x, window, stride, padding)
    counts = _counts(walk, x.shape[1:3])
    sums = np.zeros((x.shape[0], *walk.output, x.shape[3]), np.int32)
    for _, _, seen in walk.taps(walk.pad(x, 0)):
        sums += seen
    return sums, counts


def divide_rounding_away(sums: NDArray[Any], counts: NDArray[Any]) -> NDArray[np.int64]:
    """Return ``sums / counts`` rounded to the nearest integer, halves away from zero.

    It is C's ``(sum + count / 2) / count`` for positive sums and ``(sum - count / 2) / count`` for others.
    """
    wide = np.asarray(sums, np.int64)
    return np.where(wide < 0, -1, 1) * ((np.abs(wide) + counts // 2) // counts)


def average_pool2d_integer(
    x: NDArray[np.int8],
    window: int | tuple[int, int],
    *,
    stride: int | tuple[int, int] | None = None,
    padding: Padding | str = "valid",
    clamp_min: int = INT8_MIN,
    clamp_max: int = INT8_MAX,
) -> NDArray[np.int8]:
    """Return the mean under each window, rounded and clamped: int8 [N, Ho, Wo, C] of int8 [N, H, W, C]."""
    sums, counts = sum_pool2d(x, window, stride=stride, padding=padding)
    return np.clip(divide_rounding_away(sums, counts[:, :, None]), clamp_min, clamp_max).astype(np.int8)


def average_pool2d(
    x: NDArray[np.int8],
    window: int | tuple[int, int],
    *,
    quant: QuantParams,
    stride: int | tuple[int, int] | None = None,
    padding: Padding | str = "valid",
    activation: Activation = Activation.NONE,
) -> NDArray[np.int8]:
    """Take the mean under each window (TFLite ``AVERAGE_POOL_2D``), of real values only.

    Arguments, result and errors as for :func:`max_pool2d`.
    """
    low, high = activation_range(activation, quant)
    return average_pool2d_integer(x, window, stride=stride, padding=padding, clamp_min=low, clamp_max=high)


def average_pool_multiplier(count: int, rounding: Rounding = Rounding.DOUBLE) -> tuple[int, int]:
    """Return (multiplier, shift) that divides a sum of ``count`` int8 values exactly as average pooling does.

    ``multiply_by_quantized_multiplier(sum, multiplier, shift, rounding)`` then equals ``sum / count``
    rounded half away from zero for every sum in [-128 * count, 127 * count].

    *Double rounding.* The usual multiplier, in [2^30, 2^31), cannot do it: for a count of 3 its first
    rounding turns 1 * 2/3 into 1, its second 1/2 into 1. So one of the two roundings is made idle:

    * count = 2^p: (2^31 - 1, -p). ``(x * (2^31 - 1) + 2^30) >> 31`` is x itself while |x| <= 2^30, and the
      right shift rounds half away from zero.
    * otherwise (m, 0), m near 2^31 / count and so *below* 2^30: the first rounding, half up, is the only
      one. With ``d = m * count - 2^31``, x * m / 2^31 is off by x * d / (2^31 * count), at most
      128 * |d| / 2^31. For an odd count sums are at least 1 / (2 * count) away from a half and m is the
      nearest integer; for an even one m is rounded up, so that halves move away from zero, and the
      other sums are 1 / count away. The result is exact if the error is smaller than that
      distance, always up to a count of 4,096.

    *Single rounding.* m = ceil(2^n / count) with n such that m is in [2^30, 2^31): halves again move
    away from zero (the rounding works on magnitudes), and the error 128 * d / 2^n is small enough
    up to a count of 2^22.

    Raises:
        ValueError: a count below 1, or one too large for the multiplier to be exact.
    """
    if count < 1:
        raise ValueError(f"count must be at least 1, not {count}")
    even = count % 2 == 0
    power = count.bit_length() - 1
    if rounding is Rounding.SINGLE:
        # count in (2^(p-1), 2^p] puts 2^(30 + p) / count in [2^30, 2^31).
        fraction = 30 + (count - 1).bit_length()
        multiplier = -(-(1 << fraction) // count)
    elif count == 1 << power:
        if power > 23:
            raise ValueError(f"count must be at most 2^23, not {count}")
        return 2**31 - 1, -power
    else:
        fraction = 31
        multiplier = -(-(1 << 31) // count) if even else ((1 << 31) + count // 2) // count
    error = 128 * count * abs(multiplier * count - (1 << fraction))
    if error * (1 if even else 2) >= 1 << fraction or fraction > 62:
        raise ValueError(f"no multiplier divides every sum of {count} int8 values exactly: count too large")
    return multiplier, 31 - fraction
