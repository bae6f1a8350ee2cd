"""The fully connected operator, int8.

Its reference kernel differs from the convolutions': it multiplies the int32 sum by the float64 factor
``s_in * s_w / s_out`` and rounds once, half away from zero. :func:`fully_connected_requantization` finds
integers that give the same bytes with one rounding of a fixed-point product.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .arguments import check_tensor
from .convolution import matrix_product
from .quantization import Activation, QuantParams, activation_range
from .requantize import (
    Requantization,
    Rounding,
    check_bias,
    effective_scales,
    fold_input_zero_point,
    requantize,
    single_rounding_multiplier,
    wrap_int32,
)

__all__ = [
    "fully_connected",
    "fully_connected_integer",
    "fully_connected_requantization",
    "fully_connected_sums",
]


def fully_connected_sums(x: NDArray[np.int8], weights: NDArray[np.int8]) -> NDArray[np.int32]:
    """Return raw sums int32 [B, O], modulo 2^32, of int8 inputs that hold B rows of K and weights [O, K].

    Raises:
        TypeError, ValueError: a tensor of another dtype, or an input that is not a whole number of rows.
    """
    check_tensor("x", x)
    check_tensor("weights", weights, rank=2)
    depth = weights.shape[1]
    if depth == 0 or x.size % depth:
        raise ValueError(f"x of shape {x.shape} is not a whole number of rows of weights' {depth} columns")
    return matrix_product(x.reshape(-1, depth), weights)


def fully_connected_integer(
    x: NDArray[np.int8], weights: NDArray[np.int8], parameters: Requantization
) -> NDArray[np.int8]:
    """Return int8 [B, O] from integers alone; the input's zero point is in ``parameters.bias``."""
    return requantize(fully_connected_sums(x, weights), parameters)


def fully_connected_requantization(
    weights: NDArray[np.int8],
    bias: NDArray[np.int32] | None,
    input_quant: QuantParams,
    weight_scales: ArrayLike,
    output_quant: QuantParams,
    activation: Activation = Activation.NONE,
) -> Requantization:
    """Return single-rounding integers that give the reference kernel's bytes for every input.

    Only sums that the weights and biases can produce are considered, so that a 31-bit multiplier
    nearly always exists.

    Raises:
        TypeError, ValueError: a bias or scales that do not fit; a factor for which no 31-bit
            multiplier agrees with float64 on all possible sums.
    """
    check_tensor("weights", weights, rank=2)
    outputs = weights.shape[0]
    check_bias(bias, outputs)
    factors = effective_scales(input_quant.scale, weight_scales, output_quant.scale, outputs)
    zero_point = input_quant.zero_point
    wide = weights.astype(np.int64)
    largest = max(127 - zero_point, 128 + zero_point)
    limits = np.abs(wide).sum(axis=1) * largest
    if bias is not None:
        limits += np.abs(bias.astype(np.int64))
    low, high = activation_range(activation, output_quant)
    reach = max(1, high - output_quant.zero_point, output_quant.zero_point - low)
    pairs = [
        single_rounding_multiplier(factor, max(1, min(limit, 2**31)), reach)
        for factor, limit in zip(factors.tolist(), limits.tolist(), strict=True)
    ]
    return Requantization(
        fold_input_zero_point(bias, weights, 0, zero_point),
        np.array([pair[0] for pair in pairs], np.int32),
        np.array([pair[1] for pair in pairs], np.int32),
        output_quant.zero_point,
        low,
        high,
        Rounding.SINGLE,
    )


def fully_connected(
    x: NDArray[np.int8],
    weights: NDArray[np.int8],
    bias: NDArray[np.int32] | None,
    *,
    input_quant: QuantParams,
    weight_scales: ArrayLike,
    output_quant: QuantParams,
    activation: Activation = Activation.NONE,
    keep_num_dims: bool = False,
) -> NDArray[np.int8]:
    """Multiply by a matrix (TFLite ``FULLY_CONNECTED``), with one weight scale or one an output.

    Arguments:
        x: int8 of any shape that holds whole rows of K values.
        weights: int8 [O, K], symmetric.
        bias: int32 [O] at scale ``s_in * s_w``, or None.
        weight_scales: one scale, or float [O].
        keep_num_dims: keep the leading dimensions of ``x`` (its last must be K) in place of a matrix.

    Products beyond int32, for which the kernel's conversion is undefined in C, saturate here.

    Returns:
        int8 [B, O], or [..., O] with ``keep_num_dims``.

    Raises:
        TypeError, ValueError: a tensor of another dtype or shape, scales that do not fit.
    """
    check_tensor("weights", weights, rank=2)
    outputs, depth = weights.shape
    check_bias(bias, outputs)
    factors = effective_scales(input_quant.scale, weight_scales, output_quant.scale, outputs)
    if keep_num_dims and x.shape[-1:] != (depth,):
        raise ValueError(f"with keep_num_dims x's last dimension must be {depth}, not shape {x.shape}")
    folded = fold_input_zero_point(bias, weights, 0, input_quant.zero_point)
    sums = wrap_int32(fully_connected_sums(x, weights).astype(np.int64) + folded)
    scaled = sums * factors
    whole = np.trunc(scaled)
    # scaled - whole is exact, unlike scaled + 0.5, which rounds up just below a half.
    rounded = whole + np.copysign(np.abs(scaled - whole) >= 0.5, scaled)
    low, high = activation_range(activation, output_quant)
    result = np.clip(rounded + output_quant.zero_point, low, high).astype(np.int8)
    return result.reshape(*x.shape[:-1], outputs) if keep_num_dims else result
