"""The compiler: a graph of quantized operators becomes an NPU program.

legalize -> fuse -> place -> lower -> synchronize; see the modules of these names.
"""

from .compile import compile_graph
from .graph import Add, AveragePool, Conv, Depthwise, Graph, GraphError, MaxPool, Mean, Op, Tensor, macs
from .program import LayerInfo, Program, ProgramError, ProgramResult

__all__ = [
    "Add",
    "AveragePool",
    "Conv",
    "Depthwise",
    "Graph",
    "GraphError",
    "LayerInfo",
    "MaxPool",
    "Mean",
    "Op",
    "Program",
    "ProgramError",
    "ProgramResult",
    "Tensor",
    "compile_graph",
    "macs",
]
