"""ctypes view of the C++ harness: one loaded simulator with its memory."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

__all__ = ["Harness", "HarnessError", "MemoryTiming", "check_memory_bytes"]

# Ctrl-C reaches Python only between calls, so one call runs no longer than a fraction of a second.
_CYCLES_PER_CALL = 50_000

_RESPONSES = {0: "OKAY", 1: "EXOKAY", 2: "SLVERR", 3: "DECERR", -1: "no answer within 1000 cycles"}


class HarnessError(RuntimeError):
    """The simulated hardware broke a rule of its buses or did not answer: a bug in the RTL."""


@dataclass(frozen=True)
class MemoryTiming:
    """How the simulated AXI4 memory answers.

    Args:
        latency: cycles from the read address handshake to the first data beat being valid. Bursts that are
            outstanding overlap, so that a stream runs at one beat a cycle whatever the latency.
        write_latency: cycles from a burst's last data handshake to its response being valid.
        outstanding: bursts that the memory accepts before the first of them is finished, for reads and for
            writes each.
        bandwidth: (beats, cycles): at most so many beats, reads and writes together, in so many cycles;
            None for one beat a cycle in each direction.

    Raises:
        ValueError: a value is out of its range.
    """

    latency: int = 32
    write_latency: int = 32
    outstanding: int = 16
    bandwidth: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        for name, high in (("latency", 1 << 20), ("write_latency", 1 << 20), ("outstanding", 4096)):
            value = getattr(self, name)
            if not 1 <= value <= high:
                raise ValueError(f"{name} must be in 1..{high}, not {value}")
        if self.bandwidth is not None:
            beats, cycles = self.bandwidth
            if not (1 <= beats <= 1 << 20 and 1 <= cycles <= 1 << 20):
                raise ValueError(f"bandwidth must be two numbers in 1..{1 << 20}, not {self.bandwidth}")


def check_memory_bytes(memory_bytes: int) -> None:
    """Raises `ValueError` unless a memory can have this size."""
    if memory_bytes % 4096 or not 4096 <= memory_bytes <= 1 << 32:
        raise ValueError(f"memory_bytes must be a multiple of 4096 in 4096..{1 << 32}, not {memory_bytes}")


class _Options(ctypes.Structure):
    """Same order and types as `Options` in harness.cpp."""

    _fields_ = [
        ("read_latency", ctypes.c_uint32),
        ("write_latency", ctypes.c_uint32),
        ("read_outstanding", ctypes.c_uint32),
        ("write_outstanding", ctypes.c_uint32),
        ("bandwidth_beats", ctypes.c_uint32),
        ("bandwidth_cycles", ctypes.c_uint32),
    ]


def _load(path: Path) -> ctypes.CDLL:
    library = ctypes.CDLL(str(path))
    u32, u64, pointer = ctypes.c_uint32, ctypes.c_uint64, ctypes.c_void_p
    signatures: dict[str, tuple[object, list[object]]] = {
        "bus_bytes": (u32, []),
        "create": (pointer, [pointer, u64, ctypes.POINTER(_Options)]),
        "destroy": (None, [pointer]),
        "reset": (None, [pointer, u64]),
        "csr_read": (ctypes.c_int, [pointer, u32, ctypes.POINTER(u32)]),
        "csr_write": (ctypes.c_int, [pointer, u32, u32]),
        "step": (u64, [pointer, u64]),
        "run_until_irq": (u64, [pointer, u64]),
        "irq": (ctypes.c_int, [pointer]),
        "cycle": (u64, [pointer]),
        "traffic": (None, [pointer, ctypes.POINTER(u64), ctypes.POINTER(u64)]),
        "fault": (ctypes.c_char_p, [pointer]),
        "trace_open": (ctypes.c_int, [pointer, ctypes.c_char_p, u64, u64]),
        "trace_close": (None, [pointer]),
    }
    for name, (result, arguments) in signatures.items():
        function = getattr(library, f"lepton_{name}")
        function.restype = result
        function.argtypes = arguments
    return library


class Harness:
    """One simulated NPU with its memory, made from a library of `build_library`. It comes up reset.

    Args:
        library: path of the shared library.
        memory: the memory, uint8 [multiple of 4096, up to 4 GiB]; byte i has address i, and addresses beyond
            the end answer DECERR. It is used in place: what the NPU writes appears in it. `np.zeros` makes
            one whose pages cost nothing until they are touched.
        timing: latencies and bandwidth of the memory.

    Raises:
        ValueError: `memory` has another type or size.
        MemoryError: the simulator cannot be allocated.
    """

    def __init__(self, library: Path, memory: NDArray[np.uint8], timing: MemoryTiming | None = None) -> None:
        self._handle: int | None = None
        if memory.dtype != np.uint8 or memory.ndim != 1 or not memory.flags.carray:
            raise ValueError(f"memory must be a contiguous uint8 vector, not {memory.dtype} {memory.shape}")
        check_memory_bytes(memory.size)
        timing = MemoryTiming() if timing is None else timing
        beats, cycles = timing.bandwidth or (0, 0)
        options = _Options(
            timing.latency, timing.write_latency, timing.outstanding, timing.outstanding, beats, cycles
        )
        self._library = _load(library)
        self._memory = memory  # keeps it alive
        self._handle = self._library.lepton_create(memory.ctypes.data, memory.size, ctypes.byref(options))
        if not self._handle:
            raise MemoryError(f"the simulator of {library} cannot be created")
        self.reset()

    @property
    def memory(self) -> NDArray[np.uint8]:
        """The memory that was given, uint8 [bytes]."""
        return self._memory

    @property
    def bus_bytes(self) -> int:
        """Width of the AXI4 data bus in bytes."""
        return int(self._library.lepton_bus_bytes())

    @property
    def cycle(self) -> int:
        """Clock cycles since creation, resets included."""
        return int(self._library.lepton_cycle(self._alive()))

    @property
    def irq(self) -> bool:
        """Level of the interrupt line."""
        return bool(self._library.lepton_irq(self._alive()))

    @property
    def traffic(self) -> tuple[int, int]:
        """(read beats, write beats) on the memory bus since creation."""
        reads, writes = ctypes.c_uint64(), ctypes.c_uint64()
        self._library.lepton_traffic(self._alive(), ctypes.byref(reads), ctypes.byref(writes))
        return reads.value, writes.value

    def reset(self, cycles: int = 4) -> None:
        """Holds reset for `cycles` cycles. The memory keeps its bytes; bursts under way are forgotten."""
        self._library.lepton_reset(self._alive(), cycles)
        self._check()

    def csr_read(self, address: int) -> int:
        """The 32-bit register at byte address `address`.

        Raises:
            HarnessError: the response was not OKAY, or none came.
        """
        data = ctypes.c_uint32()
        response = self._library.lepton_csr_read(self._alive(), address, ctypes.byref(data))
        self._check()
        if response != 0:
            raise HarnessError(f"CSR read at {address:#x}: {_RESPONSES[response]}")
        return data.value

    def csr_write(self, address: int, value: int) -> None:
        """Writes the 32-bit register at byte address `address`.

        Raises:
            HarnessError: the response was not OKAY, or none came.
        """
        response = self._library.lepton_csr_write(self._alive(), address, value)
        self._check()
        if response != 0:
            raise HarnessError(f"CSR write of {value:#x} at {address:#x}: {_RESPONSES[response]}")

    def step(self, cycles: int) -> None:
        """Runs `cycles` cycles."""
        while cycles > 0:
            cycles -= self._library.lepton_step(self._alive(), min(cycles, _CYCLES_PER_CALL))
            self._check()

    def run_until_irq(self, max_cycles: int) -> int:
        """Runs until the interrupt line is high or `max_cycles` have passed.

        Returns:
            Cycles executed; whether it was the interrupt that ended them, `irq` tells.

        Raises:
            HarnessError: the NPU broke a rule of AXI4.
        """
        done = 0
        while done < max_cycles and not self.irq:
            done += self._library.lepton_run_until_irq(
                self._alive(), min(max_cycles - done, _CYCLES_PER_CALL)
            )
            self._check()
        return done

    def trace_open(self, path: Path, first: int, last: int) -> None:
        """Writes the waveforms of cycles `first` <= cycle < `last` (as counted by `cycle`) to `path`.

        Raises:
            OSError: the file cannot be written, or the library was built without waveforms.
        """
        if not self._library.lepton_trace_open(self._alive(), str(path).encode(), first, last):
            raise OSError(f"cannot write waveforms to {path} (or this build has none)")

    def trace_close(self) -> None:
        """Completes the waveform file, if one is open."""
        self._library.lepton_trace_close(self._alive())

    def close(self) -> None:
        """Frees the simulator. Calling it again does nothing."""
        if self._handle:
            self._library.lepton_destroy(self._handle)
            self._handle = None

    def __enter__(self) -> Harness:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()

    def _alive(self) -> int:
        if not self._handle:
            raise ValueError("this simulator has been closed")
        return self._handle

    def _check(self) -> None:
        fault = self._library.lepton_fault(self._alive())
        if fault:
            raise HarnessError(fault.decode())
