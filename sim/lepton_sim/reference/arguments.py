"""Argument checks shared by the reference operators, with errors that name the argument and its value."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["check_pair", "check_tensor"]


def check_tensor(
    name: str, value: object, dtype: type[np.generic] = np.int8, rank: int | None = None
) -> NDArray[Any]:
    """Return ``value`` as the array it must be already: of ``dtype`` and, if given, of ``rank``.

    Nothing is converted: a float or int64 tensor here is a caller's mistake, not a matter of casting.

    Raises:
        TypeError: not a NumPy array, or of another dtype.
        ValueError: of another rank.
    """
    if not isinstance(value, np.ndarray):
        raise TypeError(f"{name} must be a NumPy array of {np.dtype(dtype)}, not {type(value).__name__}")
    if value.dtype != dtype:
        raise TypeError(f"{name} must have dtype {np.dtype(dtype)}, not {value.dtype}")
    if rank is not None and value.ndim != rank:
        raise ValueError(f"{name} must have {rank} dimensions, not {value.ndim} (shape {value.shape})")
    return value


def check_pair(name: str, value: int | tuple[int, int]) -> tuple[int, int]:
    """Return ``value`` as (vertical, horizontal), both at least 1; one number stands for both."""
    pair = (value, value) if isinstance(value, (int, np.integer)) else tuple(value)
    if len(pair) != 2 or any(not isinstance(n, (int, np.integer)) or n < 1 for n in pair):
        raise ValueError(f"{name} must be one or two integers of at least 1, not {value!r}")
    return int(pair[0]), int(pair[1])
