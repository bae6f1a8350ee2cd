"""Text to commands and back: one command a line, only what differs from the default.

LOAD target=WEIGHTS row_bytes=256 address=0x1000 post0=3:1   # semaphore 3, count 1
CONV mode=ROWS input=0x100 kernel_height=3 wait0=3:1
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping, Sequence

from .isa import (
    COMMAND_BYTES,
    COMMANDS,
    Command,
    CommandError,
    CommandSpec,
    Field,
    Mode,
    Opcode,
    PoolMode,
    Target,
    Unit,
    decode,
)

__all__ = ["FIELD_ENUMS", "AssemblyError", "assemble", "disassemble"]

FIELD_ENUMS: dict[str, type[enum.IntEnum]] = {
    "mode": Mode,
    "pool_mode": PoolMode,
    "target": Target,
    "unit": Unit,
}
"""Fields whose values have names."""
_SLOTS = ("wait0", "wait1", "post0", "post1")
_ADDRESSES = ("address", "local_address", "input", "output", "residual_input")


class AssemblyError(ValueError):
    """A line that is no command; the message names the line, the field, and what is allowed."""


def assemble(text: str) -> list[Command]:
    """The commands of a text. Empty lines, and what follows a `#`, do not count.

    Names of commands and of values may be written in upper or lower case; numbers as in Python (`0x10`).

    Raises:
        AssemblyError: a line that cannot be understood.
    """
    commands = []
    for number, line in enumerate(text.splitlines(), 1):
        words = line.partition("#")[0].split()
        if not words:
            continue
        try:
            commands.append(_command(words))
        except ValueError as error:
            raise AssemblyError(f"line {number}: {error}") from None
    return commands


def _command(words: list[str]) -> Command:
    name, *parts = words
    try:
        opcode = Opcode[name.upper()]
    except KeyError:
        raise ValueError(f"no command {name!r}; the commands are {', '.join(Opcode.__members__)}") from None
    spec = COMMANDS[opcode]
    values: dict[str, int] = {}
    for part in parts:
        field, equals, value = part.partition("=")
        if not equals:
            raise ValueError(f"{opcode.name}: {part!r} must be of the form field=value")
        for key, number in _values(spec, field, value).items():
            if key in values:
                raise ValueError(f"{opcode.name}.{field} is given twice")
            values[key] = number
    return Command(opcode, **values)


def _values(spec: CommandSpec, field: str, value: str) -> dict[str, int]:
    """The fields that one `field=value` sets."""
    name = spec.opcode.name
    if field in _SLOTS and f"{field}_count" in spec.by_name:
        semaphore, colon, count = value.partition(":")
        if not colon:
            raise ValueError(f"{name}.{field} must be of the form semaphore:count, not {value!r}")
        return {
            f"{field}_semaphore": _number(f"{name}.{field} semaphore", semaphore),
            f"{field}_count": _number(f"{name}.{field} count", count),
        }
    if field not in spec.by_name or field == "opcode":
        raise ValueError(f"{name} has no field {field!r}; its fields are {', '.join(_names(spec))}")
    members = FIELD_ENUMS.get(field)
    if members is not None and value.upper() in members.__members__:
        return {field: members[value.upper()].value}
    what = f"{name}.{field}"
    if members is not None and not value.lstrip("+-")[:1].isdigit():
        raise ValueError(f"{what} must be one of {', '.join(members.__members__)}, not {value!r}")
    return {field: _number(what, value)}


def _number(what: str, text: str) -> int:
    try:
        return int(text, 0)
    except ValueError:
        raise ValueError(f"{what} must be a number, not {text!r}") from None


def _names(spec: CommandSpec) -> list[str]:
    """Fields as the text has them."""
    names = [f.name for f in spec.fields if f.name != "opcode"]
    slots = [slot for slot in _SLOTS if f"{slot}_count" in names]
    return slots + [n for n in names if not n.startswith(tuple(f"{slot}_" for slot in _SLOTS))]


def disassemble(
    program: bytes | Iterable[Command], comments: Mapping[int, str] | Sequence[str] | None = None
) -> str:
    """The text of a program, a line for each command up to its first END, if it has one.

    Args:
        program: 64 bytes a command, or commands.
        comments: what to write behind commands, by their index.

    Raises:
        ValueError: bytes that are no command; the message gives the index.
    """
    if isinstance(program, (bytes, bytearray, memoryview)):
        program = _decoded(bytes(program))
    notes = dict(comments) if isinstance(comments, Mapping) else dict(enumerate(comments or ()))
    lines = []
    for index, command in enumerate(program):
        line = _line(command)
        if notes.get(index):
            line += f"  # {notes[index]}"
        lines.append(line + "\n")
        if command.opcode is Opcode.END:
            break
    return "".join(lines)


def _decoded(program: bytes) -> list[Command]:
    commands: list[Command] = []
    for start in range(0, len(program), COMMAND_BYTES):
        raw = program[start : start + COMMAND_BYTES]
        if len(raw) < COMMAND_BYTES:
            raise ValueError(f"command {len(commands)} has {len(raw)} of {COMMAND_BYTES} bytes")
        command = decode(raw)
        if isinstance(command, CommandError):
            raise ValueError(f"command {len(commands)}: {command.message}")
        commands.append(command)
        if command.opcode is Opcode.END:
            break
    return commands


def _line(command: Command) -> str:
    spec = COMMANDS[command.opcode]
    parts = [command.opcode.name]
    by_name = spec.by_name
    for name in _names(spec):
        if name in _SLOTS:
            semaphore, count = command.values[f"{name}_semaphore"], command.values[f"{name}_count"]
            if semaphore or count:
                parts.append(f"{name}={semaphore}:{count}")
        elif command.values[name] != by_name[name].default:
            parts.append(f"{name}={_text(by_name[name], command.values[name])}")
    return " ".join(parts)


def _text(field: Field, value: int) -> str:
    members = FIELD_ENUMS.get(field.name)
    if members is not None and value in list(members):
        return members(value).name
    return f"{value:#x}" if field.name in _ADDRESSES else str(value)
