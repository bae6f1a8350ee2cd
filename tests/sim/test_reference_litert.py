"""Every reference operator against LiteRT's reference kernels, on random cases, byte for byte.

A test runs a batch of cases from one seed (in its id) and names each case that differs.
Run one again with ``pytest -k "conv2d and seed3"``.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema
from tflite_builder import ModelBuilder, TensorSpec, one_operator_model, run_reference

from lepton_sim import reference as ref
from lepton_sim.reference import Activation, Padding, QuantParams

_ACTIVATION_CODES = {
    Activation.NONE: schema.ActivationFunctionType.NONE,
    Activation.RELU: schema.ActivationFunctionType.RELU,
    Activation.RELU6: schema.ActivationFunctionType.RELU6,
}
_PADDING_CODES = {"same": schema.Padding.SAME, "valid": schema.Padding.VALID}
_LEAST_OUTPUT_SCALE = 1e-8  # LiteRT refuses a model in which 6 / scale overflows int32
_MOST_PRODUCTS = 400_000  # a case's size: LiteRT's reference loops do some 10^8 a second


class Outcome(NamedTuple):
    """One case: what it was, what LiteRT gave and what Lepton's operator gave."""

    case: dict[str, Any]
    expected: np.ndarray
    actual: np.ndarray


def integers(rng: np.random.Generator, low: int, high: int) -> int:
    """Draw an int in [low, high]."""
    return int(rng.integers(low, high + 1))


def log_uniform(rng: np.random.Generator, low: float, high: float, size: Any = None) -> Any:
    """Draw float32 scales, spread evenly over orders of magnitude."""
    return np.float32(np.exp(rng.uniform(math.log(low), math.log(high), size)))


def draw_int8(rng: np.random.Generator, shape: tuple[int, ...], least: int = -128) -> np.ndarray:
    """Draw int8 values: mostly of the whole range, sometimes only its ends, or small, or one value."""
    kind = rng.integers(6)
    if kind == 0:
        values = rng.choice([least, 127], shape)
    elif kind == 1:
        values = rng.integers(-3, 4, shape)
    elif kind == 2:
        values = np.full(shape, rng.integers(least, 128))
    else:
        values = rng.integers(least, 128, shape)
    return values.astype(np.int8)


def draw_quant(rng: np.random.Generator, low: float = 1e-5, high: float = 10.0) -> QuantParams:
    """Draw a scale and a zero point, the ends of its range among them."""
    zero_point = rng.choice([-128, 0, 127]) if rng.random() < 0.3 else rng.integers(-128, 128)
    return QuantParams(float(log_uniform(rng, low, high)), int(zero_point))


def draw_activation(rng: np.random.Generator) -> Activation:
    return Activation(rng.choice([member.value for member in Activation]))


def draw_bias(rng: np.random.Generator, channels: int, spread: float) -> np.ndarray | None:
    """Draw biases: none, of the sums' size, far beyond it, or over all of int32 (sums then wrap)."""
    kind = rng.integers(5)
    if kind == 0:
        return None
    reach = {1: spread, 2: spread, 3: 300 * spread, 4: 2.0**31}[int(kind)]
    reach = int(min(max(reach, 2.0), 2.0**31 - 1))
    return rng.integers(-reach, reach, channels, endpoint=True).astype(np.int32)


def output_quant_for(
    rng: np.random.Generator, input_quant: QuantParams, weight_scales: np.ndarray, spread: float
) -> QuantParams:
    """Draw an output quantization under which sums of size ``spread`` fill int8, overflow it, or vanish."""
    steps = float(log_uniform(rng, 0.3, 3000.0))
    scale = input_quant.scale * float(np.median(weight_scales)) * spread / steps
    return QuantParams(max(scale, _LEAST_OUTPUT_SCALE), draw_quant(rng).zero_point)


