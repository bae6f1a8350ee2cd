"""Speed of the RTL simulator: cycles a second, on one core.

    python bench/rtl_speed.py                    # preset base, a busy array
    python bench/rtl_speed.py --preset small
    python bench/rtl_speed.py --harness          # the harness alone, around a trivial design

The program of the first two keeps the array busy with 3 x 3 convolutions of random data; the harness runs
around the copy engine of the tests, idle, reading and copying. Times are processor time, the best of five.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from lepton_hw.config import NPUConfig, preset
from lepton_hw.isa import PARAMETER_ROWS, Checker, Command, CommandError, Opcode, Target, encode
from lepton_sim.rtl.build import build_library
from lepton_sim.rtl.device import RtlDevice
from lepton_sim.rtl.harness import Harness

ROUNDS = 5
COPY_ENGINE = Path(__file__).parents[1] / "tests" / "sim" / "copy_engine.v"


def best_rate(run: Callable[[], int]) -> float:
    """Most cycles a second of several rounds; `run` returns its cycles."""
    rates = []
    for _ in range(ROUNDS):
        start = time.process_time()
        cycles = run()
        rates.append(cycles / (time.process_time() - start))
    return max(rates)


def busy_program(config: NPUConfig, repeats: int) -> tuple[bytes, int]:
    """A program of `repeats` convolutions, 3 x 3, N to 2 N channels, on an 8 x 8 tile.

    Returns:
        The program, and the bytes of random data that it expects in memory at address 0.
    """
    n, side = config.array_size, 8
    activations, weights, parameters = side * side * n, 18 * n * n, 2 * PARAMETER_ROWS * n
    commands = [
        Command(Opcode.LOAD, target=Target.WEIGHTS, row_bytes=weights, address=0),
        Command(Opcode.LOAD, target=Target.PARAMETERS, row_bytes=parameters, address=0),
        Command(Opcode.LOAD, target=Target.SCRATCHPAD, row_bytes=activations, address=0,
                post0_semaphore=0, post0_count=1),
    ]  # fmt: skip
    for index in range(repeats):
        commands.append(
            Command(
                Opcode.CONV, wait0_semaphore=0, wait0_count=int(index == 0),
                input=0, y_stride=side, x_stride=1,
                in_height=side, in_width=side, out_height=side, out_width=side, out_blocks=2,
                kernel_height=3, kernel_width=3, y_start=-1, x_start=-1, weights=0,
            )
        )  # fmt: skip
        commands.append(
            Command(
                Opcode.OUTPUT, out_height=side, out_width=side, per_tensor=1, multiplier=1 << 30, shift=-6,
                output=activations, y_stride=2 * side, x_stride=2, block_stride=1,
            )
        )  # fmt: skip
    commands.append(Command(Opcode.END))
    checker = Checker(config)
    for command in commands:
        problem = checker.check(command)
        if isinstance(problem, CommandError):
            raise ValueError(f"{command}: {problem}")
    return encode(commands), max(activations, weights, parameters)


def npu_speed(name: str, repeats: int) -> None:
    config = preset(name)
    program, data_bytes = busy_program(config, repeats)
    start = time.perf_counter()
    with RtlDevice(config) as device:
        print(f"{name}: simulator ready after {time.perf_counter() - start:.1f} s")
        device.write(0, np.random.default_rng(0).integers(0, 256, data_bytes, dtype=np.uint8))
        address = 1 << 24
        device.write(address, program)

        def run() -> int:
            result = device.run(address, len(program))
            if result.error is not None:
                raise RuntimeError(str(result.error))
            assert result.cycles is not None
            counters.update(result.counters)
            return result.cycles

        counters: dict[str, int] = {}
        rate = best_rate(run)
        busy = counters["array_busy"] / counters["cycles"]
        print(f"{name}: {rate:,.0f} cycles/s ({counters['cycles']:,} cycles a run, array busy {busy:.0%})")


def harness_speed() -> None:
    verilog = COPY_ENGINE.read_text().replace("`DATA_WIDTH", "128")
    with Harness(build_library(verilog, progress=print), np.zeros(1 << 24, np.uint8)) as harness:

        def idle() -> int:
            harness.step(4_000_000)
            return 4_000_000

        def transfer(mode: int) -> int:
            for register, value in ((0x04, 0), (0x08, 1 << 23), (0x0C, 500_000), (0x10, 32), (0x14, mode)):
                harness.csr_write(register, value)
            return harness.run_until_irq(10_000_000)

        print(f"harness, idle:                    {best_rate(idle):,.0f} cycles/s")
        print(f"harness, reads, a beat a cycle:   {best_rate(lambda: transfer(3)):,.0f} cycles/s")
        print(f"harness, reads and writes, both:  {best_rate(lambda: transfer(1)):,.0f} cycles/s")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--preset", default="base", help="configuration (default: base)")
    parser.add_argument("--repeats", type=int, default=200, help="convolutions in the program (default: 200)")
    parser.add_argument("--harness", action="store_true", help="measure the harness instead of an NPU")
    arguments = parser.parse_args()
    if arguments.harness:
        harness_speed()
    else:
        npu_speed(arguments.preset, arguments.repeats)


if __name__ == "__main__":
    main()
