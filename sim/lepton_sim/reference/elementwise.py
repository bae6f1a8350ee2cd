"""Addition of two int8 tensors, each with a scale of its own."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .arguments import check_tensor
from .quantization import INT8_MAX, INT8_MIN, Activation, QuantParams, activation_range
from .requantize import multiply_by_quantized_multiplier, quantize_multiplier

__all__ = ["AddParameters", "add", "add_integer", "add_parameters"]

# 9 bits of (q - zero point) and 20 of fraction: the sum of two such numbers, each at most halved, fits int32.
ADD_LEFT_SHIFT = 20


@dataclass(frozen=True)
class AddParameters:
    """The integers of an addition: all that a hardware adder needs.

    Each input is brought to twice the larger scale, with 20 fractional bits:
    ``((q - zero_point) << left_shift) * multiplier``, its shift at most 0. The sum is multiplied
    down to the output's scale, its zero point added, and the result clamped.

    Attributes:
        a_zero_point, a_multiplier, a_shift: of the first input.
        b_zero_point, b_multiplier, b_shift: of the second.
        output_zero_point, output_multiplier, output_shift: of the sum.
        clamp_min, clamp_max: int8 bounds of the result.
        left_shift: fractional bits.
    """

    a_zero_point: int
    a_multiplier: int
    a_shift: int
    b_zero_point: int
    b_multiplier: int
    b_shift: int
    output_zero_point: int
    output_multiplier: int
    output_shift: int
    clamp_min: int = INT8_MIN
    clamp_max: int = INT8_MAX
    left_shift: int = ADD_LEFT_SHIFT


def add_parameters(
    a_quant: QuantParams,
    b_quant: QuantParams,
    output_quant: QuantParams,
    activation: Activation = Activation.NONE,
) -> AddParameters:
    """Return the integers of an addition from its scales.

    Raises:
        ValueError: an output scale below 2^-19 of the larger input scale, which 20 fractional bits
            cannot serve (LiteRT refuses such a model too).
    """
    twice_larger = 2.0 * max(a_quant.scale, b_quant.scale)
    a_multiplier, a_shift = quantize_multiplier(a_quant.scale / twice_larger)
    b_multiplier, b_shift = quantize_multiplier(b_quant.scale / twice_larger)
    factor = twice_larger / ((1 << ADD_LEFT_SHIFT) * output_quant.scale)
    output_multiplier, output_shift = quantize_multiplier(factor) if factor < 1 else (0, 1)
    if output_shift > 0:
        raise ValueError(
            f"the output scale {output_quant.scale} must exceed 2^-19 of the larger input scale "
            f"{twice_larger / 2}"
        )
    low, high = activation_range(activation, output_quant)
    return AddParameters(
        a_quant.zero_point,
        a_multiplier,
        a_shift,
        b_quant.zero_point,
        b_multiplier,
        b_shift,
        output_quant.zero_point,
        output_multiplier,
        output_shift,
        low,
        high,
    )


def add_integer(a: NDArray[np.int8], b: NDArray[np.int8], parameters: AddParameters) -> NDArray[np.int8]:
    """Return the int8 sum from integers alone; shapes broadcast as NumPy's do.

    Raises:
        TypeError, ValueError: another dtype, shapes that do not broadcast.
    """
    check_tensor("a", a)
    check_tensor("b", b)
    p = parameters
    try:
        np.broadcast_shapes(a.shape, b.shape)
    except ValueError:
        raise ValueError(f"a of shape {a.shape} and b of shape {b.shape} do not broadcast") from None
    wide_a = (a.astype(np.int64) - p.a_zero_point) << p.left_shift
    wide_b = (b.astype(np.int64) - p.b_zero_point) << p.left_shift
    total = multiply_by_quantized_multiplier(wide_a, p.a_multiplier, p.a_shift).astype(np.int64)
    total = total + multiply_by_quantized_multiplier(wide_b, p.b_multiplier, p.b_shift)
    result = multiply_by_quantized_multiplier(total, p.output_multiplier, p.output_shift).astype(np.int64)
    return np.clip(result + p.output_zero_point, p.clamp_min, p.clamp_max).astype(np.int8)


def add(
    a: NDArray[np.int8],
    b: NDArray[np.int8],
    *,
    a_quant: QuantParams,
    b_quant: QuantParams,
    output_quant: QuantParams,
    activation: Activation = Activation.NONE,
) -> NDArray[np.int8]:
    """Add two tensors (TFLite ``ADD``); shapes broadcast as NumPy's do.

    Raises:
        TypeError, ValueError: another dtype, shapes that do not broadcast, an output scale too small.
    """
    return add_integer(a, b, add_parameters(a_quant, b_quant, output_quant, activation))
