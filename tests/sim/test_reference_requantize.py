"""The fixed-point pieces of the reference operators, each against its definition in exact arithmetic."""

import math
from fractions import Fraction

import numpy as np
import pytest

from lepton_sim import reference as ref
from lepton_sim.reference import Activation, QuantParams, Requantization, Rounding

INT32_MIN, INT32_MAX = -(2**31), 2**31 - 1
CORNERS = [INT32_MIN, INT32_MIN + 1, -(2**30) - 1, -(2**30), -3, -2, -1]
CORNERS += [0, 1, 2, 3, 2**30 - 1, 2**30, 2**30 + 1, INT32_MAX - 1, INT32_MAX]


def round_half_away(value: Fraction) -> int:
    """Round exactly to the nearest integer, halves away from zero."""
    magnitude = math.floor(abs(value) + Fraction(1, 2))
    return magnitude if value >= 0 else -magnitude


def draw_int32(rng: np.random.Generator, count: int) -> np.ndarray:
    """Draw int32 values of every magnitude, corners first."""
    drawn = rng.integers(INT32_MIN, INT32_MAX, count, endpoint=True) >> rng.integers(0, 31, count)
    return np.concatenate([CORNERS, drawn]).astype(np.int32)


def test_high_mul_is_gemmlowps_formula() -> None:
    """Half-up rounding equals adding 2^30 or 1 - 2^30 by the sign and truncating, corners included."""
    rng = np.random.default_rng(1)
    a, b = draw_int32(rng, 200), draw_int32(rng, 200)
    actual = ref.saturating_rounding_doubling_high_mul(a[:, None], b[None, :])
    for i, x in enumerate(a.tolist()):
        for j, y in enumerate(b.tolist()):
            product = x * y
            nudged = product + (2**30 if product >= 0 else 1 - 2**30)
            expected = abs(nudged) // 2**31 * (1 if nudged >= 0 else -1)
            assert actual[i, j] == min(expected, INT32_MAX), (x, y)


def test_high_mul_saturates_its_one_overflow() -> None:
    assert ref.saturating_rounding_doubling_high_mul(INT32_MIN, INT32_MIN) == INT32_MAX


@pytest.mark.parametrize("exponent", range(32))
def test_divide_by_pot_rounds_half_away_from_zero(exponent: int) -> None:
    values = np.concatenate([draw_int32(np.random.default_rng(exponent), 100), np.arange(-70, 70)])
    expected = [round_half_away(Fraction(int(v), 2**exponent)) for v in values]
    assert ref.rounding_divide_by_pot(values, exponent).tolist() == expected


def test_divide_by_pot_takes_an_exponent_for_each_value() -> None:
    assert ref.rounding_divide_by_pot(np.array([5, 5, -5, -5]), np.array([0, 1, 1, 2])).tolist() == [
        5,
        3,
        -3,
        -1,
    ]


@pytest.mark.parametrize("exponent", [-1, 32])
def test_divide_by_pot_refuses_an_exponent_out_of_range(exponent: int) -> None:
    with pytest.raises(ValueError, match=r"exponent must be in \[0, 31\]"):
        ref.rounding_divide_by_pot(np.array([1]), exponent)


@pytest.mark.parametrize("shift", range(-31, 31))
def test_single_rounding_is_the_nearest_integer(shift: int) -> None:
    """One rounding of the exact product, half away from zero, saturated to int32."""
    rng = np.random.default_rng(shift + 31)
    x = draw_int32(rng, 50)
    for multiplier in (0, 1, 2**30, 2**31 - 1, *rng.integers(0, 2**31, 5).tolist()):
        actual = ref.multiply_by_quantized_multiplier(x, multiplier, shift, Rounding.SINGLE)
        for value, result in zip(x.tolist(), actual.tolist(), strict=True):
            exact = round_half_away(Fraction(value * multiplier, 2 ** (31 - shift)))
            assert result == max(INT32_MIN, min(INT32_MAX, exact)), (value, multiplier)


def test_double_rounding_differs_from_single_where_it_must() -> None:
    """1 / 3: the first rounding makes 2/3 a whole 1, the second makes 1/2 a 1."""
    multiplier, shift = ref.quantize_multiplier(1 / 3)
    assert ref.multiply_by_quantized_multiplier(1, multiplier, shift) == 1
    assert ref.multiply_by_quantized_multiplier(1, multiplier, shift, Rounding.SINGLE) == 0


def test_left_shift_wraps_in_double_rounding() -> None:
    """2^30 + 3 shifted left by 2 leaves 12 in 32 bits."""
    assert ref.multiply_by_quantized_multiplier(2**30 + 3, 2**30, 2) == 6


@pytest.mark.parametrize("shift", [-32, 31])
def test_multiply_refuses_a_shift_out_of_range(shift: int) -> None:
    with pytest.raises(ValueError, match=r"shift must be in \[-31, 30\]"):
        ref.multiply_by_quantized_multiplier(np.array([1]), 2**30, shift)


