"""Constrained-random programs, correct ones, for comparing the golden model with the hardware.

`mutation.mutate` spoils them.

A program works in a part of each on-chip memory that it fills first, so its result does not depend on what an
earlier one left. Within these parts all addresses are random; `add_semaphores` then orders what collides.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lepton_hw.config import NPUConfig
from lepton_hw.isa import (
    PARAMETER_ROWS,
    PARAMETER_ROWS_PER_TENSOR,
    Checker,
    Command,
    Mode,
    Opcode,
    PoolMode,
    Target,
    Unit,
    encode,
    unit_of,
)

from .device import RunResult, Window
from .golden.accesses import accesses, feeds_itself, overlap
from .golden.executor import GoldenDevice
from .golden.geometry import pass_count
from .golden.lint import lint
from .ordering import OrderingStyle, add_semaphores

__all__ = ["MEMORY_BYTES", "RandomProgram", "random_program", "run_golden"]

MEMORY_BYTES = 1 << 16
"""External memory that a random program expects."""
_PROGRAM_BYTES = 192 * 64
_DATA_BYTES = 24 * 1024
_TRIES = 300


@dataclass(frozen=True)
class RandomProgram:
    """A program with the memory it runs in.

    Attributes:
        config: of the NPU it is for.
        commands: what the program was encoded from.
        program_address, program_bytes: for the CSRs.
        memory: the external memory before the run, the program in it; uint8 [MEMORY_BYTES].
        read_window, write_window: first and last byte.
        description: what is in it, in one line.
    """

    config: NPUConfig
    commands: tuple[Command, ...]
    program_address: int
    program_bytes: int
    memory: NDArray[np.uint8]
    read_window: Window
    write_window: Window
    description: str

    @property
    def program(self) -> bytes:
        """The bytes of the program, as far as they lie in memory."""
        return self.memory[self.program_address : self.program_address + self.program_bytes].tobytes()


def run_golden(
    program: RandomProgram, device: GoldenDevice | None = None
) -> tuple[RunResult, NDArray[np.uint8]]:
    """Run a program on the golden model: its result, and the external memory after it.

    Args:
        device: one whose on-chip memories go on from what it ran before; by default a new one.
    """
    device = device or GoldenDevice(program.config, memory_bytes=program.memory.size)
    device.write(0, program.memory)
    result = device.execute(
        program.program_address,
        program.program_bytes,
        read_window=program.read_window,
        write_window=program.write_window,
    )
    return result, device.read(0, program.memory.size)


def random_program(
    rng: random.Random, config: NPUConfig, *, size: int = 3, work: int = 3000
) -> RandomProgram:
    """A correct program free of races, with random contents of the memory.

    Args:
        rng: the only source of randomness.
        config: the NPU's configuration.
        size: output tiles at most; 0 for a program of transfers only.
        work: bound of the cycles that one command may take, roughly.

    Raises:
        ValueError: `size` is negative.
    """
    if size < 0:
        raise ValueError(f"size must not be negative, not {size}")
    while True:
        program = _Generator(rng, config, work).program(size)
        if program is not None:
            return program


class _Generator:
    def __init__(self, rng: random.Random, config: NPUConfig, work: int) -> None:
        self.rng, self.config, self.work = rng, config, work
        self.n = config.array_size
        self.checker = Checker(config)
        self.commands: list[Command] = []
        self.rescaled = False
        self.notes: list[str] = []
        self._lay_out()

    # --- places ---

    def _lay_out(self) -> None:
        """Where in external memory things lie, and which parts of the on-chip memories are used."""
        rng, config = self.rng, self.config
        gaps = MEMORY_BYTES - _PROGRAM_BYTES - _DATA_BYTES
        written = rng.randrange(gaps // 2, gaps - 4096)
        gaps -= written
        sizes = {"program": _PROGRAM_BYTES, "data": _DATA_BYTES, "written": written}
        # One window must hold program and data: they lie side by side.
        order = rng.choice((("program", "data"), ("data", "program")))
        names = ("written", *order) if rng.random() < 0.5 else (*order, "written")
        at, self.place = 0, {}
        for name in names:
            gap = rng.randrange(gaps // 2)
            gaps -= gap
            at += gap
            if name != "written":
                at = at // 64 * 64
            self.place[name] = (at, at + sizes[name])
            at += sizes[name]
        self.memory = np.frombuffer(bytearray(rng.randbytes(MEMORY_BYTES)), np.uint8)
        if rng.random() < 0.2:
            self.memory[...] = np.where(self.memory < 128, 0x7F, 0x80)
        self.program_address = self.place["program"][0]
        self.data_end = self.place["data"][0]  # structured data grows from here
        both = [*self.place["program"], *self.place["data"]]
        self.read_window = (min(both), max(both) - 1)
        self.write_window = (self.place["written"][0], self.place["written"][1] - 1)
        self.reads_back = rng.random() < 0.4
        if self.reads_back:
            self.read_window = rng.choice(
                (
                    (0, MEMORY_BYTES - 1),
                    (
                        min(self.read_window[0], self.write_window[0]),
                        max(self.read_window[1], self.write_window[1]),
                    ),
                )
            )
        self.checker.windows = {"read": self.read_window, "write": self.write_window}
        vectors = min(rng.choice((64, 128, 256, 512)), config.scratchpad_vectors)
        last = config.scratchpad_vectors - vectors
        self.low = rng.choice((0, last, rng.randint(0, last)))
        self.high = self.low + vectors
        self.weights_known = np.zeros(config.weight_vectors, bool)

    def _blob(self, content: bytes) -> int | None:
        """Address of structured data in the data region; None when it is full."""
        end = self.data_end + len(content)
        if end > self.place["data"][1]:
            return None
        at = self.data_end
        self.memory[at:end] = np.frombuffer(content, np.uint8)
        step = self.config.bus_bytes
        self.data_end = -(-end // step) * step
        return at

    def _readable(self, nbytes: int, align: int = 1) -> int:
        """A random address to read from, often close to a multiple of 4096."""
        rng = self.rng
        first, end = self.place["data"]
        if self.reads_back and rng.random() < 0.3:
            first, end = self.place["written"]
        return _address(rng, first, end - nbytes, align)

    # --- commands ---

    def _try(self, command: Command) -> bool:
        """Append a command if it is allowed, and reads only what is known."""
        tile = self.checker.tile
        if self.checker.check(command) is not None:
            return False
        shape = (0, 0, 0)
        if command.opcode is Opcode.OUTPUT:
            assert tile is not None
            shape = (tile.blocks, tile.height, tile.width)
        for access in accesses(command, self.config, shape):
            if access.memory != "scratchpad" or not len(access.starts):
                continue
            if access.starts[0] < self.low * self.n or access.ends[-1] > self.high * self.n:
                self.checker.tile = tile
                return False
        if command.opcode is Opcode.OUTPUT and command.residual and feeds_itself(command, self.config, shape):
            self.checker.tile = tile
            return False
        self.commands.append(command)
        return True

    def _fill_scratchpad(self) -> None:
        """Cover the whole part with LOADs and FILLs, in random order and pieces."""
        rng, pieces = self.rng, []
        at, end = self.low * self.n, self.high * self.n
        while at < end:
            size = min(rng.choice((rng.randint(1, 64), rng.randint(64, 4096), 4096)), end - at)
            pieces.append((at, size))
            at += size
        if len(pieces) > 8:
            first = pieces[7][0]
            pieces[7:] = [(at, min(4096, end - at)) for at in range(first, end, 4096)]
        rng.shuffle(pieces)
        for at, size in pieces:
            if rng.random() < 0.15:
                self._append(Opcode.FILL, value=rng.randint(-128, 127), local_address=at, row_bytes=size)
            else:
                self._append(Opcode.LOAD, local_address=at, row_bytes=size, address=self._readable(size))

    def _append(self, opcode: Opcode, **values: int) -> None:
        command = Command(opcode, **values)
        if not self._try(command):
            raise AssertionError(f"{command}: {self.checker.check(command)}")

    def _transfer(self) -> None:
        """A LOAD to the scratchpad, a FILL or a STORE with any rows."""
        rng = self.rng
        for _ in range(_TRIES):
            opcode = rng.choice((Opcode.LOAD, Opcode.FILL, Opcode.STORE, Opcode.STORE))
            rows = rng.choice((1, 1, 2, 3, rng.randint(1, 20)))
            row_bytes = rng.choice(
                (1, 2, rng.randint(1, 40), rng.randint(1, 700), rng.choice((256, 512, 4096)))
            )
            # Rows may touch, overlap or all lie in one place.
            touching = (0, row_bytes, row_bytes)
            strides = [
                rng.choice((*touching, row_bytes + rng.randint(1, 99), rng.randrange(99))) for _ in range(2)
            ]
            local = self.low * self.n + rng.randrange((self.high - self.low) * self.n)
            values = {
                "local_address": local,
                "local_stride": strides[0],
                "rows": rows,
                "row_bytes": row_bytes,
            }
            if opcode is Opcode.FILL:
                values["value"] = rng.randint(-128, 127)
            else:
                span = (rows - 1) * strides[1] + row_bytes
                if span > 8192:
                    continue
                if opcode is Opcode.STORE:
                    first, end = self.place["written"]
                    values["address"] = _address(rng, first, end - span, 1)
                else:
                    values["address"] = self._readable(span)
                values["stride"] = strides[1]
            if rows * row_bytes <= 4 * self.work and self._try(Command(opcode, **values)):
                return

    def _weights(self, tiles: int, content: bytes | None) -> int | None:
        """Load weight tiles at a random place (around the end of the memory, too): its first vector.

        Args:
            content: of the tiles, or None for anything.
        """
        rng, config, n = self.rng, self.config, self.n
        total = config.weight_vectors
        count = min(tiles * n, total)
        if content is None and rng.random() < 0.3 and self.weights_known.any():
            first = int(rng.choice(np.flatnonzero(self.weights_known).tolist()))
            if self.weights_known[(first + np.arange(count)) % total].all():
                return first
        first = rng.choice((0, rng.randrange(total), total - rng.randint(1, count)))
        if count * n > _DATA_BYTES // 2:
            return None
        address = self._readable(count * n, config.bus_bytes) if content is None else self._blob(content)
        if address is None:
            return None
        until_end = min(count, total - first)
        for local, part, offset in ((first, until_end, 0), (0, count - until_end, until_end * n)):
            if not part:
                continue
            rows = rng.choice([d for d in (1, 2, part) if part % d == 0]) if part <= 64 else 1
            row_bytes = part // rows * n
            self._append(
                Opcode.LOAD, target=Target.WEIGHTS, local_address=local * n, address=address + offset,
                rows=rows, row_bytes=row_bytes, stride=row_bytes, local_stride=row_bytes,
            )  # fmt: skip
        self.weights_known[(first + np.arange(count)) % total] = True
        return first

    def _parameters(self, blocks: int, per_tensor: bool) -> int | None:
        """Load (or find) parameters: the first vector."""
        rng, config, n = self.rng, self.config, self.n
        vectors = blocks * (PARAMETER_ROWS_PER_TENSOR if per_tensor else PARAMETER_ROWS)
        if vectors > config.parameter_vectors:
            return None
        content = b""
        for _ in range(blocks):
            limit = rng.choice((1 << 31, 100_000, 1000))
            content += b"".join(
                rng.randrange(-limit, limit).to_bytes(4, "little", signed=True) for _ in range(n)
            )
            if not per_tensor:
                content += b"".join(_multiplier(rng).to_bytes(4, "little") for _ in range(n))
                content += bytes(_shift(rng) & 0xFF for _ in range(n))
        address = self._blob(content)
        if address is None:
            return None
        last = config.parameter_vectors - vectors
        first = rng.choice((0, last, rng.randint(0, last)))
        self._append(
            Opcode.LOAD,
            target=Target.PARAMETERS,
            local_address=first * n,
            row_bytes=vectors * n,
            address=address,
        )
        return first

    def _conv(self, fixed: dict[str, int]) -> bool:
        """A CONV with the weights it needs; `fixed` fields come from the tile it goes on with."""
        rng = self.rng
        modes = [Mode.VECTOR] + [Mode.PATCH] * self.config.patch_mode + [Mode.ROWS] * self.config.rows_mode
        mark = len(self.commands)
        for _ in range(_TRIES):
            fields = self._conv_fields(rng.choice(modes), fixed)
            command = Command(Opcode.CONV, **fields)
            passes, positions = pass_count(command), command.out_height * command.out_width
            if command.mode == Mode.ROWS:
                positions = command.kernel_width + command.out_height * command.row_samples
            if passes * command.out_blocks * max(positions, self.n) > self.work:
                continue
            tile = self.checker.tile
            if self.checker.check(command) is not None:
                continue
            self.checker.tile = tile
            tiles = passes * (1 if command.restart_weights else command.out_blocks)
            content = None
            if command.mode == Mode.ROWS:
                if tiles * self.n > self.config.weight_vectors:
                    continue
                content = self._rows_tiles(command, tiles)
            first = self._weights(tiles, content)
            if first is None:
                continue
            if self._try(Command(Opcode.CONV, **fields | {"weights": first})):
                self.notes.append(f"{Mode(command.mode).name} {command.out_height}x{command.out_width}")
                return True
            del self.commands[mark:]
            self.weights_known[...] = False  # some of what is marked may have been taken back
        return False

    def _rows_tiles(self, c: Command, tiles: int) -> bytes:
        """Weights for ROWS: array rows without a tap of an existing kernel row are 0."""
        passes = pass_count(c)
        weights = np.frombuffer(self.rng.randbytes(tiles * self.n * self.n), np.uint8).copy()
        weights = weights.reshape(tiles, self.n, self.n)
        used = np.zeros((passes, self.n), bool)
        for row in range(c.kernel_height):
            first = 3 * (row % c.rows_per_pass)
            used[row // c.rows_per_pass, first : first + c.kernel_width] = True
        weights[~np.tile(used, (tiles // passes, 1))] = 0
        return weights.tobytes()

    def _conv_fields(self, mode: Mode, fixed: dict[str, int]) -> dict[str, int]:
        rng, n, config = self.rng, self.n, self.config
        shape = _tile_shape(rng, min(config.accumulator_depth, self.work))
        kernel = _small(rng, 5), _small(rng, 5)
        if rng.random() < 0.03:
            kernel = rng.choice(((1, rng.randint(1, 255)), (rng.randint(1, 255), 1)))
        room = self.high - self.low
        start = rng.randrange(room) if rng.random() < 0.5 else 0
        f: dict[str, int] = {
            "mode": mode,
            "restart_weights": rng.random() < 0.3,
            "pad_value": rng.choice((rng.randint(-128, 127), -128, 127, 0)),
            "in_height": _small(rng, 9),
            "in_width": _small(rng, 9),
            "out_height": shape[0],
            "out_width": shape[1],
            "out_blocks": rng.choice((1, 1, 2, 3)),
            "in_blocks": rng.choice((1, 1, 2, 3)),
            "y_start": rng.randint(-3, 2),
            "x_start": rng.randint(-3, 2),
            "kernel_height": kernel[0],
            "kernel_width": kernel[1],
            "stride_y": _small(rng, 3),
            "stride_x": _small(rng, 3),
            "dilation_y": _small(rng, 3),
            "dilation_x": _small(rng, 3),
            "input": (self.low + start) * n,
        }
        if rng.random() < 0.05:
            f[rng.choice(("stride_y", "stride_x", "dilation_y", "dilation_x"))] = rng.randint(1, 255)
            f[rng.choice(("y_start", "x_start"))] = rng.randint(-600, 600)
        f |= fixed
        room -= start + 1
        if mode is Mode.PATCH:
            f |= {
                "in_blocks": 1,
                "kernel_width": 1,
                "wide": rng.randrange(2),
                "row_length": rng.choice((n, rng.randint(1, n), rng.randint(1, min(9, n)))),
                "pass_length": rng.choice((n, rng.randint(1, n))),
                "x_stride": rng.randrange(n + 1),
                "dilation_y": f["dilation_y"] | 1,
            }
            f["input"] += rng.randrange(n)
            least = room // f["in_height"] // 2
            f["y_stride"] = 4 * rng.randint(0, least // 3) + 2 if f["wide"] else 2 * rng.randint(0, least) + 1
            f["out_block_stride"] = rng.choice((0, rng.randint(0, 4)))
            return f
        if mode is Mode.ROWS:
            width = rng.choice((3, 3, rng.randint(1, config.depthwise_taps), config.depthwise_taps))
            f |= {"in_blocks": 1, "dilation_x": 1, "kernel_width": width}
            f["rows_per_pass"] = rng.randint(1, config.depthwise_groups) if width == 3 else 1
            f["valid_from"] = rng.randrange(width)
            f["row_samples"] = f["valid_from"] + (f["out_width"] - 1) * f["stride_x"] + 1 + _small(rng, 4) - 1
            if f["rows_per_pass"] > 1:
                f["dilation_y"] |= 1
        strides, counts = ("y_stride", "x_stride", "block_stride", "out_block_stride"), (
            f["in_height"], f["in_width"], f["in_blocks"], f["out_blocks"],
        )  # fmt: skip
        natural = (f["in_width"] * f["in_blocks"], f["in_blocks"], 1, rng.choice((0, 1)))
        f |= _strides(rng, strides, counts, natural, room)
        if mode is Mode.ROWS and f["rows_per_pass"] > 1:
            f["y_stride"] |= 1
        return f

    def _output(self) -> bool:
        rng, n = self.rng, self.n
        tile = self.checker.tile
        assert tile is not None
        mark = len(self.commands)
        for attempt in range(_TRIES):
            pool = rng.choice((PoolMode.NONE, PoolMode.NONE, *PoolMode))
            residual, per_tensor = rng.random() < 0.3, rng.random() < 0.3
            if (pool is not PoolMode.NONE or residual) and (not self.rescaled or rng.random() < 0.5):
                self._rescale()
            f: dict[str, int] = {
                "pool_mode": pool,
                "residual": residual,
                "per_tensor": per_tensor,
                "single_rounding": rng.random() < 0.3,
                "zero_point": rng.randint(-128, 127),
                "out_height": tile.height,
                "out_width": tile.width,
                "shift": _shift(rng),
                "multiplier": _multiplier(rng),
            }
            f |= _clamp(rng, "minimum", "maximum")
            if pool is not PoolMode.NONE or rng.random() < 0.1:
                f |= self._windows(pool, tile.height, tile.width)
            taps = f.get("pool_height", 1) * f.get("pool_width", 1) * f["out_height"] * f["out_width"]
            cost = max(taps, tile.height * tile.width) * tile.blocks * (4 if residual else 1)
            if cost * (n // self.config.requantize_lanes) > 3 * self.work and attempt < _TRIES - 20:
                continue
            room = self.high - self.low
            for prefix, base, height, width in (
                ("", "output", f["out_height"], f["out_width"]),
                ("residual_", "residual_input", tile.height, tile.width),
            ):
                start = rng.randrange(room) if rng.random() < 0.5 else 0
                names = tuple(f"{prefix}{axis}_stride" for axis in ("y", "x", "block"))
                natural = (width * tile.blocks, tile.blocks, 1)
                if not prefix or residual:
                    f[base] = (self.low + start) * n
                    f |= _strides(rng, names, (height, width, tile.blocks), natural, room - start - 1)
            if residual and pool is PoolMode.NONE and rng.random() < 0.2:
                f |= {"residual_input": f["output"]}  # in place
                f |= {f"residual_{axis}_stride": f[f"{axis}_stride"] for axis in ("y", "x", "block")}
            first = self._parameters(tile.blocks, per_tensor)
            if first is not None and self._try(Command(Opcode.OUTPUT, **f | {"parameters": first})):
                self.notes[-1] += f" {pool.name}{' residual' if residual else ''}"
                if rng.random() < 0.8:
                    self._store_output(self.commands[-1], tile.blocks)
                return True
            del self.commands[mark:]
            self.rescaled = False
        return False

    def _windows(self, pool: PoolMode, height: int, width: int) -> dict[str, int]:
        rng = self.rng
        if rng.random() < 0.2 and pool is not PoolMode.NONE:  # global
            whole = {"pool_height": min(height, 255), "pool_width": min(width, 255)}
            return whole | {"out_height": 1, "out_width": 1}
        f: dict[str, int] = {}
        for axis, name, extent in (("y", "height", height), ("x", "width", width)):
            window = 1 if pool is PoolMode.NONE else _small(rng, 5)
            stride, start = rng.choice((window, _small(rng, 4))), rng.choice((0, 0, rng.randint(-4, 3)))
            count = max(1, (extent - start - window) // stride + 1)
            f |= {
                f"pool_{name}": window,
                f"pool_stride_{axis}": stride,
                f"pool_{axis}_start": start,
                f"out_{name}": min(max(1, count + rng.choice((0, 0, -1, 1))), 64),
            }
        if pool is PoolMode.NONE:
            del f["pool_height"], f["pool_width"]
        return f

    def _rescale(self) -> None:
        rng = self.rng
        f: dict[str, int] = {}
        for name in ("own", "residual", "sum", "pool"):
            f[f"{name}_multiplier"] = _multiplier(rng)
            f[f"{name}_shift"] = _shift(rng)
        if rng.random() < 0.7:  # so that something is left of the values
            f |= {"own_shift": rng.randint(-3, 0), "residual_shift": rng.randint(-3, 0)}
            f |= {"sum_shift": rng.randint(-20, -17), "pool_shift": rng.randint(-5, 0)}
        for name in ("residual", "sum", "pool"):
            f[f"{name}_zero_point"] = rng.randint(-128, 127)
        f["pool_bias"] = rng.choice((0, rng.randint(-2000, 2000), rng.randrange(-(1 << 31), 1 << 31)))
        f |= _clamp(rng, "sum_minimum", "sum_maximum") | _clamp(rng, "pool_minimum", "pool_maximum")
        self._append(Opcode.RESCALE, **f)
        self.rescaled = True

    def _store_output(self, c: Command, blocks: int) -> None:
        """Store what an OUTPUT wrote: a piece of it, or all from the first to the last vector."""
        n = self.n
        last = (
            (c.out_height - 1) * c.y_stride + (c.out_width - 1) * c.x_stride + (blocks - 1) * c.block_stride
        )
        nbytes = min((last + 1) * n, 4096)
        first, end = self.place["written"]
        address = _address(self.rng, first, end - nbytes, 1)
        self._append(Opcode.STORE, local_address=c.output, row_bytes=nbytes, address=address)

    def _tile(self) -> None:
        """A tile: CONVs, with what they need, and OUTPUT."""
        rng = self.rng
        mark, notes, known = len(self.commands), len(self.notes), self.weights_known.copy()
        data_end, rescaled = self.data_end, self.rescaled
        parts = rng.choice((1, 1, 1, 2, 3))
        fixed = {"first": 1, "last": int(parts == 1)} | ({"out_blocks": 1} if parts > 1 else {})
        fine = self._conv(fixed)
        if fine and parts > 1:
            tile = self.checker.tile
            assert tile is not None
            size = {"out_height": tile.height, "out_width": tile.width, "out_blocks": 1, "first": 0}
            for part in range(1, parts):
                if rng.random() < 0.3:
                    self._transfer()
                fine = fine and self._conv(size | {"last": int(part == parts - 1)})
        if rng.random() < 0.3:
            self._transfer()
        if not fine or not self._output():
            del self.commands[mark:]
            del self.notes[notes:]
            self.checker.tile, self.weights_known, self.rescaled = None, known, rescaled
            self.data_end = data_end

    def _move_ahead(self) -> None:
        """Let LOADs go ahead of earlier commands that they have nothing to do with: for more overlap."""
        touched, shape = [], (0, 0, 0)
        for c in self.commands:
            if c.opcode is Opcode.CONV:
                shape = (c.out_blocks, c.out_height, c.out_width)
            touched.append(accesses(c, self.config, shape))
        for i in range(1, len(self.commands)):
            steps = self.rng.choice((0, 0, 3, 10))
            while steps and i and unit_of(self.commands[i]) is Unit.LOAD:
                if unit_of(self.commands[i - 1]) is Unit.LOAD:
                    break
                if any(overlap(a, b) for a in touched[i] for b in touched[i - 1] if a.writes or b.writes):
                    break
                self.commands[i - 1], self.commands[i] = self.commands[i], self.commands[i - 1]
                touched[i - 1], touched[i] = touched[i], touched[i - 1]
                i -= 1
                steps -= 1

    def program(self, size: int) -> RandomProgram | None:
        """None where the order that is needed lets a tile and its OUTPUT wait for each other."""
        rng = self.rng
        self._fill_scratchpad()
        for _ in range(size):
            if len(self.commands) > _PROGRAM_BYTES // 64 // 2:
                break  # leave room for SYNCs
            while rng.random() < 0.3:
                self._transfer()
            self._tile()
        for _ in range(rng.randint(1, 3)):
            self._transfer()
        nbytes = min((self.high - self.low) * self.n, 4096)
        first, end = self.place["written"]
        address = _address(rng, first, end - nbytes, 1)
        self._append(
            Opcode.STORE, local_address=self.high * self.n - nbytes, row_bytes=nbytes, address=address
        )
        self._move_ahead()
        style = rng.choice(
            (
                OrderingStyle(serial=True),
                OrderingStyle(),
                OrderingStyle(implied=True),
                OrderingStyle(extra=0.2, syncs=0.3, counts=0.3, spare=0.2),
                OrderingStyle(syncs=1.0, counts=1.0, implied=True),
            )
        )
        self.commands.append(Command(Opcode.END))
        commands = add_semaphores(self.commands, self.config, rng, style)
        # Too many SYNCs; or a tile that is larger than the output buffer, with more order than it bears.
        if len(commands) > _PROGRAM_BYTES // 64 or lint(commands, self.config):
            style = OrderingStyle()
            commands = add_semaphores(self.commands, self.config, rng, style)
            if lint(commands, self.config):
                return None
        raw = encode(commands)
        if len(raw) > _PROGRAM_BYTES:
            most = _PROGRAM_BYTES // 64
            raise ValueError(f"size {size} gives {len(commands)} commands, and there is room for {most}")
        extra = rng.choice((0, 0, 64, 256))  # what lies behind END is not read as commands
        nbytes = min(len(raw) + extra, _PROGRAM_BYTES)
        # At the end of its place, so that the window ends right behind the program in half of the cases.
        address = self.place["program"][0] + rng.choice((0, _PROGRAM_BYTES - nbytes))
        self.memory[address : address + len(raw)] = np.frombuffer(raw, np.uint8)
        how = "serial" if style.serial else "overlapped"
        return RandomProgram(
            self.config,
            tuple(commands),
            address,
            nbytes,
            self.memory,
            self.read_window,
            self.write_window,
            f"{len(commands)} commands, {how}: {', '.join(self.notes) or 'transfers only'}",
        )


def _small(rng: random.Random, high: int) -> int:
    """1 to `high`, often 1."""
    return rng.choice((1, rng.randint(1, high), rng.randint(1, high)))


def _address(rng: random.Random, first: int, last: int, align: int) -> int:
    """An address in [first, last]: anywhere, at an end, or just before a 4096-byte boundary."""
    choices = [first, last, rng.randint(first, last)]
    boundary = rng.randint(first, last) // 4096 * 4096 + 4096 - rng.randrange(33)
    if first <= boundary <= last:
        choices.append(boundary)
    address = rng.choice(choices) // align * align
    return address if address >= first else -(-first // align) * align


def _tile_shape(rng: random.Random, most: int) -> tuple[int, int]:
    """Height and width of a tile of at most `most` positions: tiny, flat, any, or as large as it gets."""
    kind = rng.randrange(6)
    if kind == 0:
        return 1, 1
    if kind == 1:
        return rng.choice(((1, rng.randint(1, most)), (rng.randint(1, most), 1)))
    if kind == 2:
        height = 2 ** rng.randrange(most.bit_length())
        return height, max(1, most // height)
    width = rng.randint(1, min(12, most))
    return rng.randint(1, min(8, most // width)), width


def _strides(
    rng: random.Random, names: tuple[str, ...], counts: tuple[int, ...], natural: tuple[int, ...], room: int
) -> dict[str, int]:
    """Strides in vectors with which the last vector is at most `room` behind the first."""
    span = sum((count - 1) * stride for count, stride in zip(counts, natural, strict=True))
    if span <= room and rng.random() < 0.6:
        return dict(zip(names, natural, strict=True))
    out = {}
    for name, count in sorted(zip(names, counts, strict=True), key=lambda item: rng.random()):
        most = room // (count - 1) if count > 1 else 1000
        out[name] = rng.choice((rng.randint(0, most), rng.randint(0, min(most, 12)), most))
        room -= (count - 1) * out[name]
    return out


def _multiplier(rng: random.Random) -> int:
    return rng.choice((rng.randrange(1 << 30, 1 << 31), rng.randrange(1 << 31), (1 << 31) - 1, 1 << 30))


def _shift(rng: random.Random) -> int:
    return rng.choice((rng.randint(-12, -4), rng.randint(-12, -4), rng.randint(-31, 30), -31, 30, 0, -1, 1))


def _clamp(rng: random.Random, low: str, high: str) -> dict[str, int]:
    if rng.random() < 0.6:
        return {}
    a, b = sorted((rng.randint(-128, 127), rng.randint(-128, 127)))
    return {low: a, high: rng.choice((a, b, 127))}
