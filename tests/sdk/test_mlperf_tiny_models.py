"""The random MLPerf Tiny networks against the benchmark's own models, operator by operator.

The models are looked for in the folder LEPTON_TEST_MODELS, or in ``../shared/models`` beside the project;
where there are none, the tests are skipped.
"""

import os
from pathlib import Path
from typing import Any

import pytest
from ai_edge_litert import schema_py_generated as schema

from lepton.compiler import Add, Conv, Depthwise, Graph, Op
from lepton.compiler.mlperf_tiny import networks
from lepton_sim.reference import Padding, same_padding

_FOLDER = Path(os.environ.get("LEPTON_TEST_MODELS") or Path(__file__).parents[3] / "shared" / "models")
_NAMES = {code: name for name, code in vars(schema.BuiltinOperator).items() if not name.startswith("_")}
_ON_HOST = ("RESHAPE", "SOFTMAX")


def from_model(content: bytes) -> list[dict[str, Any]]:
    """Each operator's kind, shapes, geometry and whether ReLU is fused, as the file states them."""
    model = schema.ModelT.InitFromPackedBuf(content, 0)
    graph = model.subgraphs[0]
    shapes = [tuple(int(size) for size in tensor.shape) for tensor in graph.tensors]
    rows = []
    for operator in graph.operators:
        code = model.operatorCodes[operator.opcodeIndex]
        kind = _NAMES[max(code.builtinCode, code.deprecatedBuiltinCode)]
        if kind in _ON_HOST:
            continue
        options, x = operator.builtinOptions, shapes[operator.inputs[0]]
        output = shapes[operator.outputs[0]]
        row: dict[str, Any] = {"output": output[1:] if len(output) == 4 else (1, 1, *output[1:])}
        row["relu"] = options.fusedActivationFunction == schema.ActivationFunctionType.RELU
        if kind == "FULLY_CONNECTED":
            outputs, terms = shapes[operator.inputs[1]]
            row |= {"kind": "Conv", "kernel": (outputs, 1, 1, terms), "stride": (1, 1), "padding": Padding()}
        elif kind == "ADD":
            row |= {"kind": "Add"}
        else:
            row["kind"] = {
                "CONV_2D": "Conv", "DEPTHWISE_CONV_2D": "Depthwise", "AVERAGE_POOL_2D": "AveragePool"
            }[kind]  # fmt: skip
            row["stride"] = (options.strideH, options.strideW)
            if kind == "AVERAGE_POOL_2D":
                row["kernel"] = window = (options.filterHeight, options.filterWidth)
            else:
                row["kernel"] = weights = shapes[operator.inputs[1]]
                window = weights[1:3]
            same = options.padding == schema.Padding.SAME
            row["padding"] = same_padding(x[1:3], window, row["stride"]) if same else Padding()
        rows.append(row)
    return rows


def from_graph(graph: Graph) -> list[dict[str, Any]]:
    """The same of a graph."""

    def describe(op: Op) -> dict[str, Any]:
        y = graph.tensors[op.output]
        row: dict[str, Any] = {"kind": type(op).__name__, "output": y.shape, "relu": False}
        if isinstance(op, Add):
            return row | {"relu": op.parameters.clamp_min == op.parameters.output_zero_point}
        row |= {"kernel": op.kernel, "stride": op.stride, "padding": op.padding}
        if isinstance(op, (Conv, Depthwise)):
            row["kernel"] = op.weights.shape if isinstance(op, Conv) else (1, *op.weights.shape)
            # In these models a convolution without ReLU has its zero point well above -128.
            row["relu"] = y.zero_point == -128
        return row

    return [describe(op) for op in graph.ops]


@pytest.mark.parametrize(
    ("name", "file"), [("resnet8", "ic_resnet8_int8.tflite"), ("dscnn", "kws_dscnn_int8.tflite")]
)
def test_same_operators(name: str, file: str) -> None:
    """Kinds, order, shapes, strides, paddings and fused ReLUs are the model's."""
    path = _FOLDER / file
    if not path.exists():
        pytest.skip(f"no {file} in {_FOLDER}")
    assert from_graph(networks()[name]()) == from_model(path.read_bytes())