def draw_weight_scales(rng: np.random.Generator, channels: int) -> np.ndarray:
    """Draw a scale for each channel, within one or within several orders of magnitude."""
    middle = log_uniform(rng, 1e-4, 1.0)
    width = rng.choice([1.0, 2.0, 30.0])
    return np.float32(middle * np.exp(rng.uniform(-np.log(width), np.log(width), channels)))


def spec(x: np.ndarray, quant: QuantParams) -> TensorSpec:
    return TensorSpec(x.shape, np.int8, quant.scale, quant.zero_point)


def bias_spec(bias: np.ndarray | None, input_quant: QuantParams, scales: np.ndarray) -> TensorSpec | None:
    if bias is None:
        return None
    return TensorSpec(data=bias, scale=np.float32(input_quant.scale) * np.asarray(scales, np.float32))


def draw_window(
    rng: np.random.Generator, size: tuple[int, int], padding: str, *, dilated: bool
) -> tuple[tuple[int, int], tuple[int, int], tuple[int, int]]:
    """Draw (kernel, stride, dilation) that fit a feature map."""
    while True:
        kernel = (integers(rng, 1, 7), integers(rng, 1, 7))
        stride = (integers(rng, 1, 3), integers(rng, 1, 3))
        dilation = (integers(rng, 1, 3), integers(rng, 1, 3)) if dilated and rng.random() < 0.4 else (1, 1)
        extents = [(k - 1) * d + 1 for k, d in zip(kernel, dilation, strict=True)]
        if padding == "same" or (extents[0] <= size[0] and extents[1] <= size[1]):
            return kernel, stride, dilation


def draw_convolution(rng: np.random.Generator, *, depthwise: bool, padding: str) -> dict[str, Any]:
    """Draw a (depthwise) convolution whose cost stays within bounds."""
    while True:
        shape = (integers(rng, 1, 3), integers(rng, 1, 20), integers(rng, 1, 20), integers(rng, 1, 20))
        kernel, stride, dilation = draw_window(rng, shape[1:3], padding, dilated=True)
        outputs = shape[3] * integers(rng, 1, 4) if depthwise else integers(rng, 1, 20)
        window = ref.Window(shape, kernel, stride, dilation, padding)
        products = shape[0] * math.prod(window.output) * math.prod(kernel) * outputs
        if products * (1 if depthwise else shape[3]) <= _MOST_PRODUCTS:
            break
    terms = math.prod(kernel) * (1 if depthwise else shape[3])
    spread = 5000.0 * math.sqrt(terms)
    input_quant = draw_quant(rng)
    weight_scales = draw_weight_scales(rng, outputs)
    weight_shape = (1, *kernel, outputs) if depthwise else (outputs, *kernel, shape[3])
    return {
        "x": draw_int8(rng, shape),
        "weights": draw_int8(rng, weight_shape, least=-127),
        "bias": draw_bias(rng, outputs, spread),
        "input_quant": input_quant,
        "weight_scales": weight_scales,
        "output_quant": output_quant_for(rng, input_quant, weight_scales, spread),
        "stride": stride,
        "dilation": dilation,
        "padding": padding,
        "activation": draw_activation(rng),
    }


def convolution_bias_spec(case: dict[str, Any], *, depthwise: bool) -> TensorSpec | None:
    """Return the bias; CONV_2D must have one, so zeros stand for none."""
    bias, scales = case["bias"], case["weight_scales"]
    if bias is None and not depthwise:
        bias = np.zeros(len(scales), np.int32)
    return bias_spec(bias, case["input_quant"], scales)


def convolution_options(case: dict[str, Any], padding: str, *, depthwise: bool) -> Any:
    options = schema.DepthwiseConv2DOptionsT() if depthwise else schema.Conv2DOptionsT()
    options.padding = _PADDING_CODES[padding]
    options.strideH, options.strideW = case["stride"]
    options.dilationHFactor, options.dilationWFactor = case["dilation"]
    options.fusedActivationFunction = _ACTIVATION_CODES[case["activation"]]
    if depthwise:
        options.depthMultiplier = case["weights"].shape[3] // case["x"].shape[3]
    return options


