"""Softmax over the last dimension, int8, in the reference kernel's fixed-point arithmetic.

Numbers are int32 with 31 - n fractional bits ("Qn"). The exponential of a difference (at most 0) has 256
possible arguments, so it is tabulated once a call.
"""

import math

import numpy as np
from numpy.typing import NDArray

from .arguments import check_tensor
from .quantization import INT8_MAX, INT8_MIN, QuantParams
from .requantize import rounding_divide_by_pot, wrap_int32
from .requantize import saturating_rounding_doubling_high_mul as multiply

__all__ = ["SOFTMAX_OUTPUT", "softmax", "softmax_integer", "softmax_parameters"]

#: Every int8 softmax output has this quantization.
SOFTMAX_OUTPUT = QuantParams(1 / 256, -128)

_INT32_MAX = 2**31 - 1
_DIFFERENCE_BITS = 5  # differences are Q5: down to -32
_SUM_BITS = 12  # sums of exponentials are Q12: up to 4,095 terms of 1


def _saturating_shift_left(x: NDArray[np.int32], bits: int) -> NDArray[np.int32]:
    """Return ``x * 2^bits``, saturated to int32."""
    return np.clip(x.astype(np.int64) << bits, -(2**31), _INT32_MAX).astype(np.int32)


def _constant(value: float, integer_bits: int = 0) -> int:
    """Return a real number in Qn, rounded to nearest."""
    return math.floor(value * 2.0 ** (31 - integer_bits) + 0.5)


def _exp_of_small(a: NDArray[np.int32]) -> NDArray[np.int32]:
    """Return exp(a) in Q0 for a in [-1/4, 0) in Q0: four Taylor terms about -1/8."""
    x = wrap_int32(a.astype(np.int64) + _constant(1 / 8))
    x2 = multiply(x, x)
    x3 = multiply(x2, x)
    x4 = multiply(x2, x2)
    # x^2/2 + x^3/6 + x^4/24 = ((x^4/4 + x^3) / 3 + x^2) / 2
    third = multiply(wrap_int32(rounding_divide_by_pot(x4, 2).astype(np.int64) + x3), _constant(1 / 3))
    tail = rounding_divide_by_pot(wrap_int32(third.astype(np.int64) + x2), 1)
    at_center = _constant(math.exp(-1 / 8))
    series = multiply(wrap_int32(x.astype(np.int64) + tail), at_center)
    return wrap_int32(series.astype(np.int64) + at_center)


def _exp_of_negative(a: NDArray[np.int32]) -> NDArray[np.int32]:
    """Return exp(a) in Q0 for a <= 0 in Q5: exp of the part within a quarter, times one power a set bit."""
    fraction_bits = 31 - _DIFFERENCE_BITS
    quarter = 1 << (fraction_bits - 2)
    within = (a & (quarter - 1)) - quarter
    result = _exp_of_small(_saturating_shift_left(within, _DIFFERENCE_BITS))
    remainder = within.astype(np.int64) - a
    for exponent in range(-2, _DIFFERENCE_BITS):
        factor = _constant(math.exp(-(2.0**exponent)))
        chosen = (remainder >> (fraction_bits + exponent)) & 1
        result = np.where(chosen == 1, multiply(result, factor), result)
    return np.where(a == 0, np.int32(_INT32_MAX), result)


def _reciprocal_of_one_plus(a: NDArray[np.int32]) -> NDArray[np.int32]:
    """Return 1 / (1 + a) in Q0 for a in [0, 1) in Q0: three Newton steps on half the denominator, in Q2."""
    half_denominator = ((a.astype(np.int64) + _INT32_MAX + 1) >> 1).astype(np.int32)
    start, slope = _constant(48 / 17, 2), _constant(-32 / 17, 2)
    x = wrap_int32(start + multiply(half_denominator, slope).astype(np.int64))
    for _ in range(3):
        missing = wrap_int32(_constant(1, 2) - multiply(half_denominator, x).astype(np.int64))
        step = _saturating_shift_left(multiply(x, missing), 2)  # Q2 times Q2 is Q4
        x = wrap_int32(x.astype(np.int64) + step)
    return _saturating_shift_left(x, 1)  # 1 / half the denominator in Q2, is the reciprocal in Q1


