"""lint: what it accepts, what it reports and in which words."""

from __future__ import annotations

from dataclasses import replace

import pytest

from lepton_hw.config import PRESETS
from lepton_hw.isa import Command, Opcode, Target, Unit, encode
from lepton_sim.golden import lint

CONFIG = PRESETS["nano"]  # vectors of 4 bytes
END = Command(Opcode.END)


def ops(**slots: tuple[int, int]) -> dict[str, int]:
    """wait0=(semaphore, count) and so on, as fields."""
    return {
        f"{slot}_{part}": v
        for slot, pair in slots.items()
        for part, v in zip(("semaphore", "count"), pair, strict=True)
    }


def load(address: int, nbytes: int = 4, **slots: tuple[int, int]) -> Command:
    return Command(Opcode.LOAD, local_address=address, row_bytes=nbytes, **ops(**slots))


def store(address: int, nbytes: int = 4, **slots: tuple[int, int]) -> Command:
    return Command(Opcode.STORE, local_address=address, row_bytes=nbytes, address=0x8000, **ops(**slots))


def conv(address: int = 0, **slots: tuple[int, int]) -> Command:
    return Command(Opcode.CONV, input=address, **ops(**slots))


def output(address: int = 64, **slots: tuple[int, int]) -> Command:
    return Command(Opcode.OUTPUT, output=address, per_tensor=1, **ops(**slots))


def sync(unit: Unit, **slots: tuple[int, int]) -> Command:
    return Command(Opcode.SYNC, unit=unit, **ops(**slots))


def test_order_through_a_semaphore() -> None:
    assert lint([load(0, post0=(1, 1)), store(0, wait0=(1, 1)), END], CONFIG) == []
    (problem,) = lint([load(0), store(2), END], CONFIG)
    assert problem == (
        "command 1 (STORE) reads scratchpad byte 0x2 without waiting for command 0 (LOAD), which writes it"
    )
    assert lint([load(0), store(4), END], CONFIG) == []  # neighbours are no race
    assert lint([store(0), store(0), END], CONFIG) == []
    (problem,) = lint(encode([store(0), load(0), END]), CONFIG)
    assert (
        "command 1 (LOAD) writes scratchpad byte 0x0 without waiting for command 0 (STORE), which reads"
        in problem
    )


def test_order_carries_over() -> None:
    """LOAD before CONV before OUTPUT before STORE: the LOAD is before the STORE, too."""
    chain = [
        load(0, post0=(1, 1)),
        conv(0, wait0=(1, 1)),
        output(64, post0=(2, 1)),
        store(0, 68, wait0=(2, 1)),
        END,
    ]
    assert lint(chain, CONFIG) == []
    # an OUTPUT is done after its CONV: what waits for it may overwrite the CONV's input
    again = [
        load(0, post0=(1, 1)),
        conv(0, wait0=(1, 1)),
        output(64, post0=(2, 1)),
        Command(Opcode.FILL, row_bytes=4, **ops(wait0=(2, 1))),
        END,
    ]
    assert lint(again, CONFIG) == []
    again[2] = output(64)
    again[3] = Command(Opcode.FILL, row_bytes=4)
    assert (
        "command 3 (FILL) writes scratchpad byte 0x0 without waiting for command 1 (CONV)"
        in lint(again, CONFIG)[0]
    )


def test_order_that_comes_with_the_sums() -> None:
    """An OUTPUT writes after its CONV has begun: after what the CONV waited for, and after CONVs before."""
    assert lint([conv(0), output(64), conv(16), output(0), END], CONFIG) == []
    (problem,) = lint([conv(0), output(64), conv(16), output(16), END], CONFIG)  # it may still be reading
    assert "command 3 (OUTPUT) writes scratchpad byte 0x10 without waiting for command 2 (CONV)" in problem
    stored = [store(64, post0=(1, 1)), conv(0, wait0=(1, 1)), output(64), END]
    assert lint(stored, CONFIG) == []
    # what it reads it may read earlier: parameters, residuals
    parameters = Command(Opcode.LOAD, target=Target.PARAMETERS, row_bytes=16, **ops(post0=(1, 1)))
    (problem,) = lint([parameters, conv(0, wait0=(1, 1)), output(64), END], CONFIG)
    assert "command 2 (OUTPUT) reads parameters byte 0x0 without waiting for command 0 (LOAD)" in problem