def convolution_case(rng: np.random.Generator, *, depthwise: bool) -> Outcome:
    case = draw_convolution(rng, depthwise=depthwise, padding=str(rng.choice(["same", "valid"])))
    scales = case["weight_scales"]
    model = one_operator_model(
        "DEPTHWISE_CONV_2D" if depthwise else "CONV_2D",
        [
            spec(case["x"], case["input_quant"]),
            TensorSpec(data=case["weights"], scale=scales, axis=3 if depthwise else 0),
            convolution_bias_spec(case, depthwise=depthwise),
        ],
        TensorSpec(
            (1, 1, 1, len(scales)), np.int8, case["output_quant"].scale, case["output_quant"].zero_point
        ),
        convolution_options(case, case["padding"], depthwise=depthwise),
    )
    operator = ref.depthwise_conv2d if depthwise else ref.conv2d
    return Outcome(case, run_reference(model, case["x"]), operator(**case))


def conv2d_case(rng: np.random.Generator) -> Outcome:
    return convolution_case(rng, depthwise=False)


def depthwise_conv2d_case(rng: np.random.Generator) -> Outcome:
    return convolution_case(rng, depthwise=True)


def conv2d_explicit_padding_case(rng: np.random.Generator) -> Outcome:
    """Padding amounts given: TFLite says it as a PAD followed by a VALID convolution."""
    depthwise = bool(rng.integers(2))
    case = draw_convolution(rng, depthwise=depthwise, padding="valid")
    amounts = Padding(*(integers(rng, 0, 4) for _ in range(4)))
    rows = np.array([[0, 0], amounts[:2], amounts[2:], [0, 0]], np.int32)
    scales, x = case["weight_scales"], case["x"]
    builder = ModelBuilder()
    source = builder.tensor(spec(x, case["input_quant"]))
    padded = builder.tensor(
        TensorSpec(
            tuple(np.array(x.shape) + rows.sum(axis=1)),
            np.int8,
            case["input_quant"].scale,
            case["input_quant"].zero_point,
        )
    )
    builder.operator("PAD", [source, builder.tensor(TensorSpec(data=rows))], [padded], schema.PadOptionsT())
    weights = builder.tensor(TensorSpec(data=case["weights"], scale=scales, axis=3 if depthwise else 0))
    bias = convolution_bias_spec(case, depthwise=depthwise)
    inputs = [padded, weights] if bias is None else [padded, weights, builder.tensor(bias)]
    output = builder.tensor(
        TensorSpec((1, 1, 1, 1), np.int8, case["output_quant"].scale, case["output_quant"].zero_point)
    )
    name = "DEPTHWISE_CONV_2D" if depthwise else "CONV_2D"
    builder.operator(name, inputs, [output], convolution_options(case, "valid", depthwise=depthwise))
    case["padding"] = amounts
    operator = ref.depthwise_conv2d if depthwise else ref.conv2d
    return Outcome(case, run_reference(builder.build([source], [output]), x), operator(**case))


