"""Mean over axes, int8."""

import math

import numpy as np
from numpy.typing import NDArray

from .arguments import check_tensor
from .quantization import INT8_MAX, INT8_MIN, QuantParams
from .requantize import Requantization, quantize_multiplier, requantize

__all__ = ["mean", "mean_integer", "mean_requantization"]


def mean_requantization(count: int, input_quant: QuantParams, output_quant: QuantParams) -> Requantization:
    """Return the integers that turn a sum of ``count`` int8 values into their requantized mean.

    The reference kernel folds 1 / count into the multiplier of ``s_in / s_out``: it is shifted left by
    ``floor(log2(count))`` and divided by the count, remainder dropped, so that it lies in
    [2^29, 2^31); the double rounding of a convolution follows. The bias takes the input's zero point out.

    Raises:
        ValueError: a count below 1, a sum that could leave 32 bits, or a factor too large to hold.
    """
    if not 1 <= count < 2**23:
        raise ValueError(f"the number of values in a mean must be in [1, 2^23), not {count}")
    multiplier, shift = quantize_multiplier(input_quant.scale / output_quant.scale)
    # A shift below -31 does not exist; the kernel then gives up precision instead.
    extra = min(count.bit_length() - 1, 31 + shift)
    return Requantization(
        bias=np.array([-input_quant.zero_point * count]),
        multiplier=np.array([(multiplier << extra) // count]),
        shift=np.array([shift - extra]),
        zero_point=output_quant.zero_point,
        clamp_min=INT8_MIN,
        clamp_max=INT8_MAX,
    )


def _axes(x: NDArray[np.int8], axes: int | tuple[int, ...]) -> tuple[int, ...]:
    """Return the axes as a set of dimensions of ``x``, negative ones counted from the end."""
    given = (axes,) if isinstance(axes, (int, np.integer)) else tuple(axes)
    if any(not -x.ndim <= axis < x.ndim for axis in given):
        raise ValueError(f"axes must be in [{-x.ndim}, {x.ndim}), not {axes!r}")
    return tuple(sorted({axis % x.ndim for axis in given}))


def mean_integer(
    x: NDArray[np.int8], axes: int | tuple[int, ...], parameters: Requantization, *, keep_dims: bool = False
) -> NDArray[np.int8]:
    """Return the requantized sums of ``x`` over ``axes``, from integers alone."""
    check_tensor("x", x)
    sums = x.sum(axis=_axes(x, axes), keepdims=keep_dims, dtype=np.int32)
    return requantize(np.asarray(sums), parameters)


def mean(
    x: NDArray[np.int8],
    axes: int | tuple[int, ...],
    *,
    input_quant: QuantParams,
    output_quant: QuantParams,
    keep_dims: bool = False,
) -> NDArray[np.int8]:
    """Take the mean over ``axes`` (TFLite ``MEAN``), for spatial axes a global average pooling.

    Unlike average pooling it rescales, even where both quantizations are equal, and so may differ from it
    by one.

    Arguments:
        x: int8 of any shape.
        axes: dimensions to reduce; negative ones count from the end.
        keep_dims: keep reduced dimensions with size 1.

    Raises:
        TypeError, ValueError: another dtype, an axis out of range, nothing to average.
    """
    check_tensor("x", x)
    count = math.prod(x.shape[axis] for axis in _axes(x, axes))
    return mean_integer(x, axes, mean_requantization(count, input_quant, output_quant), keep_dims=keep_dims)
