"""Writes docs/isa.md from the tables of isa.py: `python -m lepton_hw.isa_reference -o docs/isa.md`."""

from __future__ import annotations

import argparse
import ast
import enum
import inspect
import re
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

from .assembler import FIELD_ENUMS
from .config import BANKS, PRESETS, SEMAPHORES, NPUConfig
from .isa import (
    COMMAND_BYTES,
    COMMAND_WORDS,
    COMMANDS,
    CSR,
    ISA_VERSION,
    MAGIC,
    PARAMETER_ROWS,
    PARAMETER_ROWS_PER_TENSOR,
    CommandSpec,
    Control,
    ErrorCode,
    Extent,
    Field,
    Mode,
    Number,
    PoolMode,
    Range,
    Require,
    Rule,
    Status,
    Target,
    Unit,
    config_words,
)

__all__ = ["main", "reference"]

# What a rule's number may be, in words. A rule holds a function of the configuration: its words are found by
# comparing values on configurations in which no two of these agree.
_EXPRESSIONS: dict[str, Callable[[NPUConfig], int]] = {
    "N": lambda c: c.array_size,
    "log2(N)": lambda c: c.array_size.bit_length() - 1,
    "bus_bytes": lambda c: c.bus_bytes,
    "scratchpad_bytes": lambda c: c.scratchpad_bytes,
    "weight_bytes": lambda c: c.weight_bytes,
    "parameter_bytes": lambda c: c.parameter_bytes,
    "weight_vectors - 1": lambda c: c.weight_vectors - 1,
    "parameter_vectors": lambda c: c.parameter_vectors,
    "accumulator_depth": lambda c: c.accumulator_depth,
    "vertical_rows": lambda c: c.depthwise_taps,
    "vertical_groups": lambda c: c.depthwise_groups,
}
_PROBES = (
    *PRESETS.values(),
    NPUConfig(bus_width=32, array_size=32),
    NPUConfig(bus_width=64, weight_bytes=8192),
)

_HEAD = """# Lepton instruction set, version {major}.{minor}

Generated from `hw/lepton_hw/isa.py` by `python -m lepton_hw.isa_reference -o docs/isa.md`; do not edit.
What the commands do to data is told in [architecture.md](architecture.md).

## Programs

A program is a sequence of {bytes}-byte commands in external memory, {words} little-endian 32-bit words
each, at an address that is a multiple of {bytes}. It is run up to its END. Fields not named in a
command's table are reserved and must be 0. Numbers are unsigned unless marked *signed* (two's
complement).

N is the array size; a *vector* is N bytes. `bus_bytes` is the width of the memory bus. `vertical_rows`
is the number of array rows with a vertical path (mode ROWS), 3 * min(3, N // 3); `vertical_groups` a
third of it. Sizes of memories are those of the configuration: {vectors}.

Every command goes to the queue of a unit (SYNC to the one it names), and each unit works in program order:

{units}

### Semaphores

There are {semaphores} counting semaphores of 8 bits, 0 at the start of a run. Every command but END has
two waits (`wait0`, then `wait1`: before it starts, wait until the semaphore holds `count`, and take it
away) and two posts (`post0`, `post1`: when it is done, add `count`). A count of 0 is none. A post past
255 is an error. A program must keep these rules: every wait is satisfied by posts of earlier commands; a
semaphore is waited on by one unit only; of two commands of different units that touch the same bytes, at
least one writing, the later waits for the earlier.

### Parameters of a block of N channels

{rows} vectors: N int32 biases (4 vectors), N int32 multipliers (4), N int8 shifts (1), channel after
channel; with `per_tensor` only the {rows_tensor} of biases. The low 31 bits of a multiplier count;
shifts lie in [-31, 30].

### Names of values

{enums}
"""


def reference() -> str:
    """The text of docs/isa.md."""
    parts = [
        _HEAD.format(
            major=ISA_VERSION[0],
            minor=ISA_VERSION[1],
            bytes=COMMAND_BYTES,
            words=COMMAND_WORDS,
            vectors="`scratchpad_bytes`, `weight_bytes`, `parameter_bytes`; `weight_vectors` and "
            "`parameter_vectors` are the same in vectors",
            units=_table(
                ("unit", "number", "commands"),
                ((u.name, u.value, ", ".join(_commands_of(u))) for u in Unit),
            ),
            semaphores=SEMAPHORES,
            rows=PARAMETER_ROWS,
            rows_tensor=PARAMETER_ROWS_PER_TENSOR,
            enums="\n\n".join(_enum_table(e) for e in (Target, Mode, PoolMode)),
        ),
        "## Commands\n",
        *(_command(spec) for spec in COMMANDS.values()),
        _errors(),
        _registers(),
    ]
    return "\n".join(parts)


