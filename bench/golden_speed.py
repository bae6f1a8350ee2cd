"""Speed of the golden model: milliseconds an inference of the four MLPerf Tiny networks.

    python bench/golden_speed.py
    python bench/golden_speed.py --preset small --runs 20
    python bench/golden_speed.py --commands resnet8      # where the time goes

Times are wall-clock; the best and the median of the runs, after one to warm up.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections import defaultdict

import numpy as np

from lepton.compiler import Program, compile_graph
from lepton.compiler.mlperf_tiny import networks
from lepton_hw.config import NPUConfig, preset
from lepton_hw.isa import Mode, Opcode
from lepton_sim.golden import GoldenDevice


def compiled(name: str, config: NPUConfig) -> tuple[Program, GoldenDevice, dict[str, np.ndarray]]:
    """A network's program on a device of its own, and random input."""
    program = compile_graph(networks()[name](), config)
    device = GoldenDevice(config, memory_bytes=program.memory_bytes)
    program.load(device)
    rng = np.random.default_rng(1)
    inputs = {k: rng.integers(-128, 128, t.shape).astype(np.int8) for k, t in program.inputs.items()}
    return program, device, inputs


def times(program: Program, device: GoldenDevice, inputs: dict[str, np.ndarray], runs: int) -> list[float]:
    """Seconds of each run."""
    program.run(device, inputs, load=False)
    out = []
    for _ in range(runs):
        start = time.perf_counter()
        program.run(device, inputs, load=False)
        out.append(time.perf_counter() - start)
    return out


def by_command(
    program: Program, device: GoldenDevice, inputs: dict[str, np.ndarray]
) -> dict[str, list[float]]:
    """Seconds of each command, by its kind."""
    spent: dict[str, list[float]] = defaultdict(list)
    step = GoldenDevice._step

    def timed_step(self, c, run):  # type: ignore[no-untyped-def]
        start = time.perf_counter()
        error = step(self, c, run)
        kind = f"CONV {Mode(c.mode).name}" if c.opcode is Opcode.CONV else c.opcode.name
        spent[kind].append(time.perf_counter() - start)
        return error

    program.run(device, inputs, load=False)
    GoldenDevice._step = timed_step  # type: ignore[method-assign]
    try:
        program.run(device, inputs, load=False)
    finally:
        GoldenDevice._step = step  # type: ignore[method-assign]
    return spent


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--preset", default="base")
    parser.add_argument("--runs", type=int, default=10)
    parser.add_argument("--commands", metavar="NETWORK", choices=list(networks()))
    options = parser.parse_args()
    config = preset(options.preset)
    if options.commands:
        spent = by_command(*compiled(options.commands, config))
        for kind, its in sorted(spent.items(), key=lambda item: -sum(item[1])):
            print(f"{kind:<12} {len(its):4d} commands {1e3 * sum(its):8.2f} ms")
        return
    for name in networks():
        program, device, inputs = compiled(name, config)
        its = times(program, device, inputs, options.runs)
        best, middle = 1e3 * min(its), 1e3 * statistics.median(its)
        print(f"{name:<12} {len(program.commands):4d} commands  best {best:7.1f} ms  median {middle:7.1f} ms")


if __name__ == "__main__":
    main()
