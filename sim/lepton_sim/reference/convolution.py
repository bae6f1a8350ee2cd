"""Convolution and depthwise convolution, NHWC, int8.

Each comes in three layers: ``*_sums`` multiplies and adds raw int8, ``*_integer`` adds the output stage
with its integers given, and the function of the plain name derives those integers from scales.
Sums are int32 and wrap modulo 2^32; since addition modulo 2^32 is associative, they may be
formed in any order and in any number of parts.
"""

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .arguments import check_tensor
from .quantization import Activation, QuantParams
from .requantize import Requantization, convolution_requantization, requantize, wrap_int32
from .window import Padding, Window

__all__ = [
    "conv2d",
    "conv2d_integer",
    "conv2d_sums",
    "depthwise_conv2d",
    "depthwise_conv2d_integer",
    "depthwise_conv2d_sums",
    "matrix_product",
]

# |a * b| <= 2^14 for int8: 2^10 products stay within float32's 2^24 of exact integers, in any order.
_FLOAT32_TERMS = 2**10
# Float32 patches of at most 32 MiB at a time, whole images permitting.
_PATCH_ELEMENTS = 2**23


def matrix_product(a: NDArray[np.int8] | NDArray[np.floating[Any]], b: NDArray[np.int8]) -> NDArray[np.int32]:
    """Return ``a @ b.T`` of int8 values exactly, as int32 modulo 2^32.

    Arguments:
        a: [M, K], int8 or already the float type of :func:`_exact_float`.
        b: int8 [O, K].

    Floating-point products are used only where no sum can lose a bit: float32 up to 1,024 terms,
    float64 (2^53 / 2^14 = 2^39 terms) above.
    """
    exact = _exact_float(b.shape[1])
    return wrap_int32(a.astype(exact, copy=False) @ b.T.astype(exact))


def _exact_float(terms: int) -> type[np.float32] | type[np.float64]:
    """Return the float type in which ``terms`` products of int8 values add up exactly."""
    return np.float32 if terms <= _FLOAT32_TERMS else np.float64


