"""From int32 sums back to int8: TFLite's fixed-point multiplication and what is built on it.

A real factor is held as ``multiplier * 2**(shift - 31)``, ``multiplier`` an int32 (normally in
[2^30, 2^31), smaller ones are legal) and ``shift`` in [-31, 30]. Two ways of rounding exist:

* :attr:`Rounding.DOUBLE`, in the reference kernels of convolution, depthwise convolution, mean and add:
  the sum is shifted left (if ``shift > 0``), the high half of the doubled product is rounded half up,
  and then shifted right (if ``shift < 0``) with rounding half away from zero. Two roundings: not the
  nearest integer always.
* :attr:`Rounding.SINGLE`: the exact product, rounded once, half away from zero. The reference kernel
  of the fully connected operator multiplies in float64 and rounds once; this is its integer equivalent
  (see :func:`single_rounding_multiplier`).
"""

import enum
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .quantization import INT8_MAX, INT8_MIN, Activation, QuantParams, activation_range

__all__ = [
    "Requantization",
    "Rounding",
    "convolution_requantization",
    "fold_input_zero_point",
    "multiply_by_quantized_multiplier",
    "quantize_multiplier",
    "quantize_multipliers",
    "requantize",
    "rounding_divide_by_pot",
    "saturating_rounding_doubling_high_mul",
    "single_rounding_multiplier",
    "wrap_int32",
]

_INT32_MAX = 2**31 - 1
_SHIFT_MIN, _SHIFT_MAX = -31, 30


class Rounding(enum.Enum):
    """How a fixed-point product is rounded; see the module's text."""

    DOUBLE = "double"
    SINGLE = "single"


def wrap_int32(values: ArrayLike) -> NDArray[np.int32]:
    """Return integers modulo 2^32 as int32: what a 32-bit adder leaves."""
    return np.asarray(values, np.int64).astype(np.int32)