def fully_connected_case(rng: np.random.Generator) -> Outcome:
    depth, outputs, batch = integers(rng, 1, 400), integers(rng, 1, 40), integers(rng, 1, 8)
    if rng.random() < 0.2:
        depth = int(rng.choice([1023, 1024, 1025, 3000]))  # around the end of exact float32 sums
    keep = bool(rng.integers(2))
    shape = (integers(rng, 1, 3), batch, depth) if keep else (batch, depth)
    per_channel = bool(rng.integers(2)) and outputs > 1
    spread = 5000.0 * math.sqrt(depth)
    input_quant = draw_quant(rng)
    weight_scales = draw_weight_scales(rng, outputs if per_channel else 1)
    output_quant = output_quant_for(rng, input_quant, weight_scales, spread)
    bias = draw_bias(rng, outputs, spread)
    largest = input_quant.scale * float(weight_scales.max()) / output_quant.scale
    if bias is not None and largest >= 0.5:
        bias >>= 12  # float64 products beyond int32 are undefined in the kernel
    case = {
        "x": draw_int8(rng, shape),
        "weights": draw_int8(rng, (outputs, depth), least=-127),
        "bias": bias,
        "input_quant": input_quant,
        "weight_scales": weight_scales,
        "output_quant": output_quant,
        "activation": draw_activation(rng),
        "keep_num_dims": keep,
    }
    options = schema.FullyConnectedOptionsT()
    options.fusedActivationFunction = _ACTIVATION_CODES[case["activation"]]
    options.keepNumDims = keep
    model = one_operator_model(
        "FULLY_CONNECTED",
        [
            spec(case["x"], input_quant),
            TensorSpec(data=case["weights"], scale=weight_scales),
            bias_spec(bias, input_quant, weight_scales),
        ],
        TensorSpec((1, outputs), np.int8, output_quant.scale, output_quant.zero_point),
        options,
    )
    return Outcome(case, run_reference(model, case["x"]), ref.fully_connected(**case))


def pooling_case(rng: np.random.Generator, name: str, operator: Callable[..., np.ndarray]) -> Outcome:
    shape = (integers(rng, 1, 3), integers(rng, 1, 20), integers(rng, 1, 20), integers(rng, 1, 20))
    padding = str(rng.choice(["same", "valid"]))
    window, stride, _ = draw_window(rng, shape[1:3], padding, dilated=False)
    if rng.random() < 0.15:
        window = shape[1:3]  # global
    case = {
        "x": draw_int8(rng, shape),
        "window": window,
        "stride": stride,
        "padding": padding,
        "quant": draw_quant(rng),
        "activation": draw_activation(rng),
    }
    options = schema.Pool2DOptionsT()
    options.padding = _PADDING_CODES[padding]
    options.strideH, options.strideW = stride
    options.filterHeight, options.filterWidth = window
    options.fusedActivationFunction = _ACTIVATION_CODES[case["activation"]]
    quantized = spec(case["x"], case["quant"])
    model = one_operator_model(name, [quantized], quantized, options)
    return Outcome(case, run_reference(model, case["x"]), operator(**case))


def max_pool2d_case(rng: np.random.Generator) -> Outcome:
    return pooling_case(rng, "MAX_POOL_2D", ref.max_pool2d)


def average_pool2d_case(rng: np.random.Generator) -> Outcome:
    return pooling_case(rng, "AVERAGE_POOL_2D", ref.average_pool2d)


def mean_case(rng: np.random.Generator) -> Outcome:
    rank = integers(rng, 1, 4)
    shape = tuple(integers(rng, 1, 20) for _ in range(rank))
    if rank == 4 and rng.random() < 0.6:
        axes: tuple[int, ...] = (1, 2)
    else:
        axes = tuple(int(a) for a in rng.choice(rank, integers(rng, 1, rank), replace=False))
    input_quant = draw_quant(rng)
    ratio = 1.0 if rng.random() < 0.3 else float(log_uniform(rng, 1e-3, 1e3))
    output_quant = QuantParams(input_quant.scale * ratio, draw_quant(rng).zero_point)
    if rng.random() < 0.2:
        output_quant = input_quant
    case = {
        "x": draw_int8(rng, shape),
        "axes": tuple(a - rank if rng.random() < 0.3 else a for a in axes),
        "input_quant": input_quant,
        "output_quant": output_quant,
        "keep_dims": bool(rng.integers(2)),
    }
    options = schema.ReducerOptionsT()
    options.keepDims = case["keep_dims"]
    model = one_operator_model(
        "MEAN",
        [spec(case["x"], input_quant), TensorSpec(data=np.array(case["axes"], np.int32))],
        TensorSpec((1,), np.int8, output_quant.scale, output_quant.zero_point),
        options,
    )
    return Outcome(case, run_reference(model, case["x"]), ref.mean(**case))


