"""Fuse: operators that one pass through the NPU covers become one layer."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from lepton_sim.reference import AddParameters, Requantization

from .graph import Add, AveragePool, Conv, Depthwise, Graph, GraphError, MaxPool, Mean, Op, Tensor, macs

__all__ = ["Layer", "Pool", "fuse"]

Anchor = Conv | Depthwise | None


def _one(value: int) -> NDArray[np.int32]:
    return np.array([value], np.int32)


IDENTITY = Requantization(_one(0), _one(1 << 30), _one(1))  # 2^30 * 2^1 / 2^31 = 1
"""Requantization that changes nothing: an anchor that only brings its input to the output stage."""


@dataclass(frozen=True)
class Pool:
    """The pooling of a layer.

    Attributes:
        op: the operator.
        maximum: maximum, else sum and rescale.
    """

    op: MaxPool | AveragePool | Mean

    @property
    def maximum(self) -> bool:
        """Whether it is the maximum; else a sum that is rescaled."""
        return isinstance(self.op, MaxPool)

    def kernel(self, x: Tensor) -> tuple[int, int]:
        """Window on `x`."""
        return (x.height, x.width) if isinstance(self.op, Mean) else self.op.kernel


@dataclass(frozen=True)
class Layer:
    """What one pass through array and output stage does.

    Attributes:
        name: of its last operator.
        ops: the operators it covers.
        anchor: what the array does; None: it passes its input on.
        input, output: tensors.
        middle: the tensor between array and pooling (the output where nothing is pooled).
        residual, add: the tensor added and its constants; `add.a_*` is the array's own side.
        pool: pooling at the end.
    """

    name: str
    ops: tuple[Op, ...]
    anchor: Anchor
    input: Tensor
    middle: Tensor
    output: Tensor
    residual: Tensor | None = None
    add: AddParameters | None = None
    pool: Pool | None = None

    @property
    def parameters(self) -> Requantization:
        """Requantization of the array's sums."""
        if self.anchor is not None:
            return self.anchor.parameters
        zero_point = self.add.a_zero_point if self.add is not None else 0  # taken off, then put back
        return replace(IDENTITY, bias=_one(-zero_point), zero_point=zero_point)


def _own_side_first(op: Add, own: str) -> AddParameters:
    p = op.parameters
    if own == op.input:
        return p
    return replace(
        p,
        a_zero_point=p.b_zero_point, a_multiplier=p.b_multiplier, a_shift=p.b_shift,
        b_zero_point=p.a_zero_point, b_multiplier=p.a_multiplier, b_shift=p.a_shift,
    )  # fmt: skip


def _fusable(pool: Op, positions: int) -> bool:
    """Whether the output stage can pool straight behind the array."""
    if isinstance(pool, MaxPool):
        return pool.kernel[0] * pool.kernel[1] <= positions
    if isinstance(pool, AveragePool):  # with padding the counts differ from window to window
        return not any(pool.padding) and pool.kernel[0] * pool.kernel[1] <= positions
    return isinstance(pool, Mean)


def fuse(graph: Graph, positions: int, separate: frozenset[str] = frozenset()) -> list[Layer]:
    """Cover the graph with layers, in order.

    Args:
        graph: the operators.
        positions: largest tile of the configuration; a larger pooling window is not fused.
        separate: names of operators that must begin a layer of their own.

    An operator joins the one before it only where nobody else reads the tensor between them.
    """
    readers = Counter(name for op in graph.ops for name in op.inputs)
    for name in graph.outputs:
        readers[name] += 1
    taken: set[int] = set()
    layers: list[Layer] = []

    def only_reader(name: str) -> tuple[int, Op] | None:
        if readers[name] != 1:
            return None
        for i, op in enumerate(graph.ops):
            if name in op.inputs and i not in taken:
                return i, op
        return None

    for i, op in enumerate(graph.ops):
        if i in taken:
            continue
        taken.add(i)
        tensor = graph.tensors
        ops: list[Op] = [op]
        if isinstance(op, (Conv, Depthwise)):
            layer = Layer(op.name, (op,), op, tensor[op.input], tensor[op.output], tensor[op.output])
        elif isinstance(op, Add):
            layer = Layer(
                op.name, (op,), None, tensor[op.input], tensor[op.output], tensor[op.output],
                residual=tensor[op.other], add=op.parameters,
            )  # fmt: skip
        elif isinstance(op, (MaxPool, AveragePool, Mean)):
            x = tensor[op.input]
            layer = Layer(op.name, (op,), None, x, x, tensor[op.output], pool=Pool(op))
        else:
            raise GraphError(f"{op.name}: no such operator: {type(op).__name__}")
        while layer.pool is None:
            following = only_reader(layer.output.name)
            if following is None:
                break
            j, then = following
            if then.name in separate:
                break
            if isinstance(then, Add) and layer.add is None:
                other = then.other if then.input == layer.output.name else then.input
                if other == layer.output.name or _rather(other, layer, graph, readers, taken):
                    break
                layer = replace(
                    layer, middle=tensor[then.output], output=tensor[then.output],
                    residual=tensor[other], add=_own_side_first(then, layer.output.name),
                )  # fmt: skip
            elif isinstance(then, (MaxPool, AveragePool, Mean)) and _fusable(then, positions):
                if isinstance(then, Mean) and layer.middle.height * layer.middle.width > positions:
                    break
                layer = replace(layer, output=tensor[then.output], pool=Pool(then))
            else:
                break
            taken.add(j)
            ops.append(then)
        layers.append(replace(layer, name=ops[-1].name, ops=tuple(ops)))
    return _in_order(layers, set(graph.inputs))


def _rather(other: str, layer: Layer, graph: Graph, readers: Counter[str], taken: set[int]) -> bool:
    """Whether an addition should rather join the layer that makes its other operand.

    An addition takes the output stage four times as long; the layer with more work hides it. Its
    other operand can always be made first: it cannot depend on a tensor that only the addition reads.
    """
    for i, op in enumerate(graph.ops):
        if (
            op.output == other
            and i not in taken
            and isinstance(op, (Conv, Depthwise))
            and readers[other] == 1
        ):
            return layer.anchor is None or macs(op, graph) > macs(layer.anchor, graph)
    return False


def _in_order(layers: list[Layer], known: set[str]) -> list[Layer]:
    """Layers sorted so that each comes after those it reads; fusing a later operator can undo that."""
    out: list[Layer] = []
    waiting = list(layers)
    known = set(known)
    while waiting:
        for layer in waiting:
            needs = {layer.input.name} | ({layer.residual.name} if layer.residual else set())
            if needs <= known:
                break
        else:
            raise GraphError(f"{waiting[0].name}: its inputs are never made")
        waiting.remove(layer)
        known.add(layer.output.name)
        out.append(layer)
    return out
