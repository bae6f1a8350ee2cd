"""The golden device: decodes, checks and executes commands one after the other."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from lepton_hw.config import SEMAPHORES, NPUConfig
from lepton_hw.isa import (
    COMMAND_BYTES,
    CSR,
    Checker,
    Command,
    CommandError,
    ErrorCode,
    Opcode,
    Target,
    decode,
)

from ..device import Device, DeviceError, RunResult, Window
from .convolve import convolve
from .memories import Memories, read_rows, write_rows
from .output import Rescales, Tile, output

__all__ = ["DECERR", "SEMAPHORE_MAX", "GoldenDevice"]

DECERR = 3
"""The AXI response of an interconnect at an address where nothing is."""
SEMAPHORE_MAX = 255
_PROGRAMS_KEPT = 16


@dataclass
class _Run:
    """What a run starts with and does not leave behind."""

    semaphores: list[int] = field(default_factory=lambda: [0] * SEMAPHORES)
    rescales: Rescales = field(default_factory=Rescales)
    tile: Tile | None = None
    commands: int = 0
    bytes_read: int = 0
    bytes_written: int = 0


class GoldenDevice(Device):
    """The NPU's meaning in NumPy.

    What it does not have: time. So `max_cycles` is not looked at, `RunResult.cycles` is None, and of the
    counters there are only those that do not depend on time. A command that the hardware would wait at for
    ever (a semaphore that no earlier command posts) ends the run with `ErrorCode.WATCHDOG`. A transfer that
    meets a bus error does nothing; the hardware may have moved a part of it.

    Args:
        config: the NPU's configuration.
        memory_bytes: size of the external memory, from address 0 on. It and the on-chip memories start as
            zeros; reads and writes beyond it are answered with DECERR.

    Raises:
        ValueError: `memory_bytes` is not in [1, 2^32].
    """

    def __init__(self, config: NPUConfig, *, memory_bytes: int = 1 << 26) -> None:
        if not 1 <= memory_bytes <= 1 << 32:
            raise ValueError(f"memory_bytes must lie in [1, 2^32], not {memory_bytes}")
        super().__init__(config, memory_bytes)
        self._memory = np.zeros(memory_bytes, np.uint8)
        self._memories = Memories(config)
        self._checked: dict[
            tuple[bytes, Window, Window], list[tuple[Command | None, CommandError | None]]
        ] = {}

    @property
    def memory(self) -> NDArray[np.uint8]:
        """The external memory itself, uint8 [memory_bytes], not a copy."""
        return self._memory

    @property
    def memories(self) -> Memories:
        """The on-chip memories."""
        return self._memories

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
        return self.execute(
            program_address, program_bytes, read_window=read_window, write_window=write_window
        )

    def execute(
        self, program_address: int, program_bytes: int, *, read_window: Window, write_window: Window
    ) -> RunResult:
        """`run` with the values as they stand in the CSRs: what `run` refuses is here an error of the NPU.

        Args:
            program_address, program_bytes: any 32-bit values.
            read_window, write_window: first and last byte; they need not lie within the memory.
        """
        run = _Run()
        error = self._execute(program_address, program_bytes, read_window, write_window, run)
        counters = {
            CSR.COMMANDS.name.lower(): run.commands,
            CSR.BYTES_READ.name.lower(): run.bytes_read,
            CSR.BYTES_WRITTEN.name.lower(): run.bytes_written,
        }
        return RunResult(None, counters, error)

    def _execute(
        self, address: int, nbytes: int, read_window: Window, write_window: Window, run: _Run
    ) -> DeviceError | None:
        if address % COMMAND_BYTES or nbytes % COMMAND_BYTES or nbytes == 0:
            text = (
                f"program address {address:#x} and size {nbytes} must be multiples of {COMMAND_BYTES}, not 0"
            )
            return DeviceError(ErrorCode.PROGRAM, 0, 0, text)
        if address < read_window[0] or address + nbytes - 1 > read_window[1]:
            text = (
                f"the program, bytes {address:#x} to {address + nbytes - 1:#x}, is outside the read window, "
                f"{read_window[0]:#x} to {read_window[1]:#x}"
            )
            return DeviceError(ErrorCode.PROGRAM, 0, 0, text)
        # Taken as it is now: the hardware fetches ahead of STOREs that write over it.
        program = self._memory[address : address + nbytes].tobytes()
        steps = self._check(program, read_window, write_window)
        for index, (command, refused) in enumerate(steps):
            error = refused
            if error is None:
                assert command is not None
                error = self._step(command, run)
            if error is not None:
                return _located(error, index, command.opcode if command else None)
            if command is not None and command.opcode is Opcode.END:
                return None
        count = nbytes // COMMAND_BYTES
        if len(steps) < count:
            at = address + len(steps) * COMMAND_BYTES
            text = f"there is no memory at {at:#x} to fetch a command from (DECERR)"
            return _located(CommandError(ErrorCode.FETCH_BUS, DECERR, text), len(steps), None)
        return DeviceError(ErrorCode.PROGRAM, count, 0, f"the program's {count} commands hold no END")

    def _check(
        self, program: bytes, read_window: Window, write_window: Window
    ) -> list[tuple[Command | None, CommandError | None]]:
        """The commands up to END or to the first that is refused, with what is wrong with that.

        Nothing that a run does changes this, so it is kept: a program often runs on many inputs.
        """
        key = (program, read_window, write_window)
        found = self._checked.get(key)
        if found is not None:
            return found
        checker = Checker(self.config, read_window, write_window)
        steps: list[tuple[Command | None, CommandError | None]] = []
        for start in range(0, len(program) - COMMAND_BYTES + 1, COMMAND_BYTES):
            command = decode(program[start : start + COMMAND_BYTES])
            if isinstance(command, CommandError):
                steps.append((None, command))
                break
            error = checker.check(command)
            steps.append((command, error))
            if error is not None or command.opcode is Opcode.END:
                break
        if len(self._checked) >= _PROGRAMS_KEPT:
            self._checked.clear()
        self._checked[key] = steps
        return steps

    def _step(self, c: Command, run: _Run) -> CommandError | None:
        """Wait, act, post."""
        if c.opcode is not Opcode.END:
            for slot in ("wait0", "wait1"):
                semaphore, wanted = c.values[f"{slot}_semaphore"], c.values[f"{slot}_count"]
                held = run.semaphores[semaphore]
                if held < wanted:
                    text = f"{slot}: semaphore {semaphore} holds {held} of {wanted} after all earlier posts"
                    return CommandError(ErrorCode.WATCHDOG, 0, text)
                run.semaphores[semaphore] = held - wanted
        run.commands += c.opcode is not Opcode.END  # as CSR.COMMANDS counts
        error = self._act(c, run)
        if error is not None or c.opcode is Opcode.END:
            return error
        for slot in ("post0", "post1"):
            semaphore, given = c.values[f"{slot}_semaphore"], c.values[f"{slot}_count"]
            run.semaphores[semaphore] += given
            if run.semaphores[semaphore] > SEMAPHORE_MAX:
                text = f"{slot}: semaphore {semaphore} goes past {SEMAPHORE_MAX}"
                return CommandError(ErrorCode.SEMAPHORE, semaphore, text)
        return None

    def _act(self, c: Command, run: _Run) -> CommandError | None:
        memories = self._memories
        if c.opcode is Opcode.LOAD:
            return self._load(c, run)
        if c.opcode is Opcode.FILL:
            shape = (c.rows, c.row_bytes)
            write_rows(memories.scratchpad, c.local_address, c.local_stride, c.value & 0xFF, shape)
        elif c.opcode is Opcode.CONV:
            sums = convolve(c, self.config, memories)
            if not c.first:
                assert run.tile is not None  # checked: the tile is open
                sums += run.tile.sums  # int32, wraps
            run.tile = Tile(c.out_height, c.out_width, sums)
        elif c.opcode is Opcode.OUTPUT:
            assert run.tile is not None  # checked: the tile is complete
            output(c, self.config, run.tile, run.rescales, memories)
            run.tile = None
        elif c.opcode is Opcode.RESCALE:
            run.rescales = Rescales.of(c)
        elif c.opcode is Opcode.STORE:
            return self._store(c, run)
        return None

    def _beyond(self, c: Command, code: ErrorCode) -> CommandError | None:
        end = c.address + (c.rows - 1) * c.stride + c.row_bytes
        if end <= self.memory_bytes:
            return None
        text = f"bytes {c.address:#x} to {end - 1:#x}: the memory ends at {self.memory_bytes - 1:#x} (DECERR)"
        return CommandError(code, DECERR, text)

    def _load(self, c: Command, run: _Run) -> CommandError | None:
        error = self._beyond(c, ErrorCode.READ_BUS)
        if error is not None:
            return error
        memories = self._memories
        target = {
            Target.SCRATCHPAD: memories.scratchpad,
            Target.WEIGHTS: memories.weights.reshape(-1).view(np.uint8),
            Target.PARAMETERS: memories.parameters,
        }[Target(c.target)]
        rows = read_rows(self._memory, c.address, c.stride, c.rows, c.row_bytes)
        write_rows(target, c.local_address, c.local_stride, rows, rows.shape)
        run.bytes_read += c.rows * c.row_bytes
        return None

    def _store(self, c: Command, run: _Run) -> CommandError | None:
        error = self._beyond(c, ErrorCode.WRITE_BUS)
        if error is not None:
            return error
        rows = read_rows(self._memories.scratchpad, c.local_address, c.local_stride, c.rows, c.row_bytes)
        write_rows(self._memory, c.address, c.stride, rows, rows.shape)
        run.bytes_written += c.rows * c.row_bytes
        return None


def _located(error: CommandError, index: int, opcode: Opcode | None) -> DeviceError:
    where = f"command {index}" + (f" ({opcode.name})" if opcode else "")
    return DeviceError(error.code, index, error.info, f"{where}: {error.message}")