def add_case(rng: np.random.Generator) -> Outcome:
    shape = tuple(integers(rng, 1, 12) for _ in range(integers(rng, 1, 4)))
    other = shape
    if rng.random() < 0.3:
        other = tuple(1 if rng.random() < 0.5 else n for n in shape)[integers(rng, 0, len(shape) - 1) :]
    a_quant = draw_quant(rng)
    b_quant = QuantParams(a_quant.scale * float(log_uniform(rng, 1e-4, 1e4)), draw_quant(rng).zero_point)
    if rng.random() < 0.2:
        b_quant = QuantParams(a_quant.scale, b_quant.zero_point)
    larger = max(a_quant.scale, b_quant.scale)
    scale = larger * float(log_uniform(rng, 1e-4, 1e3))
    if rng.random() < 0.5:
        scale = larger * float(log_uniform(rng, 0.5, 4))
    output_quant = QuantParams(max(scale, _LEAST_OUTPUT_SCALE), draw_quant(rng).zero_point)
    case = {
        "a": draw_int8(rng, shape),
        "b": draw_int8(rng, other),
        "a_quant": a_quant,
        "b_quant": b_quant,
        "output_quant": output_quant,
        "activation": draw_activation(rng),
    }
    if rng.random() < 0.5:
        case["a"], case["b"] = case["b"], case["a"]
    options = schema.AddOptionsT()
    options.fusedActivationFunction = _ACTIVATION_CODES[case["activation"]]
    model = one_operator_model(
        "ADD",
        [spec(case["a"], a_quant), spec(case["b"], b_quant)],
        TensorSpec(shape, np.int8, output_quant.scale, output_quant.zero_point),
        options,
    )
    return Outcome(case, run_reference(model, case["a"], case["b"]), ref.add(**case))


def softmax_case(rng: np.random.Generator) -> Outcome:
    depth = (
        integers(rng, 1, 20) if rng.random() < 0.7 else integers(rng, 1, 511)
    )  # LiteRT aborts where exponentials add up to 512
    shape = (*(integers(rng, 1, 6) for _ in range(integers(rng, 0, 2))), depth)
    beta = 1.0 if rng.random() < 0.6 else float(log_uniform(rng, 0.01, 10.0))
    case = {
        "x": draw_int8(rng, shape),
        "input_quant": draw_quant(rng, 1e-5, 50.0),
        "beta": beta,
    }
    options = schema.SoftmaxOptionsT()
    options.beta = beta
    output = TensorSpec(shape, np.int8, ref.SOFTMAX_OUTPUT.scale, ref.SOFTMAX_OUTPUT.zero_point)
    model = one_operator_model("SOFTMAX", [spec(case["x"], case["input_quant"])], output, options)
    return Outcome(case, run_reference(model, case["x"]), ref.softmax(**case))


def pad_case(rng: np.random.Generator) -> Outcome:
    shape = tuple(integers(rng, 1, 10) for _ in range(integers(rng, 1, 4)))
    case = {
        "x": draw_int8(rng, shape),
        "paddings": rng.integers(0, 5, (len(shape), 2)).astype(np.int32),
        "quant": draw_quant(rng),
    }
    quantized = spec(case["x"], case["quant"])
    model = one_operator_model(
        "PAD", [quantized, TensorSpec(data=case["paddings"])], quantized, schema.PadOptionsT()
    )
    return Outcome(case, run_reference(model, case["x"]), ref.pad(**case))


def reshape_case(rng: np.random.Generator) -> Outcome:
    shape = tuple(integers(rng, 1, 8) for _ in range(integers(rng, 1, 4)))
    new = list(rng.permutation(shape)) + [1] * integers(rng, 0, 2)
    if rng.random() < 0.5:
        new[integers(rng, 0, len(new) - 1)] = -1
    case = {"x": draw_int8(rng, shape), "shape": tuple(int(n) for n in new)}
    quantized = spec(case["x"], draw_quant(rng))
    options = schema.ReshapeOptionsT()
    options.newShape = np.array(new, np.int32)
    target = TensorSpec(data=np.array(new, np.int32))
    model = one_operator_model("RESHAPE", [quantized, target], quantized, options)
    return Outcome(case, run_reference(model, case["x"]), ref.reshape(**case))


