"""Spoils correct programs, each in one way, and says what the NPU must answer."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from lepton_hw.config import SEMAPHORES
from lepton_hw.isa import (
    COMMAND_BYTES,
    COMMAND_WORDS,
    COMMANDS,
    Checker,
    Command,
    CommandError,
    ErrorCode,
    Extent,
    Mode,
    Opcode,
    Range,
    Require,
    Target,
    decode,
    encode,
    unit_of,
)

from .golden.executor import SEMAPHORE_MAX
from .random_program import RandomProgram, run_golden

__all__ = ["MUTATIONS", "Expectation", "mutate"]

_TRIES = 400


@dataclass(frozen=True)
class Expectation:
    """How a run must end.

    Attributes:
        code, command, info: what the error CSRs must hold.
        memory_exact: external memory after the run must be that of the golden model. Not so where units run
            on, or stop at once, when the error comes: then only the outside of the write window is sure.
    """

    code: ErrorCode
    command: int
    info: int
    memory_exact: bool


class _Unfit(Exception):
    """This program cannot be spoiled in this way."""


def mutate(
    rng: random.Random, program: RandomProgram, kind: str | None = None
) -> tuple[RandomProgram, Expectation]:
    """A copy of a correct program with one error in it, and what must come of it.

    Args:
        kind: one of `MUTATIONS`; by default a random one that fits the program.

    Raises:
        ValueError: an unknown kind, or one that does not fit the program (no STORE to spoil, say, or the
            error would keep OUTPUT from a tile that is larger than the output buffer).
    """
    if kind is not None and kind not in MUTATIONS:
        raise ValueError(f"kind must be one of {', '.join(MUTATIONS)}, not {kind!r}")
    kinds = [kind] if kind else rng.sample(list(MUTATIONS), len(MUTATIONS))
    for name in kinds:
        try:
            spoiled = MUTATIONS[name](rng, program)
        except _Unfit:
            continue
        spoiled = replace(spoiled, description=f"{name}: {program.description}")
        error = run_golden(spoiled)[0].error
        assert error is not None, f"{name} does no harm to {program.description}"
        if name in _TAKES_OUTPUT_AWAY and _stuck(spoiled, error.command):
            continue
        exact = name not in _INEXACT
        return spoiled, Expectation(error.code, error.command, error.info, exact)
    raise ValueError(f"no mutation of kind {kind} fits the program ({program.description})")


def _stuck(program: RandomProgram, index: int) -> bool:
    """Is a tile open before a command that is larger than the output buffer?

    Its CONV cannot end without its OUTPUT, and what waits for the CONV cannot begin: the run ends with the
    watchdog's error, or without what the golden model, which knows no buffers, does.
    """
    if program.program_bytes % COMMAND_BYTES or program.program_address % COMMAND_BYTES:
        return False  # nothing ran
    raw = program.program[: index * COMMAND_BYTES]
    sums = 0
    for start in range(0, len(raw), COMMAND_BYTES):
        command = decode(raw[start : start + COMMAND_BYTES])
        assert isinstance(command, Command)
        if command.opcode is Opcode.CONV:
            sums = command.out_blocks * command.out_height * command.out_width
        elif command.opcode is Opcode.OUTPUT:
            sums = 0
    return sums > program.config.output_depth


# --- parts ---


def _with_bytes(program: RandomProgram, index: int, raw: bytes) -> RandomProgram:
    """Another 64 bytes in the place of a command."""
    memory = program.memory.copy()
    at = program.program_address + index * COMMAND_BYTES
    memory[at : at + len(raw)] = np.frombuffer(raw, np.uint8)
    return replace(program, memory=memory)


def _changed(command: Command, **values: int) -> Command:
    kept = {name: value for name, value in command.values.items() if name != "opcode"}
    return Command(command.opcode, **kept | values)


def _any(rng: random.Random, program: RandomProgram, *opcodes: Opcode) -> int:
    """The place of a random command of these kinds."""
    places = [i for i, c in enumerate(program.commands) if not opcodes or c.opcode in opcodes]
    if not places:
        raise _Unfit
    return rng.choice(places)


def _error_of(program: RandomProgram) -> tuple[ErrorCode, int] | None:
    error = run_golden(program)[0].error
    return (error.code, error.command) if error else None


# --- kinds ---


def _opcode(rng: random.Random, program: RandomProgram) -> RandomProgram:
    index = _any(rng, program)
    wrong = rng.choice((0, max(Opcode) + 1, 255, rng.randrange(max(Opcode) + 1, 256)))
    raw = bytearray(encode([program.commands[index]]))
    raw[0] = wrong
    return _with_bytes(program, index, bytes(raw))


def _reserved(rng: random.Random, program: RandomProgram) -> RandomProgram:
    index = _any(rng, program)
    spec = COMMANDS[program.commands[index].opcode]
    free = [
        32 * word + b for word in range(COMMAND_WORDS) for b in range(32) if not spec.used_bits(word) >> b & 1
    ]
    raw = int.from_bytes(encode([program.commands[index]]), "little")
    for position in rng.sample(free, rng.choice((1, 1, 2, 5))):
        raw |= 1 << position
    return _with_bytes(program, index, raw.to_bytes(COMMAND_BYTES, "little"))


def _field(rng: random.Random, program: RandomProgram) -> RandomProgram:
    """A field that breaks one of its command's rules of kind Range or Require."""
    return _break_rule(rng, program, (Range, Require), (ErrorCode.FIELD, ErrorCode.UNSUPPORTED))


