"""The RTL, simulated in this process, as a `Device`."""

from __future__ import annotations

import hashlib
import sys
import tempfile
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

import lepton_hw
from lepton_hw.config import NPUConfig
from lepton_hw.isa import COUNTERS, CSR, ISA_VERSION, MAGIC, Control, ErrorCode, Status, config_words

from ..device import Device, RunResult, Window, describe_error
from .build import Waves, build_library, cache_folder
from .harness import Harness, HarnessError, MemoryTiming, check_memory_bytes

__all__ = ["RtlDevice"]

# After ABORT outstanding transfers finish: a few hundred cycles, more with a slow memory.
_ABORT_GRACE_CYCLES = 1_000_000


def _tell(line: str) -> None:
    print(f"lepton: {line}", file=sys.stderr, flush=True)


def generated_verilog(config: NPUConfig) -> str:
    """Verilog of a configuration, from the cache where the hardware's sources have not changed.

    Raises:
        RuntimeError: no yosys to write Verilog with.
    """
    digest = hashlib.sha256(repr((config, version("amaranth"))).encode())
    for source in sorted(Path(lepton_hw.__file__).parent.glob("*.py")):
        digest.update(source.read_bytes())
    cached = cache_folder().parent / "verilog" / f"{digest.hexdigest()[:32]}.v"
    try:
        return cached.read_text()
    except OSError:
        pass
    # Imported here: Amaranth takes half a second to load and is not needed where the Verilog is known.
    from lepton_hw.verilog import generate

    text = generate(config)
    try:
        cached.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=cached.parent, delete=False) as file:
            file.write(text)
        Path(file.name).replace(cached)  # a reader sees all of it or nothing
    except OSError:
        pass  # without a cache it takes longer, that is all; the build of the library will say what is wrong
    return text