def quantize_multipliers(real: ArrayLike) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Split real factors into (multipliers, shifts) with 31 fractional bits.

    Factors below 2^-32 become (0, 0), since a shift below -31 leaves nothing
    (TFLite, ``QuantizeMultiplier``).

    Raises:
        ValueError: a factor that is negative, not finite, or 2^30 and more.
    """
    factors = np.asarray(real, np.float64)
    if not np.all(np.isfinite(factors) & (factors >= 0)):
        raise ValueError(f"a multiplier must be finite and at least 0, not {real!r}")
    fractions, shifts = np.frexp(factors)
    # fraction * 2^31 has at most 53 significant bits and so has the sum: the rounding is exact.
    multipliers = np.floor(fractions * 2.0**31 + 0.5).astype(np.int64)
    carried = multipliers == 2**31
    multipliers = np.where(carried, 2**30, multipliers)
    shifts = np.where(carried, shifts + 1, shifts)
    vanished = shifts < _SHIFT_MIN
    multipliers = np.where(vanished, 0, multipliers)
    shifts = np.where(vanished, 0, shifts)
    if np.any(shifts > _SHIFT_MAX):
        raise ValueError(f"a multiplier must be less than 2^30, not {float(factors.max())}")
    return multipliers.astype(np.int32), shifts.astype(np.int32)


def quantize_multiplier(real: float) -> tuple[int, int]:
    """Split one real factor into (multiplier, shift); see :func:`quantize_multipliers`."""
    multipliers, shifts = quantize_multipliers(real)
    return int(multipliers), int(shifts)


def saturating_rounding_doubling_high_mul(a: ArrayLike, b: ArrayLike) -> NDArray[np.int32]:
    """Return ``round(a * b / 2^31)`` of int32 values, halves rounded up.

    TFLite adds 2^30 or 1 - 2^30 by the product's sign and truncates, which comes to the same:
    for a negative ``p``, ``trunc((p + 1 - 2^30) / 2^31) = ceil(..) = floor((p + 2^30) / 2^31)``.
    Only -2^31 times -2^31 does not fit; it saturates to 2^31 - 1.
    """
    product = np.asarray(a, np.int64) * np.asarray(b, np.int64)
    product = (product + (1 << 30)) >> 31
    return np.minimum(product, _INT32_MAX).astype(np.int32)


def rounding_divide_by_pot(x: ArrayLike, exponent: ArrayLike) -> NDArray[np.int32]:
    """Return ``round(x / 2^exponent)`` of int32 values, halves away from zero; exponents in [0, 31]."""
    wide = np.asarray(x, np.int64)
    shift = np.asarray(exponent, np.int64)
    if np.any((shift < 0) | (shift > 31)):
        raise ValueError(f"exponent must be in [0, 31], not {exponent!r}")
    half = (np.int64(1) << shift) >> 1
    # Adding half rounds halves up; for a negative value a half must go down, so one less is added.
    return ((wide + half - ((wide < 0) & (shift > 0))) >> shift).astype(np.int32)


def multiply_by_quantized_multiplier(
    x: ArrayLike, multiplier: ArrayLike, shift: ArrayLike, rounding: Rounding = Rounding.DOUBLE
) -> NDArray[np.int32]:
    """Return ``x * multiplier * 2^(shift - 31)``, rounded as ``rounding`` says.

    Arguments:
        x: int32 values.
        multiplier: int32 values in [0, 2^31), broadcast against ``x``.
        shift: in [-31, 30], broadcast against ``x``.

    The left shift of a positive ``shift`` wraps at 32 bits in double rounding, as it does in the
    reference kernel's machine code. Single rounding saturates.

    Raises:
        ValueError: a shift out of range.
    """
    shifts = np.asarray(shift, np.int64)
    if np.any((shifts < _SHIFT_MIN) | (shifts > _SHIFT_MAX)):
        raise ValueError(f"shift must be in [{_SHIFT_MIN}, {_SHIFT_MAX}], not {shift!r}")
    if rounding is Rounding.SINGLE:
        return _multiply_rounding_once(x, multiplier, shifts)
    wide = np.asarray(x, np.int64)
    if np.any(shifts > 0):
        wide = wrap_int32(wide << np.maximum(shifts, 0)).astype(np.int64)
    high = saturating_rounding_doubling_high_mul(wide, multiplier)
    return rounding_divide_by_pot(high, np.maximum(-shifts, 0))


def _multiply_rounding_once(
    x: ArrayLike, multiplier: ArrayLike, shifts: NDArray[np.int64]
) -> NDArray[np.int32]:
    """Round the exact 63-bit product once, half away from zero, and saturate to int32."""
    product = np.asarray(x, np.int64) * np.asarray(multiplier, np.int64)
    right = 31 - shifts
    negative = product < 0
    magnitude = np.abs(product)
    # The sum magnitude + half can reach 2^62 + 2^61: still inside int64.
    rounded = (magnitude + (np.int64(1) << (right - 1))) >> right
    return np.where(negative, -np.minimum(rounded, _INT32_MAX + 1), np.minimum(rounded, _INT32_MAX)).astype(
        np.int32
    )


@dataclass(frozen=True, eq=False)
class Requantization:
    """The integers that turn int32 sums into int8 outputs: all that a hardware output stage needs.

    Attributes:
        bias: int32 [C] or [1], added to the sum first, modulo 2^32.
        multiplier: int32 [C] or [1], each in [0, 2^31).
        shift: int32 [C] or [1], each in [-31, 30].
        zero_point: of the output, added after the multiplication.
        clamp_min, clamp_max: int8 bounds of the result.
        rounding: how the product is rounded.

    Raises:
        ValueError: a value out of range, or arrays of unlike lengths.
    """

    bias: NDArray[np.int32]
    multiplier: NDArray[np.int32]
    shift: NDArray[np.int32]
    zero_point: int = 0
    clamp_min: int = INT8_MIN
    clamp_max: int = INT8_MAX
    rounding: Rounding = Rounding.DOUBLE

    def __post_init__(self) -> None:
        bounds = {"bias": (-(2**31), _INT32_MAX), "multiplier": (0, _INT32_MAX)}
        bounds["shift"] = (_SHIFT_MIN, _SHIFT_MAX)
        lengths = set()
        for name, (low, high) in bounds.items():
            values = np.atleast_1d(np.asarray(getattr(self, name)))
            if values.ndim != 1 or not np.issubdtype(values.dtype, np.integer):
                raise ValueError(
                    f"{name} must be a vector of integers, not {values.dtype} of shape {values.shape}"
                )
            if np.any((values < low) | (values > high)):
                raise ValueError(f"{name} must be in [{low}, {high}], not {values.min()}..{values.max()}")
            object.__setattr__(self, name, values.astype(np.int32))
            lengths.add(len(values))
        if len(lengths - {1}) > 1:
            raise ValueError(f"bias, multiplier and shift must have one length, not {sorted(lengths)}")
        for name in ("zero_point", "clamp_min", "clamp_max"):
            if not INT8_MIN <= getattr(self, name) <= INT8_MAX:
                raise ValueError(f"{name} must be in [-128, 127], not {getattr(self, name)}")
        if self.clamp_min > self.clamp_max:
            raise ValueError(f"clamp_min {self.clamp_min} must not exceed clamp_max {self.clamp_max}")

    @property
    def channels(self) -> int:
        """The number of output channels described, or 1 where all share the same integers."""
        return max(len(self.bias), len(self.multiplier), len(self.shift))


def requantize(sums: NDArray[Any], parameters: Requantization) -> NDArray[np.int8]:
    """Return int8 outputs of int32 sums whose last dimension is the output channel.

    Raises:
        ValueError: a last dimension that is not ``parameters.channels`` (unless that is 1).
    """
    if parameters.channels != 1 and sums.shape[-1:] != (parameters.channels,):
        raise ValueError(
            f"sums must have {parameters.channels} channels in the last dimension, not shape {sums.shape}"
        )
    total = wrap_int32(sums.astype(np.int64) + parameters.bias)
    scaled = multiply_by_quantized_multiplier(
        total, parameters.multiplier, parameters.shift, parameters.rounding
    )
    shifted: NDArray[Any] = scaled.astype(np.int64) + parameters.zero_point
    if parameters.rounding is Rounding.DOUBLE:
        shifted = wrap_int32(shifted)  # the reference kernel adds the zero point in 32 bits
    result = np.clip(shifted, parameters.clamp_min, parameters.clamp_max).astype(np.int8)
    return result.reshape(sums.shape)  # a lone sum without dimensions comes back as one


def fold_input_zero_point(
    bias: NDArray[np.int32] | None, weights: NDArray[np.int8], channel_axis: int, input_zero_point: int
) -> NDArray[np.int32]:
    """Return ``bias - input_zero_point * sum(weights)`` per output channel, modulo 2^32.

    With it, raw int8 activations may be multiplied: ``sum((x - z) * w) + b = sum(x * w) + (b - z * sum(w))``.
    That needs padding to be filled with ``z``, so that a padded tap adds nothing in total.
    """
    other = tuple(axis for axis in range(weights.ndim) if axis != channel_axis % weights.ndim)
    sums = weights.sum(axis=other, dtype=np.int64)
    return wrap_int32((0 if bias is None else bias.astype(np.int64)) - input_zero_point * sums)


def check_bias(bias: NDArray[np.int32] | None, channels: int) -> None:
    """Raise unless ``bias`` is None or int32 [channels]."""
    if bias is None:
        return
    if not isinstance(bias, np.ndarray) or bias.dtype != np.int32:
        kind = bias.dtype if isinstance(bias, np.ndarray) else type(bias).__name__
        raise TypeError(f"bias must be a NumPy array of int32, not {kind}")
    if bias.shape != (channels,):
        raise ValueError(f"bias must have shape ({channels},), one value a channel, not {bias.shape}")


def effective_scales(
    input_scale: float, weight_scales: ArrayLike, output_scale: float, channels: int
) -> NDArray[np.float64]:
    """Return ``s_in * s_w / s_out`` per channel, in float64 from float32 scales, as TFLite computes it.

    Raises:
        ValueError: neither one weight scale nor one for each channel, or one that is not positive.
    """
    scales = np.atleast_1d(np.asarray(weight_scales, np.float32)).astype(np.float64)
    if scales.shape not in {(1,), (channels,)}:
        raise ValueError(f"weight_scales must be one scale or {channels}, not of shape {scales.shape}")
    if not np.all(np.isfinite(scales) & (scales > 0)):
        raise ValueError(f"weight_scales must be positive and finite, not {weight_scales!r}")
    # The order matters: (input * weight) / output, each operation rounded to float64.
    return np.broadcast_to(input_scale * scales / output_scale, (channels,))


def convolution_requantization(
    weights: NDArray[np.int8],
    bias: NDArray[np.int32] | None,
    channel_axis: int,
    input_quant: QuantParams,
    weight_scales: ArrayLike,
    output_quant: QuantParams,
    activation: Activation = Activation.NONE,
) -> Requantization:
    """Return the integers of a convolution's output stage from its scales.

    Arguments:
        weights: int8, with output channels along ``channel_axis`` (0 for conv, 3 for depthwise).
        bias: int32 [C] at scale ``s_in * s_w``, or None.
        weight_scales: one scale, or one an output channel; zero points are 0.

    Raises:
        TypeError, ValueError: a bias or scales that do not fit, or a factor too large to hold.
    """
    channels = weights.shape[channel_axis]
    check_bias(bias, channels)
    factors = effective_scales(input_quant.scale, weight_scales, output_quant.scale, channels)
    multiplier, shift = quantize_multipliers(factors)
    low, high = activation_range(activation, output_quant)
    folded = fold_input_zero_point(bias, weights, channel_axis, input_quant.zero_point)
    return Requantization(folded, multiplier, shift, output_quant.zero_point, low, high)


def single_rounding_multiplier(
    factor: float, sum_limit: int = 2**31, output_limit: int = 255
) -> tuple[int, int]:
    """Return (multiplier, shift) whose single rounding equals float64's, for every sum that can occur.

    The reference kernel of the fully connected operator computes ``round(float64(sum) * factor)``. Both
    that and the fixed-point product grow with the sum and are odd in it, so they agree everywhere if each
    step ``k - 1 -> k`` comes at the same sum ``t[k]``:
    ``t * m >= (2k - 1) * 2^(n - 1) > (t - 1) * m`` with ``n = 31 - shift``. Every step thus bounds ``m``
    from both sides; any integer within all the bounds will do, and the one nearest to
    ``factor * 2^n`` is returned.

    Arguments:
        factor: the real factor, in (0, 2^30).
        sum_limit: bound of the sums' absolute value (bias included). A smaller one is easier to meet.
        output_limit: bound of the distance from zero at which outputs saturate: 255 covers any zero point.

    Raises:
        ValueError: no 31-bit multiplier agrees on all these sums.
    """
    multiplier, shift = quantize_multiplier(factor)
    if multiplier == 0:
        return 0, 0
    n = 31 - shift
    k = np.arange(1, output_limit + 1, dtype=np.int64)
    # The first sum of each step: an estimate, then a few sums up or down, in float64 as the kernel has it.
    steps = np.ceil((k - 0.5) / factor)
    for _ in range(4):
        steps = np.where((steps - 1) * factor >= k - 0.5, steps - 1, steps)
        steps = np.where(steps * factor < k - 0.5, steps + 1, steps)
    low, high = 1, _INT32_MAX
    for index, step in zip(k.tolist(), steps.tolist(), strict=True):
        target = (2 * index - 1) << (n - 1)
        first = int(step)
        if first <= sum_limit:
            low = max(low, -(-target // first))
        if 1 < first <= sum_limit + 1:
            high = min(high, (target - 1) // (first - 1))
        elif first > sum_limit + 1:
            high = min(high, (target - 1) // sum_limit)
            break
    if low > high:
        raise ValueError(
            f"no 31-bit multiplier rounds like float64 for a factor of {factor!r} and sums up to {sum_limit}"
        )
    nearest = math.floor(math.ldexp(factor, n) + 0.5)
    return min(max(nearest, low), high), shift