def conv2d_sums(
    x: NDArray[np.int8],
    weights: NDArray[np.int8],
    *,
    stride: int | tuple[int, int] = 1,
    dilation: int | tuple[int, int] = 1,
    padding: Padding | str = "valid",
    pad_value: int = 0,
) -> NDArray[np.int32]:
    """Return raw sums of a convolution.

    Arguments:
        x: int8 [N, H, W, Cin].
        weights: int8 [Cout, kh, kw, Cin].
        stride, dilation: vertical and horizontal, or one number for both.
        padding: ``"same"``, ``"valid"`` or explicit amounts.
        pad_value: what padding holds; the input's zero point.

    Returns:
        int32 [N, Ho, Wo, Cout].

    Raises:
        TypeError, ValueError: a tensor of another dtype or shape, a geometry that does not fit.
    """
    check_tensor("x", x, rank=4)
    check_tensor("weights", weights, rank=4)
    outputs, kh, kw, channels = weights.shape
    if x.shape[3] != channels:
        raise ValueError(f"x has {x.shape[3]} channels and weights expect {channels}")
    window = Window(x.shape, (kh, kw), stride, dilation, padding)
    padded = window.pad(x, pad_value)
    ho, wo = window.output
    terms = kh * kw * channels
    matrix = weights.reshape(outputs, terms)
    sums = np.empty((x.shape[0], ho, wo, outputs), np.int32)
    images = max(1, _PATCH_ELEMENTS // max(1, ho * wo * terms))
    for first in range(0, x.shape[0], images):
        part = padded[first : first + images]
        patches = np.empty((len(part), ho, wo, kh, kw, channels), _exact_float(terms))
        for i, j, seen in window.taps(part):
            patches[:, :, :, i, j] = seen
        product = matrix_product(patches.reshape(-1, terms), matrix)
        sums[first : first + images] = product.reshape(len(part), ho, wo, outputs)
    return sums


def conv2d_integer(
    x: NDArray[np.int8],
    weights: NDArray[np.int8],
    parameters: Requantization,
    *,
    stride: int | tuple[int, int] = 1,
    dilation: int | tuple[int, int] = 1,
    padding: Padding | str = "valid",
    pad_value: int = 0,
) -> NDArray[np.int8]:
    """Return a convolution's int8 output [N, Ho, Wo, Cout] from integers alone.

    The input's zero point is in ``parameters.bias`` (see ``fold_input_zero_point``) and in ``pad_value``.
    Arguments and errors otherwise as for :func:`conv2d_sums`.
    """
    sums = conv2d_sums(x, weights, stride=stride, dilation=dilation, padding=padding, pad_value=pad_value)
    return requantize(sums, parameters)


def conv2d(
    x: NDArray[np.int8],
    weights: NDArray[np.int8],
    bias: NDArray[np.int32] | None,
    *,
    input_quant: QuantParams,
    weight_scales: ArrayLike,
    output_quant: QuantParams,
    stride: int | tuple[int, int] = 1,
    dilation: int | tuple[int, int] = 1,
    padding: Padding | str = "valid",
    activation: Activation = Activation.NONE,
) -> NDArray[np.int8]:
    """Convolve (TFLite ``CONV_2D``), with weight scales per output channel.

    Arguments:
        x: int8 [N, H, W, Cin].
        weights: int8 [Cout, kh, kw, Cin], symmetric.
        bias: int32 [Cout] at scale ``s_in * s_w``, or None.
        weight_scales: one scale, or float [Cout].
        stride, dilation: vertical and horizontal, or one number for both.
        padding: ``"same"``, ``"valid"`` or explicit amounts.

    Returns:
        int8 [N, Ho, Wo, Cout].

    Raises:
        TypeError, ValueError: a tensor of another dtype or shape, a geometry or scales that do not fit.
    """
    check_tensor("weights", weights, rank=4)
    parameters = convolution_requantization(
        weights, bias, 0, input_quant, weight_scales, output_quant, activation
    )
    return conv2d_integer(
        x,
        weights,
        parameters,
        stride=stride,
        dilation=dilation,
        padding=padding,
        pad_value=input_quant.zero_point,
    )


def depthwise_conv2d_sums(
    x: NDArray[np.int8],
    weights: NDArray[np.int8],
    *,
    stride: int | tuple[int, int] = 1,
    dilation: int | tuple[int, int] = 1,
    padding: Padding | str = "valid",
    pad_value: int = 0,
) -> NDArray[np.int32]:
    """Return raw sums of a depthwise convolution.

    Arguments:
        x: int8 [N, H, W, C].
        weights: int8 [1, kh, kw, C * M]; output channel ``c * M + m`` reads input channel ``c``.

    Returns:
        int32 [N, Ho, Wo, C * M].

    Raises:
        TypeError, ValueError: a tensor of another dtype or shape, a geometry that does not fit.
    """
    check_tensor("x", x, rank=4)
    check_tensor("weights", weights, rank=4)
    one, kh, kw, outputs = weights.shape
    n, channels = x.shape[0], x.shape[3]
    if one != 1:
        raise ValueError(f"weights must have shape [1, kh, kw, C * M], not {weights.shape}")
    if channels == 0 or outputs % channels:
        raise ValueError(f"weights have {outputs} channels, not a multiple of x's {channels}")
    window = Window(x.shape, (kh, kw), stride, dilation, padding)
    padded = window.pad(x, pad_value)
    multiplier = outputs // channels
    taps = weights.reshape(kh, kw, channels, multiplier).astype(np.int32)
    sums = np.zeros((n, *window.output, channels, multiplier), np.int32)
    for i, j, seen in window.taps(padded):
        sums += seen[..., None].astype(np.int32) * taps[i, j]
    return sums.reshape(n, *window.output, outputs)


def depthwise_conv2d_integer(
    x: NDArray[np.int8],
    weights: NDArray[np.int8],
    parameters: Requantization,
    *,
    stride: int | tuple[int, int] = 1,
    dilation: int | tuple[int, int] = 1,
    padding: Padding | str = "valid",
    pad_value: int = 0,
) -> NDArray[np.int8]:
    """Return a depthwise convolution's int8 output [N, Ho, Wo, C * M] from integers alone.

    The input's zero point is in ``parameters.bias`` and in ``pad_value``, as in :func:`conv2d_integer`.
    """
    sums = depthwise_conv2d_sums(
        x, weights, stride=stride, dilation=dilation, padding=padding, pad_value=pad_value
    )
    return requantize(sums, parameters)


def depthwise_conv2d(
    x: NDArray[np.int8],
    weights: NDArray[np.int8],
    bias: NDArray[np.int32] | None,
    *,
    input_quant: QuantParams,
    weight_scales: ArrayLike,
    output_quant: QuantParams,
    stride: int | tuple[int, int] = 1,
    dilation: int | tuple[int, int] = 1,
    padding: Padding | str = "valid",
    activation: Activation = Activation.NONE,
) -> NDArray[np.int8]:
    """Convolve each channel by itself (TFLite ``DEPTHWISE_CONV_2D``), scales per output channel.

    Arguments:
        x: int8 [N, H, W, C].
        weights: int8 [1, kh, kw, C * M], symmetric; M, the channel multiplier, follows from the shapes.
        bias: int32 [C * M] at scale ``s_in * s_w``, or None.
        weight_scales: one scale, or float [C * M].

    Returns:
        int8 [N, Ho, Wo, C * M].

    Raises:
        TypeError, ValueError: a tensor of another dtype or shape, a geometry or scales that do not fit.
    """
    check_tensor("weights", weights, rank=4)
    parameters = convolution_requantization(
        weights, bias, 3, input_quant, weight_scales, output_quant, activation
    )
    return depthwise_conv2d_integer(
        x,
        weights,
        parameters,
        stride=stride,
        dilation=dilation,
        padding=padding,
        pad_value=input_quant.zero_point,
    )