@pytest.mark.parametrize("seed", range(3), ids="seed{}".format)
def test_quantize_multiplier_keeps_31_bits(seed: int) -> None:
    """The multiplier is normalized and within half a unit of the factor."""
    rng = np.random.default_rng(seed)
    factors = np.exp(rng.uniform(math.log(2.0**-31), math.log(2.0**29), 1000))
    multipliers, shifts = ref.quantize_multipliers(factors)
    for factor, multiplier, shift in zip(
        factors.tolist(), multipliers.tolist(), shifts.tolist(), strict=True
    ):
        assert 2**30 <= multiplier < 2**31
        assert abs(Fraction(factor) * Fraction(2) ** (31 - shift) - multiplier) <= Fraction(1, 2)
        assert ref.quantize_multiplier(factor) == (multiplier, shift)


@pytest.mark.parametrize(
    ("factor", "expected"),
    [
        (0.0, (0, 0)),
        (1.0, (2**30, 1)),
        (0.5, (2**30, 0)),
        (1 - 2.0**-40, (2**30, 1)),  # rounds up to 2^31 and is carried into the shift
        (1 - 2.0**-31, (2**31 - 1, 0)),
        (2.0**-32, (2**30, -31)),
        (2.0**-33, (0, 0)),  # a shift below -31 leaves nothing
        (2.0**29, (2**30, 30)),
    ],
)
def test_quantize_multiplier_at_its_corners(factor: float, expected: tuple[int, int]) -> None:
    assert ref.quantize_multiplier(factor) == expected


@pytest.mark.parametrize("factor", [-1.0, math.nan, math.inf, 2.0**30])
def test_quantize_multiplier_refuses(factor: float) -> None:
    with pytest.raises(ValueError, match="a multiplier must be"):
        ref.quantize_multiplier(factor)


@pytest.mark.parametrize(
    ("activation", "scale", "zero_point", "expected"),
    [
        (Activation.NONE, 0.1, 5, (-128, 127)),
        (Activation.RELU, 0.1, 5, (5, 127)),
        (Activation.RELU, 0.1, -128, (-128, 127)),
        (Activation.RELU6, 0.1, 5, (5, 65)),
        (Activation.RELU6, 6 / 255, -128, (-128, 127)),
        (Activation.RELU6, 4.0, 0, (0, 2)),  # 1.5 goes away from zero
        (Activation.RELU6, 1e-38, 0, (0, 127)),
        (Activation.RELU6, 100.0, 7, (7, 7)),
    ],
)
def test_activation_range(
    activation: Activation, scale: float, zero_point: int, expected: tuple[int, int]
) -> None:
    assert ref.activation_range(activation, QuantParams(scale, zero_point)) == expected


def test_folded_bias_takes_out_the_input_zero_point() -> None:
    """Raw products plus the folded bias equal products of (x - z) plus the bias, modulo 2^32."""
    rng = np.random.default_rng(3)
    x = rng.integers(-128, 128, (4, 50))
    weights = rng.integers(-127, 128, (6, 50)).astype(np.int8)
    bias = rng.integers(INT32_MIN, INT32_MAX, 6).astype(np.int32)
    for zero_point in (-128, 0, 127):
        folded = ref.fold_input_zero_point(bias, weights, 0, zero_point)
        expected = ref.wrap_int32((x - zero_point) @ weights.T.astype(np.int64) + bias)
        assert np.array_equal(ref.wrap_int32(x @ weights.T.astype(np.int64) + folded), expected)


def test_sums_wrap_at_32_bits() -> None:
    """A sum past 2^31 - 1 comes out at the other end before it is scaled."""
    parameters = Requantization(np.array([INT32_MAX]), np.array([2**30]), np.array([-20]))
    assert ref.requantize(np.array([[0], [1]], np.int32), parameters).tolist() == [[127], [-128]]


def pool_results(count: int, sums: np.ndarray, rounding: Rounding) -> np.ndarray:
    multiplier, shift = ref.average_pool_multiplier(count, rounding)
    assert 0 < multiplier < 2**31
    assert -31 <= shift <= 30
    return ref.multiply_by_quantized_multiplier(sums, multiplier, shift, rounding)


