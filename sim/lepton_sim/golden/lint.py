"""Is a program's result independent of timing? The rules of docs/architecture.md, section "Four units"."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lepton_hw.config import SEMAPHORES, NPUConfig
from lepton_hw.isa import (
    COMMAND_BYTES,
    Checker,
    Command,
    CommandError,
    Opcode,
    Unit,
    decode,
    unit_of,
)

from .accesses import Access, accesses, feeds_itself, tile_shapes
from .executor import SEMAPHORE_MAX

__all__ = ["Conflict", "conflicts", "lint"]

Index = NDArray[np.int64]
_UNITS = len(Unit)
_NEVER = -1


def lint(program: bytes | list[Command], config: NPUConfig) -> list[str]:
    """What makes a program wrong or its result dependent on timing; empty for a good program.

    Reported are:

    * the first command that the control unit would refuse (windows are taken as open);
    * waits that the posts of earlier commands do not satisfy;
    * a semaphore on which two units wait, or that may go past 255;
    * a command between a CONV and its OUTPUT, or that OUTPUT, that waits for the end of the CONV or comes
      behind it in its unit, where the tile is larger than the output buffer;
    * commands of different units that touch the same bytes, at least one writing, without an order;
    * an OUTPUT that reads residuals which it has written itself.

    Order comes from semaphores: a wait is known to follow a post if without that post (and those that follow
    it in its unit) the count could not be reached. Besides, an OUTPUT writes only when the CONVs before the
    last one of its tile have read, and is done only after that one too. Bytes are exact: those that a command
    touches, not the rectangle around them.

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
    problems += _stuck(commands, config)
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
    `write[i, u]`: the last one that is done before command i writes.
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
        self.write = self.start.copy()
        self.done = self.start.copy()
        # For semaphores of one poster each: the posts' running total and their commands.
        self.totals = {
            semaphore: (np.cumsum([count for _, count in its]), [post for post, _ in its])
            for semaphore, by_unit in self.posts.items()
            if len(by_unit) == 1
            for its in by_unit.values()
        }
        self._round()
        # Each round knows more posts that must come after a wait, and so cannot have satisfied it.
        while len(self.totals) < len(self.posts):
            before = self.start.copy()
            self._round()
            if np.array_equal(before, self.start):
                break

    def follows(self, later: int, earlier: int, writes: bool = False) -> bool:
        """Is a command surely done before one of another unit starts, or (`writes`) before it writes?"""
        unit = self.unit[earlier]
        clock = self.write if writes else self.start
        return unit is not None and bool(clock[later, unit] >= self.number[earlier])

    def _round(self) -> None:
        known = self.start.copy()
        waited: dict[int, int] = defaultdict(int)
        latest = np.full((_UNITS, _UNITS), _NEVER)  # clocks of each unit's last command, at its start
        finished = np.full((_UNITS, _UNITS), _NEVER)  # and when it was done
        before_sums = finished[Unit.COMPUTE].copy()  # what is done when the last CONV of a tile begins
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
            self.start[index], self.write[index], self.done[index] = start, start, done
            if c.opcode is Opcode.CONV:
                before_sums = np.maximum(start, finished[Unit.COMPUTE])
            elif c.opcode is Opcode.OUTPUT:
                self.write[index] = np.maximum(start, before_sums)  # it writes what that CONV has summed
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
        if semaphore in self.totals:
            sums, commands = self.totals[semaphore]
            return [commands[int(np.searchsorted(sums, total))]]
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


@dataclass(frozen=True)
class Conflict:
    """Two commands of different units that touch the same byte, at least one writing.

    Attributes:
        earlier, later: their places in the program.
        memory, byte: one of the bytes.
        earlier_writes, later_writes: what they do with it.
    """

    earlier: int
    later: int
    memory: str
    byte: int
    earlier_writes: bool
    later_writes: bool


