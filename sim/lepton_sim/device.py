"""The one interface behind which every NPU stands: golden model, RTL simulator, FPGA."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from lepton_hw.config import NPUConfig
from lepton_hw.isa import COMMAND_BYTES, COMMANDS, ErrorCode, Opcode

__all__ = ["AddressError", "Device", "DeviceError", "RunResult", "Window", "describe_error"]

Window = tuple[int, int]
"""First and last byte address, both included. (a, a - 1) is empty: nothing may be touched."""


class AddressError(ValueError):
    """An address or a size that the device's memory does not have."""


@dataclass(frozen=True)
class DeviceError:
    """Why a run stopped before its end.

    Attributes:
        code: the reason.
        command: index of the command at fault, counted from 0.
        info: detail, see `ErrorCode`.
        message: the same in words.
    """

    code: ErrorCode
    command: int
    info: int
    message: str

    def __str__(self) -> str:
        return self.message


@dataclass(frozen=True)
class RunResult:
    """What a run leaves behind besides the bytes in memory.

    Attributes:
        cycles: clock cycles from start to interrupt; None where nobody counts them (golden model).
        counters: performance counters by their CSR name in lower case; empty where there are none.
        error: None after a run to the END command.
    """

    cycles: int | None
    counters: dict[str, int] = field(default_factory=dict)
    error: DeviceError | None = None


_FIELD_CODES = {
    ErrorCode.FIELD: "has a value that is not allowed",
    ErrorCode.LOCAL_RANGE: "leads beyond the end of an on-chip memory",
    ErrorCode.READ_WINDOW: "leads outside the read window",
    ErrorCode.WRITE_WINDOW: "leads outside the write window",
    ErrorCode.UNSUPPORTED: "asks for an option that this NPU was built without",
}
_OTHER_CODES = {
    ErrorCode.OPCODE: "there is no opcode {info}",
    ErrorCode.RESERVED: "reserved bits are set in word {info}",
    ErrorCode.TILE_ORDER: "CONV and OUTPUT do not pair up",
    ErrorCode.PROGRAM: "the program is malformed, outside the read window, or without END",
    ErrorCode.READ_BUS: "the memory answered a read with {response}",
    ErrorCode.WRITE_BUS: "the memory answered a write with {response}",
    ErrorCode.FETCH_BUS: "the memory answered the fetch of a command with {response}",
    ErrorCode.SEMAPHORE: "semaphore {info} was posted past 255",
    ErrorCode.WATCHDOG: "no progress for the watchdog's time",
    ErrorCode.ABORTED: "the host stopped the run (it took longer than max_cycles)",
}


def describe_error(code: ErrorCode, command: int, info: int, program: bytes) -> DeviceError:
    """An error in words; `program` (the bytes that ran) tells which field `info` points at."""
    raw = program[command * COMMAND_BYTES : (command + 1) * COMMAND_BYTES]
    known = {int(opcode) for opcode in Opcode}
    spec = COMMANDS[Opcode(raw[0])] if raw and raw[0] in known else None
    where = f"command {command}" + (f" ({spec.opcode.name})" if spec else "")
    if code in _FIELD_CODES:
        names = [f.name for f in spec.fields if f.bit == info] if spec else []
        what = f"field {names[0] if names else f'at bit {info}'} {_FIELD_CODES[code]}"
    else:
        response = {2: "SLVERR", 3: "DECERR"}.get(info, f"response {info}")
        what = _OTHER_CODES.get(code, "unknown reason").format(info=info, response=response)
    return DeviceError(code, command, info, f"{where}: {what} [{code.name}, info {info}]")


