"""Is a program's result independent of timing? The rules of docs/architecture.md, section "Four units"."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lepton_hw.config import SEMAPHORES, NPUConfig
from lepton_hw.isa import (
    COMMAND_BYTES,
    PARAMETER_ROWS,
    PARAMETER_ROWS_PER_TENSOR,
    Checker,
    Command,
    CommandError,
    Mode,
    Opcode,
    PoolMode,
    Target,
    Unit,
    decode,
    unit_of,
)

from .executor import SEMAPHORE_MAX
from .geometry import grid_vectors, pass_count, patch_lanes, rows_samples, vector_taps, weight_vectors

__all__ = ["lint"]

Index = NDArray[np.int64]
_UNITS = len(Unit)
_PASSES_AT_ONCE = 64
_NEVER = -1


@dataclass(frozen=True)
class _Access:
    """Bytes of one memory that a command reads or writes: sorted starts and ends of runs of bytes."""

    memory: str
    writes: bool
    starts: Index
    ends: Index


def lint(program: bytes | list[Command], config: NPUConfig) -> list[str]:
    """What makes a program wrong or its result dependent on timing; empty for a good program.

    Reported are: the first command that the control unit would refuse (windows are taken as open); waits that
    the posts of earlier commands do not satisfy; a semaphore on which two units wait; a semaphore that may go
    past 255; commands of different units that touch the same bytes, at least one writing, without an order;
    an OUTPUT that reads residuals which it has written itself.

    Order comes from semaphores: a wait is known to follow a post if without that post (and those that follow
    it in its unit) the count could not be reached. Besides, an OUTPUT is done only after the CONVs of its
    tile. Bytes are exact: those that a command touches, not the rectangle around them.

    Args:
        program: 64-byte commands, or the commands themselves.
        config: the NPU's configuration.
    """
    commands, problems = _decoded(program, config)
    problems += _semaphore_rules(commands)
    if problems:
        return problems  # without a way to run it, there is no order to speak of
    order = _Order(commands)
    problems += order.overflows()
    problems += _races(commands, config, order)
    return problems


def _decoded(program: bytes | list[Command], config: NPUConfig) -> tuple[list[Command], list[str]]:
    """The commands up to END, and what the control unit would refuse."""
    checker = Checker(config)
    commands: list[Command] = []
    if not isinstance(program, list):
        if len(program) % COMMAND_BYTES:
            return [], [f"the program has {len(program)} bytes, not a multiple of {COMMAND_BYTES}"]
        parts = [decode(program[i : i + COMMAND_BYTES]) for i in range(0, len(program), COMMAND_BYTES)]
    else:
        parts = list(program)
    for index, command in enumerate(parts):
        error = command if isinstance(command, CommandError) else checker.check(command)
        if error is not None:
            return commands, [f"command {index}: {error.message}"]
        assert isinstance(command, Command)
        commands.append(command)
        if command.opcode is Opcode.END:
            return commands, []
    return commands, [f"the program's {len(commands)} commands hold no END"]


def _operations(c: Command, kind: str) -> list[tuple[int, int]]:
    """(semaphore, count) of a command's waits or posts."""
    if c.opcode is Opcode.END:
        return []
    both = ((c.values[f"{kind}{i}_semaphore"], c.values[f"{kind}{i}_count"]) for i in range(2))
    return [(semaphore, count) for semaphore, count in both if count]


def _semaphore_rules(commands: list[Command]) -> list[str]:
    problems = []
    held = [0] * SEMAPHORES
    waiters: dict[int, tuple[Unit, int]] = {}
    for index, c in enumerate(commands):
        unit = unit_of(c)
        for semaphore, count in _operations(c, "wait"):
            assert unit is not None
            if held[semaphore] < count:
                problems.append(
                    f"command {index} ({c.opcode.name}) waits for {count} of semaphore {semaphore}, and "
                    f"earlier commands leave {held[semaphore]} there"
                )
            held[semaphore] = max(0, held[semaphore] - count)
            first = waiters.setdefault(semaphore, (unit, index))
            if first[0] is not unit:
                problems.append(
                    f"command {index} of {unit.name} waits on semaphore {semaphore}, and so does command "
                    f"{first[1]} of {first[0].name}: only one unit may"
                )
        for semaphore, count in _operations(c, "post"):
            held[semaphore] += count
    return problems