def test_a_command_that_starts_late_lets_later_ones_start_late() -> None:
    """In a unit, commands start in order: a wait of one holds for those behind it."""
    assert lint([load(0, post0=(1, 1)), sync(Unit.STORE, wait0=(1, 1)), store(0), END], CONFIG) == []
    assert lint([load(0), sync(Unit.LOAD, post0=(1, 1)), store(0, wait0=(1, 1)), END], CONFIG) == []


def test_a_count_that_another_post_could_fill_is_no_order() -> None:
    """Two posts, one wait: only the first is sure to have come; both, if the wait takes both."""
    two = [load(0, post0=(1, 1)), load(4, post0=(1, 1))]
    assert lint([*two, store(0, wait0=(1, 1)), END], CONFIG) == []
    assert lint([*two, store(4, wait0=(1, 1)), END], CONFIG) != []
    assert lint([*two, store(4, wait0=(1, 2)), END], CONFIG) == []
    assert lint([*two, store(0, wait0=(1, 1)), store(4, wait0=(1, 1)), END], CONFIG) == []
    # of two units that post, either may be first
    mixed = [load(0, post0=(1, 1)), sync(Unit.OUTPUT, post0=(1, 1))]
    assert lint([*mixed, store(0, wait0=(1, 1)), END], CONFIG) != []
    assert lint([*mixed, store(0, wait0=(1, 2)), END], CONFIG) == []


def test_posts_that_must_come_later_do_not_count() -> None:
    """The OUTPUT unit's post follows the STORE, so only LOAD's can have let it start."""
    program = [
        load(0, post0=(1, 1)),
        store(0, wait0=(1, 1), post0=(2, 1)),
        sync(Unit.OUTPUT, wait0=(2, 1), post0=(1, 1)),
        store(4, wait0=(1, 1)),
        END,
    ]
    assert lint(program, CONFIG) == []


def test_memories_are_apart() -> None:
    """Weights, parameters and scratchpad have addresses of their own; external memory counts, too."""
    weights = Command(Opcode.LOAD, target=Target.WEIGHTS, row_bytes=16)
    assert lint([weights, store(0), END], CONFIG) == []
    races = lint([weights, conv(64), output(128), END], CONFIG)
    assert races == [
        "command 1 (CONV) reads weights byte 0x0 without waiting for command 0 (LOAD), which writes it"
    ]
    parameters = Command(Opcode.LOAD, target=Target.PARAMETERS, row_bytes=16)
    assert "OUTPUT) reads parameters byte 0x0" in lint([parameters, conv(64), output(128), END], CONFIG)[0]
    back = Command(Opcode.LOAD, address=0x8002, row_bytes=1, local_address=100)
    (race,) = lint([store(0), back, END], CONFIG)
    assert race == (
        "command 1 (LOAD) reads external memory byte 0x8002 without waiting for command 0 (STORE), "
        "which writes it"
    )


def test_rows_are_exact() -> None:
    """What lies between the rows of a transfer is not touched by it."""
    rows = Command(Opcode.FILL, rows=3, row_bytes=4, local_stride=12)
    assert lint([rows, store(4, 8), END], CONFIG) == []
    assert lint([rows, store(16, 8), END], CONFIG) == []
    assert lint([rows, store(4, 9), END], CONFIG) != []


def test_an_output_must_not_feed_itself() -> None:
    """In place is fine: each residual is read before its place is written. One pixel further is not."""
    geometry = {"in_width": 4, "x_stride": 1, "out_width": 4}
    tile = Command(Opcode.CONV, input=256, **geometry)

    def add(address: int) -> Command:
        return Command(
            Opcode.OUTPUT,
            output=64,
            out_width=4,
            x_stride=1,
            per_tensor=1,
            residual=1,
            residual_input=address,
            residual_x_stride=1,
        )

    assert lint([tile, add(64), END], CONFIG) == []
    assert lint([tile, add(68), END], CONFIG) == []
    assert lint([tile, add(60), END], CONFIG) == [
        "command 1 (OUTPUT) reads residuals that it has written itself"
    ]


