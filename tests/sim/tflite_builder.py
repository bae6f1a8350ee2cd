"""One-operator TFLite models, built in memory, and LiteRT's reference kernels to run them.

Test support only: the reference operators are held against what :func:`run_reference` returns.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter, OpResolverType

__all__ = ["ModelBuilder", "TensorSpec", "one_operator_model", "reference_interpreter", "run_reference"]

_TENSOR_TYPES = {
    np.dtype(np.int8): schema.TensorType.INT8,
    np.dtype(np.int32): schema.TensorType.INT32,
    np.dtype(np.float32): schema.TensorType.FLOAT32,
}


@dataclass(frozen=True)
class TensorSpec:
    """A tensor of a model under construction.

    ``data`` makes it a constant; then ``shape`` and ``dtype`` are the array's.
    ``scale`` may be a number or, per channel of dimension ``axis``, an array.
    """

    shape: tuple[int, ...] = ()
    dtype: Any = np.int8
    scale: Any = None
    zero_point: int = 0
    axis: int = 0
    data: np.ndarray | None = None


class ModelBuilder:
    """Collects tensors and operators, then packs them into a ``.tflite`` file's bytes."""

    def __init__(self) -> None:
        self._tensors: list[Any] = []
        self._buffers: list[Any] = [schema.BufferT()]  # buffer 0 is the empty one, by convention
        self._operators: list[Any] = []
        self._codes: list[Any] = []

    def tensor(self, spec: TensorSpec) -> int:
        """Add a tensor and return its index."""
        shape, dtype = spec.shape, np.dtype(spec.dtype)
        tensor = schema.TensorT()
        if spec.data is not None:
            shape, dtype = spec.data.shape, spec.data.dtype
            buffer = schema.BufferT()
            buffer.data = np.frombuffer(spec.data.tobytes(), np.uint8)
            tensor.buffer = len(self._buffers)
            self._buffers.append(buffer)
        tensor.shape = np.array(shape, np.int32)
        tensor.type = _TENSOR_TYPES[dtype]
        tensor.name = f"t{len(self._tensors)}"
        if spec.scale is not None:
            scales = np.atleast_1d(np.asarray(spec.scale, np.float32))
            quantization = schema.QuantizationParametersT()
            quantization.scale = scales
            quantization.zeroPoint = np.full(scales.shape, spec.zero_point, np.int64)
            quantization.quantizedDimension = spec.axis
            tensor.quantization = quantization
        self._tensors.append(tensor)
        return len(self._tensors) - 1

    def operator(self, name: str, inputs: Sequence[int], outputs: Sequence[int], options: Any = None) -> None:
        """Add an operator, ``name`` as in the schema's ``BuiltinOperator``, with its options object."""
        code = schema.OperatorCodeT()
        code.builtinCode = getattr(schema.BuiltinOperator, name)
        code.deprecatedBuiltinCode = min(code.builtinCode, 127)
        code.version = 1
        operator = schema.OperatorT()
        operator.opcodeIndex = len(self._codes)
        operator.inputs = np.array(inputs, np.int32)
        operator.outputs = np.array(outputs, np.int32)
        if options is not None:
            kind = type(options).__name__.removesuffix("T")
            operator.builtinOptionsType = getattr(schema.BuiltinOptions, kind)
            operator.builtinOptions = options
        self._codes.append(code)
        self._operators.append(operator)

    def build(self, inputs: Sequence[int], outputs: Sequence[int]) -> bytes:
        """Pack the model, whose inputs and outputs are the tensors named by index."""
        graph = schema.SubGraphT()
        graph.tensors = self._tensors
        graph.inputs = np.array(inputs, np.int32)
        graph.outputs = np.array(outputs, np.int32)
        graph.operators = self._operators
        graph.name = "main"
        model = schema.ModelT()
        model.version = 3
        model.operatorCodes = self._codes
        model.subgraphs = [graph]
        model.buffers = self._buffers
        builder = flatbuffers.Builder(1024)
        builder.Finish(model.Pack(builder), b"TFL3")
        return bytes(builder.Output())


def one_operator_model(
    name: str, inputs: Sequence[TensorSpec | None], output: TensorSpec, options: Any = None
) -> bytes:
    """Build a model of one operator; inputs without ``data`` become the model's inputs.

    ``None`` among the inputs stands for an optional input left out (a bias, say).
    """
    builder = ModelBuilder()
    present = [spec for spec in inputs if spec is not None]
    indices = [builder.tensor(spec) for spec in present]
    result = builder.tensor(output)
    builder.operator(name, indices, [result], options)
    fed = [i for i, spec in zip(indices, present, strict=True) if spec.data is None]
    return builder.build(fed, [result])


def reference_interpreter(model: bytes, *, keep_all: bool = False) -> Interpreter:
    """Return an allocated interpreter that uses LiteRT's reference kernels and no delegate."""
    interpreter = Interpreter(
        model_content=model,
        experimental_op_resolver_type=OpResolverType.BUILTIN_REF,
        experimental_preserve_all_tensors=keep_all,
        num_threads=1,
    )
    interpreter.allocate_tensors()
    return interpreter


def run_reference(model: bytes, *inputs: np.ndarray) -> np.ndarray:
    """Run ``model`` on ``inputs`` with the reference kernels and return its first output."""
    interpreter = reference_interpreter(model)
    for details, value in zip(interpreter.get_input_details(), inputs, strict=True):
        interpreter.set_tensor(details["index"], value)
    interpreter.invoke()
    return interpreter.get_tensor(interpreter.get_output_details()[0]["index"])
