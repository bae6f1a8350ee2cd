"""Reference operators: what each int8 operator means, byte for byte as LiteRT's reference kernels.

An operator comes as a function of scales (``conv2d``), which derives integers
(``convolution_requantization``) and hands them to a core that knows nothing else (``conv2d_integer``).
The golden model of the hardware calls the cores and their parts with the integers of its program.
"""

from .convolution import (
    conv2d,
    conv2d_integer,
    conv2d_sums,
    depthwise_conv2d,
    depthwise_conv2d_integer,
    depthwise_conv2d_sums,
    matrix_product,
)
from .dense import (
    fully_connected,
    fully_connected_integer,
    fully_connected_requantization,
    fully_connected_sums,
)
from .elementwise import AddParameters, add, add_integer, add_parameters
from .pooling import (
    average_pool2d,
    average_pool2d_integer,
    average_pool_multiplier,
    divide_rounding_away,
    max_pool2d,
    max_pool2d_integer,
    sum_pool2d,
)
from .quantization import INT8_MAX, INT8_MIN, Activation, QuantParams, activation_range
from .reduction import mean, mean_integer, mean_requantization
from .requantize import (
    Requantization,
    Rounding,
    convolution_requantization,
    fold_input_zero_point,
    multiply_by_quantized_multiplier,
    quantize_multiplier,
    quantize_multipliers,
    requantize,
    rounding_divide_by_pot,
    saturating_rounding_doubling_high_mul,
    single_rounding_multiplier,
    wrap_int32,
)
from .shape import pad, reshape
from .softmax import SOFTMAX_OUTPUT, softmax, softmax_integer, softmax_parameters
from .window import Padding, Window, same_padding

__all__ = [
    "INT8_MAX",
    "INT8_MIN",
    "SOFTMAX_OUTPUT",
    "Activation",
    "AddParameters",
    "Padding",
    "QuantParams",
    "Requantization",
    "Rounding",
    "Window",
    "activation_range",
    "add",
    "add_integer",
    "add_parameters",
    "average_pool2d",
    "average_pool2d_integer",
    "average_pool_multiplier",
    "conv2d",
    "conv2d_integer",
    "conv2d_sums",
    "convolution_requantization",
    "depthwise_conv2d",
    "depthwise_conv2d_integer",
    "depthwise_conv2d_sums",
    "divide_rounding_away",
    "fold_input_zero_point",
    "fully_connected",
    "fully_connected_integer",
    "fully_connected_requantization",
    "fully_connected_sums",
    "matrix_product",
    "max_pool2d",
    "max_pool2d_integer",
    "mean",
    "mean_integer",
    "mean_requantization",
    "multiply_by_quantized_multiplier",
    "pad",
    "quantize_multiplier",
    "quantize_multipliers",
    "requantize",
    "reshape",
    "rounding_divide_by_pot",
    "same_padding",
    "saturating_rounding_doubling_high_mul",
    "single_rounding_multiplier",
    "softmax",
    "softmax_integer",
    "softmax_parameters",
    "sum_pool2d",
    "wrap_int32",
]