def describe(case: dict[str, Any]) -> str:
    """Return a case on one line: shapes of tensors, values of the rest."""
    words = []
    for name, value in case.items():
        if isinstance(value, np.ndarray) and value.size > 8:
            words.append(f"{name}={value.dtype}{list(value.shape)} in {value.min()}..{value.max()}")
        else:
            words.append(f"{name}={value!r}")
    return ", ".join(words)


_OPERATORS = {
    "conv2d": conv2d_case,
    "conv2d_explicit_padding": conv2d_explicit_padding_case,
    "depthwise_conv2d": depthwise_conv2d_case,
    "fully_connected": fully_connected_case,
    "max_pool2d": max_pool2d_case,
    "average_pool2d": average_pool2d_case,
    "mean": mean_case,
    "add": add_case,
    "softmax": softmax_case,
    "pad": pad_case,
    "reshape": reshape_case,
}
_CASES_A_BATCH = 40
_FAST_SEEDS, _SLOW_SEEDS = range(15), range(15, 165)


def run_batch(operator: str, seed: int) -> None:
    """Run one batch and fail with the list of cases that differ."""
    failures = []
    for number in range(_CASES_A_BATCH):
        outcome = _OPERATORS[operator](np.random.default_rng([seed, number]))
        where = f"{operator}, seed {seed}, case {number} ({describe(outcome.case)})"
        assert outcome.actual.dtype == np.int8, where
        if outcome.actual.shape != outcome.expected.shape:
            failures.append(f"{where}: shape {outcome.actual.shape}, LiteRT {outcome.expected.shape}")
            continue
        wrong = np.argwhere(outcome.actual != outcome.expected)
        if len(wrong):
            at = tuple(int(i) for i in wrong[0])
            failures.append(
                f"{where}: {len(wrong)} of {outcome.expected.size} values differ, first at {at}: "
                f"{outcome.actual[at]}, LiteRT {outcome.expected[at]}"
            )
    assert not failures, f"{len(failures)} of {_CASES_A_BATCH} cases differ:\n" + "\n".join(failures)


@pytest.mark.parametrize("seed", _FAST_SEEDS, ids="seed{}".format)
@pytest.mark.parametrize("operator", _OPERATORS)
def test_matches_litert(operator: str, seed: int) -> None:
    """The operator gives LiteRT's bytes on a batch of random cases."""
    run_batch(operator, seed)


@pytest.mark.slow
@pytest.mark.parametrize("seed", _SLOW_SEEDS, ids="seed{}".format)
@pytest.mark.parametrize("operator", _OPERATORS)
def test_matches_litert_on_many_cases(operator: str, seed: int) -> None:
    """The same on ten times as many cases."""
    run_batch(operator, seed)


def boundary_sums(factor: float, reach: int) -> np.ndarray:
    """Return the int32 sums on both sides of each step of ``round(sum * factor)`` within ``reach``."""
    steps = np.round((np.arange(-reach, reach) + 0.5) / factor).astype(np.int64)
    sums = np.unique(steps[:, None] + np.arange(-2, 3))
    return sums[np.abs(sums) < 2**31].astype(np.int32)