def _extent(rng: random.Random, program: RandomProgram) -> RandomProgram:
    """An address or size that leads beyond an on-chip memory or limit."""
    return _break_rule(rng, program, (Extent,), (ErrorCode.FIELD, ErrorCode.LOCAL_RANGE))


def _break_rule(
    rng: random.Random, program: RandomProgram, kinds: tuple[type, ...], codes: tuple[ErrorCode, ...]
) -> RandomProgram:
    for _ in range(_TRIES):
        index = _any(rng, program)
        command = program.commands[index]
        spec = COMMANDS[command.opcode]
        rules = [rule for rule in spec.rules if isinstance(rule, kinds)]
        if not rules:
            continue
        rule = rng.choice(rules)
        names: list[str] = [name for name, _ in rule.when]
        if isinstance(rule, Extent):
            parts = (rule.base, rule.tail, *(part for term in rule.terms for part in term[:2]))
            names += [p for p in parts if isinstance(p, str) and p in spec.by_name]
        else:
            names.append(rule.field)
        values = {name: value for name, value in rule.when if rng.random() < 0.5}
        for name in rng.sample(sorted(set(names)), rng.randint(1, len(set(names)))):
            f = spec.by_name[name]
            near = command.values[name] + rng.choice((-1, 1))
            value = rng.choice((f.low, f.high, rng.randint(f.low, f.high), near, 1 << rng.randrange(f.width)))
            values[name] = min(max(value, f.low), f.high)
        spoiled = _with_bytes(program, index, encode([_changed(command, **values)]))
        error = _checked(spoiled, index)
        if error in codes:
            return spoiled
    raise _Unfit


def _checked(program: RandomProgram, index: int) -> ErrorCode | None:
    """What the check of one command says, when those before it are as they were."""
    checker = Checker(program.config, program.read_window, program.write_window)
    for command in program.commands[:index]:
        checker.check(command)
    start = index * COMMAND_BYTES
    command_or_error = decode(program.program[start : start + COMMAND_BYTES])
    if isinstance(command_or_error, CommandError):
        return command_or_error.code
    error = checker.check(command_or_error)
    return error.code if error else None


def _unsupported(rng: random.Random, program: RandomProgram) -> RandomProgram:
    """A CONV in a mode that this NPU was built without."""
    modes = {Mode.PATCH: program.config.patch_mode, Mode.ROWS: program.config.rows_mode}
    missing = [mode for mode, built in modes.items() if not built]
    if not missing:
        raise _Unfit
    index = _any(rng, program, Opcode.CONV)
    return _with_bytes(program, index, encode([_changed(program.commands[index], mode=rng.choice(missing))]))