def conflicts(commands: list[Command], config: NPUConfig) -> list[Conflict]:
    """For each command and each other unit, the last earlier command that it must not overtake.

    There are up to two for each memory: the last one that reads and the last one that writes.

    Args:
        commands: correct ones (see `Checker`).
        config: the NPU's configuration.
    """
    found = []
    touched = [accesses(c, config, tile) for c, tile in zip(commands, tile_shapes(commands), strict=True)]
    units = [unit_of(c) for c in commands]
    for memory in sorted({a.memory for its in touched for a in its}):
        places = [(i, a) for i, its in enumerate(touched) for a in its if a.memory == memory]
        cuts = np.unique(np.concatenate([np.r_[a.starts, a.ends] for _, a in places]))
        # Of each piece between two cuts, the last command of each unit that read or wrote it.
        last = {writes: np.full((_UNITS, len(cuts)), _NEVER) for writes in (False, True)}
        marks: list[tuple[bool, int, Index, int]] = []
        for place, (index, access) in enumerate(places):
            pieces = _pieces(cuts, access)
            for other in Unit:
                for writes in (True, False) if access.writes else (True,):
                    seen = last[writes][other, pieces]
                    if other != units[index] and len(seen) and seen.max() != _NEVER:
                        at = int(seen.argmax())
                        byte = int(cuts[pieces[at]])
                        found.append(Conflict(int(seen[at]), index, memory, byte, writes, access.writes))
            unit = units[index]
            assert unit is not None
            marks.append((access.writes, int(unit), pieces, index))
            if place + 1 == len(places) or places[place + 1][0] != index:
                for its_writes, its_unit, its_pieces, its_index in marks:
                    last[its_writes][its_unit, its_pieces] = its_index
                marks.clear()
    return found


def _races(commands: list[Command], config: NPUConfig, order: _Order) -> list[str]:
    problems = []
    for c in conflicts(commands, config):
        if order.follows(c.later, c.earlier, c.later_writes):
            continue
        problems.append(
            f"command {c.later} ({commands[c.later].opcode.name}) {_verb(c.later_writes)} {c.memory} byte "
            f"{c.byte:#x} without waiting for command {c.earlier} ({commands[c.earlier].opcode.name}), which "
            f"{_verb(c.earlier_writes)} it"
        )
    for index, (command, tile) in enumerate(zip(commands, tile_shapes(commands), strict=True)):
        if command.opcode is Opcode.OUTPUT and command.residual and feeds_itself(command, config, tile):
            problems.append(f"command {index} (OUTPUT) reads residuals that it has written itself")
    return problems


def _stuck(commands: list[Command], config: NPUConfig) -> list[str]:
    """Commands up to an OUTPUT that wait for the end of its CONV, where its sums overfill the output buffer.

    That CONV ends when OUTPUT has taken some sums. Commands are dispatched in program order and queues are
    short: one that waits for the CONV, or behind it in its unit, can keep OUTPUT from its queue.
    """
    problems: list[str] = []
    shapes = tile_shapes(commands)
    ends = [index for index, c in enumerate(commands) if c.opcode is Opcode.OUTPUT]
    held = [0] * SEMAPHORES
    withheld = [0] * SEMAPHORES  # what the CONV will post
    conv: int | None = None  # the last one, if it is such a CONV and OUTPUT has not come
    for index, c in enumerate(commands):
        for semaphore, count in _operations(c, "wait"):
            held[semaphore] -= count
        if conv is not None:
            lacks = any(held[semaphore] < withheld[semaphore] for semaphore, _ in _operations(c, "wait"))
            if lacks or unit_of(c) is Unit.COMPUTE:
                end = next(i for i in ends if i > conv)
                blocks, height, width = shapes[end]
                problems.append(
                    f"command {index} ({c.opcode.name}) waits until command {conv} (CONV) is done, and that "
                    f"cannot be before command {end} (OUTPUT) takes some of its {blocks} * {height} * "
                    f"{width} sums: the output buffer holds {config.output_depth}"
                )
                conv = None
        if c.opcode is Opcode.CONV:
            large = c.out_blocks * c.out_height * c.out_width > config.output_depth
            conv, withheld = index if large else None, [0] * SEMAPHORES
        elif c.opcode is Opcode.OUTPUT:
            conv = None
        for semaphore, count in _operations(c, "post"):
            held[semaphore] += count
            if index == conv:
                withheld[semaphore] += count
    return problems


def _verb(writes: bool) -> str:
    return "writes" if writes else "reads"


def _pieces(cuts: Index, access: Access) -> Index:
    """Numbers of the pieces between cuts that an access covers."""
    first, last = np.searchsorted(cuts, access.starts), np.searchsorted(cuts, access.ends)
    lengths = last - first
    within = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    return np.repeat(first, lengths) + within
