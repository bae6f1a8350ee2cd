"""Real handwritten digits on the simulated NPU: `make demo`.

A small int8 network (conv, conv, pool, dense; see train_digits.py) classifies the held-out scans on the
RTL, clock cycle by clock cycle, and on the golden model; then the cycles of each layer.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import replace

import numpy as np
from digits import INPUT, NETWORK_FILE, load_scans, quantize_scans, split
from numpy.typing import NDArray

from lepton.compiler import Graph, Program, compile_graph
from lepton.compiler.graph_file import load_graph
from lepton_hw.config import PRESETS, preset
from lepton_hw.isa import Opcode
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


def cycles_up_to(program: Program, device: Device, layer: int, scan: Int8) -> int:
    """Cycles of the program without the commands of the layers after `layer`."""
    kept = [
        (command, owner)
        for command, owner in zip(program.commands, program.command_layers, strict=True)
        if owner <= layer or command.opcode is Opcode.END
    ]
    part = replace(program, commands=[c for c, _ in kept], command_layers=[owner for _, owner in kept])
    return part.run(device, {INPUT: scan}).result.cycles or 0


def print_layers(graph: Graph, program: Program, device: Device, scan: Int8) -> None:
    """Print what each layer adds to the cycles of the run, and how busy that keeps the array."""

    def line(name: str, shape: str, macs: int, cycles: int) -> None:
        utilization = macs / (cycles * device.config.array_size**2)
        print(f"   {name:16}{shape:>12}{macs:>10,}{cycles:>9,}{utilization:>13.1%}")

    print(f"   {'layer':16}{'output':>12}{'MACs':>10}{'cycles':>9}{'utilization':>13}")
    ops = iter(graph.ops)
    before = 0
    for i, layer in enumerate(program.layers):
        covered = []  # the operators of the layer; without branches they are the next ones
        while not covered or covered[-1].name != layer.name:
            covered.append(next(ops))
        shape = " x ".join(str(size) for size in graph.tensors[covered[-1].output].shape)
        cycles = cycles_up_to(program, device, i, scan)
        line(" + ".join(op.name for op in covered), shape, layer.macs, cycles - before)
        before = cycles
    line("whole network", "", sum(layer.macs for layer in program.layers), before)


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
        print(f"   {sum(cycles):,} cycles ({cycles[0]:,} a scan) in {seconds:.1f} s: {rate:,.0f} cycles/s")

        print("\nWhat each layer adds to the cycles of a scan, weights loaded from external memory included:")
        print_layers(graph, program, device, inputs[0])
        print(f"   (utilization: multiply-accumulates a cycle, of {size * size} possible)\n")
    if equal != count:
        print("The RTL does not agree with the golden model.", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
