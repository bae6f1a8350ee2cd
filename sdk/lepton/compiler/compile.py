"""Compile: the passes, one after the other."""

from __future__ import annotations

from lepton_hw.config import NPUConfig
from lepton_hw.isa import COMMAND_BYTES, Checker, Command, Opcode

from .fuse import fuse
from .graph import Graph, GraphError, macs
from .legalize import legalize
from .lower import External, Lowering, TooLargeError
from .place import place
from .program import ExternalTensor, LayerInfo, Program
from .synchronize import Action, synchronize

__all__ = ["compile_graph"]


def compile_graph(graph: Graph, config: NPUConfig) -> Program:
    """Compile a graph for a configuration.

    Args:
        graph: quantized operators; see `lepton.compiler.graph`.
        config: the NPU.

    Returns:
        The program, at addresses from 0 of external memory.

    Raises:
        GraphError: a layer that cannot be cut small enough for the configuration's memories, or
            whose fields the ISA cannot hold; names the layer.
    """
    graph = legalize(graph, config)
    separate: frozenset[str] = frozenset()
    while True:
        layers = fuse(graph, config.accumulator_depth, separate)
        placement = place(layers, set(graph.inputs), set(graph.outputs), config)
        external = External(alignment=max(64, config.bus_bytes))
        lowering = Lowering(graph, layers, placement, config, external)
        try:
            actions = synchronize(lowering.run())
            break
        except TooLargeError as error:
            if error.fused is None:
                raise
            separate |= {error.fused}
    actions.append(Action(Command(Opcode.END)))
    _check(actions, config, [layer.name for layer in layers])

    commands = [a.command for a in actions]
    command_layers = [a.layer for a in actions]
    first = {i: command_layers.index(i) for i in set(command_layers)}
    last = {layer: i for i, layer in enumerate(command_layers)}
    program_address = external.reserve(len(commands) * COMMAND_BYTES)
    written = [name for name in lowering.addresses if name not in graph.inputs]
    return Program(
        config=config,
        commands=commands,
        command_layers=command_layers,
        program_address=program_address,
        constants=tuple(external.constants),
        inputs={n: ExternalTensor(n, lowering.addresses[n][0], graph.tensors[n].shape) for n in graph.inputs},
        outputs={
            n: ExternalTensor(n, lowering.addresses[n][0], graph.tensors[n].shape) for n in graph.outputs
        },
        memory_bytes=-(-external.end // 4096) * 4096,
        written=(
            min(lowering.addresses[n][0] for n in written),
            lowering.last_written - 1,
        ),
        layers=[
            LayerInfo(
                layer.name,
                type(layer.ops[0]).__name__,
                sum(macs(op, graph) for op in layer.ops),
                first[i],
                last[i],
            )
            for i, layer in enumerate(layers)
        ],
    )


def _check(actions: list[Action], config: NPUConfig, names: list[str]) -> None:
    """Every command as the control unit will check it: a bug here should not wait for the hardware."""
    checker = Checker(config)
    for i, action in enumerate(actions):
        error = checker.check(action.command)
        if error is not None:
            where = names[action.layer] if action.layer >= 0 else "the program"
            raise GraphError(f"{where}: command {i}: {error.message}")