def softmax_parameters(input_quant: QuantParams, beta: float = 1.0) -> tuple[int, int, int]:
    """Return (multiplier, left shift, least difference) of a softmax from its input's scale.

    A difference of input and maximum becomes ``(d << left shift) * multiplier / 2^31``, in Q5; those below
    the least difference count as nothing.

    Raises:
        ValueError: ``beta * scale`` at or below 2^-26, too small for Q5.
    """
    factor = min(beta * input_quant.scale * 2.0 ** (31 - _DIFFERENCE_BITS), 2.0**31 - 1)
    if not factor > 1:
        raise ValueError(f"beta * scale must exceed 2^-26, not {beta * input_quant.scale}")
    fraction, left_shift = math.frexp(factor)
    multiplier = math.floor(fraction * 2.0**31 + 0.5)
    if multiplier == 2**31:
        multiplier, left_shift = 2**30, left_shift + 1
    radius = (2**_DIFFERENCE_BITS - 1) * 2 ** (31 - _DIFFERENCE_BITS) / 2**left_shift
    return multiplier, left_shift, -math.floor(radius)


def softmax_integer(
    x: NDArray[np.int8], multiplier: int, left_shift: int, least_difference: int
) -> NDArray[np.int8]:
    """Return the softmax of int8 ``x`` over its last dimension, from integers alone.

    Raises:
        TypeError, ValueError: another dtype, no dimension, an empty last dimension, or exponentials that
            add up to 512 and more (it takes over 512 values), where the reference kernel aborts.
    """
    check_tensor("x", x)
    if x.ndim == 0 or x.shape[-1] == 0:
        raise ValueError(f"x must have values in its last dimension, not shape {x.shape}")
    differences = np.arange(0, -256, -1)
    counted = differences >= least_difference
    rescaled = multiply(wrap_int32(np.where(counted, differences, 0) << left_shift), multiplier)
    exponentials = _exp_of_negative(rescaled)
    terms = np.where(counted, rounding_divide_by_pot(exponentials, _SUM_BITS), 0)
    below = x.max(axis=-1, keepdims=True).astype(np.int64) - x  # 0 to 255, an index into the tables
    sums = wrap_int32(terms.astype(np.int64)[below].sum(axis=-1, keepdims=True)).astype(np.int64)
    # Normalize: sum = (1 + a) * 2^bits with a in [0, 1).
    _, bit_length = np.frexp(sums)
    over_unit = bit_length - (31 - _SUM_BITS) - 1
    if np.any(over_unit > 8):
        largest = float(sums.max()) / 2 ** (31 - _SUM_BITS)
        raise ValueError(f"the exponentials of a row must add up to less than 512, not {largest}")
    mantissa = wrap_int32((sums << (32 - bit_length)) - 2**31)
    product = multiply(_reciprocal_of_one_plus(mantissa), exponentials[below])
    result = rounding_divide_by_pot(product, over_unit + 31 - 8).astype(np.int64) + INT8_MIN
    return np.where(counted[below], np.clip(result, INT8_MIN, INT8_MAX), INT8_MIN).astype(np.int8)


def softmax(x: NDArray[np.int8], *, input_quant: QuantParams, beta: float = 1.0) -> NDArray[np.int8]:
    """Take the softmax over the last dimension (TFLite ``SOFTMAX``); the output is ``SOFTMAX_OUTPUT``.

    Only the input's scale matters, since the maximum is subtracted first.

    Raises:
        TypeError, ValueError: another dtype, an empty last dimension, a scale too small.
    """
    return softmax_integer(x, *softmax_parameters(input_quant, beta))