@pytest.mark.parametrize("seed", range(3), ids="seed{}".format)
@pytest.mark.parametrize("operator", ["conv2d", "depthwise_conv2d", "fully_connected"])
def test_rounding_at_every_step_of_the_output(operator: str, seed: int) -> None:
    """Sums next to each step, up to 2^31: the last bit of multiplier and rounding shows.

    The sums are given as biases of an operator whose weights are zero.
    """
    rng = np.random.default_rng(seed)
    failures = []
    for number in range(20):
        factor = float(log_uniform(rng, 2.0**-30, 0.5))
        if rng.random() < 0.25:
            factor = 2.0 ** round(math.log2(factor))  # steps at exact halves
        input_quant = QuantParams(float(log_uniform(rng, 1e-3, 10.0)), 0)
        weight_scale = log_uniform(rng, 1e-3, 1.0)
        output_quant = QuantParams(
            input_quant.scale * float(weight_scale) / factor, int(rng.integers(-128, 128))
        )
        bias = boundary_sums(input_quant.scale * float(weight_scale) / output_quant.scale, 260)
        scales = np.full(1 if operator == "fully_connected" else len(bias), weight_scale)
        x = np.zeros((1, 1) if operator == "fully_connected" else (1, 1, 1, 1), np.int8)
        shape, name, options, axis = {
            "conv2d": ((len(bias), 1, 1, 1), "CONV_2D", schema.Conv2DOptionsT(), 0),
            "depthwise_conv2d": (
                (1, 1, 1, len(bias)),
                "DEPTHWISE_CONV_2D",
                schema.DepthwiseConv2DOptionsT(),
                3,
            ),
            "fully_connected": ((len(bias), 1), "FULLY_CONNECTED", schema.FullyConnectedOptionsT(), 0),
        }[operator]
        if operator != "fully_connected":
            options.strideH = options.strideW = options.dilationHFactor = options.dilationWFactor = 1
        if operator == "depthwise_conv2d":
            options.depthMultiplier = len(bias)
        weights = np.zeros(shape, np.int8)
        model = one_operator_model(
            name,
            [
                spec(x, input_quant),
                TensorSpec(data=weights, scale=scales, axis=axis),
                bias_spec(bias, input_quant, scales),
            ],
            TensorSpec((1,) * x.ndim, np.int8, output_quant.scale, output_quant.zero_point),
            options,
        )
        expected = run_reference(model, x)
        actual = getattr(ref, operator)(
            x, weights, bias, input_quant=input_quant, weight_scales=scales, output_quant=output_quant
        )
        wrong = np.flatnonzero(actual != expected)
        if len(wrong):
            failures.append(
                f"case {number}, factor {factor}: {len(wrong)} of {len(bias)}, at {bias[wrong[:3]]}"
            )
    assert not failures, f"{operator}, seed {seed}:\n" + "\n".join(failures)


@pytest.mark.parametrize("seed", range(3), ids="seed{}".format)
def test_add_of_every_pair(seed: int) -> None:
    """All 65,536 pairs of int8 values, on random scales and on ratios that make exact halves."""
    rng = np.random.default_rng(seed)
    values = np.arange(-128, 128, dtype=np.int8)
    a, b = values[:, None], values[None, :]
    for number in range(15):
        a_quant, b_zero_point, output_zero_point = draw_quant(rng), draw_quant(rng), draw_quant(rng)
        ratios = log_uniform(rng, 0.05, 20.0, 2)
        if rng.random() < 0.5:
            ratios = np.exp2(np.round(np.log2(ratios)))
        b_quant = QuantParams(a_quant.scale * float(ratios[0]), b_zero_point.zero_point)
        output_quant = QuantParams(a_quant.scale * float(ratios[1]), output_zero_point.zero_point)
        model = one_operator_model(
            "ADD",
            [spec(a, a_quant), spec(b, b_quant)],
            TensorSpec((256, 256), np.int8, output_quant.scale, output_quant.zero_point),
            schema.AddOptionsT(),
        )
        actual = ref.add(a, b, a_quant=a_quant, b_quant=b_quant, output_quant=output_quant)
        wrong = np.count_nonzero(actual != run_reference(model, a, b))
        assert wrong == 0, f"seed {seed}, case {number}: {wrong} pairs, {a_quant}, {b_quant}, {output_quant}"
