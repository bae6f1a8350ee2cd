"""The command checker: hardware made from the rule tables of isa.py.

Same verdicts, in the same order, as `isa.decode` followed by `isa.Checker.check`.

```
state    cycles                    work
COLLECT  64 / bus bytes            beats shift into the command register; reserved bits of each beat are
                                   checked one cycle after it came
RULES    2 + rules / 8             Range and Require, eight at a time
EXTENTS  3 + one a product         Extent, on one multiplier:  operands -> product -> sum -> compare
RESULT   until taken               verdict and command stand still
```

An Extent is a sum of products. Its base and tail are products with 1, its constants (and for a window -1, so
that the sum is the last byte and not the end) the value that the sum starts from.

The program's own address and length are checked by the same hardware before a run, as a command with opcode 0
whose fields are the CSRs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

from amaranth.hdl import Cat, Const, Module, Mux, Signal, Value
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from .config import NPUConfig
from .csr import Settings
from .fetch import beat_layout
from .isa import (
    COMMAND_BYTES,
    COMMAND_WORDS,
    COMMANDS,
    CommandSpec,
    ErrorCode,
    Extent,
    Number,
    Opcode,
    Range,
    Require,
)

__all__ = ["CommandChecker", "Verdict"]

_GROUP = 8
"""Simple rules that are looked at in one cycle."""
_PROGRAM = 0
"""Key of the program's own address and length; not an opcode."""
_COUNT_BITS = 16
_STRIDE_BITS = 32


class Verdict(data.Struct):
    """A command and what is wrong with it.

    Members:
        code, info: isa.ErrorCode and what belongs to it; code NONE for a correct command.
        command: the command as it was read.
        tile_height, tile_width, tile_blocks: the tile that is open before the command.
    """

    code: 4
    info: 9
    command: 8 * COMMAND_BYTES
    tile_height: 16
    tile_width: 16
    tile_blocks: 12


@dataclass(frozen=True)
class _Rule:
    """A rule that one cycle can decide."""

    broken: Value
    code: ErrorCode
    info: int


@dataclass(frozen=True)
class _Product:
    """One step of an Extent: (count - 1) * stride is added; count None stands for a factor of 1."""

    count: Value | None
    stride: Value


@dataclass(frozen=True)
class _Sum:
    """An Extent: `initial` plus the products is at most `limit`; the first product's stride not below `floor`."""

    products: tuple[_Product, ...]
    initial: int
    limit: Value
    floor: Value | None
    applies: Value
    code: ErrorCode
    info: int
    highest: int
    """What the sum can reach."""