def _commands_of(unit: Unit) -> list[str]:
    return [f"[{s.opcode.name}](#{s.opcode.name.lower()})" for s in COMMANDS.values() if s.unit is unit]


def _table(head: tuple[str, ...], rows: Iterable[tuple[object, ...]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join(
        "| " + " | ".join(str(cell).replace("|", "\\|").replace("\n", " ") for cell in line) + " |"
        for line in lines
    )


def _comments(members: type[enum.Enum]) -> dict[str, str]:
    """What isa.py says behind the members of an enumeration."""
    pattern = re.compile(r"^[ \t]+(\w+)[ \t]*=[^#\n]*(?:#[ \t]*(.*))?$", re.MULTILINE)
    return {name: (text or "").strip() for name, text in pattern.findall(inspect.getsource(members))}


def _enum_table(members: type[enum.IntEnum]) -> str:
    comments = _comments(members)
    rows = ((m.value, m.name, comments[m.name]) for m in members)
    return _table((members.__name__, "name", "meaning"), rows)


# --- commands ---


def _command(spec: CommandSpec) -> str:
    unit = f"unit {spec.unit.name}" if spec.unit is not None else "no unit of its own"
    rows = ((f.word, _bits(f), f"`{f.name}`", _default(f), _allowed(f, spec), f.doc) for f in spec.fields)
    parts = [
        f"### {spec.opcode.name}\n",
        f"Opcode {spec.opcode.value}, {unit}. {spec.doc}\n",
        _table(("word", "bits", "field", "default", "allowed", "meaning"), rows) + "\n",
    ]
    if spec.rules:
        parts.append("Checked in this order:\n")
        parts += [f"{i}. {_rule(rule, spec)}" for i, rule in enumerate(spec.rules, 1)]
        parts.append("")
    return "\n".join(parts)


def _bits(f: Field) -> str:
    return f"{f.lsb + f.width - 1}:{f.lsb}" if f.width > 1 else str(f.lsb)


def _default(f: Field) -> str:
    members = FIELD_ENUMS.get(f.name)
    return members(f.default).name if members else str(f.default)


def _allowed(f: Field, spec: CommandSpec) -> str:
    """The range that always holds; rules with conditions are in the list below the table."""
    if f.name == "opcode":
        return str(int(spec.opcode))
    low, high, factor = str(f.low), str(f.high), ""
    for rule in spec.rules:
        if isinstance(rule, Range) and rule.field == f.name and not rule.when:
            low = _number(rule.low) if rule.low is not None else low
            high = _number(rule.high) if rule.high is not None else high
            if rule.multiple != 1:
                factor = f", multiples of {_number(rule.multiple)}"
    return f"{low} to {high}{factor}" + (" (signed)" if f.signed else "")


def _number(number: Number) -> str:
    if not callable(number):
        return str(number)
    values = [number(c) for c in _PROBES]
    for words, expression in _EXPRESSIONS.items():
        if values == [expression(c) for c in _PROBES]:
            return words
    raise ValueError(f"no words for a rule's number: {inspect.getsource(number)!r}")


def _when(rule: Rule) -> str:
    conditions = []
    for name, value in rule.when:
        members = FIELD_ENUMS.get(name)
        conditions.append(f"`{name}` = {members(value).name if members else value}")
    return f"If {' and '.join(conditions)}: " if conditions else ""


def _rule(rule: Rule, spec: CommandSpec) -> str:
    if isinstance(rule, Require):
        text, blame = f"{rule.doc}", rule.field
    elif isinstance(rule, Range):
        bounds = []
        if rule.low is not None:
            bounds.append(f"at least {_number(rule.low)}")
        if rule.high is not None:
            bounds.append(f"at most {_number(rule.high)}")
        if rule.multiple != 1:
            bounds.append(f"a multiple of {_number(rule.multiple)}")
        text, blame = f"`{rule.field}` is {' and '.join(bounds)}", rule.field
    else:
        text, blame = _extent(rule), rule.blame
    return f"{_when(rule)}{text}. ({rule.code.name}, info {spec.by_name[blame].bit})"


def _extent(rule: Extent) -> str:
    terms = [] if rule.base == 0 else [str(rule.base)]
    for count, stride, shift in rule.terms:
        factor = _number(shift)
        scale = {"0": "", "log2(N)": " * N"}.get(factor, f" * 2^{factor}")
        terms.append(f"({count} - 1) * {stride}{scale}")
    terms.append(str(rule.tail))
    total = " + ".join(terms)
    if rule.limit in ("read", "write"):
        return (
            f"the bytes from `{rule.base}` to `{total} - 1` lie within the {rule.limit} window, "
            f"{rule.limit.upper()}_FIRST to {rule.limit.upper()}_LAST"
        )
    limit = rule.limit if isinstance(rule.limit, str) else _number(rule.limit)
    return f"`{total}` is at most `{limit}`"


# --- errors and registers ---


def _errors() -> str:
    comments = _comments(ErrorCode)
    rows = ((c.value, c.name, comments[c.name]) for c in ErrorCode)
    return "\n".join(
        (
            "## Errors\n",
            "A command is checked in full before it is issued: first its opcode, then reserved bits,",
            "then whether CONV and OUTPUT pair up, then the rules in the order of its list. At the",
            "first that is broken the commands before it are finished, and the run ends with",
            'ERROR_CODE, ERROR_COMMAND (its index) and ERROR_INFO. "A field\'s first bit" counts from',
            "bit 0 of word 0 of the command.\n",
            _table(("code", "name", "meaning"), rows) + "\n",
        )
    )


def _registers() -> str:
    comments = _comments(CSR)
    rows = ((f"{r.value:#05x}", r.name, comments[r.name]) for r in CSR)
    parts = [
        "## Registers\n",
        f"32-bit registers on AXI4-Lite. MAGIC reads as {MAGIC:#010x}, VERSION as "
        f"{ISA_VERSION[0] << 16 | ISA_VERSION[1]:#010x}.\n",
        _table(("offset", "name", "meaning"), rows) + "\n",
    ]
    for members in (Control, Status):
        notes = _comments(members)
        bits = ((m.value.bit_length() - 1, m.name, notes[str(m.name)]) for m in members)
        parts.append(f"### {members.__name__.upper()}\n")
        parts.append(_table(("bit", "name", "meaning"), bits) + "\n")
    parts.append("### CONFIG0 to CONFIG2\n")
    parts.append(
        "What the NPU was built with; a program runs on an NPU whose three words are those it was made"
    )
    parts.append(f"for. ({BANKS} banks and {SEMAPHORES} semaphores are the same in all.)\n")
    head = ("word", "first bit", "holds", *PRESETS)
    parts.append(_table(head, _config_fields()) + "\n")
    return "\n".join(parts)


def _config_fields() -> list[tuple[object, ...]]:
    """Fields of the CONFIG words, from the expression that makes them."""
    tree = ast.parse(inspect.getsource(config_words))
    words = next(
        n.value for n in ast.walk(tree) if isinstance(n, ast.Return) and isinstance(n.value, ast.Tuple)
    )
    rows: list[tuple[object, ...]] = []
    for number, word in enumerate(words.elts):
        fields = sorted((_shift(part), _source(part)) for part in _or_parts(word))
        ends = [lsb for lsb, _ in fields[1:]] + [32]
        for (lsb, source), end in zip(fields, ends, strict=True):
            values = (config_words(c)[number] >> lsb & (1 << end - lsb) - 1 for c in PRESETS.values())
            rows.append((f"CONFIG{number}", lsb, source, *values))
    return rows


def _or_parts(node: ast.expr) -> list[ast.expr]:
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
        return _or_parts(node.left) + _or_parts(node.right)
    return [node]


def _shift(node: ast.expr) -> int:
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.LShift):
        assert isinstance(node.right, ast.Constant) and isinstance(node.right.value, int)
        return node.right.value
    return 0


def _source(node: ast.expr) -> str:
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.LShift):
        node = node.left
    return ast.unparse(node).replace("config.", "")


def main(arguments: list[str] | None = None) -> None:
    """Write the reference to standard output or to a file."""
    parser = argparse.ArgumentParser(description="Write the ISA reference.")
    parser.add_argument("-o", "--output", type=Path, help="file to write; standard output by default")
    options = parser.parse_args(arguments)
    if options.output is None:
        sys.stdout.write(reference())
    else:
        options.output.write_text(reference(), encoding="utf-8")


if __name__ == "__main__":
    main()
