"""Lower: layers become commands, tile by tile, each with the bytes that it touches.

A tile is a rectangle of output positions; all its output channels are computed, block after block,
before the next tile begins where the weights stay on chip, and chunk by chunk where they do not.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from lepton_hw.config import NPUConfig
from lepton_hw.isa import (
    PARAMETER_ROWS,
    PARAMETER_ROWS_PER_TENSOR,
    Command,
    Mode,
    Opcode,
    PoolMode,
    Target,
)
from lepton_sim.reference import Padding, Rounding, average_pool_multiplier

from . import pack
from .fuse import Layer
from .graph import AveragePool, Conv, Depthwise, Graph, GraphError, MaxPool, Tensor
from .place import Layout, Patch, Placement, rows_per_pass
from .synchronize import Action, Memory, Region

__all__ = ["External", "Lowering", "TooLargeError"]

LOADS_AHEAD = 4
"""Loads that may be issued before the command that needs them is next: what LOAD's queue holds."""


LOAD_BOUND_CYCLES = 512
"""Cycles of a CONV whose passes are shorter than their weights take to load."""


class TooLargeError(GraphError):
    """A layer of which not even one position fits on chip.

    Attributes:
        fused: its last operator, if that could be a layer of its own instead.
    """

    def __init__(self, fused: str | None, message: str) -> None:
        super().__init__(message)
        self.fused = fused


