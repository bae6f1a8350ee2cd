"""Compiled programs against the reference operators: random operators and chains, on every preset."""

from __future__ import annotations

import zlib

import numpy as np
import pytest

from lepton.compiler import (
    Add,
    AveragePool,
    Conv,
    Depthwise,
    Graph,
    GraphError,
    MaxPool,
    Mean,
    Op,
    ProgramError,
    Tensor,
    compile_graph,
)
from lepton.compiler.graph import window_output
from lepton.compiler.mlperf_tiny import networks
from lepton.compiler.reference import run_reference
from lepton_hw.config import PRESETS, NPUConfig
from lepton_hw.isa import Mode, Opcode
from lepton_sim.golden import GoldenDevice, lint
from lepton_sim.reference import (
    Padding,
    QuantParams,
    Requantization,
    Rounding,
    add_parameters,
    mean_requantization,
)


def _requantization(rng: np.random.Generator, channels: int, terms: int) -> Requantization:
    per_tensor = rng.random() < 0.3
    count = 1 if per_tensor else channels
    low, high = sorted(int(v) for v in rng.choice([-128, -100, 0, 90, 127], 2, replace=False))
    return Requantization(
        rng.integers(-5000, 5000, channels, dtype=np.int32),
        rng.integers(1 << 30, (1 << 31) - 1, count, dtype=np.int32),
        np.full(count, -int(np.log2(terms * 30 + 1)) - int(rng.integers(0, 3)), np.int32),
        int(rng.integers(-128, 128)),
        low,
        high,
        Rounding.SINGLE if rng.random() < 0.2 else Rounding.DOUBLE,
    )


def _window(rng: np.random.Generator, x: Tensor, largest: int, dilations: bool) -> dict:
    """Kernel, stride, dilation and padding that fit the tensor."""
    while True:
        kernel = tuple(int(v) for v in rng.integers(1, largest + 1, 2))
        if rng.random() < 0.4 and largest >= 3:
            kernel = (3, 3)
        dilation = (
            tuple(int(v) for v in rng.integers(1, 4, 2)) if dilations and rng.random() < 0.3 else (1, 1)
        )
        padding = Padding(*(int(rng.integers(0, k)) for k in (kernel[0], kernel[0], kernel[1], kernel[1])))
        reach = [(k - 1) * d + 1 for k, d in zip(kernel, dilation, strict=True)]
        if x.height + padding.top + padding.bottom >= reach[0] and (
            x.width + padding.left + padding.right >= reach[1]
        ):
            stride = tuple(int(v) for v in rng.integers(1, 4, 2))
            return {"kernel": kernel, "stride": stride, "dilation": dilation, "padding": padding}