def _read_window(rng: random.Random, program: RandomProgram) -> RandomProgram:
    """A LOAD that begins below or ends above the read window."""
    index = _any(rng, program, Opcode.LOAD)
    command = program.commands[index]
    return _outside(rng, program, index, command, program.read_window)


def _write_window(rng: random.Random, program: RandomProgram) -> RandomProgram:
    index = _any(rng, program, Opcode.STORE)
    return _outside(rng, program, index, program.commands[index], program.write_window)


def _outside(
    rng: random.Random, program: RandomProgram, index: int, command: Command, window: tuple[int, int]
) -> RandomProgram:
    align = program.config.bus_bytes
    if command.opcode is Opcode.STORE or command.target == Target.SCRATCHPAD:
        align = 1
    span = (command.rows - 1) * command.stride + command.row_bytes
    below = (window[0] - 1) // align * align
    above = -(-(window[1] + 2 - span) // align) * align
    choices = [a for a in (below, 0) if 0 <= a < window[0]]
    choices += [
        a
        for a in (above, (1 << 32) - align, window[1] + align)
        if 0 <= a < 1 << 32 and a + span > window[1] + 1
    ]
    choices = [a for a in choices if a % align == 0]
    if not choices:
        raise _Unfit
    return _with_bytes(program, index, encode([_changed(command, address=rng.choice(choices))]))


def _closed_window(rng: random.Random, program: RandomProgram) -> RandomProgram:
    """The write window as after reset: nothing may be written."""
    if not any(c.opcode is Opcode.STORE for c in program.commands):
        raise _Unfit
    return replace(program, write_window=(1, 0))


def _tile_order(rng: random.Random, program: RandomProgram) -> RandomProgram:
    """A CONV or OUTPUT is missing; a SYNC keeps its waits and posts."""
    index = _any(rng, program, Opcode.CONV, Opcode.OUTPUT)
    command = program.commands[index]
    unit = unit_of(command)
    assert unit is not None
    kept = {name: v for name, v in command.values.items() if name.startswith(("wait", "post"))}
    spoiled = _with_bytes(program, index, encode([Command(Opcode.SYNC, unit=int(unit), **kept)]))
    error = _error_of(spoiled)
    if error is None or error[0] is not ErrorCode.TILE_ORDER:
        raise _Unfit  # the middle one of several CONVs
    return spoiled


def _truncated(rng: random.Random, program: RandomProgram) -> RandomProgram:
    """The program's length ends before END. A tile may be open: it is never taken."""
    return replace(program, program_bytes=rng.randrange(1, len(program.commands)) * COMMAND_BYTES)


def _misaligned(rng: random.Random, program: RandomProgram) -> RandomProgram:
    if rng.random() < 0.5:
        return replace(program, program_address=program.program_address + rng.randrange(1, COMMAND_BYTES))
    return replace(program, program_bytes=program.program_bytes - rng.randrange(1, COMMAND_BYTES))


def _empty(rng: random.Random, program: RandomProgram) -> RandomProgram:
    return replace(program, program_bytes=0)


def _program_outside(rng: random.Random, program: RandomProgram) -> RandomProgram:
    """The read window leaves out the program's first or last byte."""
    first, last = program.program_address, program.program_address + program.program_bytes - 1
    window = rng.choice(((first + 1, program.read_window[1]), (program.read_window[0], last - 1), (1, 0)))
    return replace(program, read_window=window)


def _read_bus(rng: random.Random, program: RandomProgram) -> RandomProgram:
    """A LOAD from where no memory is."""
    index = _any(rng, program, Opcode.LOAD)
    return replace(_beyond(rng, program, index), read_window=(program.read_window[0], 0xFFFF_FFFF))


def _write_bus(rng: random.Random, program: RandomProgram) -> RandomProgram:
    index = _any(rng, program, Opcode.STORE)
    return replace(_beyond(rng, program, index), write_window=(program.write_window[0], 0xFFFF_FFFF))


def _beyond(rng: random.Random, program: RandomProgram, index: int) -> RandomProgram:
    command = program.commands[index]
    size, bus = program.memory.size, program.config.bus_bytes
    span = (command.rows - 1) * command.stride + command.row_bytes
    address = rng.choice((size, size + rng.randrange(1 << 20), (1 << 32) - span)) // bus * bus
    return _with_bytes(program, index, encode([_changed(command, address=address)]))


def _fetch_bus(rng: random.Random, program: RandomProgram) -> RandomProgram:
    """A program where no memory is, or that runs over the memory's end."""
    size = program.memory.size
    window = (0, 0xFFFF_FFFF)
    if rng.random() < 0.5:
        address = size + rng.randrange(1 << 16) * COMMAND_BYTES
        return replace(program, program_address=address, read_window=window)
    count = rng.randrange(1, 9)
    sync = encode([Command(Opcode.SYNC, unit=rng.randrange(4))])
    address = size - count * COMMAND_BYTES
    if program.write_window[1] >= address:
        raise _Unfit
    memory = program.memory.copy()
    memory[address:] = np.frombuffer(sync * count, np.uint8)
    nbytes = (count + rng.randrange(1, 9)) * COMMAND_BYTES
    return replace(program, memory=memory, program_address=address, program_bytes=nbytes, read_window=window)


def _overflow(rng: random.Random, program: RandomProgram) -> RandomProgram:
    """More posts than a semaphore can hold, in place of the program's last commands."""
    free = _unused_semaphores(program, "wait", "post")
    posts = SEMAPHORE_MAX // 30 + 1
    left = len(program.commands) - 1 - posts
    if not free or left < 0:
        raise _Unfit
    semaphore = rng.choice(free)
    values = {f"post{i}_{part}": v for i in (0, 1) for part, v in (("semaphore", semaphore), ("count", 15))}
    post = encode([Command(Opcode.SYNC, unit=rng.randrange(4), **values)])
    return _with_bytes(program, rng.randint(0, left), post * posts)


def _unused_semaphores(program: RandomProgram, *kinds: str) -> list[int]:
    """Semaphores on which no command waits, or to which none posts."""
    used = {
        c.values[f"{kind}{i}_semaphore"]
        for c in program.commands
        if c.opcode is not Opcode.END
        for kind in kinds
        for i in (0, 1)
        if c.values[f"{kind}{i}_count"]
    }
    return sorted(set(range(SEMAPHORES)) - used)


def _hang(rng: random.Random, program: RandomProgram) -> RandomProgram:
    """A wait for more than there will ever be: the watchdog's case."""
    index = _any(rng, program, *(o for o in Opcode if o is not Opcode.END))
    command = program.commands[index]
    if command.wait0_count:
        raise _Unfit
    semaphores = _unused_semaphores(program, "post")
    if not semaphores:
        raise _Unfit
    values = {"wait0_semaphore": rng.choice(semaphores), "wait0_count": rng.randint(1, 15)}
    return _with_bytes(program, index, encode([_changed(command, **values)]))


MUTATIONS: dict[str, Callable[[random.Random, RandomProgram], RandomProgram]] = {
    "opcode": _opcode,
    "reserved": _reserved,
    "field": _field,
    "extent": _extent,
    "unsupported": _unsupported,
    "read window": _read_window,
    "write window": _write_window,
    "closed window": _closed_window,
    "tile order": _tile_order,
    "truncated": _truncated,
    "misaligned": _misaligned,
    "empty": _empty,
    "program outside": _program_outside,
    "read bus": _read_bus,
    "write bus": _write_bus,
    "fetch bus": _fetch_bus,
    "overflow": _overflow,
    "hang": _hang,
}
"""What can be wrong, by name."""

_TAKES_OUTPUT_AWAY = {"tile order", "overflow", "hang"}
_INEXACT = {"read bus", "write bus", "overflow", "hang"}