class Device(ABC):
    """An NPU with its external memory.

    Arguments are checked here, so that all devices refuse the same things with the same words; a device
    implements `_read`, `_write` and `_run`, which see only values that are in range.

    Args:
        config: the NPU's configuration.
        memory_bytes: size of the external memory, which starts at address 0.
    """

    def __init__(self, config: NPUConfig, memory_bytes: int) -> None:
        self._config = config
        self._memory_bytes = memory_bytes

    @property
    def config(self) -> NPUConfig:
        """The NPU's configuration."""
        return self._config

    @property
    def memory_bytes(self) -> int:
        """Size of the external memory in bytes."""
        return self._memory_bytes

    def read(self, address: int, nbytes: int) -> NDArray[np.uint8]:
        """A copy of `nbytes` bytes of memory from `address` on, uint8 [nbytes].

        Raises:
            AddressError: some of them are outside the memory.
        """
        self._check_span("read", address, nbytes)
        return self._read(address, nbytes)

    def write(self, address: int, data: bytes | bytearray | memoryview | NDArray[np.generic]) -> None:
        """Copies the bytes of `data` (an array's in C order) to memory from `address` on.

        Raises:
            AddressError: some of them would be outside the memory.
        """
        if isinstance(data, np.ndarray):
            flat = np.ascontiguousarray(data).reshape(-1).view(np.uint8)
        else:
            flat = np.frombuffer(data, np.uint8)
        self._check_span("write", address, flat.size)
        self._write(address, flat)

    def run(
        self,
        program_address: int,
        program_bytes: int,
        *,
        read_window: Window | None = None,
        write_window: Window | None = None,
        max_cycles: int = 1_000_000_000,
    ) -> RunResult:
        """Executes the program that lies in memory, to its end or to the first error.

        Args:
            program_address: where it starts, a multiple of 64.
            program_bytes: its size, a positive multiple of 64.
            read_window: bytes that the NPU may read (the program included); None for the whole memory.
            write_window: bytes that it may write; None for the whole memory.
            max_cycles: a run that takes longer is stopped with `ErrorCode.ABORTED`, where cycles exist.

        Raises:
            AddressError: the program or a window is outside the memory or misaligned.
            ValueError: `max_cycles` is not positive.
        """
        for name, value in (("program_address", program_address), ("program_bytes", program_bytes)):
            if value % COMMAND_BYTES:
                raise AddressError(f"{name} must be a multiple of {COMMAND_BYTES}, not {value}")
        if program_bytes <= 0:
            raise AddressError(f"program_bytes must be positive, not {program_bytes}")
        self._check_span("program", program_address, program_bytes)
        if max_cycles <= 0:
            raise ValueError(f"max_cycles must be positive, not {max_cycles}")
        whole = (0, self._memory_bytes - 1)
        windows = {"read_window": read_window or whole, "write_window": write_window or whole}
        for name, (first, last) in windows.items():
            if first < 0 or last >= self._memory_bytes or last < first - 1:
                raise AddressError(
                    f"{name} must be (first, last byte) within 0x0 to {self._memory_bytes - 1:#x}, "
                    f"not ({first:#x}, {last:#x})"
                )
        return self._run(
            program_address, program_bytes, windows["read_window"], windows["write_window"], max_cycles
        )

    def _check_span(self, what: str, address: int, nbytes: int) -> None:
        if nbytes < 0:
            raise AddressError(f"{what}: the number of bytes must not be negative, it is {nbytes}")
        if address < 0 or address + nbytes > self._memory_bytes:
            raise AddressError(
                f"{what}: {nbytes} bytes at address {address:#x} are not within the memory, "
                f"0x0 to {self._memory_bytes - 1:#x}"
            )

    @abstractmethod
    def _read(self, address: int, nbytes: int) -> NDArray[np.uint8]:
        """`read` with arguments that are in range; returns an array of its own."""

    @abstractmethod
    def _write(self, address: int, data: NDArray[np.uint8]) -> None:
        """`write` with arguments that are in range; `data` is uint8 [n] and must not be kept."""

    @abstractmethod
    def _run(
        self,
        program_address: int,
        program_bytes: int,
        read_window: Window,
        write_window: Window,
        max_cycles: int,
    ) -> RunResult:
        """`run` with arguments that are in range."""