@dataclass
class External:
    """External memory: grows upwards; what is at which address.

    Attributes:
        end: first free byte.
        constants: (address, bytes) to write before a run.
    """

    alignment: int
    end: int = 0
    constants: list[tuple[int, bytes]] = field(default_factory=list)

    def reserve(self, nbytes: int) -> int:
        """Address of `nbytes` free bytes."""
        address = -(-self.end // self.alignment) * self.alignment
        self.end = address + nbytes
        return address

    def store(self, content: NDArray) -> int:
        """Address of constant bytes."""
        raw = np.ascontiguousarray(content).tobytes()
        address = self.reserve(len(raw))
        self.constants.append((address, raw))
        return address


@dataclass(frozen=True)
class Rect:
    """Rows [y0, y1) and pixels [x0, x1)."""

    y0: int
    y1: int
    x0: int
    x1: int

    @property
    def height(self) -> int:
        """Rows."""
        return self.y1 - self.y0

    @property
    def width(self) -> int:
        """Pixels a row."""
        return self.x1 - self.x0


@dataclass(frozen=True)
class View:
    """Part of a tensor on chip: pixel (rect.y0, rect.x0), block `block` is at byte `base`."""

    base: int
    y_stride: int  # vectors
    x_stride: int  # vectors
    rect: Rect
    block: int
    blocks: int
    patch: Patch | None = None


@dataclass(frozen=True)
class Chunk:
    """Weights that are loaded together: some blocks of output channels, or a part of one's sum.

    Attributes:
        first, blocks: output blocks.
        parts: for each CONV a tile takes: its weights' place in the chunk and its part of the kernel.
        data: int8 tiles.
        last: whether the blocks' sums end with this chunk.
    """

    first: int
    blocks: int
    parts: tuple[Part, ...]
    data: NDArray[np.int8]
    begins: bool = True
    ends: bool = True


@dataclass(frozen=True)
class Part:
    """A CONV's part of a sum: input blocks, kernel rows, kernel columns; `at`: its first tile."""

    at: int
    in_block: int
    in_blocks: int
    ky: tuple[int, int]
    kx: tuple[int, int]
    pass_length: int = 1


@dataclass(frozen=True)
class Staged:
    """What of an external input is brought on chip: a rectangle of some blocks."""

    rect: Rect
    block: int
    blocks: int


@dataclass(frozen=True)
class Piece:
    """One CONV of a tile: part of the sum, output blocks, first weight tile in its chunk, its input."""

    part: Part
    first: int
    blocks: int
    tile: int
    staged: Staged | None


class Ring:
    """Addresses in a memory that is filled around and around."""

    def __init__(self, size: int) -> None:
        self._size, self._next = size, 0

    def take(self, nbytes: int) -> int:
        """Start of the next `nbytes` in one piece."""
        assert nbytes <= self._size
        if self._next + nbytes > self._size:
            self._next = 0
        start = self._next
        self._next += nbytes
        return start


class Lowering:
    """Turns placed layers into actions.

    Args:
        graph, layers, placement: what to lower.
        config: for which NPU.
        external: external memory; graph inputs, outputs and external tensors are reserved here.
    """

    def __init__(
        self,
        graph: Graph,
        layers: Sequence[Layer],
        placement: Placement,
        config: NPUConfig,
        external: External,
    ) -> None:
        self.graph, self.layers, self.placement, self.config = graph, layers, placement, config
        self.external = external
        self.n = config.array_size
        self.actions: list[Action] = []
        self.layer = -1
        self.addresses: dict[str, tuple[int, int]] = {}  # external tensors: address, bytes a pixel
        self._weights = Ring(config.weight_bytes)
        self._parameters = Ring(config.parameter_bytes)
        self._loaded: dict[str, int] = {}  # graph inputs on chip: rows that have been loaded
        self._rescale: Command | None = None
        self._staging: dict[str, tuple[int, int]] = {}
        self._turn = 0
        self._constants: dict[int, tuple[int, NDArray]] = {}  # by identity; keeps the array alive
        self._tables: dict[int, NDArray[np.uint8]] = {}  # parameters by layer

        tensors = {t.name: t for layer in layers for t in (layer.input, layer.output)}
        for name in [*graph.inputs, *graph.outputs]:
            tensor = graph.tensors[name]
            if name in self.addresses:
                raise GraphError(f"{name} is listed twice among the graph's inputs and outputs")
            self.addresses[name] = (external.reserve(int(np.prod(tensor.shape))), tensor.channels)
        for name, tensor in tensors.items():
            if name not in placement.layouts and name not in self.addresses:
                pixel = -(-tensor.channels // self.n) * self.n
                self.addresses[name] = (external.reserve(tensor.height * tensor.width * pixel), pixel)
        self.last_written = external.end

    # -- all layers ---------------------------------------------------------------------------

    def run(self) -> list[Action]:
        """All actions, loads moved ahead of where they are needed."""
        for i, layer in enumerate(self.layers):
            self.layer = i
            self._lower(layer, self.placement.modes[i])
        return _load_ahead(self.actions)

    def _emit(self, command: Command, reads: Sequence[Region] = (), writes: Sequence[Region] = ()) -> None:
        self.actions.append(Action(command, reads, writes, self.layer))

    def _lower(self, layer: Layer, mode: Mode) -> None:
        chunks = self._chunks(layer, mode)
        streamed = [
            t for t in (layer.input, layer.residual) if t is not None and t.name not in self.placement.layouts
        ]
        self._staging_areas(layer)
        tiles = list(self._tiles(layer, chunks, bool(streamed)))
        resident = sum(c.data.nbytes for c in chunks) <= self.config.weight_bytes // 2
        per_block = self._parameter_rows(layer) * self.n
        blocks = -(-layer.middle.channels // self.n)
        all_parameters = blocks * per_block <= self.config.parameter_bytes // 2
        weights: dict[int, int] = {}
        parameters: dict[int, int] = {}
        by_tile = bool(streamed) or resident

        def load(i: int) -> None:
            if not (resident and i in weights):
                weights[i] = self._load_weights(chunks[i])
            chunk = chunks[i]
            if all_parameters:
                if not parameters:
                    base = self._load_parameters(layer, 0, blocks)
                    parameters.update({b: base + b * per_block for b in range(blocks)})
            else:
                base = self._load_parameters(layer, chunk.first, chunk.blocks)
                parameters.update({chunk.first + b: base + b * per_block for b in range(chunk.blocks)})

        if by_tile:
            for tile in tiles:
                for i, chunk in enumerate(chunks):
                    load(i)
                    self._tile(layer, mode, tile, chunk, weights[i], parameters)
                self._store_tile(layer, tile)
        else:
            groups: list[list[int]] = []
            for i, chunk in enumerate(chunks):  # chunks of one block's sum stay together
                if chunk.begins:
                    groups.append([])
                groups[-1].append(i)
            for group in groups:
                for t, tile in enumerate(tiles):
                    for i in group:
                        if t == 0 or len(group) > 1:
                            load(i)
                        self._tile(layer, mode, tile, chunks[i], weights[i], parameters)
            for tile in tiles:
                self._store_tile(layer, tile)

    # -- weights and parameters -----------------------------------------------------------------

    def _chunks(self, layer: Layer, mode: Mode) -> list[Chunk]:
        """The layer's weights in pieces that leave room for the next ones to load."""
        n, op = self.n, layer.anchor
        tile_bytes = n * n
        limit = max(1, self.config.weight_bytes // 4 // tile_bytes)  # tiles
        if layer.middle.height * layer.middle.width < n:
            # bound by the loads: what is computed after the last of them should be little
            limit = max(1, min(limit, LOAD_BOUND_CYCLES // n))
        rows = self._parameter_rows(layer)
        most_blocks = max(1, self.config.parameter_vectors // 2 // rows)
        blocks = -(-layer.middle.channels // n)
        if op is None:
            part = Part(0, 0, 1, (0, 1), (0, 1))
            tile = pack.identity_tile(n)
            return [
                Chunk(b, min(most_blocks, blocks - b), (part,), tile) for b in range(0, blocks, most_blocks)
            ]
        kh, kw = op.kernel
        if isinstance(op, Depthwise) and mode is Mode.ROWS:
            tiles = pack.row_tiles(op.weights, n, rows_per_pass(op, self.config))
            whole = Part(0, 0, 1, (0, kh), (0, kw))
            return self._by_blocks(tiles.reshape(blocks, -1, n, n), (whole,), limit, most_blocks)
        if isinstance(op, Depthwise):
            out = []
            multiplier = op.weights.shape[2] // layer.input.channels
            for b, (first, tiles) in enumerate(pack.diagonal_tiles(op.weights, n, multiplier)):
                out += self._by_parts(b, first, tiles, limit)
            return out
        patch = self.placement.layouts[layer.input.name].patch if mode is Mode.PATCH else None
        if patch is not None:
            parts: list[Part] = []
            pieces: list[NDArray[np.int8]] = []
            for (start, end), length in zip(patch.columns, patch.pass_lengths, strict=True):
                piece = pack.patch_tiles(op.weights[:, :, start:end], n, length)
                at = sum(p.shape[1] for p in pieces)
                parts.append(Part(at, 0, 1, (0, kh), (start, end), length))
                pieces.append(piece)
            return self._by_blocks(np.concatenate(pieces, axis=1), tuple(parts), limit, most_blocks)
        tiles = pack.vector_tiles(op.weights, n)
        if int(np.prod(tiles.shape[1:4])) <= limit:
            whole = Part(0, 0, tiles.shape[1], (0, kh), (0, kw))
            return self._by_blocks(tiles.reshape(blocks, -1, n, n), (whole,), limit, most_blocks)
        return [c for b in range(blocks) for c in self._by_parts(b, 0, tiles[b], limit)]

    def _by_blocks(
        self, tiles: NDArray[np.int8], parts: tuple[Part, ...], limit: int, most_blocks: int
    ) -> list[Chunk]:
        """Chunks of whole blocks. tiles: [block, tile, N, N]."""
        per_block = tiles.shape[1]
        step = max(1, min(most_blocks, limit // per_block))
        if len(parts) > 1:
            step = 1  # a sum that takes several CONVs has one block
        return [
            Chunk(b, min(step, len(tiles) - b), parts, tiles[b : b + step])
            for b in range(0, len(tiles), step)
        ]

    def _by_parts(self, block: int, in_block: int, tiles: NDArray[np.int8], limit: int) -> list[Chunk]:
        """Chunks of one block's sum. tiles: [in block, kh, kw, N, N]."""
        in_blocks, kh, kw = tiles.shape[:3]
        step_x = min(kw, limit)
        step_y = max(1, min(kh, limit // step_x)) if step_x == kw else 1
        step_i = max(1, min(in_blocks, limit // (step_x * step_y))) if step_y == kh else 1
        boxes = [
            (i, y, x)
            for i in range(0, in_blocks, step_i)
            for y in range(0, kh, step_y)
            for x in range(0, kw, step_x)
        ]
        out = []
        for k, (i, y, x) in enumerate(boxes):
            data = tiles[i : i + step_i, y : y + step_y, x : x + step_x]
            part = Part(
                0, in_block + i, data.shape[0], (y, y + data.shape[1]), (x, x + data.shape[2])
            )  # fmt: skip
            out.append(Chunk(block, 1, (part,), data, begins=k == 0, ends=k == len(boxes) - 1))
        return out

    def _load_weights(self, chunk: Chunk) -> int:
        """Load a chunk; its first byte in the weight memory."""
        local = self._weights.take(chunk.data.nbytes)
        self._load_constant(
            Target.WEIGHTS, Memory.WEIGHTS, self._constant(chunk.data), local, chunk.data.nbytes
        )
        return local

    def _constant(self, content: NDArray) -> int:
        key = id(content)
        if key not in self._constants:
            self._constants[key] = (self.external.store(content), content)
        return self._constants[key][0]

    def _parameter_rows(self, layer: Layer) -> int:
        return PARAMETER_ROWS_PER_TENSOR if pack.is_per_tensor(layer.parameters) else PARAMETER_ROWS

    def _load_parameters(self, layer: Layer, first: int, blocks: int) -> int:
        vectors = self._parameter_table(layer)
        nbytes = blocks * vectors[0].nbytes
        local = self._parameters.take(nbytes)
        address = self._constant(vectors) + first * vectors[0].nbytes
        self._load_constant(Target.PARAMETERS, Memory.PARAMETERS, address, local, nbytes)
        return local

    def _parameter_table(self, layer: Layer) -> NDArray[np.uint8]:
        if self.layer not in self._tables:
            self._tables[self.layer] = pack.parameter_vectors(layer.parameters, layer.middle.channels, self.n)
        return self._tables[self.layer]

    def _load_constant(self, target: Target, memory: Memory, address: int, local: int, nbytes: int) -> None:
        self._emit(
            Command(Opcode.LOAD, target=target, address=address, local_address=local, row_bytes=nbytes),
            [Region(Memory.EXTERNAL, address, address + nbytes)],
            [Region(memory, local, local + nbytes)],
        )

    # -- tiles -------------------------------------------------------------------------------------

    def _tiles(self, layer: Layer, chunks: Sequence[Chunk], streamed: bool) -> Iterator[Rect]:
        """Rectangles of the layer's output, each within accumulators and staging areas."""
        out = layer.output
        rows, columns = self._tile_size(layer, chunks)
        rows_at = [*range(0, out.height, rows), out.height]
        columns_at = [*range(0, out.width, columns), out.width]
        if layer.pool is not None and isinstance(layer.pool.op, AveragePool) and any(layer.pool.op.padding):
            rows_at = sorted({*rows_at, *self._count_edges(layer, 0)})
            columns_at = sorted({*columns_at, *self._count_edges(layer, 1)})
        for y0, y1 in pairwise(rows_at):
            for x0, x1 in pairwise(columns_at):
                yield Rect(y0, y1, x0, x1)

    def _count_edges(self, layer: Layer, axis: int) -> list[int]:
        """Where the number of values under an average pooling's window changes along an axis."""
        assert layer.pool is not None
        op = layer.pool.op
        assert isinstance(op, AveragePool)
        length = layer.middle.shape[axis]
        before = op.padding.left if axis else op.padding.top
        counts = [
            min(o * op.stride[axis] - before + op.kernel[axis], length) - max(o * op.stride[axis] - before, 0)
            for o in range(layer.output.shape[axis])
        ]
        return [o for o in range(1, len(counts)) if counts[o] != counts[o - 1]]

    def _tile_size(self, layer: Layer, chunks: Sequence[Chunk]) -> tuple[int, int]:
        """Output rows and columns of a tile."""
        out = layer.output
        passes = self._passes(layer)
        slots = 4 if layer.residual is not None else 1

        def fits(rows: int, columns: int) -> bool:
            rect = Rect(0, min(rows, out.height), 0, min(columns, out.width))
            # the largest such rectangle is one in the middle: no clipping at the edges
            conv = self._conv_rect(layer, rect, clip=False)
            height = min(conv.height, layer.middle.height)
            width = min(conv.width, layer.middle.width)
            if height * width > self.config.accumulator_depth:
                return False
            return self._staging_fits(layer, Rect(0, height, 0, width), rect)

        columns = out.width
        while columns > 1 and not fits(1, columns):
            columns = -(-columns // 2)
        if not fits(1, columns):
            raise TooLargeError(
                layer.ops[-1].name if len(layer.ops) > 1 else None,
                f"{layer.name}: one output position needs more than the accumulators "
                f"({self.config.accumulator_depth} vectors) or staging buffers hold",
            )
        rows = 1
        while rows < out.height and fits(rows + 1, columns):
            rows += 1
        # smaller tiles let the next layer start earlier, as long as commands and weights keep up
        conv = self._conv_rect(layer, Rect(0, 1, 0, columns), clip=False)
        row_positions = max(
            1, conv.width * (self._conv_rect(layer, Rect(0, 2, 0, columns), clip=False).height - conv.height)
        )
        blocks = max(c.blocks for c in chunks)
        least = max(4 * self.n, -(-600 // max(1, passes * blocks)), 64 if slots > 1 else 0)
        wanted = max(1, -(-least // row_positions))
        if columns == out.width and wanted < rows:
            strips = -(-out.height // wanted)
            rows = min(rows, -(-out.height // strips))
        return rows, columns

    def _passes(self, layer: Layer) -> int:
        """Passes of one block."""
        op = layer.anchor
        if op is None:
            return 1
        if self.placement.modes[self.layer] is Mode.ROWS:
            assert isinstance(op, Depthwise)
            return -(-op.kernel[0] // rows_per_pass(op, self.config))
        patch = self._patch(layer)
        if patch is not None:
            return patch.passes(op.kernel[0], layer.input.channels)
        blocks = -(-layer.input.channels // self.n) if isinstance(op, Conv) else 1
        return op.kernel[0] * op.kernel[1] * blocks

    def _patch(self, layer: Layer) -> Patch | None:
        layout = self.placement.layouts.get(layer.input.name)
        return layout.patch if layout is not None else None

    def _conv_rect(self, layer: Layer, out: Rect, clip: bool = True) -> Rect:
        """Positions of the array's output that a rectangle of the layer's output needs."""
        if layer.pool is None:
            return out
        op = layer.pool.op
        kernel = layer.pool.kernel(layer.middle)
        stride = getattr(op, "stride", (1, 1))
        padding = getattr(op, "padding", Padding())
        sides = []
        for (o0, o1), k, s, before, length in zip(
            ((out.y0, out.y1), (out.x0, out.x1)), kernel, stride,
            (padding.top, padding.left), layer.middle.shape[:2], strict=True,
        ):  # fmt: skip
            first, last = o0 * s - before, (o1 - 1) * s - before + k
            sides.append((max(first, 0), min(last, length)) if clip else (first, last))
        return Rect(*sides[0], *sides[1])

    def _input_rect(self, layer: Layer, conv: Rect, part: Part | None = None) -> Rect:
        """Pixels of the input that positions of the array's output need, clipped to the image."""
        op, x = layer.anchor, layer.input
        if op is None:
            return conv
        (ky0, ky1), (kx0, kx1) = (part.ky, part.kx) if part else ((0, op.kernel[0]), (0, op.kernel[1]))
        y0 = conv.y0 * op.stride[0] - op.padding.top
        x0 = conv.x0 * op.stride[1] - op.padding.left
        return Rect(
            min(max(y0 + ky0 * op.dilation[0], 0), x.height),
            max(0, min(y0 + (conv.height - 1) * op.stride[0] + (ky1 - 1) * op.dilation[0] + 1, x.height)),
            min(max(x0 + kx0 * op.dilation[1], 0), x.width),
            max(0, min(x0 + (conv.width - 1) * op.stride[1] + (kx1 - 1) * op.dilation[1] + 1, x.width)),
        )

    # -- staging areas ----------------------------------------------------------------------------

    def _staging_areas(self, layer: Layer) -> None:
        """Halves of the layer's staging range for its external tensors, two buffers each."""
        self._staging = {}
        self._turn = 0
        area = self.placement.staging.get(self.layer)
        if area is None:
            return
        roles = {"input": layer.input, "residual": layer.residual, "output": layer.output}
        outside = [r for r, t in roles.items() if t is not None and t.name not in self.placement.layouts]
        shares = {"input": 2, "residual": 1, "output": 1}
        total = sum(shares[r] for r in outside)
        at, end = area
        unit = (end - at) // total // (2 * self.n) * 2 * self.n
        for role in outside:
            self._staging[role] = (at, unit * shares[role] // 2 // self.n * self.n)
            at += unit * shares[role]

    def _staging_fits(self, layer: Layer, conv: Rect, out: Rect) -> bool:
        n = self.n
        op = layer.anchor
        if "input" in self._staging:
            height, width = conv.height, conv.width
            if op is not None:
                height = (height - 1) * op.stride[0] + (op.kernel[0] - 1) * op.dilation[0] + 1
                width = (width - 1) * op.stride[1] + (op.kernel[1] - 1) * op.dilation[1] + 1
            height, width = min(height, layer.input.height), min(width, layer.input.width)
            blocks = self._staged_blocks(layer, height * (width + 1))
            if blocks == 0:
                return False
        if "residual" in self._staging and conv.height * conv.width * n > self._staging["residual"][1]:
            return False
        return "output" not in self._staging or out.height * out.width * n <= self._staging["output"][1]

    def _staged_blocks(self, layer: Layer, pixels: int) -> int:
        """Input blocks of so many pixels that fit a staging buffer."""
        return min(-(-layer.input.channels // self.n), self._staging["input"][1] // (pixels * self.n))

    # -- one tile -----------------------------------------------------------------------------------

    def _tile(
        self, layer: Layer, mode: Mode, out: Rect, chunk: Chunk, weights: int, parameters: dict[int, int]
    ) -> None:
        conv = self._conv_rect(layer, out)
        pieces = list(self._pieces(layer, mode, conv, out, chunk))
        view: View | None = None
        staged: Staged | None = None
        for i, piece in enumerate(pieces):
            if piece.staged is None:
                view = self._resident(layer.input, self._input_rect(layer, conv))
            elif piece.staged != staged:
                view = self._stage_input(layer, mode, piece.staged)
                staged = piece.staged
            assert view is not None
            # pieces of one block's sum follow each other
            goes_on = i > 0 and pieces[i - 1].first == piece.first
            unfinished = i + 1 < len(pieces) and pieces[i + 1].first == piece.first
            begins, ends = chunk.begins and not goes_on, chunk.ends and not unfinished
            self._conv(layer, mode, conv, piece, view, weights, begins, ends)
            if ends:
                self._output(layer, out, conv, piece.first, piece.blocks, parameters)

    def _pieces(self, layer: Layer, mode: Mode, conv: Rect, out: Rect, chunk: Chunk) -> Iterator[Piece]:
        """The CONVs that a chunk of weights takes for a tile."""
        op = layer.anchor
        moves = op is None or (isinstance(op, Depthwise) and mode is Mode.ROWS)
        per_block = 0 if op is None else int(np.prod(chunk.data.shape[:-2])) // chunk.blocks
        step = self._output_blocks(conv, out, chunk.blocks)
        for part in chunk.parts:
            rect = self._input_rect(layer, conv, part)
            fit = part.in_blocks
            if "input" in self._staging:
                fit = self._staged_blocks(layer, max(1, rect.height * (rect.width + 1)))
                if moves:
                    step = min(step, fit)
            for b in range(0, chunk.blocks, step):
                first, blocks, tile = chunk.first + b, min(step, chunk.blocks - b), part.at + b * per_block
                if "input" not in self._staging:
                    yield Piece(part, first, blocks, tile, None)
                elif moves:  # the input moves on with the output
                    yield Piece(part, first, blocks, tile, Staged(rect, first, blocks))
                elif fit >= part.in_blocks:
                    yield Piece(part, first, blocks, tile, Staged(rect, part.in_block, part.in_blocks))
                else:  # a part of the sum at a time, block by block
                    taps = (part.ky[1] - part.ky[0]) * (part.kx[1] - part.kx[0])
                    for block in range(blocks):
                        for i in range(0, part.in_blocks, fit):
                            count = min(fit, part.in_blocks - i)
                            some = replace(part, in_block=part.in_block + i, in_blocks=count)
                            yield Piece(
                                some, first + block, 1, tile + block * per_block + i * taps,
                                Staged(rect, some.in_block, count),
                            )  # fmt: skip

    def _output_blocks(self, conv: Rect, out: Rect, blocks: int) -> int:
        """Output blocks of a tile that fit the staging buffers of residual and output."""
        for role, rect in (("residual", conv), ("output", out)):
            if role in self._staging:
                blocks = min(blocks, self._staging[role][1] // (rect.height * rect.width * self.n))
        return max(1, blocks)

    def _resident(self, tensor: Tensor, rect: Rect) -> View:
        """The whole tensor on chip; rows of a graph input are loaded when they are first needed."""
        layout = self.placement.layouts[tensor.name]
        if tensor.name in self.addresses and tensor.name in self.graph.inputs:
            self._load_rows(tensor, layout, rect.y1)
        whole = Rect(0, tensor.height, 0, tensor.width)
        blocks = -(-tensor.channels // self.n)
        return View(layout.base, layout.y_stride, layout.x_stride, whole, 0, blocks, layout.patch)

    def _load_rows(self, tensor: Tensor, layout: Layout, end: int) -> None:
        done = self._loaded.get(tensor.name, 0)
        if end <= done:
            return
        step = max(1, -(-tensor.height // 8))  # rows at a time: few commands, an early start
        end = min(tensor.height, max(end, done + step))
        n, c = self.n, tensor.channels
        address, _ = self.addresses[tensor.name]
        pitch = layout.y_stride * n
        if layout.patch is not None:
            patch = layout.patch
            if done == 0:
                for margin, at in ((patch.left, 0), (patch.right, (patch.left + tensor.width) * c)):
                    if margin:
                        self._fill(tensor, layout.base + at, margin * c, pitch)
            self._load(
                address + done * tensor.width * c, layout.base + done * pitch + patch.left * c,
                tensor.width * c, end - done, tensor.width * c, pitch,
            )  # fmt: skip
        else:
            for_rows = Rect(done, end, 0, tensor.width)
            base = layout.base + done * pitch
            self._load_box(tensor, for_rows, 0, -(-c // n), base, layout.y_stride, layout.x_stride)
        self._loaded[tensor.name] = end

    def _fill(self, tensor: Tensor, at: int, row_bytes: int, pitch: int, rows: int | None = None) -> None:
        rows = tensor.height if rows is None else rows
        self._emit(
            Command(
                Opcode.FILL, value=tensor.zero_point, local_address=at, row_bytes=row_bytes, rows=rows,
                local_stride=pitch,
            ),
            (),
            [Region(Memory.SCRATCHPAD, at + r * pitch, at + r * pitch + row_bytes) for r in range(rows)],
        )  # fmt: skip

    def _load(self, address: int, local: int, row_bytes: int, rows: int, stride: int, pitch: int) -> None:
        self._transfer(Opcode.LOAD, address, local, row_bytes, rows, stride, pitch)

    def _transfer(
        self, opcode: Opcode, address: int, local: int, row_bytes: int, rows: int, stride: int, pitch: int
    ) -> None:
        command = Command(
            opcode, address=address, local_address=local, row_bytes=row_bytes, rows=rows, stride=stride,
            local_stride=pitch,
        )  # fmt: skip
        outside = [Region(Memory.EXTERNAL, address, address + (rows - 1) * stride + row_bytes)]
        inside = [Region(Memory.SCRATCHPAD, local, local + (rows - 1) * pitch + row_bytes)]
        if opcode is Opcode.LOAD:
            self._emit(command, outside, inside)
        else:
            self._emit(command, inside, outside)

    def _load_box(
        self, tensor: Tensor, rect: Rect, block: int, blocks: int, base: int, y_stride: int, x_stride: int
    ) -> None:
        for move in self._box_rows(tensor, rect, block, blocks, base, y_stride, x_stride):
            self._transfer(Opcode.LOAD, *move)

    def _box_rows(
        self, tensor: Tensor, rect: Rect, block: int, blocks: int, base: int, y_stride: int, x_stride: int
    ) -> Iterator[tuple[int, int, int, int, int, int]]:
        """Transfers (address, local, row bytes, rows, stride, local stride) of a box of a tensor."""
        n = self.n
        address, pixel = self.addresses[tensor.name]
        address += (rect.y0 * tensor.width + rect.x0) * pixel + block * n
        nbytes = min(blocks * n, pixel - block * n)
        row, pitch = tensor.width * pixel, y_stride * n
        if nbytes == pixel == x_stride * n:  # pixels follow each other on both sides
            if rect.width == tensor.width and pitch == row:
                yield address, base, row * rect.height, 1, 0, 0
            else:
                yield address, base, rect.width * pixel, rect.height, row, pitch
        elif rect.width == 1:
            yield address, base, nbytes, rect.height, row, pitch
        elif rect.width == tensor.width and pitch == rect.width * x_stride * n:
            yield address, base, nbytes, rect.height * rect.width, pixel, x_stride * n
        else:
            for y in range(rect.height):
                yield address + y * row, base + y * pitch, nbytes, rect.width, pixel, x_stride * n

    def _buffer(self, role: str) -> int:
        """The next of a role's two staging buffers."""
        base, size = self._staging[role]
        self._turn += 1
        return base + (self._turn // len(self._staging) % 2) * size

    def _stage_input(self, layer: Layer, mode: Mode, staged: Staged) -> View:
        rect, block, blocks = staged.rect, staged.block, staged.blocks
        base = self._buffer("input")
        y_stride = rect.width * blocks
        if mode is Mode.ROWS:
            y_stride += 1 - y_stride % 2
        if rect.height > 0 and rect.width > 0:
            self._load_box(layer.input, rect, block, blocks, base, y_stride, blocks)
        return View(base, y_stride, blocks, rect, block, blocks)

    def _conv(
        self, layer: Layer, mode: Mode, conv: Rect, piece: Piece, view: View, weights: int, first: bool,
        last: bool,
    ) -> None:  # fmt: skip
        part, first_block, blocks = piece.part, piece.first, piece.blocks
        weights += piece.tile * self.n * self.n
        n, op = self.n, layer.anchor
        stride, dilation = (op.stride, op.dilation) if op is not None else ((1, 1), (1, 1))
        padding = op.padding if op is not None else Padding()
        y_start = conv.y0 * stride[0] - padding.top + part.ky[0] * dilation[0] - view.rect.y0
        x_start = conv.x0 * stride[1] - padding.left + part.kx[0] * dilation[1] - view.rect.x0
        kernel_width = part.kx[1] - part.kx[0]
        moves = op is None or (isinstance(op, Depthwise) and mode is Mode.ROWS)
        at_block = first_block if moves else part.in_block
        fields = {
            "mode": int(mode),
            "first": int(first),
            "last": int(last),
            "pad_value": layer.input.zero_point,
            "input": view.base + (at_block - view.block) * n,
            "y_stride": view.y_stride,
            "x_stride": view.x_stride,
            "in_blocks": 1 if moves else part.in_blocks,
            "block_stride": 0 if moves else 1,
            "out_blocks": blocks,
            "out_block_stride": 1 if moves else 0,
            "restart_weights": int(op is None),
            "in_height": view.rect.height,
            "in_width": view.rect.width,
            "out_height": conv.height,
            "out_width": conv.width,
            "y_start": y_start,
            "x_start": x_start,
            "kernel_height": part.ky[1] - part.ky[0],
            "kernel_width": kernel_width,
            "stride_y": stride[0],
            "stride_x": stride[1],
            "dilation_y": dilation[0],
            "dilation_x": dilation[1],
            "weights": weights // n,
        }
        if view.rect.height <= 0 or view.rect.width <= 0:  # all of it is padding: any place will do
            fields |= {"in_height": 1, "in_width": 1, "input": 0, "y_start": 2**14, "x_start": 0}
        if view.patch is not None:
            c = layer.input.channels
            fields |= {
                "wide": int(view.patch.wide),
                "input": view.base + (conv.x0 * stride[1] + part.kx[0]) * c,
                "x_stride": stride[1] * c,
                "x_start": 0,
                "kernel_width": 1,
                "dilation_x": 1,
                "row_length": kernel_width * c,
                "pass_length": part.pass_length,
                "in_width": 1,
                "block_stride": 0,
            }
        elif mode is Mode.ROWS:
            assert isinstance(op, Depthwise)
            # pads behind a row serve as pads before the next, as far as both sides have them
            needed = (conv.width - 1) * stride[1] + kernel_width
            beyond = x_start + needed - view.rect.width
            shared = max(0, min(-x_start, beyond, kernel_width - 1))
            fields |= {
                "rows_per_pass": rows_per_pass(op, self.config),
                "x_start": x_start + shared,
                "valid_from": kernel_width - 1 - shared,
                "row_samples": needed - shared,
            }
        command = Command(Opcode.CONV, **fields)
        rect = self._input_rect(layer, conv, part)
        pitch = view.y_stride * n
        tiles = (
            1 if op is None else self._conv_tiles(layer, mode, part) * blocks
        ) * n * n  # fmt: skip
        self._emit(
            command,
            [
                Region(
                    Memory.SCRATCHPAD,
                    view.base + (rect.y0 - view.rect.y0) * pitch,
                    view.base + (rect.y1 - view.rect.y0) * pitch,
                ),
                Region(Memory.WEIGHTS, weights, weights + tiles),
            ],
        )

    def _conv_tiles(self, layer: Layer, mode: Mode, part: Part) -> int:
        """Weight tiles that a CONV reads for one block."""
        op = layer.anchor
        assert op is not None
        rows, columns = part.ky[1] - part.ky[0], part.kx[1] - part.kx[0]
        if mode is Mode.ROWS:
            return self._passes(layer)
        if mode is Mode.PATCH:
            return -(-rows * columns * layer.input.channels // part.pass_length)
        return rows * columns * part.in_blocks

    # -- output ------------------------------------------------------------------------------------

    def _output(
        self, layer: Layer, out: Rect, conv: Rect, first: int, blocks: int, parameters: dict[int, int]
    ) -> None:
        n, p = self.n, layer.parameters
        self._set_rescale(layer, out, conv)
        rows = self._parameter_rows(layer)
        fields = {
            "parameters": parameters[first] // n,
            "zero_point": p.zero_point,
            "minimum": p.clamp_min,
            "maximum": p.clamp_max,
            "single_rounding": int(p.rounding is Rounding.SINGLE),
            "out_height": out.height,
            "out_width": out.width,
        }
        if pack.is_per_tensor(p):
            fields |= {"per_tensor": 1, "multiplier": int(p.multiplier[0]), "shift": int(p.shift[0])}
        reads = [
            Region(Memory.PARAMETERS, parameters[first], parameters[first] + blocks * rows * n),
        ]
        if layer.pool is not None:
            op = layer.pool.op
            kernel = layer.pool.kernel(layer.middle)
            stride = getattr(op, "stride", (1, 1))
            padding = getattr(op, "padding", Padding())
            fields |= {
                "pool_mode": int(PoolMode.MAX if layer.pool.maximum else PoolMode.SUM),
                "pool_height": kernel[0],
                "pool_width": kernel[1],
                "pool_stride_y": stride[0],
                "pool_stride_x": stride[1],
                "pool_y_start": out.y0 * stride[0] - padding.top - conv.y0,
                "pool_x_start": out.x0 * stride[1] - padding.left - conv.x0,
            }
        if layer.residual is not None:
            view = self._operand(layer.residual, "residual", conv, first, blocks)
            at = view.base + (first - view.block) * n
            at += ((conv.y0 - view.rect.y0) * view.y_stride + (conv.x0 - view.rect.x0) * view.x_stride) * n
            fields |= {
                "residual": 1,
                "residual_input": at,
                "residual_y_stride": view.y_stride,
                "residual_x_stride": view.x_stride,
                "residual_block_stride": 1,
            }
            reads.append(_box(view, conv, at, blocks, n))
        view = self._target(layer, out, first, blocks)
        at = view.base + (first - view.block) * n
        at += ((out.y0 - view.rect.y0) * view.y_stride + (out.x0 - view.rect.x0) * view.x_stride) * n
        fields |= {
            "output": at,
            "y_stride": view.y_stride,
            "x_stride": view.x_stride,
            "block_stride": 1,
        }
        self._emit(Command(Opcode.OUTPUT, **fields), reads, [_box(view, out, at, blocks, n)])
        if "output" in self._staging:
            self._store(layer.output, out, first, blocks, view)

    def _operand(self, tensor: Tensor, role: str, rect: Rect, first: int, blocks: int) -> View:
        if role not in self._staging:
            return self._resident(tensor, rect)
        base = self._buffer(role)
        self._load_box(tensor, rect, first, blocks, base, rect.width * blocks, blocks)
        return View(base, rect.width * blocks, blocks, rect, first, blocks)

    def _target(self, layer: Layer, out: Rect, first: int, blocks: int) -> View:
        if "output" not in self._staging:
            layout = self.placement.layouts[layer.output.name]
            whole = Rect(0, layer.output.height, 0, layer.output.width)
            total = -(-layer.output.channels // self.n)
            return View(layout.base, layout.y_stride, layout.x_stride, whole, 0, total)
        return View(self._buffer("output"), out.width * blocks, blocks, out, first, blocks)

    def _store(self, tensor: Tensor, rect: Rect, block: int, blocks: int, view: View) -> None:
        for move in self._box_rows(tensor, rect, block, blocks, view.base, view.y_stride, view.x_stride):
            self._transfer(Opcode.STORE, *move)

    def _store_tile(self, layer: Layer, out: Rect) -> None:
        """Store a finished tile of a graph output that lies on chip."""
        name = layer.output.name
        if name not in self.graph.outputs or "output" in self._staging:
            return
        layout = self.placement.layouts[name]
        blocks = -(-layer.output.channels // self.n)
        base = layout.base + (out.y0 * layout.y_stride + out.x0 * layout.x_stride) * self.n
        view = View(base, layout.y_stride, layout.x_stride, out, 0, blocks)
        self._store(layer.output, out, 0, blocks, view)

    def _set_rescale(self, layer: Layer, out: Rect, conv: Rect) -> None:
        """Emit the constants of add and pooling where they differ from those in force."""
        if layer.add is None and layer.pool is None:
            return
        fields: dict[str, int] = {}
        if layer.add is not None:
            a = layer.add
            fields |= {
                "residual_zero_point": a.b_zero_point,
                "sum_zero_point": a.output_zero_point,
                "sum_minimum": a.clamp_min,
                "sum_maximum": a.clamp_max,
                "own_multiplier": a.a_multiplier,
                "residual_multiplier": a.b_multiplier,
                "sum_multiplier": a.output_multiplier,
                "own_shift": a.a_shift,
                "residual_shift": a.b_shift,
                "sum_shift": a.output_shift,
            }
        if layer.pool is not None:
            op = layer.pool.op
            if isinstance(op, (MaxPool, AveragePool)):
                fields |= {"pool_minimum": op.clamp_min, "pool_maximum": op.clamp_max}
                if isinstance(op, AveragePool):
                    window = self._conv_rect(layer, Rect(out.y0, out.y0 + 1, out.x0, out.x0 + 1))
                    multiplier, shift = average_pool_multiplier(window.height * window.width)
                    fields |= {"pool_multiplier": multiplier, "pool_shift": shift}
            else:
                p = op.parameters
                fields |= {
                    "pool_multiplier": int(p.multiplier[0]),
                    "pool_shift": int(p.shift[0]),
                    "pool_bias": int(p.bias[0]),
                    "pool_zero_point": p.zero_point,
                    "pool_minimum": p.clamp_min,
                    "pool_maximum": p.clamp_max,
                }
        command = Command(Opcode.RESCALE, **fields)
        if command != self._rescale:
            self._rescale = Command(Opcode.RESCALE, **fields)
            self._emit(command)


def _box(view: View, rect: Rect, at: int, blocks: int, n: int) -> Region:
    """Bytes from the first to the last vector of a rectangle that begins at `at`."""
    last = (rect.height - 1) * view.y_stride + (rect.width - 1) * view.x_stride + blocks
    return Region(Memory.SCRATCHPAD, at, at + last * n)


def _load_ahead(actions: list[Action]) -> list[Action]:
    """Move LOAD and FILL commands up, in their order, as far as memory and LOAD's queue allow."""
    loads = [i for i, a in enumerate(actions) if a.command.opcode in (Opcode.LOAD, Opcode.FILL)]
    is_load = set(loads)
    out: list[Action] = []
    next_load = 0
    for i, action in enumerate(actions):
        if i in is_load:
            continue
        while next_load < len(loads) and (
            loads[next_load] < i
            or (
                next_load < len(loads)
                and _loads_between(loads, next_load, i) < LOADS_AHEAD
                and not _conflicts(actions, i, loads[next_load], is_load)
            )
        ):
            out.append(actions[loads[next_load]])
            next_load += 1
        out.append(action)
    return out + [actions[i] for i in loads[next_load:]]


def _loads_between(loads: list[int], next_load: int, position: int) -> int:
    """Loads already moved up that commands at `position` do not need yet."""
    count = 0
    while count < next_load and loads[next_load - 1 - count] > position:
        count += 1
    return count


def _conflicts(actions: list[Action], start: int, load: int, is_load: set[int]) -> bool:
    """Whether a command between `start` and the load touches what the load writes or makes what it reads."""
    moved = actions[load]
    for i in range(start, load):
        if i in is_load:
            continue
        other = actions[i]
        for mine, theirs in (
            (moved.writes, other.reads),
            (moved.writes, other.writes),
            (moved.reads, other.writes),
        ):
            for a in mine:
                for b in theirs:
                    if a.memory is b.memory and a.start < b.end and b.start < a.end:
                        return True
    return False