class RtlDevice(Device):
    """The Verilog of an NPU, compiled by Verilator and run cycle by cycle in this process.

    The first device of a configuration builds its simulator (some minutes) into a cache; later ones,
    in any process, load it at once.

    Args:
        config: the NPU's configuration.
        latency: memory cycles from a read's address to its first data, see `MemoryTiming`.
        write_latency: memory cycles from a burst's last data to its response.
        outstanding: bursts the memory accepts at a time, in each direction.
        bandwidth: (beats, cycles) limit of the memory, None for one beat a cycle in each direction.
        watchdog: cycles without progress after which the NPU stops the run; 0 for never.
        verilog: the NPU's Verilog, by default generated from `config`.
        memory_bytes: size of the memory, a multiple of 4096 up to 4 GiB; untouched pages cost nothing.
        progress: gets one line when a simulator has to be built; by default it goes to stderr.

    Raises:
        ToolError: Verilator or the compiler is missing; the message says what to install.
        HarnessError: the Verilog is of another configuration or ISA version.
        ValueError: an argument is out of range.
    """

    def __init__(
        self,
        config: NPUConfig,
        *,
        latency: int = 32,
        write_latency: int = 32,
        outstanding: int = 16,
        bandwidth: tuple[int, int] | None = None,
        watchdog: int = 100_000,
        verilog: str | None = None,
        memory_bytes: int = 1 << 26,
        progress: Callable[[str], None] | None = _tell,
    ) -> None:
        check_memory_bytes(memory_bytes)
        super().__init__(config, memory_bytes)
        if not 0 <= watchdog < 1 << 32:
            raise ValueError(f"watchdog must be in 0..{(1 << 32) - 1}, not {watchdog}")
        self._watchdog = watchdog
        self._timing = MemoryTiming(latency, write_latency, outstanding, bandwidth)
        self._progress = progress
        self._verilog = generated_verilog(config) if verilog is None else verilog
        self._memory = np.zeros(memory_bytes, np.uint8)
        self._waves = Waves.NONE
        self._record: tuple[Path, int, int] | None = None
        self._harness = self._make_harness(Waves.NONE)

    def _make_harness(self, waves: Waves) -> Harness:
        library = build_library(self._verilog, waves=waves, progress=self._progress)
        harness = Harness(library, self._memory, self._timing)
        expected = {
            CSR.MAGIC: MAGIC,
            CSR.VERSION: ISA_VERSION[0] << 16 | ISA_VERSION[1],
            **dict(zip((CSR.CONFIG0, CSR.CONFIG1, CSR.CONFIG2), config_words(self.config), strict=True)),
        }
        for register, value in expected.items():
            found = harness.csr_read(register)
            if found != value:
                raise HarnessError(
                    f"the Verilog is of another NPU: {register.name} reads {found:#010x}, and "
                    f"{self.config} needs {value:#010x}"
                )
        return harness

    @property
    def memory(self) -> NDArray[np.uint8]:
        """The external memory itself, uint8 [memory_bytes], not a copy."""
        return self._memory

    def record(self, path: str | Path, *, first: int = 0, last: int | None = None) -> None:
        """Writes the waveforms of the next run to `path`.

        This device then goes on with a slower simulator that has waveforms compiled in.

        Args:
            path: file to write; `.vcd`, or `.fst` (much smaller; needs zlib's and LZ4's headers to build).
            first: first cycle of the window, counted from the start of the run.
            last: first cycle after the window; None for the end of the run.

        Raises:
            ValueError: another suffix, or an empty window.
            ToolError: the simulator with waveforms cannot be built.
        """
        path = Path(path)
        if path.suffix not in (".vcd", ".fst"):
            raise ValueError(f"waveforms are written to .vcd or .fst files, not to {path.name!r}")
        if first < 0 or (last is not None and last <= first):
            raise ValueError(f"the window must hold at least one cycle: first {first}, last {last}")
        waves = Waves(path.suffix[1:])
        if waves is not self._waves:
            harness = self._make_harness(waves)
            self._harness.close()
            self._harness, self._waves = harness, waves
        self._record = (path, first, (1 << 64) - 1 if last is None else last)

    def close(self) -> None:
        """Frees the simulator."""
        self._harness.close()

    def __enter__(self) -> RtlDevice:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _read(self, address: int, nbytes: int) -> NDArray[np.uint8]:
        return self._memory[address : address + nbytes].copy()

    def _write(self, address: int, data: NDArray[np.uint8]) -> None:
        self._memory[address : address + data.size] = data

    def _run(
        self,
        program_address: int,
        program_bytes: int,
        read_window: Window,
        write_window: Window,
        max_cycles: int,
    ) -> RunResult:
        harness = self._harness
        program = self._read(program_address, program_bytes).tobytes()  # the run may overwrite it
        try:
            for register, value in (
                (CSR.READ_FIRST, read_window),
                (CSR.WRITE_FIRST, write_window),
            ):
                first, last = value if value[0] <= value[1] else (1, 0)  # closed, without a last of -1
                harness.csr_write(register, first)
                harness.csr_write(register + 4, last)
            harness.csr_write(CSR.PROGRAM_ADDRESS, program_address)
            harness.csr_write(CSR.PROGRAM_BYTES, program_bytes)
            harness.csr_write(CSR.WATCHDOG, self._watchdog)
            harness.csr_write(CSR.IRQ_ENABLE, 1)
            if self._record is not None:
                path, first, last = self._record
                self._record = None
                start = harness.cycle
                harness.trace_open(path, start + first, min(start + last, (1 << 64) - 1))
            harness.csr_write(CSR.CONTROL, Control.START)
            harness.run_until_irq(max_cycles)
            if not harness.irq:
                harness.csr_write(CSR.CONTROL, Control.ABORT)
                harness.run_until_irq(_ABORT_GRACE_CYCLES)
                if not harness.irq:
                    raise HarnessError(
                        f"the NPU did not end its run within {max_cycles} cycles, and did not obey ABORT"
                    )
            return self._result(program)
        except BaseException:
            harness.reset()  # so that the next run starts clean
            raise
        finally:
            harness.trace_close()

    def _result(self, program: bytes) -> RunResult:
        harness = self._harness
        status = Status(harness.csr_read(CSR.STATUS))
        counters = {counter.name.lower(): harness.csr_read(counter) for counter in COUNTERS}
        error = None
        if Status.ERROR in status:
            error = describe_error(
                ErrorCode(harness.csr_read(CSR.ERROR_CODE)),
                harness.csr_read(CSR.ERROR_COMMAND),
                harness.csr_read(CSR.ERROR_INFO),
                program,
            )
        elif Status.DONE not in status:
            raise HarnessError(f"the NPU raised its interrupt with neither DONE nor ERROR: {status!r}")
        harness.csr_write(CSR.IRQ_PENDING, 1)
        return RunResult(counters["cycles"], counters, error)
