"""What the reference operators refuse, and that their errors say what was given and what is allowed."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from lepton_sim import reference as ref
from lepton_sim.reference import Padding, QuantParams, Requantization, convolution

Q = QuantParams(0.1, 3)
X = np.zeros((1, 5, 5, 4), np.int8)
W = np.zeros((2, 3, 3, 4), np.int8)
DW = np.zeros((1, 3, 3, 8), np.int8)
B = np.zeros(2, np.int32)
SCALES: dict[str, Any] = {"input_quant": Q, "weight_scales": 0.1, "output_quant": Q}


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda: ref.conv2d(X.astype(np.float32), W, B, **SCALES),
            TypeError,
            "x must have dtype int8, not float32",
        ),
        (
            lambda: ref.conv2d(X.tolist(), W, B, **SCALES),
            TypeError,
            "x must be a NumPy array of int8, not list",
        ),
        (lambda: ref.conv2d(X[0], W, B, **SCALES), ValueError, "x must have 4 dimensions, not 3"),
        (lambda: ref.conv2d(X, W[0], B, **SCALES), ValueError, "weights must have 4 dimensions, not 3"),
        (lambda: ref.conv2d(X[..., :3], W, B, **SCALES), ValueError, "x has 3 channels and weights expect 4"),
        (lambda: ref.conv2d(X, W, B[:1], **SCALES), ValueError, r"bias must have shape \(2,\)"),
        (
            lambda: ref.conv2d(X, W, B.astype(np.int64), **SCALES),
            TypeError,
            "bias must be .* int32, not int64",
        ),
        (lambda: ref.conv2d(X, W, B, stride=0, **SCALES), ValueError, "stride must be .* at least 1, not 0"),
        (
            lambda: ref.conv2d(X, W, B, dilation=(1, 2, 3), **SCALES),
            ValueError,
            "dilation must be one or two",
        ),
        (
            lambda: ref.conv2d(X, W, B, padding="full", **SCALES),
            ValueError,
            "padding must be 'same', 'valid'",
        ),
        (lambda: ref.conv2d(X, W, B, padding=Padding(top=-1), **SCALES), ValueError, "padding amounts"),
        (
            lambda: ref.conv2d(X, W, B, dilation=3, **SCALES),
            ValueError,
            "covers 7x7, more than the padded input's 5x5",
        ),
        (lambda: ref.conv2d(X, W, B, **{**SCALES, "weight_scales": [0.1] * 3}), ValueError, "one scale or 2"),
        (lambda: ref.conv2d(X, W, B, **{**SCALES, "weight_scales": 0.0}), ValueError, "must be positive"),
        (
            lambda: ref.conv2d(X, W, B, activation="relu", **SCALES),
            TypeError,
            "must be an Activation, not 'relu'",
        ),
        (lambda: ref.conv2d_integer(X, W, params(3)), ValueError, "sums must have 3 channels"),
        (lambda: ref.depthwise_conv2d(X, W, None, **SCALES), ValueError, r"shape \[1, kh, kw, C \* M\]"),
        (
            lambda: ref.depthwise_conv2d(X, DW[..., :6], None, **SCALES),
            ValueError,
            "6 channels, not a multiple of x's 4",
        ),
        (
            lambda: ref.fully_connected(X, np.zeros((2, 7), np.int8), None, **SCALES),
            ValueError,
            "whole number of rows",
        ),
        (
            lambda: ref.fully_connected(X, np.zeros((2, 10), np.int8), None, keep_num_dims=True, **SCALES),
            ValueError,
            "last dimension must be 10",
        ),
        (lambda: ref.max_pool2d(X, 6, quant=Q), ValueError, "more than the padded input's 5x5"),
        (lambda: ref.average_pool2d(X, 2, padding=Padding(top=2), quant=Q), ValueError, "no value in it"),
        (
            lambda: ref.max_pool2d(X, 2, stride=1, padding=Padding(right=2), quant=Q),
            ValueError,
            "no value in it",
        ),
        (
            lambda: ref.mean(X, 4, input_quant=Q, output_quant=Q),
            ValueError,
            r"axes must be in \[-4, 4\), not 4",
        ),
        (
            lambda: ref.mean(X[:, :0], 1, input_quant=Q, output_quant=Q),
            ValueError,
            "number of values in a mean",
        ),
        (
            lambda: ref.add(X, X[..., :3], a_quant=Q, b_quant=Q, output_quant=Q),
            ValueError,
            "do not broadcast",
        ),
        (
            lambda: ref.add(X, X, a_quant=Q, b_quant=Q, output_quant=QuantParams(1e-8)),
            ValueError,
            r"must exceed 2\^-19 of the larger input scale",
        ),
        (lambda: ref.softmax(X[..., :0], input_quant=Q), ValueError, "values in its last dimension"),
        (lambda: ref.softmax(X, input_quant=QuantParams(1e-9)), ValueError, r"must exceed 2\^-26"),
        (lambda: ref.softmax(np.zeros(512, np.int8), input_quant=Q), ValueError, "less than 512, not 512"),
        (lambda: ref.pad(X, [(1, 1)], quant=Q), ValueError, "paddings must be 4 pairs"),
        (lambda: ref.pad(X, [(0, 0), (0, 0), (0, -1), (0, 0)], quant=Q), ValueError, "pairs of at least 0"),
        (lambda: ref.reshape(X, (3, -1)), ValueError, "100 values .* cannot take the shape"),
        (lambda: ref.reshape(X, (-1, -1)), ValueError, "cannot take the shape"),
        (lambda: QuantParams(0.0), ValueError, "scale must be positive"),
        (lambda: QuantParams(1e-60), ValueError, "scale must be positive"),
        (lambda: QuantParams(1.0, 128), ValueError, r"zero_point must be in \[-128, 127\], not 128"),
        (
            lambda: params(2, multiplier=-1),
            ValueError,
            r"multiplier must be in \[0, 2147483647\], not -1..-1",
        ),
        (lambda: params(2, shift=31), ValueError, r"shift must be in \[-31, 30\]"),
        (lambda: params(2, clamp_min=5, clamp_max=4), ValueError, "clamp_min 5 must not exceed clamp_max 4"),
        (lambda: params(2, clamp_max=128), ValueError, "clamp_max must be in"),
        (
            lambda: Requantization(np.zeros(2, np.int32), np.ones(3, np.int32), np.zeros(1, np.int32)),
            ValueError,
            r"must have one length, not \[1, 2, 3\]",
        ),
        (
            lambda: Requantization(np.zeros(2), np.ones(2, np.int32), np.zeros(2, np.int32)),
            ValueError,
            "bias must be a vector of integers, not float64",
        ),
    ],
)
def test_refuses(call: Callable[[], object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()


def params(channels: int, multiplier: int = 2**30, shift: int = 0, **bounds: int) -> Requantization:
    ones = np.ones(channels, np.int64)
    return Requantization(0 * ones, multiplier * ones, shift * ones, **bounds)


def test_large_convolutions_are_cut_by_images(monkeypatch: pytest.MonkeyPatch) -> None:
    """Working on one image at a time gives what working on all at once gives."""
    rng = np.random.default_rng(0)
    x = rng.integers(-128, 128, (5, 6, 7, 3)).astype(np.int8)
    weights = rng.integers(-127, 128, (4, 3, 2, 3)).astype(np.int8)
    whole = ref.conv2d_sums(x, weights, padding="same", pad_value=9)
    for elements in (1, 2 * 6 * 7 * 18):
        monkeypatch.setattr(convolution, "_PATCH_ELEMENTS", elements)
        assert np.array_equal(ref.conv2d_sums(x, weights, padding="same", pad_value=9), whole)


@pytest.mark.parametrize("terms", [1024, 1025, 5000])
def test_sums_are_exact_at_their_largest(terms: int) -> None:
    """(-128)^2 summed over float32's last safe length and beyond."""
    x = np.full((1, terms), -128, np.int8)
    weights = np.full((2, terms), -128, np.int8)
    weights[1, -1] = -127  # makes the sum no multiple of a power of two
    assert ref.matrix_product(x, weights).tolist() == [[2**14 * terms, 2**14 * terms - 128]]
    image = x.reshape(1, 1, 1, terms)
    assert ref.conv2d_sums(image, weights.reshape(2, 1, 1, terms)).ravel().tolist() == [
        2**14 * terms,
        2**14 * terms - 128,
    ]


def test_pooling_leaves_explicit_padding_out() -> None:
    """Rows of padding neither win a maximum nor count in a mean."""
    x = np.full((1, 2, 2, 1), -100, np.int8)
    padding = Padding(top=1, left=1)
    assert ref.max_pool2d(x, 2, stride=1, padding=padding, quant=Q).ravel().tolist() == [-100] * 4
    assert ref.average_pool2d(x, 2, stride=1, padding=padding, quant=Q).ravel().tolist() == [-100] * 4
    assert ref.sum_pool2d(x, 2, stride=1, padding=padding)[1].tolist() == [[1, 2], [2, 4]]
