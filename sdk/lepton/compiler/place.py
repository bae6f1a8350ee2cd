"""Place: choose a mode for each layer, and where each tensor lies on chip, or that it stays outside.

Tensors live in the scratchpad from the layer that makes them to the last that reads them. Where that
does not fit, the largest tensor goes to external memory, and the layers that touch it work on it
piece by piece through staging buffers; until the rest fits.
"""

from __future__ import annotations

from dataclasses import dataclass

from lepton_hw.config import NPUConfig
from lepton_hw.isa import Mode

from .fuse import Layer
from .graph import Conv, Depthwise, GraphError, Tensor

__all__ = ["Layout", "Patch", "Placement", "choose_mode", "patch_plan", "place"]


@dataclass(frozen=True)
class Patch:
    """How mode PATCH packs a thin input.

    Attributes:
        wide: two windows at any alignment, else four within a vector.
        columns: pixels a kernel row and CONV; a kernel row longer than N bytes takes several CONVs.
        pass_length: lanes a pass.
        left, right: padding pixels in memory.
        y_stride: vectors from row to row.
    """

    wide: bool
    columns: tuple[tuple[int, int], ...]
    pass_lengths: tuple[int, ...]
    left: int
    right: int
    y_stride: int

    def passes(self, kernel_height: int, channels: int) -> int:
        """Passes of one block of output channels."""
        return sum(
            -(-kernel_height * (end - start) * channels // length)
            for (start, end), length in zip(self.columns, self.pass_lengths, strict=True)
        )


@dataclass(frozen=True)
class Layout:
    """Where pixel (y, x), block b of a tensor is: vector y * y_stride + x * x_stride + b, from `base` on.

    With `patch` the rows are raw bytes, margins included, and `x_stride` means nothing.
    """

    base: int
    y_stride: int
    x_stride: int
    patch: Patch | None = None


@dataclass(frozen=True)
class Placement:
    """The result: modes by layer, on-chip layouts by tensor, staging areas by layer.

    Attributes:
        modes: Mode of each layer.
        layouts: of tensors on chip; a tensor that is not here is external.
        staging: for each layer that touches an external tensor, byte range (start, end) for its pieces.
    """

    modes: list[Mode]
    layouts: dict[str, Layout]
    staging: dict[int, tuple[int, int]]


def _bank_safe(vectors: int, remainder: int) -> int:
    """The next number of vectors that is `remainder` (1: odd; 2: 2 mod 4)."""
    step = 2 if remainder == 1 else 4
    return vectors + (remainder - vectors) % step


def patch_plan(op: Conv, x: Tensor, out_width: int, config: NPUConfig) -> Patch | None:
    """The packing of a thin input with the fewest passes; None where mode PATCH cannot do it."""
    n, c = config.array_size, x.channels
    kh, kw = op.kernel
    if not config.patch_mode or c > n or op.dilation[1] != 1 or op.dilation[0] % 2 == 0:
        return None
    left = op.padding.left
    right = max(0, (out_width - 1) * op.stride[1] + kw - left - x.width)
    row_bytes = (left + x.width + right) * c
    best: Patch | None = None
    for wide in (False, True):
        step = max(1, n // c)
        columns = tuple((start, min(start + step, kw)) for start in range(0, kw, step))
        lengths = []
        for start, end in columns:
            row = (end - start) * c
            if not wide and any(
                ((start + ox * op.stride[1]) * c) % n + row > n for ox in range(min(out_width, n))
            ):
                break  # a window would cross a vector
            lengths.append(_longest_pass(row, kh, n, 2 if wide else 4))
        else:
            y_stride = _bank_safe(-(-row_bytes // n) + (1 if wide else 0), 2 if wide else 1)
            plan = Patch(wide, columns, tuple(lengths), left, right, y_stride)
            if best is None or plan.passes(kh, c) < best.passes(kh, c):
                best = plan
    if best is None or best.passes(kh, c) >= kh * kw * -(-c // n):
        return None
    return best


def _longest_pass(row: int, kernel_height: int, n: int, windows: int) -> int:
    """Lanes a pass with the fewest passes, such that no pass needs more kernel rows than windows."""
    total = kernel_height * row
    candidates = [
        length
        for length in range(1, n + 1)
        if all(
            (min(start + length, total) - 1) // row - start // row < windows
            for start in range(0, total, length)
        )
    ]
    return min(candidates, key=lambda length: (-(-total // length), length))


def rows_per_pass(op: Depthwise, config: NPUConfig) -> int:
    """Kernel rows that a pass of mode ROWS takes."""
    if op.kernel[1] != 3 or op.dilation[0] % 2 == 0:
        return 1
    return min(config.depthwise_groups, op.kernel[0])


def choose_mode(layer: Layer, config: NPUConfig, packable: set[str]) -> tuple[Mode, Patch | None]:
    """The mode in which the array runs the layer.

    Args:
        packable: inputs that may lie in memory as PATCH wants them.
    """
    op = layer.anchor
    if isinstance(op, Depthwise):
        fits = op.kernel[1] <= config.depthwise_taps and op.dilation[1] == 1
        same = op.weights.shape[2] == layer.input.channels
        return (Mode.ROWS, None) if config.rows_mode and fits and same else (Mode.VECTOR, None)
    if isinstance(op, Conv) and layer.input.name in packable:
        width = layer.middle.width
        patch = patch_plan(op, layer.input, width, config)
        if patch is not None:
            return Mode.PATCH, patch
    return Mode.VECTOR, None


def place(layers: list[Layer], inputs: set[str], outputs: set[str], config: NPUConfig) -> Placement:
    """Choose modes and addresses.

    Raises:
        GraphError: the scratchpad is too small even for the pieces of a layer.
    """
    readers: dict[str, list[int]] = {}
    made: dict[str, int] = dict.fromkeys(inputs, 0)
    tensors: dict[str, Tensor] = {}
    for i, layer in enumerate(layers):
        for t in (layer.input, layer.residual):
            if t is not None:
                readers.setdefault(t.name, []).append(i)
                tensors[t.name] = t
        made[layer.output.name] = i
        tensors[layer.output.name] = layer.output
    packable = {
        name
        for name in inputs
        if len(readers.get(name, [])) == 1 and layers[readers[name][0]].residual is None
    }
    modes, patches = [], {}
    for layer in layers:
        mode, patch = choose_mode(layer, config, packable)
        modes.append(mode)
        if patch is not None:
            patches[layer.input.name] = patch
    for name in inputs:
        made[name] = min(readers.get(name, [0]))

    n = config.array_size
    banked = {  # read by ROWS with several image rows at a time
        layer.input.name
        for layer, mode in zip(layers, modes, strict=True)
        if mode is Mode.ROWS
        and isinstance(layer.anchor, Depthwise)
        and rows_per_pass(layer.anchor, config) > 1
    }
    sizes: dict[str, tuple[int, Layout]] = {}
    for name, t in tensors.items():
        blocks = -(-t.channels // n)
        patch = patches.get(name)
        if patch is not None:
            layout = Layout(0, patch.y_stride, 1, patch)
            size = t.height * patch.y_stride * n + 2 * n
        else:
            y_stride = t.width * blocks
            layout = Layout(0, _bank_safe(y_stride, 1) if name in banked else y_stride, blocks)
            size = t.height * layout.y_stride * n
        sizes[name] = (size, layout)

    external: set[str] = set()
    while True:
        lives = []
        for name, (size, _) in sizes.items():
            if name not in external:
                last = max([*readers.get(name, []), made[name]])
                lives.append((name, made[name], last, size))
        staged = {
            i
            for i, layer in enumerate(layers)
            if any(t is not None and t.name in external for t in (layer.input, layer.residual, layer.output))
        }
        budget = config.scratchpad_bytes // (1 if len(external) == len(sizes) else 2)
        lives += [(f"staging {i}", i, i, budget) for i in staged]
        bases = _first_fit(lives, config.scratchpad_bytes)
        if isinstance(bases, dict):
            break
        candidates = [name for name in bases if name not in external and not name.startswith("staging ")]
        if not candidates:
            raise GraphError("the scratchpad is too small for the pieces of a layer")
        external.add(max(candidates, key=lambda name: sizes[name][0]))
    layouts = {}
    for name, (_, layout) in sizes.items():
        if name not in external:
            layouts[name] = Layout(bases[name], layout.y_stride, layout.x_stride, layout.patch)
    staging = {i: (bases[f"staging {i}"], bases[f"staging {i}"] + budget) for i in staged}
    return Placement(modes, layouts, staging)


def _first_fit(lives: list[tuple[str, int, int, int]], size: int) -> dict[str, int] | list[str]:
    """Addresses by name, or the names that were alive where one did not fit.

    Args:
        lives: (name, first layer, last layer, bytes).
    """
    placed: list[tuple[int, int, int, int, str]] = []
    bases: dict[str, int] = {}
    for name, first, last, nbytes in sorted(lives, key=lambda item: (-item[3], item[1])):
        alive = sorted(p for p in placed if p[2] <= last and first <= p[3])
        at = 0
        for start, end, *_ in alive:
            if at + nbytes <= start:
                break
            at = max(at, end)
        if at + nbytes > size:
            return [name, *(p[4] for p in alive)]
        placed.append((at, at + nbytes, first, last, name))
        bases[name] = at
    return bases