class CommandChecker(wiring.Component):
    """Collects commands from beats and checks them one after the other.

    Arguments:
        config: limits and bus width.

    Members:
        settings: the windows, and the program for `check_program`. Constant while checking.
        check_program: check the program's address and length (one cycle, while nothing is collected).
        clear: forget everything, the open tile too.
        beats: the program.
        result: the verdict. Taking a verdict with code NONE lets the tile open or close.
        empty: no part of a command is here.
        working: a check goes on (not: waits for beats or for the verdict to be taken).
    """

    def __init__(self, config: NPUConfig) -> None:
        self._config = config
        super().__init__(
            {
                "settings": In(Settings),
                "check_program": In(1),
                "clear": In(1),
                "beats": In(stream.Signature(beat_layout(config))),
                "result": Out(stream.Signature(Verdict)),
                "empty": Out(1),
                "working": Out(1),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        beats = COMMAND_BYTES // self._config.bus_bytes
        command = Signal(8 * COMMAND_BYTES, reset_less=True)
        opcode = Signal(8)
        key = Signal(range(max(COMMANDS) + 1))
        program = Signal()
        known = Signal()
        m.d.comb += [
            key.eq(Mux(program, _PROGRAM, opcode)),
            known.eq(program | ((opcode != 0) & (opcode <= max(COMMANDS)))),
        ]
        assert sorted(COMMANDS) == list(range(1, max(COMMANDS) + 1))

        tile = SimpleNamespace(open=Signal(), complete=Signal(), height=Signal(16), width=Signal(16), blocks=Signal(12))
        rules = {_PROGRAM: self._program_rules()}
        sums = {_PROGRAM: self._program_sums()}
        for spec in COMMANDS.values():
            view = _fields(spec, command)
            rules[spec.opcode] = _tile_rules(spec, view, tile) + self._simple_rules(spec, view)
            sums[spec.opcode] = self._sums(spec, view, tile)

        # COLLECT
        count = Signal(range(beats))
        accept = Signal()
        fresh = Signal()  # the last beat came in the cycle before
        response = Signal(2)  # of the first beat that failed
        m.d.comb += accept.eq(self.beats.valid & self.beats.ready)
        m.d.sync += fresh.eq(accept)
        with m.If(accept):
            m.d.sync += [
                count.eq(count + 1),  # wraps: a power of two
                command.eq(Cat(command[self._config.bus_width :], self.beats.payload.data)),
            ]
            with m.If(count == 0):
                m.d.sync += opcode.eq(self.beats.payload.data[:8])
            with m.If(self.beats.payload.resp[1] & (response == 0)):
                m.d.sync += response.eq(self.beats.payload.resp)
        reserved, reserved_word = self._reserved(m, key, command, fresh, accept)

        # RULES
        step = Signal(range(max(-(-len(r) // _GROUP) for r in rules.values()) + 1))
        checked = Signal.like(step)
        evaluated = Signal()  # `broken` holds the verdicts of group `checked`
        broken = Signal(_GROUP)
        code, info = Signal(ErrorCode), Signal(9)
        m.d.sync += checked.eq(step)
        last_group = Signal.like(step)
        with m.Switch(key):
            for k, its_rules in rules.items():
                with m.Case(k):
                    m.d.comb += last_group.eq(max(0, -(-len(its_rules) // _GROUP) - 1))
                    with m.Switch(step):
                        for g in range(0, len(its_rules), _GROUP):
                            with m.Case(g // _GROUP):
                                m.d.sync += broken.eq(Cat(r.broken for r in its_rules[g : g + _GROUP]))
                        with m.Default():
                            m.d.sync += broken.eq(0)
                with_rules = bool(its_rules)
                if not with_rules:
                    with m.Case(k):
                        m.d.sync += broken.eq(0)
        first_broken = _first(m, broken)
        rule_code, rule_info = Signal(ErrorCode), Signal(9)
        with m.Switch(Cat(first_broken, checked, key)):
            for k, its_rules in rules.items():
                for i, rule in enumerate(its_rules):
                    place = i % _GROUP | (i // _GROUP | k << len(step)) << len(first_broken)
                    with m.Case(place):
                        m.d.comb += [rule_code.eq(rule.code), rule_info.eq(rule.info)]

        # EXTENTS
        product_step = Signal(range(max(sum(len(s.products) for s in its) for its in sums.values()) + 1))
        extents = self._extents(m, key, sums, product_step)
        has_sums = Signal()
        with m.Switch(key):
            for k, its_sums in sums.items():
                with m.Case(k):
                    m.d.comb += has_sums.eq(bool(its_sums))

        with m.FSM() as fsm:
            with m.State("COLLECT"):
                m.d.comb += [
                    self.beats.ready.eq(~self.check_program),
                    self.empty.eq(count == 0),
                ]
                m.d.sync += [step.eq(0), product_step.eq(0), evaluated.eq(0), code.eq(ErrorCode.NONE), info.eq(0)]
                with m.If(self.check_program):
                    m.d.sync += program.eq(1)
                    m.next = "RULES"
                with m.Elif(accept & (count == beats - 1)):
                    m.next = "RULES"
            with m.State("RULES"):
                m.d.sync += [step.eq(step + 1), evaluated.eq(1)]
                with m.If(evaluated):
                    with m.If(response != 0):
                        m.d.sync += [code.eq(ErrorCode.FETCH_BUS), info.eq(response)]
                        m.next = "RESULT"
                    with m.Elif(~known):
                        m.d.sync += [code.eq(ErrorCode.OPCODE), info.eq(opcode)]
                        m.next = "RESULT"
                    with m.Elif(reserved):
                        m.d.sync += [code.eq(ErrorCode.RESERVED), info.eq(reserved_word)]
                        m.next = "RESULT"
                    with m.Elif(broken.any()):
                        m.d.sync += [code.eq(rule_code), info.eq(rule_info)]
                        m.next = "RESULT"
                    with m.Elif(checked == last_group):
                        with m.If(has_sums):
                            m.next = "EXTENTS"
                        with m.Else():
                            m.next = "RESULT"
            with m.State("EXTENTS"):
                m.d.comb += extents.run.eq(1)
                with m.If(extents.broken):
                    m.d.sync += [code.eq(extents.code), info.eq(extents.info)]
                    m.next = "RESULT"
                with m.Elif(extents.finished):
                    m.next = "RESULT"
            with m.State("RESULT"):
                m.d.comb += self.result.valid.eq(1)
                with m.If(self.result.ready):
                    m.d.sync += [program.eq(0), response.eq(0)]
                    m.next = "COLLECT"
                    with m.If(~program & (code == ErrorCode.NONE)):
                        self._track_tile(m, opcode, command, tile)
        m.d.comb += [
            self.working.eq(fsm.ongoing("RULES") | fsm.ongoing("EXTENTS")),
            self.result.payload.code.eq(code),
            self.result.payload.info.eq(info),
            self.result.payload.command.eq(command),
            self.result.payload.tile_height.eq(tile.height),
            self.result.payload.tile_width.eq(tile.width),
            self.result.payload.tile_blocks.eq(tile.blocks),
        ]
        return m
