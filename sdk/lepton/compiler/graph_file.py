"""Integer graphs in files: one compressed .npz with the arrays and a JSON text for the structure."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lepton_sim.reference import AddParameters, Padding, Requantization, Rounding

from .graph import Add, AveragePool, Conv, Depthwise, Graph, GraphError, MaxPool, Mean, Op, Tensor

__all__ = ["load_graph", "save_graph"]

_FORMAT = 1
_STRUCTURE = "structure"  # the JSON text's name in the archive
_EXTRA = "extra."
_CLASSES: dict[str, Any] = {
    kind.__name__: kind
    for kind in (Tensor, Conv, Depthwise, MaxPool, AveragePool, Mean, Add, AddParameters, Requantization)
}


def save_graph(
    path: str | os.PathLike[str], graph: Graph, extras: Mapping[str, NDArray[Any]] | None = None
) -> None:
    """Write a graph, and arrays of the caller's own (labels, scales) beside it.

    Args:
        path: file to write, with suffix .npz.
        graph: the graph.
        extras: arrays by name.
    """
    arrays: dict[str, NDArray[Any]] = {
        _EXTRA + name: np.asarray(value) for name, value in (extras or {}).items()
    }
    structure = {
        "format": _FORMAT,
        "tensors": [_pack(tensor, tensor.name, arrays) for tensor in graph.tensors.values()],
        "ops": [_pack(op, op.name, arrays) for op in graph.ops],
        "inputs": graph.inputs,
        "outputs": graph.outputs,
    }
    np.savez_compressed(path, **{_STRUCTURE: np.array(json.dumps(structure))}, **arrays)  # type: ignore[arg-type]


def load_graph(path: str | os.PathLike[str]) -> tuple[Graph, dict[str, NDArray[Any]]]:
    """Read a graph and the extra arrays that `save_graph` wrote.

    Raises:
        GraphError: not such a file, or one of another format.
    """
    with np.load(path, allow_pickle=False) as archive:
        if _STRUCTURE not in archive:
            raise GraphError(f"{os.fspath(path)} holds no graph")
        structure = json.loads(str(archive[_STRUCTURE]))
        if structure["format"] != _FORMAT:
            raise GraphError(f"{os.fspath(path)} has format {structure['format']}, not {_FORMAT}")
        arrays = {name: archive[name] for name in archive.files}
    tensors: list[Tensor] = [_unpack(tensor, arrays) for tensor in structure["tensors"]]
    ops: list[Op] = [_unpack(op, arrays) for op in structure["ops"]]
    extras = {name[len(_EXTRA) :]: value for name, value in arrays.items() if name.startswith(_EXTRA)}
    return Graph(tensors, ops, structure["inputs"], structure["outputs"]), extras


def _pack(value: Any, path: str, arrays: dict[str, NDArray[Any]]) -> Any:
    """`value` as JSON can hold it; arrays go to `arrays` under their path."""
    if isinstance(value, np.ndarray):
        arrays[path] = value
        return {"array": path}
    if isinstance(value, Rounding):
        return {"rounding": value.value}
    if isinstance(value, Padding):
        return {"padding": list(value)}
    if dataclasses.is_dataclass(value):
        fields = {
            field.name: _pack(getattr(value, field.name), f"{path}.{field.name}", arrays)
            for field in dataclasses.fields(value)
        }
        return {"class": type(value).__name__, "fields": fields}
    if isinstance(value, tuple):
        return [int(item) for item in value]
    return value if isinstance(value, str) else int(value)


def _unpack(value: Any, arrays: Mapping[str, NDArray[Any]]) -> Any:
    if isinstance(value, list):
        return tuple(value)
    if not isinstance(value, dict):
        return value
    if "array" in value:
        return arrays[value["array"]]
    if "rounding" in value:
        return Rounding(value["rounding"])
    if "padding" in value:
        return Padding(*value["padding"])
    if value["class"] not in _CLASSES:
        raise GraphError(f"the file holds a {value['class']!r}, which this version does not know")
    return _CLASSES[value["class"]](**{name: _unpack(item, arrays) for name, item in value["fields"].items()})
