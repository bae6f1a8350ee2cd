"""Cycles of the MLPerf Tiny networks: RTL, cycle model, arithmetic bound, goal; by layer with --layers.

    python bench/cycles.py [--preset base] [--model] [--layers] [--json]

RTL: from start to interrupt, everything in external memory at the start, a bus of the preset's width with
32 cycles of latency; outputs are compared with the reference operators. With --model nothing is simulated.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from typing import Any

import numpy as np

from lepton.compiler import Conv, Depthwise, Graph, Op, compile_graph, macs
from lepton.compiler.mlperf_tiny import networks
from lepton.compiler.reference import run_reference
from lepton_hw.config import PRESETS, NPUConfig
from lepton_hw.isa import Mode, Opcode
from lepton_sim.cycles import estimate

GOALS = {
    "base": {"resnet8": 53_500, "dscnn": 16_000, "mobilenetv1": 50_000, "autoencoder": 18_500},
    "small": {"resnet8": 215_000, "dscnn": 58_000, "mobilenetv1": 160_000, "autoencoder": 37_000},
    "large": {"resnet8": 23_000, "dscnn": 7_000, "mobilenetv1": 26_000, "autoencoder": 9_700},
}
"""Half of Arm Ethos-U55's cycles or better at as many MACs a cycle; see docs/architecture.md."""


def passes_bound(op: Op, graph: Graph, config: NPUConfig) -> int:
    """Cycles that the array alone needs for an operator, each pass at least N; 0 where all of it is fused."""
    n = config.array_size
    y = graph.tensors[op.output]
    if not isinstance(op, (Conv, Depthwise)):
        return 0
    single = Graph([graph.tensors[op.input], y], [op], [op.input], [op.output])
    total = 0
    for c in compile_graph(single, config).commands:
        if c.opcode is not Opcode.CONV:
            continue
        positions = c.out_height * c.out_width
        if c.mode == Mode.VECTOR:
            passes = c.in_blocks * c.kernel_height * c.kernel_width
        elif c.mode == Mode.PATCH:
            passes = math.ceil(c.kernel_height * c.row_length / c.pass_length)
        else:
            passes = math.ceil(c.kernel_height / c.rows_per_pass)
            positions = c.out_height * c.row_samples
        total += c.out_blocks * passes * max(positions, n)
    return total


def layer_rows(graph: Graph, config: NPUConfig) -> list[dict[str, Any]]:
    """One row a layer of the compiled network."""
    program = compile_graph(graph, config)
    times = estimate(program.commands, config)
    rows, before = [], 0
    for index, layer in enumerate(program.layers):
        ends = [
            t.done
            for t, c, owner in zip(times.commands, program.commands, program.command_layers, strict=False)
            if owner == index and c.opcode is Opcode.OUTPUT
        ]
        modes = {
            Mode(c.mode).name
            for c, owner in zip(program.commands, program.command_layers, strict=True)
            if owner == index and c.opcode is Opcode.CONV
        }
        end = max(ends)
        rows.append(
            {
                "layer": layer.name,
                "kind": layer.kind,
                "mode": "+".join(sorted(modes)),
                "macs": layer.macs,
                "model": end - before,
            }
        )
        before = end
    return rows


def measure(graph: Graph, config: NPUConfig) -> tuple[int, bool, float]:
    """Cycles in RTL, whether all outputs equal the reference, and simulated cycles a second."""
    import time

    from lepton_sim.rtl.device import RtlDevice

    program = compile_graph(graph, config)
    rng = np.random.default_rng(7)
    inputs = {n: rng.integers(-128, 128, graph.tensors[n].shape, dtype=np.int8) for n in graph.inputs}
    reference = run_reference(graph, inputs)
    with RtlDevice(config) as device:
        program.load(device)
        begin = time.perf_counter()
        outcome = program.run(device, inputs, load=False)
        seconds = time.perf_counter() - begin
    exact = all(np.array_equal(value, reference[name]) for name, value in outcome.outputs.items())
    cycles = outcome.result.cycles
    assert cycles is not None
    return cycles, exact, cycles / seconds


def main() -> int:
    """Command line; returns 1 if an output differed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--preset", choices=PRESETS, default="base")
    parser.add_argument("--model", action="store_true", help="cycle model only")
    parser.add_argument("--layers", action="store_true", help="the model's cycles by layer")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    config = PRESETS[options.preset]
    rows: list[dict[str, Any]] = []
    for name, make in networks().items():
        graph = make()
        total = sum(macs(op, graph) for op in graph.ops)
        row: dict[str, Any] = {
            "network": name,
            "macs": total,
            "array": sum(passes_bound(op, graph, config) for op in graph.ops),
            "model": estimate(compile_graph(graph, config).commands, config).total,
            "goal": GOALS.get(options.preset, {}).get(name),
        }
        if not options.model:
            row["cycles"], row["byte_exact"], row["sim_cycles_per_s"] = measure(graph, config)
            row["utilization"] = total / (row["cycles"] * config.array_size**2)
        if options.layers:
            row["layers"] = layer_rows(graph, config)
        rows.append(row)
    if options.json:
        print(json.dumps({"config": options.preset, "rows": rows}, indent=1))
        return 0 if all(r.get("byte_exact", True) for r in rows) else 1
    print(f"{'network':12} {'MACs':>11} {'array':>8} {'model':>8} {'RTL':>8} {'goal':>8}  use  exact")
    for row in rows:
        use = f"{row['utilization']:4.0%}" if "cycles" in row else "   -"
        print(
            f"{row['network']:12} {row['macs']:11,} {row['array']:8,} {row['model']:8,} "
            f"{row.get('cycles', 0):8,} {row['goal'] or 0:8,} {use}  {row.get('byte_exact', '-')}"
        )
        for layer in row.get("layers", ()):
            kind = f"{layer['kind']:12} {layer['mode']:7}"
            print(f"    {layer['layer']:16} {kind} {layer['macs']:10,} {layer['model']:7,}")
    return 0 if all(r.get("byte_exact", True) for r in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