def c_average(sums: np.ndarray, count: int) -> np.ndarray:
    """Divide as the pooling kernel does in C, whose division drops the remainder."""
    nudged = np.where(sums > 0, sums + count // 2, sums - count // 2)
    return np.sign(nudged) * (np.abs(nudged) // count)


@pytest.mark.parametrize("rounding", Rounding)
@pytest.mark.parametrize(
    "counts",
    [
        range(1, 130),
        range(130, 1000, 41),
        range(1000, 4097, 293),
        [2**p for p in range(7, 13)],
        [4093, 4094, 4095],
    ],
    ids=["1..129", "130..999", "1000..4096", "powers of two", "up to 4095"],
)
def test_average_pool_multiplier_divides_every_sum(counts: list[int], rounding: Rounding) -> None:
    """Every sum of so many int8 values is divided exactly as the kernel divides it."""
    for count in counts:
        sums = np.arange(-128 * count, 127 * count + 1)
        assert np.array_equal(pool_results(count, sums, rounding), c_average(sums, count)), count


@pytest.mark.slow
@pytest.mark.parametrize("rounding", Rounding)
def test_average_pool_multiplier_exists_for_every_count(rounding: Rounding) -> None:
    """All counts to 4,096, at the sums about every step of the result."""
    for count in range(1, 4097):
        steps = np.arange(-257, 256) * count // 2
        sums = np.clip(steps[:, None] + np.arange(-2, 3), -128 * count, 127 * count)
        assert np.array_equal(pool_results(count, sums, rounding), c_average(sums, count)), count


def test_average_pool_multiplier_is_normalized_for_single_rounding() -> None:
    for count in (1, 2, 3, 49, 64, 4095, 2**20 + 1):
        assert 2**30 <= ref.average_pool_multiplier(count, Rounding.SINGLE)[0] < 2**31


@pytest.mark.parametrize(
    ("count", "rounding"),
    [
        (0, Rounding.DOUBLE),
        (-4, Rounding.SINGLE),
        (12345, Rounding.DOUBLE),
        (2**24, Rounding.DOUBLE),
        (2**26 - 1, Rounding.SINGLE),
    ],
)
def test_average_pool_multiplier_refuses(count: int, rounding: Rounding) -> None:
    with pytest.raises(ValueError, match=f"{count}|2\\^23"):
        ref.average_pool_multiplier(count, rounding)


@pytest.mark.parametrize("seed", range(4), ids="seed{}".format)
def test_single_rounding_multiplier_rounds_as_float64(seed: int) -> None:
    """At the sums about every step of the output, the fixed-point product rounds as the float64 one."""
    rng = np.random.default_rng(seed)
    found = 0
    for _ in range(200):
        limit = int(2 ** rng.uniform(10, 24))
        factor = float(np.exp(rng.uniform(math.log(0.1), math.log(300.0)))) / limit
        if rng.random() < 0.2:
            factor = 2.0 ** round(math.log2(factor))  # exact ties
        try:
            multiplier, shift = ref.single_rounding_multiplier(factor, limit)
        except ValueError:
            continue
        found += 1
        steps = np.round((np.arange(-255, 256) + 0.5) / factor).astype(np.int64)
        sums = np.unique(np.clip(steps[:, None] + np.arange(-2, 3), -limit, limit))
        expected = np.array([round_half_away(Fraction(float(s) * factor)) for s in sums])
        actual = ref.multiply_by_quantized_multiplier(sums, multiplier, shift, Rounding.SINGLE)
        assert np.array_equal(np.clip(actual, -255, 255), np.clip(expected, -255, 255)), (factor, limit)
    assert found >= 190, f"only {found} of 200 factors have a multiplier"


def test_single_rounding_multiplier_says_when_there_is_none() -> None:
    """With sums up to 2^31 some step falls between two multipliers."""
    factor = (0.3 + 1 / 7) / 2**26
    with pytest.raises(ValueError, match="no 31-bit multiplier"):
        ref.single_rounding_multiplier(factor)
    assert ref.single_rounding_multiplier(factor, sum_limit=2**20) == ref.quantize_multiplier(factor)


@pytest.mark.parametrize("activation", Activation)
@pytest.mark.parametrize("seed", range(4), ids="seed{}".format)
def test_fully_connected_integers_give_the_kernels_bytes(activation: Activation, seed: int) -> None:
    """The integer core with single rounding equals the float64 rule of the reference kernel."""
    rng = np.random.default_rng(seed)
    for _ in range(5):
        depth, outputs = int(rng.integers(1, 500)), int(rng.integers(1, 12))
        weights = rng.integers(-127, 128, (outputs, depth)).astype(np.int8)
        x = rng.integers(-128, 128, (200, depth)).astype(np.int8)
        bias = rng.integers(-50000, 50000, outputs).astype(np.int32)
        input_quant = QuantParams(0.02, int(rng.integers(-128, 128)))
        scales = np.float32(rng.uniform(0.001, 0.01, outputs))
        output_quant = QuantParams(0.3, int(rng.integers(-128, 128)))
        expected = ref.fully_connected(
            x,
            weights,
            bias,
            input_quant=input_quant,
            weight_scales=scales,
            output_quant=output_quant,
            activation=activation,
        )
        parameters = ref.fully_connected_requantization(
            weights, bias, input_quant, scales, output_quant, activation
        )
        assert np.array_equal(ref.fully_connected_integer(x, weights, parameters), expected)
