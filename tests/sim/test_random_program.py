"""Random programs are correct, free of races, reproducible and varied; spoiled ones fail as announced."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from lepton_hw.config import PRESETS
from lepton_hw.isa import Command, ErrorCode, Opcode, Unit, encode, unit_of
from lepton_sim.golden import GoldenDevice, lint
from lepton_sim.mutation import MUTATIONS, mutate
from lepton_sim.ordering import OrderingStyle, add_semaphores
from lepton_sim.random_program import MEMORY_BYTES, RandomProgram, random_program, run_golden


def program(preset: str, seed: int) -> RandomProgram:
    return random_program(random.Random(f"{preset} {seed}"), PRESETS[preset], size=seed % 6)


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("seed", range(12))
def test_programs_are_correct_and_free_of_races(preset: str, seed: int) -> None:
    p = program(preset, seed)
    assert lint(p.program, p.config) == []
    result, memory = run_golden(p)
    assert result.error is None, (p.description, result.error)
    assert memory.size == p.memory.size == MEMORY_BYTES
    first, last = p.write_window
    changed = np.flatnonzero(memory != p.memory)
    assert changed.size, p.description
    assert first <= changed[0] <= changed[-1] <= last
    assert encode(p.commands) == p.program[: 64 * len(p.commands)]


@pytest.mark.parametrize("preset", PRESETS)
def test_results_do_not_depend_on_what_was_on_chip(preset: str) -> None:
    """One device for many programs, and dirty memories, give what fresh devices give."""
    rng = np.random.default_rng(1)
    device = GoldenDevice(PRESETS[preset], memory_bytes=MEMORY_BYTES)
    memories = device.memories
    for memory in (memories.scratchpad, memories.weights, memories.parameters):
        memory[...] = rng.integers(0, 256, memory.shape, np.uint8).view(memory.dtype)
    for seed in range(10):
        p = program(preset, seed)
        np.testing.assert_array_equal(run_golden(p, device)[1], run_golden(p)[1], p.description)


def test_the_seed_is_all_there_is() -> None:
    first, second, third = program("small", 4), program("small", 4), program("small", 5)
    assert (first.program, first.description) == (second.program, second.description)
    assert (first.memory == second.memory).all()
    assert first.program != third.program


def test_programs_vary() -> None:
    """Modes, pooling, residuals, wrap-around, edges: all of it comes up."""
    seen: Counter[str] = Counter()
    config = PRESETS["small"]
    for seed in range(60):
        for c in program("small", seed).commands:
            seen[c.opcode.name] += 1
            if c.opcode is Opcode.CONV:
                positions = c.out_height * c.out_width
                seen[f"mode {c.mode}"] += 1
                seen["wide"] += c.mode == 1 and c.wide
                seen["few positions"] += positions < config.array_size
                seen["one position"] += positions == 1
                seen["all positions"] += positions == config.accumulator_depth
                seen["goes on"] += not c.first
                seen["blocks"] += c.out_blocks > 1
                seen["same weights"] += c.restart_weights and c.out_blocks > 1
                seen["moving input"] += c.out_blocks > 1 and c.out_block_stride > 0
                seen["three rows"] += c.mode == 2 and c.rows_per_pass > 1
                seen["tall kernel"] += c.kernel_height * c.kernel_width > 25
                seen["weights at the end"] += c.weights + config.array_size > config.weight_vectors
            elif c.opcode is Opcode.OUTPUT:
                seen[f"pool {c.pool_mode}"] += 1
                seen["residual"] += c.residual
                seen["per tensor"] += c.per_tensor
                seen["single rounding"] += c.single_rounding
                seen["outside windows"] += c.pool_y_start < 0 or c.pool_x_start < 0
                seen["last vectors"] += c.output >= config.scratchpad_bytes - 64 * config.array_size
            elif c.opcode is Opcode.STORE:
                seen["odd store"] += c.address % 2
                seen["rows of a store"] += c.rows > 1
                end = c.address + c.row_bytes - 1
                seen["over 4 KiB"] += c.address // 4096 != end // 4096
    names = [opcode.name for opcode in Opcode]
    names += [f"{kind} {i}" for kind in ("mode", "pool") for i in range(3)]
    names += ["wide", "few positions", "one position", "all positions", "goes on", "blocks", "same weights"]
    names += [
        "moving input",
        "three rows",
        "tall kernel",
        "weights at the end",
        "residual",
        "per tensor",
        "single rounding",
    ]
    names += ["outside windows", "last vectors", "odd store", "rows of a store", "over 4 KiB"]
    missing = [name for name in names if not seen[name]]
    assert not missing, seen


def test_results_are_not_all_clamped() -> None:
    """Most of what OUTPUTs write is not one constant: an error in the sums would show."""
    varied = total = 0
    for seed in range(30):
        p = program("base", seed)
        device = GoldenDevice(p.config, memory_bytes=MEMORY_BYTES)
        memory = run_golden(p, device)[1]
        for c in p.commands:
            if c.opcode is Opcode.STORE and c.rows == 1 and c.row_bytes >= 64:
                total += 1
                varied += len(np.unique(memory[c.address : c.address + c.row_bytes])) > 8
    assert total > 50
    assert varied > 0.6 * total, (varied, total)


# --- order ---


def test_serial_order_lets_nothing_overlap() -> None:
    """Each command follows the one before it, of whatever unit."""
    commands = [
        Command(Opcode.FILL, row_bytes=1),
        Command(Opcode.STORE, local_address=64, address=0),
        Command(Opcode.FILL, row_bytes=1, local_address=128),
        Command(Opcode.RESCALE),
        Command(Opcode.END),
    ]
    config = PRESETS["nano"]
    ordered = add_semaphores(commands, config, random.Random(1), OrderingStyle(serial=True))
    waits = [c.wait0_count + c.wait1_count for c in ordered if c.opcode is not Opcode.END]
    assert waits == [0, 1, 1, 1]
    free = add_semaphores(commands, config, random.Random(1), OrderingStyle())
    assert not any(c.wait0_count + c.wait1_count for c in free if c.opcode is not Opcode.END)
    with pytest.raises(ValueError, match="waits or posts already"):
        add_semaphores(ordered, config, random.Random(1), OrderingStyle())


def without_order(commands: tuple[Command, ...]) -> list[Command]:
    """The commands as they were before semaphores."""
    out = []
    for c in commands:
        if c.opcode is Opcode.END:
            out.append(c)
        elif c.opcode is not Opcode.SYNC:
            kept = {n: v for n, v in c.values.items() if n != "opcode" and not n.startswith(("wait", "post"))}
            out.append(Command(c.opcode, **kept))
    return out


def interleaved(commands: list[Command], rng: random.Random) -> list[Command]:
    """A random order in which four units could go through the program.

    Each unit keeps its own order, semaphores hold it back, and OUTPUT comes after its tile's last CONV and
    before the next tile's first.
    """
    queues = {unit: [c for c in commands if unit_of(c) is unit] for unit in Unit}
    favourite = rng.choice(list(Unit))
    held, tile, out = [0] * 16, False, []
    while any(queues.values()):
        ready = []
        for unit, queue in queues.items():
            if not queue:
                continue
            c = queue[0]
            after = list(held)
            for i in (0, 1):
                after[c.values[f"wait{i}_semaphore"]] -= c.values[f"wait{i}_count"]
            waits = min(after) < 0
            waits |= c.opcode is Opcode.CONV and tile
            waits |= c.opcode is Opcode.OUTPUT and not tile
            if not waits:
                ready.append(unit)
        unit = favourite if favourite in ready and rng.random() < 0.9 else rng.choice(ready)
        c = queues[unit].pop(0)
        for i in (0, 1):
            held[c.values[f"wait{i}_semaphore"]] -= c.values[f"wait{i}_count"]
            held[c.values[f"post{i}_semaphore"]] += c.values[f"post{i}_count"]
        tile = bool(c.last) if c.opcode is Opcode.CONV else tile and c.opcode is not Opcode.OUTPUT
        out.append(c)
    return [*out, commands[-1]]


def outcome(p: RandomProgram, commands: list[Command]) -> np.ndarray:
    """Memory after these commands in the place of the program's."""
    memory = p.memory.copy()
    raw = encode(commands)
    memory[p.program_address : p.program_address + len(raw)] = np.frombuffer(raw, np.uint8)
    result, after = run_golden(replace(p, memory=memory, program_bytes=len(raw)))
    assert result.error is None, result.error
    after[p.program_address : p.program_address + len(raw)] = 0
    return after


