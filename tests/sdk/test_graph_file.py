"""Graphs in files come back the same."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from lepton.compiler import Graph, GraphError, MaxPool, Mean, Tensor
from lepton.compiler.graph_file import load_graph, save_graph
from lepton.compiler.mlperf_tiny import networks
from lepton_sim.reference import Padding, QuantParams, Requantization, mean_requantization


def equal(a: object, b: object) -> bool:
    if isinstance(a, np.ndarray) and isinstance(b, np.ndarray):
        return a.dtype == b.dtype and np.array_equal(a, b)
    if isinstance(a, Requantization) or dataclasses.is_dataclass(a):
        names = [field.name for field in dataclasses.fields(a)]
        return type(a) is type(b) and all(equal(getattr(a, name), getattr(b, name)) for name in names)
    return type(a) is type(b) and a == b


def assert_equal(a: Graph, b: Graph) -> None:
    assert a.tensors == b.tensors
    assert (a.inputs, a.outputs) == (b.inputs, b.outputs)
    for first, second in zip(a.ops, b.ops, strict=True):
        assert equal(first, second), first.name


@pytest.mark.parametrize("name", ["resnet8", "dscnn"])
def test_round_trip(tmp_path: Path, name: str) -> None:
    """All fields of all operators of a real network, types included."""
    graph = networks()[name]()
    save_graph(tmp_path / "net.npz", graph, {"labels": np.arange(3), "scale": np.float64(0.5)})
    loaded, extras = load_graph(tmp_path / "net.npz")
    assert_equal(graph, loaded)
    assert extras["labels"].tolist() == [0, 1, 2] and float(extras["scale"]) == 0.5 and len(extras) == 2


def test_round_trip_of_other_operators(tmp_path: Path) -> None:
    """Maximum with padding and clamp, and mean."""
    quant = QuantParams(0.5)
    ops = [
        MaxPool("p", "x", "y", (3, 3), (2, 2), Padding(0, 1, 1, 0), clamp_min=-7),
        Mean("m", "y", "z", mean_requantization(4, quant, quant)),
    ]
    tensors = [Tensor("x", 4, 4, 2, 9), Tensor("y", 2, 2, 2), Tensor("z", 1, 1, 2)]
    graph = Graph(tensors, ops, ["x"], ["z"])
    save_graph(tmp_path / "net.npz", graph)
    assert_equal(graph, load_graph(tmp_path / "net.npz")[0])


def test_other_files_are_refused(tmp_path: Path) -> None:
    """An archive without a graph is named."""
    np.savez(tmp_path / "other.npz", a=np.zeros(3))
    with pytest.raises(GraphError, match=r"other\.npz holds no graph"):
        load_graph(tmp_path / "other.npz")
