"""Real handwritten digits on the simulated NPU: `make demo`.

A small int8 network (conv, conv, pool, dense; see train_digits.py) classifies the held-out scans on the
RTL, clock cycle by clock cycle, and on the golden model; then the cycles of each layer.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterable, Iterator

import numpy as np
from digits import INPUT, NETWORK_FILE, load_scans, quantize_scans, split
from numpy.typing import NDArray

from lepton.compiler import Graph, Program, compile_graph
from lepton.compiler.graph_file import load_graph
from lepton.compiler.reference import run_reference
from lepton_hw.config import PRESETS, preset
from lepton_sim.device import Device
from lepton_sim.golden import GoldenDevice
from lepton_sim.rtl.device import RtlDevice

Int8 = NDArray[np.int8]
SHADES = " .:-=+*#%@"


def draw(scan: NDArray[np.float32]) -> list[str]:
    """A scan [8, 8, 1] of values in 0..1 as text, each pixel two characters wide."""
    levels = np.rint(scan[..., 0] * (len(SHADES) - 1)).astype(int)
    return ["".join(SHADES[level] * 2 for level in row) for row in levels]


def show(scans: NDArray[np.float32], labels: NDArray[np.int64], predictions: NDArray[np.int64]) -> None:
    """Draw scans side by side with what they are and what the NPU says."""
    for row in zip(*(draw(scan) for scan in scans), strict=True):
        print("   " + " | ".join(row))
    captions = [f"is {label}, NPU says {seen}" for label, seen in zip(labels, predictions, strict=True)]
    print("   " + " | ".join(caption.center(16) for caption in captions))


def progress(items: Iterable[int], count: int) -> Iterator[int]:
    """The items, with a bar on the terminal as they go by."""
    for done, item in enumerate(items, 1):
        yield item
        if sys.stderr.isatty():
            filled = 40 * done // count
            end = "\n" if done == count else ""
            print(f"\r   [{'#' * filled:.<40}] {done}/{count}", end=end, file=sys.stderr, flush=True)


def classify(program: Program, device: Device, inputs: Int8) -> tuple[Int8, list[int | None]]:
    """The network's outputs for each of `inputs` [S, 8, 8, 1], int8 [S, 10], and each run's cycles."""
    program.load(device)
    outputs, cycles = [], []
    for i in progress(range(len(inputs)), len(inputs)):
        run = program.run(device, {INPUT: inputs[i]}, load=False)
        (output,) = run.outputs.values()
        outputs.append(output.reshape(-1))
        cycles.append(run.result.cycles)
    return np.stack(outputs), cycles


def layer_graphs(graph: Graph, program: Program) -> list[Graph]:
    """A graph for each layer of the program (operators that it fused); the network has no branches."""
    last_operators = {layer.name for layer in program.layers}
    graphs, ops = [], []
    for op in graph.ops:
        ops.append(op)
        if op.name in last_operators:
            names = [ops[0].input, *(o.output for o in ops)]
            tensors = [graph.tensors[name] for name in names]
            graphs.append(Graph(tensors, ops, names[:1], names[-1:]))
            ops = []
    return graphs


def profile(graph: Graph, program: Program, device: Device, scan: Int8, whole_cycles: int) -> bool:
    """Print the cycles of each layer, run by itself; return whether every output was right."""
    values = run_reference(graph, {INPUT: scan})
    macs_a_cycle = device.config.array_size**2
    correct = True
    print(f"   {'layer':22}{'output':>12}{'MACs':>10}{'cycles':>9}{'utilization':>13}")
    for part in layer_graphs(graph, program):
        source, target = part.inputs[0], part.outputs[0]
        alone = compile_graph(part, device.config)
        run = alone.run(device, {source: values[source]})
        correct &= np.array_equal(run.outputs[target], values[target])
        name = " + ".join(op.name for op in part.ops)
        shape = " x ".join(str(size) for size in part.tensors[target].shape)
        macs, cycles = sum(layer.macs for layer in alone.layers), run.result.cycles or 0
        print(f"   {name:22}{shape:>12}{macs:>10,}{cycles:>9,}{macs / (cycles * macs_a_cycle):>13.1%}")
    macs = sum(layer.macs for layer in program.layers)
    utilization = macs / (whole_cycles * macs_a_cycle)
    print(f"   {'whole network, one run':22}{'':12}{macs:>10,}{whole_cycles:>9,}{utilization:>13.1%}")
    return correct


def main() -> int:
    parser = argparse.ArgumentParser(description="Classify handwritten digits on the simulated NPU.")
    parser.add_argument("--preset", choices=list(PRESETS), default="base", help="the NPU (default: base)")
    parser.add_argument("--scans", type=int, default=360, help="how many of the 360 held-out scans")
    arguments = parser.parse_args()
    if not 1 <= arguments.scans <= 360:
        parser.error(f"--scans must be in 1..360, not {arguments.scans}")

    scans, labels = load_scans()
    _, held_out = split(len(scans))
    held_out = held_out[: arguments.scans]
    scans, labels, count = scans[held_out], labels[held_out], len(held_out)
    graph, extras = load_graph(NETWORK_FILE)
    inputs = quantize_scans(scans, float(extras["input_scale"]), int(extras["input_zero_point"]))
    config = preset(arguments.preset)
    size = config.array_size
    print(f"\nLepton {arguments.preset}: {size} x {size} array, {config.bus_width}-bit bus")
    print("Network: " + ", ".join(op.name for op in graph.ops) + "; int8, trained by train_digits.py")

    program = compile_graph(graph, config)
    golden_outputs, _ = classify(program, GoldenDevice(config), inputs)
    print(
        f"\n{count} scans that the network was not trained on, on the RTL (its first run builds a simulator):"
    )
    with RtlDevice(config) as device:
        start = time.perf_counter()
        outputs, counted = classify(program, device, inputs)
        seconds = time.perf_counter() - start
        cycles = [run or 0 for run in counted]

        predictions = outputs.argmax(axis=1).astype(np.int64)
        wrong = np.flatnonzero(predictions != labels)
        print()
        examples = np.r_[np.arange(min(3, count)), wrong[:1]]
        show(scans[examples], labels[examples], predictions[examples])

        equal = int((outputs == golden_outputs).all(axis=1).sum())
        print(f"\n   float32 accuracy (all 360) {float(extras['float_accuracy']):8.2%}")
        print(f"   int8 accuracy on the RTL   {1 - len(wrong) / count:8.2%}   ({len(wrong)} wrong)")
        print(f"   equal to the golden model  {equal:4} of {count} outputs, byte for byte")
        rate = sum(cycles) / seconds
        print(f"   {sum(cycles):,} cycles simulated in {seconds:.1f} s: {rate:,.0f} cycles/s")

        print("\nEach layer by itself, from external memory and back, on one scan:")
        correct = profile(graph, program, device, inputs[0], cycles[0])
        print(f"   (utilization: multiply-accumulates a cycle, of {size * size} possible)\n")
    if equal != count or not correct:
        print("The RTL does not agree with the golden model and the reference operators.", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
