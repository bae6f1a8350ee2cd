"""Scales, zero points and fused activations, as a TFLite model states them."""

import enum
import math
from dataclasses import dataclass

import numpy as np

__all__ = ["INT8_MAX", "INT8_MIN", "Activation", "QuantParams", "activation_range"]

INT8_MIN, INT8_MAX = -128, 127


class Activation(enum.Enum):
    """Activation fused into an operator; on integers each is a pair of clamp bounds."""

    NONE = "none"
    RELU = "relu"
    RELU6 = "relu6"


@dataclass(frozen=True)
class QuantParams:
    """Per-tensor int8 quantization: ``real = scale * (q - zero_point)``.

    Attributes:
        scale: positive; rounded to float32 here because that is what a TFLite file stores
            and what every derived multiplier starts from.
        zero_point: in [-128, 127].

    Raises:
        ValueError: a scale that is not a positive finite float32, a zero point out of range.
    """

    scale: float
    zero_point: int = 0

    def __post_init__(self) -> None:
        with np.errstate(over="ignore", under="ignore"):
            scale = float(np.float32(self.scale))
        if not (math.isfinite(scale) and scale > 0):
            raise ValueError(f"scale must be positive and finite as a float32, not {self.scale!r}")
        if not INT8_MIN <= self.zero_point <= INT8_MAX:
            raise ValueError(f"zero_point must be in [-128, 127], not {self.zero_point}")
        object.__setattr__(self, "scale", scale)
        object.__setattr__(self, "zero_point", int(self.zero_point))


def activation_range(activation: Activation, output: QuantParams) -> tuple[int, int]:
    """Return the int8 clamp bounds of ``activation`` on an output quantized as ``output``.

    The bound of ReLU6 is 6 divided by the scale in float32, rounded half away from zero
    (TFLite, ``CalculateActivationRangeQuantized``).
    """
    if not isinstance(activation, Activation):
        raise TypeError(f"activation must be an Activation, not {activation!r}")
    low, high = INT8_MIN, INT8_MAX
    if activation is not Activation.NONE:
        low = output.zero_point
    if activation is Activation.RELU6:
        with np.errstate(over="ignore"):
            six = np.float32(6.0) / np.float32(output.scale)
        # Beyond 255 the bound cannot bind; the minimum also keeps infinity out of the rounding.
        high = min(high, output.zero_point + math.floor(min(float(six), 256.0) + 0.5))
    return low, high