class _Order:
    """Which commands are surely done before which others start: a vector clock a command.

    Commands are numbered within their unit from 0. `start[i, u]`: the last command of unit u that is done
    before command i starts; `done[i, u]`: the last one that is done when i is done. -1: none.
    """

    def __init__(self, commands: list[Command]) -> None:
        self.commands = commands
        self.unit = [unit_of(c) for c in commands]
        self.number: list[int] = []
        counts = [0] * _UNITS
        for unit in self.unit:
            self.number.append(counts[unit] if unit is not None else 0)
            if unit is not None:
                counts[unit] += 1
        # Posts and their commands, by semaphore and unit, in program order.
        self.posts: dict[int, dict[int, list[tuple[int, int]]]] = defaultdict(lambda: defaultdict(list))
        for index, c in enumerate(commands):
            for semaphore, count in _operations(c, "post"):
                self.posts[semaphore][int(self.unit[index])].append((index, count))  # type: ignore[arg-type]
        self.start = np.full((len(commands), _UNITS), _NEVER)
        self.done = self.start.copy()
        # Each round knows more posts that must come after a wait, and so cannot have satisfied it.
        while True:
            before = self.start.copy()
            self._round()
            if np.array_equal(before, self.start):
                break

    def index(self, unit: Unit, number: int) -> int:
        """The place in the program of a unit's command."""
        places = (i for i, its in enumerate(self.unit) if its is unit and self.number[i] == number)
        return next(places)

    def _round(self) -> None:
        known = self.start.copy()
        waited: dict[int, int] = defaultdict(int)
        latest = np.full((_UNITS, _UNITS), _NEVER)  # clocks of each unit's last command, at its start
        finished = np.full((_UNITS, _UNITS), _NEVER)  # and when it was done
        for index, c in enumerate(self.commands):
            unit = self.unit[index]
            if unit is None:
                continue
            start = latest[unit].copy()
            for semaphore, count in _operations(c, "wait"):
                waited[semaphore] += count
                for needed in self._needed(index, semaphore, waited[semaphore], known):
                    start = np.maximum(start, self.done[needed])
            done = np.maximum(start, finished[unit])
            done[unit] = self.number[index]
            if c.opcode is Opcode.OUTPUT:
                # Its last sums come from the last reads of its CONVs.
                done = np.maximum(done, finished[Unit.COMPUTE])
            self.start[index], self.done[index] = start, done
            latest[unit], finished[unit] = start, done

    def _needed(self, index: int, semaphore: int, total: int, known: Index) -> list[int]:
        """For each unit, the last command whose post a wait cannot do without.

        Args:
            index: the command that waits.
            total: what the waits on the semaphore up to this one take.
            known: start clocks of the round before.
        """
        unit = self.unit[index]
        assert unit is not None
        possible = {
            poster: [
                (post, count)
                for post, count in its
                # not those that come after this command anyway
                if not (poster == unit and post >= index) and known[post, unit] < self.number[index]
            ]
            for poster, its in self.posts[semaphore].items()
        }
        everything = sum(count for its in possible.values() for _, count in its)
        needed = []
        for its in possible.values():
            missing = total - (everything - sum(count for _, count in its))  # what this unit must bring
            last = None
            for post, count in its:
                if missing <= 0:
                    break
                missing -= count
                last = post
            if last is not None:
                needed.append(last)
        return needed

    def overflows(self) -> list[str]:
        """Semaphores that the posts that may have been made by then can take past the maximum."""
        problems = []
        number = np.array(self.number)
        units = np.array([_NEVER if unit is None else unit for unit in self.unit])
        for semaphore, by_unit in sorted(self.posts.items()):
            posts = np.array([post for its in by_unit.values() for post in its])  # [posts, (command, count)]
            if posts[:, 1].sum() <= SEMAPHORE_MAX:
                continue
            waits = [
                (index, count)
                for index, c in enumerate(self.commands)
                for its, count in _operations(c, "wait")
                if its == semaphore
            ]
            taken = np.array(waits or [(0, 0)])
            for index in np.unique(posts[:, 0]).tolist():
                unit = units[index]
                late = np.where(
                    units[posts[:, 0]] == unit,
                    posts[:, 0] > index,
                    self.start[posts[:, 0], unit] >= number[index],
                )
                started = np.where(
                    units[taken[:, 0]] == unit,
                    taken[:, 0] <= index,
                    self.done[index, units[taken[:, 0]]] >= number[taken[:, 0]],
                )
                most = posts[~late, 1].sum() - taken[started, 1].sum()
                if most > SEMAPHORE_MAX:
                    problems.append(
                        f"semaphore {semaphore} may reach {most} when command {index} "
                        f"({self.commands[index].opcode.name}) posts; the most it can hold is {SEMAPHORE_MAX}"
                    )
                    break
        return problems


