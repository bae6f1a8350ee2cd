"""What the output stage computes, in NumPy int64: the benches' own statement of the arithmetic."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["add_residual", "clamp", "output_tile", "rescale", "rescale_once", "wrap"]

Ints = NDArray[np.int64]


def wrap(x: ArrayLike) -> Ints:
    """Modulo 2^32, as a signed number."""
    return (np.asarray(x, np.int64) + 2**31) % 2**32 - 2**31


def rescale(x: ArrayLike, multiplier: ArrayLike, shift: ArrayLike) -> Ints:
    """``x * multiplier * 2^(shift - 31)``, rounded as TFLite's reference kernels do."""
    shifts = np.asarray(shift, np.int64)
    left, right = np.maximum(shifts, 0), np.maximum(-shifts, 0)
    value = wrap(np.asarray(x, np.int64) << left)
    value = (value * np.asarray(multiplier, np.int64) + 2**30) // 2**31
    # Halves away from zero: on the magnitude, then the sign again.
    rounded = (np.abs(value) + (np.int64(1) << right) // 2) >> right
    return np.where(value < 0, -rounded, rounded)


def rescale_once(x: ArrayLike, multiplier: ArrayLike, shift: ArrayLike) -> Ints:
    """``x * multiplier * 2^(shift - 31)``, rounded once, halves away from zero; a left shift saturates."""
    shifts = np.asarray(shift, np.int64)
    left, right = np.maximum(shifts, 0), 31 + np.maximum(-shifts, 0)
    value = np.clip(np.asarray(x, np.int64) << left, -(2**31), 2**31 - 1) * np.asarray(multiplier, np.int64)
    magnitude, half = np.abs(value), np.int64(1) << (right - 1)
    # Halves in unsigned 64 bits: the largest magnitude and half together are below 2^63.
    rounded = (magnitude + half) >> right
    return np.where(value < 0, -rounded, rounded)


def clamp(x: Ints, zero_point: int, minimum: int, maximum: int) -> Ints:
    """Move by the zero point in 32 bits, as the kernels do, and clamp."""
    return np.clip(wrap(x + zero_point), minimum, maximum)


def add_residual(q: Ints, residual: Ints, command: Mapping[str, int], constants: Mapping[str, int]) -> Ints:
    """TFLite's int8 ADD of the requantized sums and the residual."""
    own, other = (q - command["zero_point"]) << 20, (residual - constants["residual_zero_point"]) << 20
    total = wrap(
        rescale(own, constants["own_multiplier"], constants["own_shift"])
        + rescale(other, constants["residual_multiplier"], constants["residual_shift"])
    )
    total = rescale(total, constants["sum_multiplier"], constants["sum_shift"])
    return clamp(total, constants["sum_zero_point"], constants["sum_minimum"], constants["sum_maximum"])


def output_tile(
    sums: Ints,
    command: Mapping[str, int],
    constants: Mapping[str, int],
    parameters: NDArray[np.uint8],
    scratchpad: NDArray[np.int8],
) -> None:
    """Do one OUTPUT.

    Arguments:
        sums: [blocks, height, width, N].
        command, constants: fields of the OUTPUT and of the RESCALE that holds.
        parameters: the parameter memory, [vectors, N].
        scratchpad: [vectors, N]; is changed.
    """
    blocks, height, width, n = sums.shape
    rows = 4 if command["per_tensor"] else 9
    for block in range(blocks):
        vectors = parameters[command["parameters"] + rows * block :][:rows]
        bias = vectors[:4].reshape(-1).view("<i4").astype(np.int64)
        multiplier, shift = np.int64(command["multiplier"]), np.int64(command["shift"])
        if not command["per_tensor"]:
            multiplier = vectors[4:8].reshape(-1).view("<i4").astype(np.int64)
            shift = vectors[8].view(np.int8).astype(np.int64)
        scale = rescale_once if command["single_rounding"] else rescale
        q = scale(wrap(sums[block] + bias), multiplier, shift)
        q = clamp(q, command["zero_point"], command["minimum"], command["maximum"])
        if command["residual"]:
            y, x = np.mgrid[:height, :width]
            at = command["residual_input"] // n + block * command["residual_block_stride"]
            at = at + y * command["residual_y_stride"] + x * command["residual_x_stride"]
            q = add_residual(q, scratchpad[at].astype(np.int64), command, constants)
        for oy in range(command["out_height"]):
            for ox in range(command["out_width"]):
                top = oy * command["pool_stride_y"] + command["pool_y_start"]
                left = ox * command["pool_stride_x"] + command["pool_x_start"]
                window = q[
                    max(top, 0) : max(top + command["pool_height"], 0),
                    max(left, 0) : max(left + command["pool_width"], 0),
                ].reshape(-1, n)
                if command["pool_mode"] == 2:
                    total = wrap(window.sum(0) + constants["pool_bias"])
                    result = rescale(total, constants["pool_multiplier"], constants["pool_shift"])
                    result = clamp(
                        result,
                        constants["pool_zero_point"],
                        constants["pool_minimum"],
                        constants["pool_maximum"],
                    )
                else:
                    result = np.max(window, axis=0, initial=-128)
                    if command["pool_mode"] == 1:
                        result = np.clip(result, constants["pool_minimum"], constants["pool_maximum"])
                at = command["output"] // n + oy * command["y_stride"] + ox * command["x_stride"]
                scratchpad[at + block * command["block_stride"]] = result
