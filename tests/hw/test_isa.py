"""The instruction set's tables: encoding, decoding, and every rule of the checker."""

from __future__ import annotations

import random

import pytest

from lepton_hw.config import PRESETS, NPUConfig
from lepton_hw.isa import (
    COMMAND_BYTES,
    COMMAND_WORDS,
    COMMANDS,
    CSR,
    Checker,
    Command,
    CommandError,
    CommandSpec,
    ErrorCode,
    Extent,
    Mode,
    Opcode,
    Range,
    Rule,
    Target,
    Unit,
    decode,
    encode,
    unit_of,
)

READ, WRITE = (0x1000, 0x1FFFF), (0x20000, 0x2FFFF)


def random_command(rng: random.Random, opcode: Opcode) -> Command:
    """Any values that the bits can hold."""
    fields = COMMANDS[opcode].fields
    return Command(
        opcode,
        **{
            f.name: rng.choice((f.low, f.high, rng.randint(f.low, f.high)))
            for f in fields
            if f.name != "opcode"
        },
    )


# --- encoding ---


@pytest.mark.parametrize("opcode", Opcode, ids=lambda o: o.name)
def test_round_trip(opcode: Opcode) -> None:
    rng = random.Random(int(opcode))
    for _ in range(100):
        command = random_command(rng, opcode)
        raw = encode([command])
        assert len(raw) == COMMAND_BYTES
        assert raw[0] == opcode
        assert decode(raw) == command
        bits = int.from_bytes(raw, "little")
        for f in COMMANDS[opcode].fields:  # each field where its table says, two's complement
            assert bits >> f.bit & (1 << f.width) - 1 == command.values[f.name] % (1 << f.width), f.name


@pytest.mark.parametrize("opcode", Opcode, ids=lambda o: o.name)
def test_fields_stay_within_words_and_apart(opcode: Opcode) -> None:
    taken = 0
    for f in COMMANDS[opcode].fields:
        assert 0 <= f.word < COMMAND_WORDS
        assert f.lsb + f.width <= 32
        mask = ((1 << f.width) - 1) << f.bit
        assert not taken & mask, f.name
        taken |= mask


