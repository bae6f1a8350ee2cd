"""Synchronize: put the semaphores between commands that touch the same bytes.

The lowering says of each command which bytes it reads and writes. Two commands of different units
that touch the same bytes, at least one writing, must run in program order; one unit runs its own in
order anyway. An order that already follows from others is not enforced again (vector clocks).

There is one semaphore for each pair (unit that posts, unit that waits). A unit finishes its commands
in order, so tokens on such a semaphore are interchangeable: the k-th wait takes what the k-th post gave.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass, field

from lepton_hw.isa import Command, Opcode, Unit, unit_of

__all__ = ["Action", "Memory", "Region", "synchronize"]


class Memory(enum.Enum):
    """Where bytes are."""

    SCRATCHPAD = 0
    WEIGHTS = 1
    PARAMETERS = 2
    EXTERNAL = 3


@dataclass(frozen=True)
class Region:
    """Bytes [start, end) of a memory."""

    memory: Memory
    start: int
    end: int


@dataclass
class Action:
    """A command, what it touches, and the layer it belongs to."""

    command: Command
    reads: Sequence[Region] = ()
    writes: Sequence[Region] = ()
    layer: int = -1
    posts: list[int] = field(default_factory=list)
    waits: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class _Access:
    start: int
    end: int
    unit: Unit
    index: int  # within its unit
    writes: bool


def _semaphore(source: Unit, target: Unit) -> int:
    return 4 * source + target


def synchronize(actions: Sequence[Action]) -> list[Action]:
    """The same actions with waits and posts set, and SYNC commands where two of each do not do.

    CONV and the OUTPUT behind it are ordered by the hardware: what CONVs before that CONV read is
    read by the time OUTPUT writes.
    """
    by_unit: dict[Unit, list[Action]] = {unit: [] for unit in Unit}
    clock: dict[Unit, dict[Unit, int]] = {unit: dict.fromkeys(Unit, -1) for unit in Unit}
    complete: dict[tuple[Unit, int], dict[Unit, int]] = {}  # what is known when a command is done
    accesses: dict[Memory, list[_Access]] = {memory: [] for memory in Memory}
    tile_conv = -1

    for action in actions:
        unit = unit_of(action.command)
        assert unit is not None
        index = len(by_unit[unit])
        known = clock[unit]
        if action.command.opcode is Opcode.CONV:
            tile_conv = index
        # OUTPUT may read as soon as it is issued, but writes only once its tile is there
        known_at_write = dict(known)
        if action.command.opcode is Opcode.OUTPUT and tile_conv > 0:
            _learn(known_at_write, complete[Unit.COMPUTE, tile_conv - 1])

        needed: dict[Unit, int] = {}
        for writes, regions in ((False, action.reads), (True, action.writes)):
            for region in regions:
                for access in accesses[region.memory]:
                    if (
                        access.unit is not unit
                        and (writes or access.writes)
                        and access.start < region.end
                        and region.start < access.end
                        and access.index > (known_at_write if writes else known)[access.unit]
                    ):
                        needed[access.unit] = max(needed.get(access.unit, -1), access.index)
        for source in sorted(needed, key=lambda u: -needed[u]):
            position = needed[source]
            if position <= known[source]:
                continue  # followed from another one
            by_unit[source][position].posts.append(_semaphore(source, unit))
            action.waits.append(_semaphore(source, unit))
            _learn(known, complete[source, position])
            _learn(known_at_write, known)

        by_unit[unit].append(action)
        complete[unit, index] = known_at_write | {unit: index}
        for writes, regions in ((False, action.reads), (True, action.writes)):
            for region in regions:
                accesses[region.memory].append(_Access(region.start, region.end, unit, index, writes))
        if index % 16 == 15:
            _forget(accesses, clock)
    return [synced for action in actions for synced in _with_sync(action)]


def _learn(known: dict[Unit, int], more: dict[Unit, int]) -> None:
    for unit, index in more.items():
        known[unit] = max(known[unit], index)


def _forget(accesses: dict[Memory, list[_Access]], clock: dict[Unit, dict[Unit, int]]) -> None:
    """Drop accesses that every other unit knows to be over."""
    for memory, items in accesses.items():
        accesses[memory] = [
            a for a in items if any(clock[unit][a.unit] < a.index for unit in Unit if unit is not a.unit)
        ]


def _with_sync(action: Action) -> list[Action]:
    """The action's command with its semaphores, SYNCs around it for what does not fit."""
    unit = unit_of(action.command)
    assert unit is not None
    before, after = [], []
    waits, posts = list(action.waits), list(action.posts)
    while len(waits) > 2:
        before.append(_sync(unit, waits[:2], [], action.layer))
        waits = waits[2:]
    own = posts[:2]
    posts = posts[2:]
    while posts:
        after.append(_sync(unit, [], posts[:2], action.layer))
        posts = posts[2:]
    _set(action.command, waits, own)
    return [*before, action, *after]


def _sync(unit: Unit, waits: list[int], posts: list[int], layer: int) -> Action:
    command = Command(Opcode.SYNC, unit=unit)
    _set(command, waits, posts)
    return Action(command, layer=layer)


def _set(command: Command, waits: list[int], posts: list[int]) -> None:
    for slots, semaphores in ((("wait0", "wait1"), waits), (("post0", "post1"), posts)):
        for slot, semaphore in zip(slots, semaphores, strict=False):
            command.values[f"{slot}_semaphore"] = semaphore
            command.values[f"{slot}_count"] = 1