@pytest.mark.parametrize("preset", ["nano", "base"])
@pytest.mark.parametrize("seed", range(6))
def test_no_interleaving_changes_the_result(preset: str, seed: int) -> None:
    """What lint accepts gives the same memory however the units run ahead of one another."""
    p = program(preset, 2 + seed % 4 + 12 * seed)
    style = OrderingStyle(implied=bool(seed % 2))
    ordered = add_semaphores(without_order(p.commands), p.config, random.Random(seed), style)
    assert lint(ordered, p.config) == []
    expected = outcome(p, ordered)
    for i in range(8):
        other = interleaved(ordered, random.Random(i))
        np.testing.assert_array_equal(outcome(p, other), expected)


def test_without_semaphores_interleaving_matters() -> None:
    """The test above can fail: without order most programs give other results, and lint reports those."""
    differ = 0
    for seed in range(8):
        p = program("base", 3 + 6 * seed)
        bare = without_order(p.commands)
        expected = outcome(p, bare)
        if any((outcome(p, interleaved(bare, random.Random(i))) != expected).any() for i in range(8)):
            differ += 1
            assert lint(bare, p.config)
    assert differ >= 6


def test_lint_misses_few_waits() -> None:
    """A wait taken away is a race, unless a chain of other waits gives the same order."""
    noticed = total = 0
    for seed in range(6):
        p = program("small", 3 + 6 * seed)
        ordered = add_semaphores(without_order(p.commands), p.config, random.Random(seed), OrderingStyle())
        waiting = [i for i, c in enumerate(ordered) if c.opcode is not Opcode.END and c.wait0_count]
        for index in waiting[:: max(1, len(waiting) // 6)]:
            less = list(ordered)
            values = {n: v for n, v in less[index].values.items() if n != "opcode"}
            less[index] = Command(less[index].opcode, **values | {"wait0_count": 0})
            total += 1
            noticed += bool(lint(less, p.config))
    assert total > 20
    assert noticed > total // 2, (noticed, total)


# --- spoiled programs ---


CODES = {
    "opcode": ErrorCode.OPCODE,
    "reserved": ErrorCode.RESERVED,
    "field": ErrorCode.FIELD,
    "unsupported": ErrorCode.UNSUPPORTED,
    "read window": ErrorCode.READ_WINDOW,
    "write window": ErrorCode.WRITE_WINDOW,
    "closed window": ErrorCode.WRITE_WINDOW,
    "tile order": ErrorCode.TILE_ORDER,
    "truncated": ErrorCode.PROGRAM,
    "misaligned": ErrorCode.PROGRAM,
    "empty": ErrorCode.PROGRAM,
    "program outside": ErrorCode.PROGRAM,
    "read bus": ErrorCode.READ_BUS,
    "write bus": ErrorCode.WRITE_BUS,
    "fetch bus": ErrorCode.FETCH_BUS,
    "overflow": ErrorCode.SEMAPHORE,
    "hang": ErrorCode.WATCHDOG,
}


@pytest.mark.parametrize("kind", MUTATIONS)
def test_spoiled_programs_fail_as_announced(kind: str) -> None:
    """Each kind fits some programs, and gives its code; nothing outside the write window changes."""
    done = 0
    for seed in range(12):
        preset = "nano" if kind == "unsupported" or seed % 2 else "base"
        p = program(preset, seed)
        original = p.memory.copy()
        try:
            spoiled, expectation = mutate(random.Random(seed), p, kind)
        except ValueError:
            continue  # does not fit
        done += 1
        np.testing.assert_array_equal(p.memory, original)
        if kind == "extent":
            assert expectation.code in (ErrorCode.FIELD, ErrorCode.LOCAL_RANGE)
        elif not (kind == "field" and expectation.code is ErrorCode.UNSUPPORTED):
            assert expectation.code is CODES[kind]
        result, memory = run_golden(spoiled)
        assert result.error is not None
        error = result.error
        assert (error.code, error.command, error.info) == (
            expectation.code,
            expectation.command,
            expectation.info,
        )
        first, last = spoiled.write_window
        changed = np.flatnonzero(memory != spoiled.memory)
        assert not changed.size or first <= changed[0] <= changed[-1] <= last
    assert done >= 3


def test_unknown_kinds_are_refused() -> None:
    with pytest.raises(ValueError, match=r"kind must be one of opcode, .* not 'nothing'"):
        mutate(random.Random(0), program("nano", 0), "nothing")
    with pytest.raises(ValueError, match="size must not be negative, not -1"):
        random_program(random.Random(0), PRESETS["nano"], size=-1)