def _races(commands: list[Command], config: NPUConfig, order: _Order) -> list[str]:
    """Pairs of commands of different units that touch the same bytes in no order."""
    problems = []
    accesses = [_accesses(c, config, tile) for c, tile in zip(commands, _tiles(commands), strict=True)]
    for name in sorted({a.memory for its in accesses for a in its}):
        cuts = np.unique(
            np.concatenate([np.r_[a.starts, a.ends] for its in accesses for a in its if a.memory == name])
        )
        # Of each piece between two cuts, the number of each unit's last command that read or wrote it.
        last = {writes: np.full((_UNITS, len(cuts)), _NEVER) for writes in (False, True)}
        for index, its in enumerate(accesses):
            unit = order.unit[index]
            for access in its:
                if access.memory != name:
                    continue
                pieces = _pieces(cuts, access)
                for other in Unit:
                    if other == unit:
                        continue
                    for writes in (True, False) if access.writes else (True,):
                        seen = last[writes][other, pieces]
                        late = seen > order.start[index, other]
                        if late.any():
                            earlier = order.index(other, int(seen[late][0]))
                            problems.append(
                                f"command {index} ({commands[index].opcode.name}) "
                                f"{_verb(access.writes)} {name} "
                                f"byte {int(cuts[pieces[late][0]]):#x} without waiting for command {earlier} "
                                f"({commands[earlier].opcode.name}), which {_verb(writes)} it"
                            )
                            break
            for access in its:
                if access.memory == name and unit is not None:
                    last[access.writes][unit, _pieces(cuts, access)] = order.number[index]
    for index, (c, tile) in enumerate(zip(commands, _tiles(commands), strict=True)):
        if c.opcode is Opcode.OUTPUT and c.residual and _feeds_itself(c, config, tile):
            problems.append(f"command {index} (OUTPUT) reads residuals that it has written itself")
    return problems


def _verb(writes: bool) -> str:
    return "writes" if writes else "reads"


def _pieces(cuts: Index, access: _Access) -> Index:
    """Numbers of the pieces between cuts that an access covers."""
    first, last = np.searchsorted(cuts, access.starts), np.searchsorted(cuts, access.ends)
    lengths = last - first
    within = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    return np.repeat(first, lengths) + within


def _tiles(commands: list[Command]) -> list[tuple[int, int, int]]:
    """For each command, (blocks, height, width) of the tile that its OUTPUT takes; else zeros."""
    tiles, tile = [], (0, 0, 0)
    for c in commands:
        if c.opcode is Opcode.CONV:
            tile = (c.out_blocks, c.out_height, c.out_width)
        tiles.append(tile)
    return tiles


def _runs(memory: str, writes: bool, starts: Index, length: int) -> _Access:
    """Runs of `length` bytes, joined where they meet or overlap."""
    starts = np.unique(starts)
    ends = starts + length
    if len(starts) > 1:
        gap = starts[1:] > ends[:-1]
        starts, ends = starts[np.r_[True, gap]], ends[np.r_[gap, True]]
    return _Access(memory, writes, starts, ends)