@pytest.mark.parametrize(
    ("commands", "words"),
    [
        ([store(0, wait0=(3, 2)), END], "waits for 2 of semaphore 3, and earlier commands leave 0 there"),
        (
            [load(0, post0=(1, 2)), store(0, wait0=(1, 1)), sync(Unit.OUTPUT, wait0=(1, 1)), END],
            "command 2 of OUTPUT waits on semaphore 1, and so does command 1 of STORE: only one unit may",
        ),
        ([conv(), END], "command 1: END with a tile that no OUTPUT has taken"),
        ([load(0)], "the program's 1 commands hold no END"),
        ([load(0, 0), END], "command 0: LOAD.row_bytes must lie in [1, 16777215], not 0"),
        ([sync(Unit.LOAD, post0=(1, 15), post1=(1, 15))] * 9 + [END], "semaphore 1 may reach 270"),
    ],
)
def test_programs_that_do_not_run(commands: list[Command], words: str) -> None:
    problems = lint(commands, CONFIG)
    assert any(words in p for p in problems), problems


def test_overflow_by_running_ahead() -> None:
    """In program order the count stays at 15; but nothing holds the LOAD unit back."""
    pair = [sync(Unit.LOAD, post0=(1, 15)), sync(Unit.STORE, wait0=(1, 15))]
    assert "semaphore 1 may reach 270 when command 34 (SYNC) posts" in lint(pair * 20 + [END], CONFIG)[0]
    held = [
        sync(Unit.LOAD, wait0=(2, 1), post0=(1, 15)),
        sync(Unit.STORE, wait0=(1, 15), post0=(2, 1)),
    ]
    assert lint([sync(Unit.STORE, post0=(2, 1)), *held * 20, END], CONFIG) == []


def test_a_tile_larger_than_the_output_buffer() -> None:
    """Its CONV ends when OUTPUT has taken some of it: OUTPUT must not wait for the end, by any way."""

    def program(width: int, **first: tuple[int, int]) -> list[Command]:
        return [
            Command(Opcode.CONV, input=2048, out_blocks=2, out_width=width, **ops(post0=(1, 1), **first)),
            Command(Opcode.FILL, row_bytes=4, local_address=2048, **ops(wait0=(1, 1))),
            sync(Unit.LOAD, post0=(2, 1)),
            Command(Opcode.OUTPUT, out_width=width, per_tensor=1, **ops(wait0=(2, 1))),
            END,
        ]

    assert CONFIG.output_depth == 128
    assert lint(program(64), CONFIG) == []
    config = replace(CONFIG, accumulator_depth=128)
    assert lint(program(64), config) == []
    (problem,) = lint(program(65), config)
    assert problem == (
        "command 1 (FILL) waits until command 0 (CONV) is done, and that cannot be before command 3 (OUTPUT) "
        "takes some of its 2 * 1 * 65 sums: the output buffer holds 128"
    )
    later = program(65)
    later[3] = Command(Opcode.OUTPUT, out_width=65, per_tensor=1)
    # Nothing waits for OUTPUT here, but in a short queue the waiting FILL keeps others from theirs.
    assert lint(later, config) == [problem]
    behind = [later[0], later[3], *later[1:3], sync(Unit.OUTPUT, wait0=(2, 1)), END]
    assert lint(behind, config) == []  # behind the OUTPUT it may
    behind.insert(1, sync(Unit.COMPUTE))
    (problem,) = lint(behind, config)
    assert problem.startswith("command 1 (SYNC) waits until command 0 (CONV) is done")
    # A count that others have given is no wait for the CONV.
    others = [sync(Unit.STORE, post0=(1, 1)), *later]
    others[2] = Command(Opcode.FILL, row_bytes=4, local_address=1024, **ops(wait0=(1, 1)))
    assert lint(others, config) == []


def test_a_ragged_program() -> None:
    assert lint(b"\0" * 65, CONFIG) == ["the program has 65 bytes, not a multiple of 64"]
    assert lint(b"\0" * 64, CONFIG) == ["command 0: no opcode 0"]