def random_op(rng: np.random.Generator, index: int, x: Tensor, before: list[Tensor]) -> tuple[Op, Tensor]:
    """An operator on `x`, and its output."""
    kinds = ["conv", "conv", "depthwise", "depthwise", "dense", "max", "average", "mean"]
    same = [t for t in before if t.shape == x.shape]
    kind = str(rng.choice(kinds + ["add"] * (4 if same else 0)))
    name, out = f"{kind}{index}", f"t{index}"
    zero_point = int(rng.integers(-128, 128))
    if kind == "add":
        other = same[int(rng.integers(len(same)))]
        quant = [QuantParams(float(rng.uniform(0.01, 0.1)), t.zero_point) for t in (x, other)]
        y = Tensor(out, *x.shape, zero_point)
        parameters = add_parameters(*quant, QuantParams(float(rng.uniform(0.02, 0.2)), zero_point))
        return Add(name, x.name, out, other.name, parameters), y
    if kind == "mean":
        scales = QuantParams(0.05, x.zero_point), QuantParams(0.04, zero_point)
        y = Tensor(out, 1, 1, x.channels, zero_point)
        return Mean(name, x.name, out, mean_requantization(x.height * x.width, *scales)), y
    if kind in ("max", "average"):
        w = _window(rng, x, min(5, x.height, x.width), False)
        del w["dilation"]
        k = w["kernel"]
        w["padding"] = Padding(
            *(min(p, (s - 1) // 2) for p, s in zip(w["padding"], (k[0], k[0], k[1], k[1]), strict=True))
        )
        clamp = {"clamp_min": int(rng.choice([-128, -20])), "clamp_max": int(rng.choice([127, 60]))}
        pool = (MaxPool if kind == "max" else AveragePool)(name, x.name, out, **w, **clamp)
        return pool, Tensor(out, *window_output(pool, x), x.channels, x.zero_point)
    if kind == "dense":
        window = {"kernel": (x.height, x.width), "stride": (1, 1), "dilation": (1, 1), "padding": Padding()}
    else:
        window = _window(rng, x, 5, True)
    kernel = window.pop("kernel")
    if kind == "depthwise":
        channels = x.channels * int(rng.choice([1, 1, 1, 2, 3]))
        weights = rng.integers(-128, 128, (*kernel, channels), dtype=np.int8)
        op: Conv | Depthwise = Depthwise(
            name, x.name, out, weights, _requantization(rng, channels, kernel[0] * kernel[1]), **window
        )
    else:
        channels = int(rng.integers(1, 50))
        weights = rng.integers(-128, 128, (channels, *kernel, x.channels), dtype=np.int8)
        terms = kernel[0] * kernel[1] * x.channels
        op = Conv(name, x.name, out, weights, _requantization(rng, channels, terms), **window)
    return op, Tensor(out, *window_output(op, x), channels, zero_point)


def random_graph(rng: np.random.Generator, length: int) -> Graph:
    """A chain of operators with residual additions."""
    shape = int(rng.integers(1, 20)), int(rng.integers(1, 20)), int(rng.choice([1, 2, 3, 4, 8, 17, 40]))
    tensors = [Tensor("x", *shape, int(rng.integers(-128, 128)))]
    ops: list[Op] = []
    for i in range(length):
        op, y = random_op(rng, i, tensors[-1], tensors[:-1])
        ops.append(op)
        tensors.append(y)
    outputs = [tensors[-1].name]
    if length > 1 and rng.random() < 0.3:
        outputs.append(tensors[length // 2].name)
    return Graph(tensors, ops, ["x"], list(dict.fromkeys(o for o in outputs if o != "x")))


def check(graph: Graph, config: NPUConfig, rng: np.random.Generator, name: str) -> None:
    program = compile_graph(graph, config)
    if len(program.commands) < 300:
        assert lint(list(program.commands), config) == [], name
    inputs = {n: rng.integers(-128, 128, graph.tensors[n].shape, dtype=np.int8) for n in graph.inputs}
    reference = run_reference(graph, inputs)
    device = GoldenDevice(config, memory_bytes=program.memory_bytes)
    for n, value in program.run(device, inputs).outputs.items():
        assert np.array_equal(value, reference[n]), f"{name}: {n} of {graph.ops}"


@pytest.mark.parametrize("length", [1, 4])
@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize(
    "seed", [*range(4), *(pytest.param(s, marks=pytest.mark.slow) for s in range(4, 60))]
)
def test_random_graphs_equal_the_reference(seed: int, preset: str, length: int) -> None:
    rng = np.random.default_rng(seed * 1000 + zlib.crc32(f"{preset}{length}".encode()) % 1000)
    for i in range(10 // length):
        check(random_graph(rng, length), PRESETS[preset], rng, f"seed {seed}, graph {i}")


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("network", networks())
def test_mlperf_tiny_equals_the_reference(network: str, preset: str) -> None:
    check(networks()[network](), PRESETS[preset], np.random.default_rng(5), network)


def _single(op: Conv | Depthwise, x: Tensor) -> Graph:
    channels = op.weights.shape[0] if isinstance(op, Conv) else op.weights.shape[2]
    return Graph([x, Tensor("y", *window_output(op, x), channels)], [op], ["x"], ["y"])


def test_layers_larger_than_the_memories() -> None:
    """Inputs, weights and outputs of several times what the chip holds."""
    rng = np.random.default_rng(9)
    x = Tensor("x", 70, 90, 48, 3)  # 300 KB
    weights = rng.integers(-128, 128, (64, 3, 3, 48), dtype=np.int8)
    conv = Conv("conv", "x", "y", weights, _requantization(rng, 64, 432), padding=Padding(1, 1, 1, 1))
    check(_single(conv, x), PRESETS["base"], rng, "large image")
    x = Tensor("x", 7, 7, 700, -4)
    weights = rng.integers(-128, 128, (40, 5, 5, 700), dtype=np.int8)  # 700 KB, 17 KB an output channel
    conv = Conv("conv", "x", "y", weights, _requantization(rng, 40, 17500), padding=Padding(2, 2, 2, 2))
    check(_single(conv, x), PRESETS["base"], rng, "large kernel")
    x = Tensor("x", 90, 600, 20, 7)
    taps = rng.integers(-128, 128, (3, 3, 20), dtype=np.int8)
    depthwise = Depthwise("wide", "x", "y", taps, _requantization(rng, 20, 9), padding=Padding(1, 1, 1, 1))
    check(_single(depthwise, x), PRESETS["base"], rng, "wide depthwise")


def _modes(graph: Graph, config: NPUConfig) -> set[Mode]:
    return {Mode(c.mode) for c in compile_graph(graph, config).commands if c.opcode is Opcode.CONV}


def test_modes_are_used_where_they_pay() -> None:
    graphs = {name: make() for name, make in networks().items()}
    assert _modes(graphs["resnet8"], PRESETS["base"]) == {Mode.VECTOR, Mode.PATCH}
    assert _modes(graphs["mobilenetv1"], PRESETS["base"]) == {Mode.VECTOR, Mode.PATCH, Mode.ROWS}
    assert _modes(graphs["mobilenetv1"], PRESETS["nano"]) == {Mode.VECTOR}


def test_errors_name_what_is_wrong() -> None:
    x = Tensor("x", 4, 4, 3)
    parameters = _requantization(np.random.default_rng(0), 2, 27)
    conv = Conv("first", "x", "y", np.zeros((2, 3, 3, 5), np.int8), parameters)
    with pytest.raises(GraphError, match=r"first: weights \(2, 3, 3, 5\) must be \[Cout, kh, kw, 3\]"):
        Graph([x, Tensor("y", 2, 2, 2)], [conv], ["x"], ["y"])
    conv = Conv("first", "x", "y", np.zeros((2, 3, 3, 3), np.int8), parameters)
    with pytest.raises(GraphError, match=r"output y has shape \(9, 2, 2\), not \(2, 2, 2\)"):
        Graph([x, Tensor("y", 9, 2, 2)], [conv], ["x"], ["y"])
    with pytest.raises(GraphError, match="'z' is not made"):
        Graph([x], [Add("sum", "x", "y", "z", None)], ["x"], ["y"])  # type: ignore[arg-type]
    graph = Graph([x, Tensor("y", 2, 2, 2)], [conv], ["x"], ["y"])
    program = compile_graph(graph, PRESETS["base"])
    with pytest.raises(ProgramError, match=r"another configuration.*array_size 16 against 8"):
        program.load(GoldenDevice(PRESETS["small"], memory_bytes=program.memory_bytes))
    with pytest.raises(ProgramError, match=r"needs \d+ bytes of external memory, the device has 1024"):
        program.load(GoldenDevice(PRESETS["base"], memory_bytes=1024))
    device = GoldenDevice(PRESETS["base"], memory_bytes=program.memory_bytes)
    with pytest.raises(ProgramError, match=r"input 'x' must be int8 of shape \(4, 4, 3\), not int8 \(4, 4\)"):
        program.run(device, {"x": np.zeros((4, 4), np.int8)})
    with pytest.raises(ProgramError, match="inputs must be"):
        program.run(device, {})
