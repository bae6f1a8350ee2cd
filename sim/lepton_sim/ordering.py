"""Gives the commands of a program the semaphores that keep them in order.

The input is commands in program order without waits and posts. Where two commands of different units touch
the same bytes, the later is made to wait for the earlier; all else may overlap.
"""

from __future__ import annotations

import random
from collections import defaultdict
from dataclasses import dataclass, field

from lepton_hw.config import SEMAPHORES, NPUConfig
from lepton_hw.isa import Command, Opcode, Unit, unit_of

from .golden.lint import conflicts

__all__ = ["OrderingStyle", "add_semaphores"]

_MOST = 15  # that one operation can wait for or post
_HELD = 255  # that a semaphore can hold


@dataclass(frozen=True)
class OrderingStyle:
    """How much order there is besides what is needed, and how it looks.

    Attributes:
        serial: every command waits for the one before: nothing overlaps.
        extra: probability that a command waits for some earlier command of another unit for no reason.
        syncs: probability that a wait or post goes into a SYNC of its own.
        counts: probability that a semaphore is posted and taken by more than one.
        spare: probability that a command posts to a semaphore on which nobody waits.
        implied: rely on the order that comes with the sums: an OUTPUT writes only after its tile's last CONV
            has begun, so it need not wait for CONVs before that.
    """

    serial: bool = False
    extra: float = 0.0
    syncs: float = 0.0
    counts: float = 0.0
    spare: float = 0.0
    implied: bool = False


@dataclass
class _Operations:
    waits: list[tuple[int, int]] = field(default_factory=list)
    posts: list[tuple[int, int]] = field(default_factory=list)


def add_semaphores(
    commands: list[Command], config: NPUConfig, rng: random.Random, style: OrderingStyle
) -> list[Command]:
    """The commands with waits and posts, and SYNCs among them where two of each do not suffice.

    Semaphores are used between one pair of units each, so only one unit waits on any. The n-th wait on one
    then takes what the n-th post gave: waits of a unit follow one another in program order, and a wait that
    an earlier one implies is left out.

    Raises:
        ValueError: a command has waits or posts already.
    """
    for c in commands:
        if c.opcode is not Opcode.END and any(
            c.values[f"{k}{i}_count"] for k in ("wait", "post") for i in (0, 1)
        ):
            raise ValueError(f"{c} has waits or posts already")
    operations = [_Operations() for _ in commands]
    semaphores = _share_out(rng)
    units = [unit_of(c) for c in commands]
    due: dict[int, dict[Unit, int]] = defaultdict(dict)  # later command: unit: command it waits for
    last_conv = _last_convs(commands)
    for conflict in conflicts(commands, config):
        unit = units[conflict.earlier]
        assert unit is not None
        before_sums = unit is Unit.COMPUTE and conflict.earlier < last_conv.get(conflict.later, 0)
        if style.implied and conflict.later_writes and before_sums:
            continue
        due[conflict.later][unit] = max(conflict.earlier, due[conflict.later].get(unit, -1))
    given = [0] * SEMAPHORES
    known: dict[tuple[Unit, Unit], int] = defaultdict(lambda: -1)
    for index, unit in enumerate(units):
        if unit is None:
            continue
        wanted = due[index]
        for other in Unit:
            before = [i for i in range(index) if units[i] is other] if other is not unit else []
            if not before:
                continue
            if style.serial and units[index - 1] is other:
                wanted[other] = index - 1
            elif rng.random() < style.extra:
                wanted[other] = max(wanted.get(other, -1), rng.choice(before))
        for other, earlier in sorted(wanted.items(), key=lambda item: rng.random()):
            if earlier <= known[other, unit]:
                continue
            known[other, unit] = earlier
            semaphore = rng.choice(semaphores[other, unit])
            count = rng.randint(1, _MOST) if rng.random() < style.counts else 1
            count = count if given[semaphore] + count <= _HELD // 2 else 1
            given[semaphore] += count
            operations[index].waits.append((semaphore, count))
            operations[earlier].posts.append((semaphore, count))
        unused = semaphores[unit, unit]
        if rng.random() < style.spare and unused:
            semaphore = rng.choice(unused)
            if given[semaphore] < _HELD - _MOST:
                count = rng.randint(1, _MOST)
                given[semaphore] += count
                operations[index].posts.append((semaphore, count))
    out = []
    for c, unit, its in zip(commands, units, operations, strict=True):
        out += _emit(c, unit, its, rng, style)
    return out


def _last_convs(commands: list[Command]) -> dict[int, int]:
    """For each OUTPUT the last CONV of its tile."""
    out, conv = {}, 0
    for index, c in enumerate(commands):
        if c.opcode is Opcode.CONV:
            conv = index
        elif c.opcode is Opcode.OUTPUT:
            out[index] = conv
    return out


def _share_out(rng: random.Random) -> dict[tuple[Unit, Unit], list[int]]:
    """Semaphores for each (unit that posts, unit that waits); (u, u): on which nobody waits."""
    pairs = [(a, b) for a in Unit for b in Unit if a is not b]
    numbers = rng.sample(range(SEMAPHORES), SEMAPHORES)
    shares: dict[tuple[Unit, Unit], list[int]] = {(u, u): [] for u in Unit}
    for pair in pairs:
        shares[pair] = [numbers.pop()]
    while numbers:
        shares[rng.choice([*pairs, *((u, u) for u in Unit)])].append(numbers.pop())
    return shares


def _emit(
    c: Command, unit: Unit | None, its: _Operations, rng: random.Random, style: OrderingStyle
) -> list[Command]:
    if unit is None:
        return [c]

    def apart(operations: list[tuple[int, int]]) -> int:
        """How many go into SYNCs: those that find no place, and some more."""
        return max(len(operations) - 2, sum(rng.random() < style.syncs for _ in operations))

    def with_operations(command: Command, kind: str, operations: list[tuple[int, int]]) -> Command:
        values = {name: value for name, value in command.values.items() if name != "opcode"}
        for slot, (semaphore, count) in zip(rng.sample((0, 1), len(operations)), operations, strict=True):
            values |= {f"{kind}{slot}_semaphore": semaphore, f"{kind}{slot}_count": count}
        return Command(command.opcode, **values)

    def syncs(kind: str, operations: list[tuple[int, int]]) -> list[Command]:
        out = []
        while operations:
            size = rng.randint(1, min(2, len(operations)))
            out.append(with_operations(Command(Opcode.SYNC, unit=int(unit or 0)), kind, operations[:size]))
            operations = operations[size:]
        return out

    before, after = apart(its.waits), apart(its.posts)
    rng.shuffle(its.posts)
    middle = with_operations(c, "wait", its.waits[before:])
    # Posts that come after the command's own are those at the end: SYNCs post when all before them is done.
    middle = with_operations(middle, "post", its.posts[after:])
    return [*syncs("wait", its.waits[:before]), middle, *syncs("post", its.posts[:after])]
