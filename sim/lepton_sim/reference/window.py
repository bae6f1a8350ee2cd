"""Geometry of sliding windows: padding amounts, output sizes, and the strided view under each tap."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .arguments import check_pair

__all__ = ["Padding", "Window", "same_padding"]


class Padding(NamedTuple):
    """Rows and columns added on each side of a feature map."""

    top: int = 0
    bottom: int = 0
    left: int = 0
    right: int = 0


def same_padding(
    size: tuple[int, int],
    kernel: tuple[int, int],
    stride: tuple[int, int] = (1, 1),
    dilation: tuple[int, int] = (1, 1),
) -> Padding:
    """Return the padding called SAME: just enough for ``ceil(size / stride)`` outputs.

    Where the amount is odd, the odd row or column goes to the bottom or right.
    """
    amounts = []
    for length, taps, step, spread in zip(size, kernel, stride, dilation, strict=True):
        outputs = -(-length // step)
        total = max(0, (outputs - 1) * step + (taps - 1) * spread + 1 - length)
        amounts += [total // 2, total - total // 2]
    return Padding(*amounts)


class Window:
    """A kernel's walk over an NHWC feature map.

    Arguments:
        shape: of the feature map, (N, H, W, C).
        kernel, stride, dilation: vertical and horizontal, or one number for both.
        padding: ``"same"``, ``"valid"`` or the amounts.

    Attributes:
        padding: the amounts.
        output: (height, width) of the result.

    Raises:
        ValueError: a number out of range, or a kernel larger than the padded feature map.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        kernel: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        dilation: int | tuple[int, int] = 1,
        padding: Padding | str = "valid",
    ):
        self.kernel = check_pair("kernel", kernel)
        self.stride = check_pair("stride", stride)
        self.dilation = check_pair("dilation", dilation)
        size = (shape[1], shape[2])
        if isinstance(padding, str):
            if padding not in ("same", "valid"):
                raise ValueError(f"padding must be 'same', 'valid' or a Padding, not {padding!r}")
            same = padding == "same"
            self.padding = same_padding(size, self.kernel, self.stride, self.dilation) if same else Padding()
        else:
            self.padding = Padding(*padding)
            if any(amount < 0 for amount in self.padding):
                raise ValueError(f"padding amounts must be at least 0, not {tuple(self.padding)}")
        extents = [(taps - 1) * spread + 1 for taps, spread in zip(self.kernel, self.dilation, strict=True)]
        top, bottom, left, right = self.padding
        padded = (size[0] + top + bottom, size[1] + left + right)
        if padded[0] < extents[0] or padded[1] < extents[1]:
            raise ValueError(
                f"a kernel of {self.kernel[0]}x{self.kernel[1]} with dilation {self.dilation} covers "
                f"{extents[0]}x{extents[1]}, more than the padded input's {padded[0]}x{padded[1]}"
            )
        self.output = (
            (padded[0] - extents[0]) // self.stride[0] + 1,
            (padded[1] - extents[1]) // self.stride[1] + 1,
        )

    def pad(self, x: NDArray[Any], value: int) -> NDArray[Any]:
        """Return ``x`` (N, H, W, C) with its padding filled with ``value``."""
        top, bottom, left, right = self.padding
        if not any(self.padding):
            return x
        n, h, w, c = x.shape
        padded = np.full((n, h + top + bottom, w + left + right, c), value, x.dtype)
        padded[:, top : top + h, left : left + w] = x
        return padded

    def taps(self, padded: NDArray[Any]) -> Iterator[tuple[int, int, NDArray[Any]]]:
        """Yield for each tap (row, column, the view (N, Ho, Wo, C) of what it meets) of a padded input."""
        (sh, sw), (dh, dw), (ho, wo) = self.stride, self.dilation, self.output
        for i in range(self.kernel[0]):
            rows = slice(i * dh, i * dh + (ho - 1) * sh + 1, sh)
            for j in range(self.kernel[1]):
                yield i, j, padded[:, rows, j * dw : j * dw + (wo - 1) * sw + 1 : sw]