@pytest.mark.parametrize("opcode", Opcode, ids=lambda o: o.name)
def test_every_reserved_bit_is_noticed(opcode: Opcode) -> None:
    spec, raw = COMMANDS[opcode], int.from_bytes(encode([Command(opcode)]), "little")
    for bit in range(8 * COMMAND_BYTES):
        outcome = decode((raw | 1 << bit).to_bytes(COMMAND_BYTES, "little"))
        if bit < 8:
            continue  # another opcode
        if spec.used_bits(bit // 32) >> bit % 32 & 1:
            assert isinstance(outcome, Command)
        else:
            assert isinstance(outcome, CommandError)
            assert (outcome.code, outcome.info) == (ErrorCode.RESERVED, bit // 32)
            assert opcode.name in outcome.message
            assert f"word {bit // 32}" in outcome.message


def test_opcodes_that_are_none() -> None:
    for value in set(range(256)) - set(Opcode):
        outcome = decode(bytes([value]) + bytes(63))
        assert isinstance(outcome, CommandError)
        assert (outcome.code, outcome.info) == (ErrorCode.OPCODE, value)
        assert str(value) in outcome.message


def test_a_command_has_64_bytes() -> None:
    with pytest.raises(ValueError, match="a command is 64 bytes, not 63"):
        decode(bytes(63))


def test_wrong_values_are_refused_in_words() -> None:
    with pytest.raises(
        ValueError, match=r"LOAD has no field 'colour'; its fields are wait0_semaphore, .*stride"
    ):
        Command(Opcode.LOAD, colour=1)
    with pytest.raises(ValueError, match=r"LOAD\.rows must lie in \[0, 65535\], not 65536"):
        Command(Opcode.LOAD, rows=65536)
    with pytest.raises(ValueError, match=r"FILL\.value must lie in \[-128, 127\], not 128"):
        Command(Opcode.FILL, value=128)
    with pytest.raises(AttributeError):
        Command(Opcode.END).rows  # noqa: B018


def test_units() -> None:
    assert [unit_of(Command(o)) for o in Opcode if o is not Opcode.SYNC] == [
        Unit.LOAD, Unit.LOAD, Unit.COMPUTE, Unit.OUTPUT, Unit.OUTPUT, Unit.STORE, None,
    ]  # fmt: skip
    for unit in Unit:
        assert unit_of(Command(Opcode.SYNC, unit=unit)) is unit


def test_commands_print_what_is_set() -> None:
    assert repr(Command(Opcode.LOAD, rows=3, target=1)) == "LOAD(target=1, rows=3)"
    assert len({Command(Opcode.LOAD, rows=3), Command(Opcode.LOAD, rows=3), Command(Opcode.LOAD)}) == 2


def test_registers_do_not_overlap() -> None:
    assert all(r.value % 4 == 0 and 0 <= r.value < 1 << 12 for r in CSR)
    assert len({r.value for r in CSR}) == len(CSR)


# --- the checker ---


def good(config: NPUConfig) -> list[Command]:
    """One or more correct commands of each kind."""
    n, bus = config.array_size, config.bus_bytes
    conv = {"in_height": 3, "in_width": 3, "y_stride": 3, "x_stride": 1, "out_height": 2, "out_width": 2}
    commands = [
        Command(Opcode.LOAD, row_bytes=3, rows=2, stride=5, local_stride=4, address=0x1001, local_address=7),
        *(
            Command(
                Opcode.LOAD, target=t, row_bytes=2 * bus, rows=2, stride=4 * bus, local_stride=2 * bus,
                address=0x1000, local_address=bus,
            )
            for t in (Target.WEIGHTS, Target.PARAMETERS)
        ),
        Command(Opcode.FILL, value=-3, row_bytes=3, rows=2, local_stride=4),
        Command(Opcode.STORE, row_bytes=3, rows=2, stride=5, local_stride=4, address=0x20001),
        Command(Opcode.RESCALE, pool_shift=-3),
        *(Command(Opcode.SYNC, unit=u) for u in Unit),
        Command(Opcode.END),
        Command(Opcode.CONV, **conv, input=n, in_blocks=2, block_stride=1, out_blocks=2, kernel_width=2),
    ]  # fmt: skip
    # fits any mode, so that with another one only the option is missing
    commands.append(Command(Opcode.CONV, **conv, row_samples=4))
    if config.patch_mode:
        patch = conv | {"mode": Mode.PATCH, "row_length": 3, "pass_length": n, "kernel_height": 3}
        commands.append(Command(Opcode.CONV, **patch | {"wide": 1, "y_stride": 2}))
        commands.append(Command(Opcode.CONV, **patch))
    if config.rows_mode:
        rows = conv | {
            "mode": Mode.ROWS,
            "kernel_width": 3,
            "kernel_height": 3,
            "valid_from": 1,
            "row_samples": 4,
        }
        commands.append(Command(Opcode.CONV, **rows))
        commands.append(Command(Opcode.CONV, **rows | {"rows_per_pass": 2}))
    output = {"out_height": 2, "out_width": 2, "y_stride": 2, "x_stride": 1, "output": n}
    residual = {"residual": 1, "residual_input": 0, "residual_y_stride": 2, "residual_x_stride": 1}
    commands += [
        Command(Opcode.OUTPUT, **output, per_tensor=p, **more) for p in (0, 1) for more in ({}, residual)
    ]
    commands.append(Command(Opcode.OUTPUT, **output, pool_mode=1, pool_height=2, pool_width=2))
    return commands


def checker(config: NPUConfig, command: Command) -> Checker:
    """One that is ready for the command: an OUTPUT has its tile."""
    out = Checker(config, READ, WRITE)
    if command.opcode is Opcode.OUTPUT:
        assert out.check(Command(Opcode.CONV, out_height=2, out_width=2, out_blocks=2)) is None
    return out


def rules() -> list[tuple[Opcode, int]]:
    return [(spec.opcode, i) for spec in COMMANDS.values() for i in range(len(spec.rules))]


def broken(config: NPUConfig, command: Command, spec: CommandSpec) -> list[int]:
    """All rules that a command breaks, each looked at alone."""
    alone = checker(config, command)
    return [
        i
        for i, rule in enumerate(spec.rules)
        if all(command.values[name] == value for name, value in rule.when)
        and alone._broken(rule, command, spec) is not None
    ]


def fields_of(rule: Rule, spec: CommandSpec) -> list[str]:
    if isinstance(rule, Extent):
        names = [rule.base, rule.tail, rule.limit, *(part for term in rule.terms for part in term[:2])]
        return [n for n in names if isinstance(n, str) and n in spec.by_name]
    return [rule.field]


@pytest.mark.parametrize("preset", PRESETS)
def test_good_commands_pass(preset: str) -> None:
    config = PRESETS[preset]
    for command in good(config):
        assert checker(config, command).check(command) is None, command
        assert broken(config, command, COMMANDS[command.opcode]) == []


@pytest.mark.parametrize(
    ("opcode", "index"), rules(), ids=lambda v: v.name if isinstance(v, Opcode) else str(v)
)
def test_every_rule_fires_alone(opcode: Opcode, index: int) -> None:
    """A command that breaks this rule and no other is refused with the rule's code, field and words."""
    spec = COMMANDS[opcode]
    rule, rng = spec.rules[index], random.Random(f"{opcode} {index}")
    for _ in range(20_000):
        config = PRESETS[rng.choice(list(PRESETS))]
        base = rng.choice([c for c in good(config) if c.opcode is opcode])
        values = {n: v for n, v in base.values.items() if n != "opcode"} | dict(rule.when)
        names = fields_of(rule, spec)
        if rng.random() < 0.3:
            names = [*names, rng.choice(spec.fields[1:]).name]
        for name in rng.sample(names, rng.randint(1, min(2, len(names)))):
            f = spec.by_name[name]
            near = values[name] + rng.choice((-1, 1))
            power = (1 << rng.randrange(f.width)) + rng.choice((0, 1, -1))
            values[name] = min(max(rng.choice((f.low, f.high, near, power)), f.low), f.high)
        command = Command(opcode, **values)
        if broken(config, command, spec) == [index]:
            break
    else:
        pytest.fail(f"no command breaks only {rule}")
    error = checker(config, command).check(command)
    assert error is not None
    blame = rule.blame if isinstance(rule, Extent) else rule.field
    assert (error.code, error.info) == (rule.code, spec.by_name[blame].bit), error
    assert error.message.startswith(opcode.name)
    if isinstance(rule, Range):
        assert f"{opcode.name}.{rule.field} must " in error.message
        assert f"not {command.values[rule.field]}" in error.message
    elif isinstance(rule, Extent):
        assert "limit is" in error.message or f"the {rule.limit} window" in error.message
    else:
        assert f"{rule.field} = {command.values[rule.field]}: {rule.doc}" in error.message


def test_the_first_broken_rule_counts() -> None:
    config = PRESETS["base"]
    command = Command(Opcode.LOAD, row_bytes=0, rows=0, address=0)
    error = checker(config, command).check(command)
    assert error is not None
    assert error.info == COMMANDS[Opcode.LOAD].by_name["row_bytes"].bit
    assert error.message == "LOAD.row_bytes must lie in [1, 16777215], not 0"


@pytest.mark.parametrize(
    ("opcode", "code", "window"),
    [(Opcode.LOAD, ErrorCode.READ_WINDOW, READ), (Opcode.STORE, ErrorCode.WRITE_WINDOW, WRITE)],
)
def test_windows_to_the_byte(opcode: Opcode, code: ErrorCode, window: tuple[int, int]) -> None:
    config, (first, last) = PRESETS["base"], window
    for address, rows, fine in (
        (first, 1, True),
        (first - 1, 1, False),
        (last, 1, False),
        (last - 7, 1, True),
        (last - 6, 1, False),
        (last - 107, 2, True),
        (last - 106, 2, False),
        (0, 1, False),
        (0xFFFF_FFFF, 1, False),
        (first, 65535, False),
    ):
        command = Command(opcode, address=address, row_bytes=8, rows=rows, stride=100)
        error = checker(config, command).check(command)
        assert (error is None) is fine, command
        if error is not None:
            assert error.code is code
            assert f"{first:#x} to {last:#x}" in error.message
    closed = Checker(config, (1, 0), (1, 0))
    for address in (0, 1, 2):
        assert closed.check(Command(opcode, address=address)) is not None


TILE = {"out_height": 2, "out_width": 3}


@pytest.mark.parametrize(
    ("commands", "fails", "words"),
    [
        ([Command(Opcode.CONV), Command(Opcode.CONV)], 1, "before OUTPUT has taken"),
        ([Command(Opcode.CONV, first=0)], 0, "not open"),
        ([Command(Opcode.CONV, last=1), Command(Opcode.CONV, first=0)], 1, "not open"),
        ([Command(Opcode.CONV, **TILE, last=0), Command(Opcode.CONV, first=0)], 1, "another size"),
        ([Command(Opcode.CONV, last=0, out_blocks=2)], 0, "one block"),
        ([Command(Opcode.OUTPUT)], 0, "without a finished tile"),
        ([Command(Opcode.CONV, last=0), Command(Opcode.OUTPUT)], 1, "without a finished tile"),
        (
            [Command(Opcode.CONV), Command(Opcode.OUTPUT), Command(Opcode.OUTPUT)],
            2,
            "without a finished tile",
        ),
        ([Command(Opcode.CONV), Command(Opcode.END)], 1, "no OUTPUT has taken"),
        (
            [Command(Opcode.CONV, last=0), Command(Opcode.CONV, first=0, last=0), Command(Opcode.END)],
            2,
            "no OUTPUT",
        ),
        (
            [
                Command(Opcode.CONV, **TILE, last=0),
                Command(Opcode.CONV, **TILE, first=0),
                Command(Opcode.OUTPUT),
            ],
            None,
            "",
        ),
    ],
)
def test_tiles_pair_up(commands: list[Command], fails: int | None, words: str) -> None:
    check = Checker(PRESETS["base"])
    for i, command in enumerate(commands):
        error = check.check(command)
        if i == fails:
            assert error is not None
            assert error.code is ErrorCode.TILE_ORDER
            assert words in error.message
            return
        assert error is None
    assert fails is None


def test_a_refused_command_leaves_the_tile_as_it_was() -> None:
    check = Checker(PRESETS["base"])
    assert check.check(Command(Opcode.CONV, stride_x=0)) is not None
    assert check.tile is None
    assert check.check(Command(Opcode.CONV)) is None
    assert check.check(Command(Opcode.OUTPUT, out_height=0)) is not None
    assert check.tile is not None