def _accesses(c: Command, config: NPUConfig, tile: tuple[int, int, int]) -> list[_Access]:
    """Every byte a command touches."""
    n = config.array_size
    if c.opcode in (Opcode.LOAD, Opcode.FILL, Opcode.STORE):
        rows = np.arange(c.rows)
        local = c.local_address + rows * c.local_stride
        memory = Target(c.target).name.lower() if c.opcode is Opcode.LOAD else "scratchpad"
        out = [_runs(memory, c.opcode is not Opcode.STORE, local, c.row_bytes)]
        if c.opcode is not Opcode.FILL:
            writes = c.opcode is Opcode.STORE
            out.append(_runs("external memory", writes, c.address + rows * c.stride, c.row_bytes))
        return out
    if c.opcode is Opcode.CONV:
        return [
            _runs("scratchpad", False, _conv_bytes(c, config), 1 if c.mode == Mode.PATCH else n),
            _runs("weights", False, _conv_weights(c, config) * n, n),
        ]
    if c.opcode is Opcode.OUTPUT:
        per_block = PARAMETER_ROWS_PER_TENSOR if c.per_tensor else PARAMETER_ROWS
        vectors = c.parameters + np.arange(tile[0] * per_block)
        out = [
            _runs("parameters", False, vectors * n, n),
            _runs("scratchpad", True, _written(c, config, tile).reshape(-1) * n, n),
        ]
        if c.residual:
            out.append(_runs("scratchpad", False, _residuals(c, config, tile).reshape(-1) * n, n))
        return out
    return []


def _conv_bytes(c: Command, config: NPUConfig) -> Index:
    """First bytes of the vectors (PATCH: the bytes) that a CONV reads in the scratchpad."""
    n, size = config.array_size, config.scratchpad_bytes
    total, found = pass_count(c), []
    for first in range(0, total, _PASSES_AT_ONCE):
        passes = np.arange(first, min(first + _PASSES_AT_ONCE, total))
        if c.mode == Mode.PATCH:
            lanes = patch_lanes(c, config, passes)
            read = np.broadcast_to(lanes.inside & lanes.used, lanes.address.shape)
            address = lanes.address[read]
        elif c.mode == Mode.ROWS:
            samples = np.arange(c.kernel_width - 1 - c.valid_from + c.out_height * c.row_samples)
            vectors, read = rows_samples(c, config, passes, samples)
            address = vectors[read] * n
        else:
            vectors, read = vector_taps(c, config, passes)
            address = vectors[read] * n
        found.append(np.unique(address))
    address = np.unique(np.concatenate(found))
    blocks = np.arange(c.out_blocks if c.out_block_stride else 1) * c.out_block_stride * n
    return (address + blocks[:, None]).reshape(-1) % size


def _conv_weights(c: Command, config: NPUConfig) -> Index:
    """Vectors of the weight memory that a CONV reads."""
    total = pass_count(c) * (1 if c.restart_weights else c.out_blocks)
    if total * config.array_size >= config.weight_vectors:
        return np.arange(config.weight_vectors)
    return weight_vectors(c, config, 0, np.arange(total)).reshape(-1)


def _written(c: Command, config: NPUConfig, tile: tuple[int, int, int]) -> Index:
    """Vectors that an OUTPUT writes, [blocks, out_height, out_width]."""
    strides = (c.block_stride, c.y_stride, c.x_stride)
    return grid_vectors(c.output, config, strides, (tile[0], c.out_height, c.out_width))


def _residuals(c: Command, config: NPUConfig, tile: tuple[int, int, int]) -> Index:
    """Vectors that an OUTPUT may read as residuals, [blocks, tile height, tile width]."""
    strides = (c.residual_block_stride, c.residual_y_stride, c.residual_x_stride)
    return grid_vectors(c.residual_input, config, strides, tile)


def _feeds_itself(c: Command, config: NPUConfig, tile: tuple[int, int, int]) -> bool:
    """Does an OUTPUT read a residual from where one of its earlier outputs was written?"""
    _, height, width = tile
    written, read = _written(c, config, tile), _residuals(c, config, tile)
    outputs = np.arange(written.size).reshape(written.shape)
    # The last output whose window holds a tile position; pooling NONE has windows of one position.
    stride_y, stride_x = (1, 1) if c.pool_mode == PoolMode.NONE else (c.pool_stride_y, c.pool_stride_x)
    oy = np.minimum((np.arange(height) - c.pool_y_start) // stride_y, c.out_height - 1)
    ox = np.minimum((np.arange(width) - c.pool_x_start) // stride_x, c.out_width - 1)
    last = outputs[:, np.maximum(oy, 0)][:, :, np.maximum(ox, 0)]
    first_written = np.full(config.scratchpad_vectors, written.size)
    np.minimum.at(first_written, written.reshape(-1), outputs.reshape(-1))
    return bool((first_written[read] < last).any())
