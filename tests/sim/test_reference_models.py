"""Whole trained networks, layer by layer: each operator on LiteRT's own intermediate tensors.

The models are looked for in the folder LEPTON_TEST_MODELS, or in ``../shared/models`` beside the project;
where there are none, the tests are skipped.
"""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema
from tflite_builder import reference_interpreter

from lepton_sim import reference as ref
from lepton_sim.reference import Activation, QuantParams

_FOLDER = Path(os.environ.get("LEPTON_TEST_MODELS") or Path(__file__).parents[3] / "shared" / "models")
_MODELS = sorted(_FOLDER.glob("*.tflite"))
_NAMES = {code: name for name, code in vars(schema.BuiltinOperator).items() if not name.startswith("_")}
_ACTIVATIONS = {
    schema.ActivationFunctionType.NONE: Activation.NONE,
    schema.ActivationFunctionType.RELU: Activation.RELU,
    schema.ActivationFunctionType.RELU6: Activation.RELU6,
}
_PADDINGS = {schema.Padding.SAME: "same", schema.Padding.VALID: "valid"}


class Graph:
    """A model's operators, with constant tensors and quantization at hand."""

    def __init__(self, content: bytes):
        model = schema.ModelT.InitFromPackedBuf(content, 0)
        self._codes, self._buffers, graph = model.operatorCodes, model.buffers, model.subgraphs[0]
        self.tensors, self.operators = graph.tensors, graph.operators

    def name(self, operator: Any) -> str:
        code = self._codes[operator.opcodeIndex]
        return _NAMES[max(code.builtinCode, code.deprecatedBuiltinCode)]

    def constant(self, index: int, dtype: Any) -> np.ndarray | None:
        """Return the data of a tensor, or None where the file holds none."""
        data = self._buffers[self.tensors[index].buffer].data if index >= 0 else None
        return None if data is None else data.view(dtype).reshape(self.tensors[index].shape)

    def scales(self, index: int) -> np.ndarray:
        return self.tensors[index].quantization.scale

    def quant(self, index: int) -> QuantParams:
        quantization = self.tensors[index].quantization
        return QuantParams(float(quantization.scale[0]), int(quantization.zeroPoint[0]))


def windowed(options: Any) -> dict[str, Any]:
    """Return the arguments that convolutions and poolings share."""
    return {
        "stride": (options.strideH, options.strideW),
        "padding": _PADDINGS[options.padding],
        "activation": _ACTIVATIONS[options.fusedActivationFunction],
    }


def evaluate(graph: Graph, operator: Any, values: dict[int, np.ndarray]) -> np.ndarray:
    """Run one operator of a graph on tensors by index, by the reference operators."""
    name, options = graph.name(operator), operator.builtinOptions
    inputs, output = list(operator.inputs), operator.outputs[0]
    x = values[inputs[0]]
    if name in ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED"):
        bias = graph.constant(inputs[2], np.int32) if len(inputs) > 2 else None
        weights = graph.constant(inputs[1], np.int8)
        quantization: dict[str, Any] = {
            "input_quant": graph.quant(inputs[0]),
            "weight_scales": graph.scales(inputs[1]),
            "output_quant": graph.quant(output),
        }
        if name == "FULLY_CONNECTED":
            activation = _ACTIVATIONS[options.fusedActivationFunction]
            exact = ref.fully_connected(x, weights, bias, activation=activation, **quantization)
            parameters = ref.fully_connected_requantization(
                weights, bias, activation=activation, **quantization
            )
            assert np.array_equal(ref.fully_connected_integer(x, weights, parameters), exact)
            return exact
        convolve = ref.conv2d if name == "CONV_2D" else ref.depthwise_conv2d
        dilation = (options.dilationHFactor, options.dilationWFactor)
        return convolve(x, weights, bias, dilation=dilation, **quantization, **windowed(options))
    if name in ("MAX_POOL_2D", "AVERAGE_POOL_2D"):
        pool = ref.max_pool2d if name == "MAX_POOL_2D" else ref.average_pool2d
        window = (options.filterHeight, options.filterWidth)
        return pool(x, window, quant=graph.quant(inputs[0]), **windowed(options))
    if name == "ADD":
        return ref.add(
            x,
            values[inputs[1]],
            a_quant=graph.quant(inputs[0]),
            b_quant=graph.quant(inputs[1]),
            output_quant=graph.quant(output),
            activation=_ACTIVATIONS[options.fusedActivationFunction],
        )
    if name == "MEAN":
        axes = tuple(np.atleast_1d(graph.constant(inputs[1], np.int32)).tolist())
        quants = {"input_quant": graph.quant(inputs[0]), "output_quant": graph.quant(output)}
        return ref.mean(x, axes, keep_dims=options.keepDims, **quants)
    if name == "SOFTMAX":
        return ref.softmax(x, input_quant=graph.quant(inputs[0]), beta=options.beta)
    if name == "RESHAPE":
        return ref.reshape(x, values[output].shape)
    raise NotImplementedError(f"the test has no rule for operator {name}")


def model_inputs(shape: tuple[int, ...], rng: np.random.Generator) -> list[np.ndarray]:
    """Return random inputs and the two that saturate most."""
    drawn = [rng.integers(-128, 128, shape).astype(np.int8) for _ in range(6)]
    return [*drawn, np.full(shape, -128, np.int8), np.full(shape, 127, np.int8)]


@pytest.mark.skipif(not _MODELS, reason=f"no .tflite models in {_FOLDER}")
@pytest.mark.parametrize("path", _MODELS, ids=lambda path: path.stem)
def test_every_layer_matches_litert(path: Path) -> None:
    """Each layer on LiteRT's tensors gives LiteRT's next tensor."""
    content = path.read_bytes()
    graph = Graph(content)
    interpreter = reference_interpreter(content, keep_all=True)
    source = interpreter.get_input_details()[0]
    for number, x in enumerate(model_inputs(tuple(source["shape"]), np.random.default_rng(0))):
        interpreter.set_tensor(source["index"], x)
        interpreter.invoke()
        produced = {int(operator.outputs[0]) for operator in graph.operators} | {int(source["index"])}
        values = {index: interpreter.get_tensor(index).copy() for index in produced}
        for position, operator in enumerate(graph.operators):
            where = f"input {number}, operator {position} ({graph.name(operator)})"
            expected = values[operator.outputs[0]]
            assert np.array_equal(evaluate(graph, operator, values), expected), where
