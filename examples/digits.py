"""The digits example's data: handwritten digits that scikit-learn bundles, and the trained network's file."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

NETWORK_FILE = Path(__file__).with_name("digits_int8.npz")
INPUT = "scan"
"""The graph's input tensor."""

_SEED = 7
_HELD_OUT = 360


def load_scans() -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """The 1,797 scans, float32 [1797, 8, 8, 1] in 0..1, and what they show, int64 [1797]."""
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        sys.exit(
            "the digit scans come with scikit-learn, which is not installed; install it with\n"
            "    make setup                      (or: pip install -e '.[dev]', or: pip install scikit-learn)"
        )
    scans = load_digits()
    return (scans.images[..., np.newaxis] / 16).astype(np.float32), scans.target.astype(np.int64)


def split(count: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Indices of the training scans and of the 360 held out, always the same."""
    order = np.random.default_rng(_SEED).permutation(count)
    return order[_HELD_OUT:], order[:_HELD_OUT]


def quantize_scans(scans: NDArray[np.float32], scale: float, zero_point: int) -> NDArray[np.int8]:
    """Scans as the int8 network takes them."""
    return np.clip(np.rint(scans / scale) + zero_point, -128, 127).astype(np.int8)
