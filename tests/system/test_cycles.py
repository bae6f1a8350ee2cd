"""The cycle model against the RTL: every network of MLPerf Tiny, and every layer of them by itself."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from lepton.compiler import Graph, compile_graph
from lepton.compiler.mlperf_tiny import networks
from lepton.compiler.reference import run_reference
from lepton_hw.config import PRESETS
from lepton_sim.cycles import estimate
from lepton_sim.rtl.device import RtlDevice

TOLERANCE = 0.03


@pytest.fixture(scope="module")
def device() -> Iterator[RtlDevice]:
    with RtlDevice(PRESETS["base"]) as opened:
        yield opened


def _single_layers(graph: Graph) -> Iterator[tuple[str, Graph]]:
    seen = set()
    for op in graph.ops:
        inputs = list(dict.fromkeys(op.inputs))
        tensors = [graph.tensors[name] for name in (*inputs, op.output)]
        key = (type(op), getattr(op, "stride", None), *(t.shape for t in tensors))
        if key not in seen:
            seen.add(key)
            yield op.name, Graph(tensors, [op], inputs, [op.output])


def _compare(name: str, graph: Graph, device: RtlDevice) -> str | None:
    """Runs the graph; what is wrong with the model's cycles, if anything. The output must be exact."""
    program = compile_graph(graph, device.config)
    rng = np.random.default_rng(1)
    inputs = {n: rng.integers(-128, 128, graph.tensors[n].shape, dtype=np.int8) for n in graph.inputs}
    outcome = program.run(device, inputs)
    reference = run_reference(graph, inputs)
    for output, value in outcome.outputs.items():
        assert np.array_equal(value, reference[output]), f"{name}: {output} differs from the reference"
    measured, modelled = outcome.result.cycles, estimate(program.commands, device.config).total
    assert measured is not None
    if abs(modelled - measured) <= TOLERANCE * measured:
        return None
    return f"{name}: RTL {measured}, model {modelled} ({modelled / measured - 1:+.1%})"


@pytest.mark.parametrize("network", networks())
def test_model_follows_rtl(network: str, device: RtlDevice) -> None:
    graph = networks()[network]()
    wrong = [_compare(network, graph, device)]
    wrong += [_compare(f"{network} {name}", single, device) for name, single in _single_layers(graph)]
    assert not any(wrong), "\n".join(w for w in wrong if w)
