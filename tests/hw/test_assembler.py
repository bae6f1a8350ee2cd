"""Assembler and disassembler: round trips, what the text looks like, errors in words."""

from __future__ import annotations

import random

import pytest

from lepton_hw.assembler import FIELD_ENUMS, AssemblyError, assemble, disassemble
from lepton_hw.isa import COMMANDS, Command, Mode, Opcode, Target, Unit, encode


def random_command(rng: random.Random, opcode: Opcode) -> Command:
    values = {}
    for f in COMMANDS[opcode].fields:
        if f.name != "opcode" and rng.random() < 0.5:
            values[f.name] = rng.choice((f.low, f.high, rng.randint(f.low, f.high), f.default))
    return Command(opcode, **values)


@pytest.mark.parametrize("seed", range(20))
def test_round_trip(seed: int) -> None:
    rng = random.Random(seed)
    kinds = [o for o in Opcode if o is not Opcode.END]
    commands = [random_command(rng, rng.choice(kinds)) for _ in range(30)] + [Command(Opcode.END)]
    text = disassemble(commands)
    assert assemble(text) == commands
    assert disassemble(encode(commands)) == text
    assert disassemble(assemble(text)) == text


def test_what_it_looks_like() -> None:
    post = {"post0_semaphore": 3, "post0_count": 1}
    wait = {"wait0_semaphore": 3, "wait0_count": 1, "post1_count": 2}
    commands = [
        Command(Opcode.LOAD, target=Target.WEIGHTS, address=4096, row_bytes=256, **post),
        Command(Opcode.CONV, mode=Mode.ROWS, input=0x100, y_start=-1, **wait),
        Command(Opcode.SYNC, unit=Unit.STORE),
        Command(Opcode.END),
    ]
    text = disassemble(commands, comments={1: "the first layer", 3: ""})
    assert text == (
        "LOAD post0=3:1 target=WEIGHTS row_bytes=256 address=0x1000\n"
        "CONV wait0=3:1 post1=0:2 mode=ROWS input=0x100 y_start=-1  # the first layer\n"
        "SYNC unit=STORE\n"
        "END\n"
    )
    assert disassemble(commands[2:], comments=["wait"]) == "SYNC unit=STORE  # wait\nEND\n"


def test_what_it_understands() -> None:
    text = """
        # a program
        load  target=weights row_bytes=0x100 post0=0x3:1 # more
        Conv mode=2 y_start=-0x1

        SYNC unit=Store
        END
    """
    assert assemble(text) == [
        Command(Opcode.LOAD, target=1, row_bytes=256, post0_semaphore=3, post0_count=1),
        Command(Opcode.CONV, mode=2, y_start=-1),
        Command(Opcode.SYNC, unit=3),
        Command(Opcode.END),
    ]
    assert assemble("") == []


def test_what_is_behind_the_end_is_left_out() -> None:
    raw = encode([Command(Opcode.SYNC), Command(Opcode.END)]) + b"\xff" * 64
    assert disassemble(raw) == "SYNC\nEND\n"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            "END\nJUMP 3",
            "line 2: no command 'JUMP'; the commands are LOAD, FILL, CONV, OUTPUT, RESCALE, STORE, SYNC",
        ),
        ("LOAD rows", "line 1: LOAD: 'rows' must be of the form field=value"),
        (
            "LOAD size=3",
            "line 1: LOAD has no field 'size'; its fields are wait0, wait1, post0, post1, target",
        ),
        ("LOAD opcode=3", "line 1: LOAD has no field 'opcode'"),
        ("END wait0=1:1", "line 1: END has no field 'wait0'"),
        ("LOAD rows=many", "line 1: LOAD.rows must be a number, not 'many'"),
        ("LOAD rows=", "line 1: LOAD.rows must be a number, not ''"),
        ("LOAD rows=65536", "line 1: LOAD.rows must lie in [0, 65535], not 65536"),
        ("LOAD rows=1 rows=2", "line 1: LOAD.rows is given twice"),
        (
            "LOAD target=MOON",
            "line 1: LOAD.target must be one of SCRATCHPAD, WEIGHTS, PARAMETERS, not 'MOON'",
        ),
        ("LOAD target=4", "line 1: LOAD.target must lie in [0, 3], not 4"),
        ("CONV wait0=3", "line 1: CONV.wait0 must be of the form semaphore:count, not '3'"),
        ("CONV wait0=16:1", "line 1: CONV.wait0_semaphore must lie in [0, 15], not 16"),
        ("CONV wait0=1:x", "line 1: CONV.wait0 count must be a number, not 'x'"),
        ("CONV wait0=1:1 wait0=2:1", "line 1: CONV.wait0 is given twice"),
    ],
)
def test_errors(text: str, words: str) -> None:
    with pytest.raises(AssemblyError) as refused:
        assemble(text)
    assert words in str(refused.value)


def test_bytes_that_are_no_program() -> None:
    with pytest.raises(ValueError, match="command 1: no opcode 0"):
        disassemble(encode([Command(Opcode.SYNC)]) + bytes(64))
    with pytest.raises(ValueError, match="command 1 has 3 of 64 bytes"):
        disassemble(encode([Command(Opcode.SYNC)]) + bytes(3))


def test_names_belong_to_fields() -> None:
    """Every field whose meaning is an enumeration's name has its names in the text."""
    for spec in COMMANDS.values():
        for f in spec.fields:
            assert (f.doc in ("Mode", "PoolMode", "Target", "Unit")) == (f.name in FIELD_ENUMS), f.name
            if f.name in FIELD_ENUMS:
                assert FIELD_ENUMS[f.name].__name__ == f.doc
