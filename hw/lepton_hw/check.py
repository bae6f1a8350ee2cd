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

The program's own address and length are checked by the same hardware before a run, as a command
whose fields are the CSRs.
"""

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
_PROGRAM = max(COMMANDS) + 1
"""Key of the program's own address and length; not an opcode, and not 0: Icarus evaluates the tables of
generated Verilog when the key changes, and after power-up it is 0."""
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
    """An Extent: `initial` plus the products is at most `limit`, and the first stride not below `floor`."""

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
        key = Signal(range(_PROGRAM + 1))
        program = Signal()
        known = Signal()
        m.d.comb += [
            key.eq(Mux(program, _PROGRAM, opcode)),
            known.eq(program | ((opcode != 0) & (opcode <= max(COMMANDS)))),
        ]
        assert sorted(COMMANDS) == list(range(1, max(COMMANDS) + 1))

        tile = SimpleNamespace(
            open=Signal(), complete=Signal(), height=Signal(16), width=Signal(16), blocks=Signal(12)
        )
        rules = {_PROGRAM: self._program_rules()}
        sums = {_PROGRAM: self._program_sums()}
        for spec in COMMANDS.values():
            view = _fields(spec, command)
            rules[spec.opcode] = _tile_rules(spec, view, tile) + self._simple_rules(spec, view)
            sums[spec.opcode] = self._sums(spec, view, tile)

        # COLLECT
        count = Signal(range(beats))
        accept = Signal()
        response = Signal(2)  # of the first beat that failed
        m.d.comb += accept.eq(self.beats.valid & self.beats.ready)
        with m.If(accept):
            m.d.sync += [
                count.eq(count + 1),  # wraps: a power of two
                command.eq(Cat(command[self._config.bus_width :], self.beats.payload.data)),
            ]
            with m.If(count == 0):
                m.d.sync += opcode.eq(self.beats.payload.data[:8])
            with m.If(self.beats.payload.resp[1] & (response == 0)):
                m.d.sync += response.eq(self.beats.payload.resp)
        reserved, reserved_word = self._reserved(m, key, command, count, accept)

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
        first_broken = _first_set(m, broken)
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
                m.d.sync += [
                    step.eq(0),
                    product_step.eq(0),
                    evaluated.eq(0),
                    code.eq(ErrorCode.NONE),
                    info.eq(0),
                ]
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
                with m.If(extents.broken):
                    m.d.sync += [code.eq(extents.code), info.eq(extents.info)]
                    m.next = "RESULT"
                with m.Elif(extents.finished):
                    m.next = "RESULT"
            with m.State("RESULT"):
                with m.If(self.result.ready):
                    m.d.sync += [program.eq(0), response.eq(0), reserved.eq(0)]
                    m.next = "COLLECT"
                    with m.If(~program & (code == ErrorCode.NONE)):
                        self._track_tile(m, opcode, command, tile)
        m.d.comb += [
            self.beats.ready.eq(fsm.ongoing("COLLECT") & ~self.check_program),
            self.empty.eq(fsm.ongoing("COLLECT") & (count == 0)),
            extents.run.eq(fsm.ongoing("EXTENTS")),
            self.result.valid.eq(fsm.ongoing("RESULT")),
            self.working.eq(fsm.ongoing("RULES") | fsm.ongoing("EXTENTS")),
            self.result.payload.code.eq(code),
            self.result.payload.info.eq(info),
            self.result.payload.command.eq(command),
            self.result.payload.tile_height.eq(tile.height),
            self.result.payload.tile_width.eq(tile.width),
            self.result.payload.tile_blocks.eq(tile.blocks),
        ]
        return m

    def _reserved(
        self, m: Module, key: Signal, command: Signal, count: Signal, accept: Signal
    ) -> tuple[Signal, Signal]:
        """Looks at each beat in the cycle after it came: is a reserved bit set, and in which word?"""
        words = self._config.bus_width // 32
        fresh, number = Signal(), Signal.like(count)
        m.d.sync += [fresh.eq(accept), number.eq(count)]
        masks = [Signal(32, name=f"reserved_mask{j}") for j in range(words)]
        with m.Switch(key):
            for spec in COMMANDS.values():
                with m.Case(spec.opcode):
                    with m.Switch(number):
                        for beat in range(COMMAND_WORDS // words):
                            with m.Case(beat):
                                for j, mask in enumerate(masks):
                                    m.d.comb += mask.eq(~spec.used_bits(beat * words + j) & 0xFFFF_FFFF)
        newest = command[-self._config.bus_width :]
        offends = Signal(words)
        m.d.comb += offends.eq(Cat((newest.word_select(j, 32) & mask).any() for j, mask in enumerate(masks)))
        first = _first_set(m, offends)
        found, word = Signal(), Signal(range(COMMAND_WORDS))
        with m.If(fresh & ~found & offends.any()):
            m.d.sync += [found.eq(1), word.eq(number * words + first)]
        return found, word

    def _program_rules(self) -> list[_Rule]:
        address, size = self.settings.program_address, self.settings.program_bytes
        low = COMMAND_BYTES.bit_length() - 1
        return [
            _Rule(address[:low].any() | size[:low].any() | (size == 0), ErrorCode.PROGRAM, 0),
        ]

    def _program_sums(self) -> list[_Sum]:
        products = tuple(
            _Product(None, Value.cast(v))
            for v in (self.settings.program_address, self.settings.program_bytes)
        )
        return [
            _Sum(
                products,
                initial=-1,
                limit=self.settings.read_last,
                floor=self.settings.read_first,
                applies=Const(1),
                code=ErrorCode.PROGRAM,
                info=0,
                highest=2 * 0xFFFF_FFFF - 1,
            )
        ]

    def _simple_rules(self, spec: CommandSpec, view: SimpleNamespace) -> list[_Rule]:
        """Range and Require in the order of the table; those that nothing can break are left out."""
        simple = [rule for rule in spec.rules if not isinstance(rule, Extent)]
        if any(isinstance(rule, Extent) for rule in spec.rules[: len(simple)]):
            raise ValueError(f"{spec.opcode.name}: rules of kind Extent must come last")
        out = []
        for rule in simple:
            field = spec.by_name[rule.field]
            value = getattr(view, rule.field)
            broken: list[Value] = []
            if isinstance(rule, Require):
                broken.append(~Value.cast(rule.holds(view, self._config)).bool())
            elif isinstance(rule, Range):
                low, high = self._number(rule.low, field.low), self._number(rule.high, field.high)
                multiple = self._number(rule.multiple, 1)
                if multiple & (multiple - 1):
                    raise ValueError(
                        f"{spec.opcode.name}.{rule.field}: multiple must be a power of two, not {multiple}"
                    )
                if low > field.low:
                    broken.append(value == 0 if (field.low, low) == (0, 1) else value < low)
                if high < field.high:
                    broken.append(value > high)
                if multiple > 1:
                    broken.append(value[: multiple.bit_length() - 1].any())
            if broken:
                out.append(_Rule(_holds(view, rule.when) & Cat(broken).any(), rule.code, field.bit))
        return out

    def _sums(self, spec: CommandSpec, view: SimpleNamespace, tile: SimpleNamespace) -> list[_Sum]:
        """The Extents of a command. Neighbours that differ only in when they apply become one."""
        out: list[_Sum] = []
        keys: list[tuple[Any, ...]] = []
        windows = {
            "read": (self.settings.read_first, self.settings.read_last),
            "write": (self.settings.write_first, self.settings.write_last),
        }
        positive = {
            r.field for r in spec.rules if isinstance(r, Range) and not r.when and self._number(r.low, 0) >= 1
        }

        def value(name: str) -> Value:
            return (
                getattr(tile, name.removeprefix("tile_")) if name.startswith("tile_") else getattr(view, name)
            )

        def must_be_positive(name: str) -> None:
            if not name.startswith("tile_") and name not in positive:
                raise ValueError(f"{spec.opcode.name}.{name}: an Extent needs a rule that it is at least 1")

        for rule in spec.rules:
            if not isinstance(rule, Extent):
                continue
            initial = highest = 0
            products: list[_Product] = []
            for end in (rule.base, rule.tail):
                if isinstance(end, int):
                    initial += end
            if not isinstance(rule.base, int):
                products.append(_Product(None, value(rule.base)))
            for count, stride, shift in rule.terms:
                must_be_positive(count)
                factor = Const(stride) if isinstance(stride, int) else value(stride)
                zeros = self._number(shift, 0)
                # Amaranth's << by a constant makes no logic.
                products.append(_Product(value(count), Cat(Const(0, zeros), factor)))
            if not isinstance(rule.tail, int):
                products.append(_Product(None, value(rule.tail)))
            for product in products:
                factor_high = 1 if product.count is None else (1 << len(product.count)) - 2
                highest += factor_high * ((1 << len(product.stride)) - 1)
            floor = None
            if isinstance(rule.limit, str) and rule.limit in windows:
                assert isinstance(rule.base, str) and isinstance(rule.tail, str)
                must_be_positive(rule.tail)
                floor, limit = windows[rule.limit]
                initial -= 1
                limit_key: object = rule.limit
            elif isinstance(rule.limit, str):
                limit, limit_key = value(rule.limit), rule.limit
            else:
                number = self._number(rule.limit, 0)
                limit, limit_key = Const(number, 32), number
            applies = _holds(view, rule.when)
            key = (rule.code, rule.base, rule.terms, rule.tail, limit_key, rule.blame)
            if keys and keys[-1] == key:
                applies = out.pop().applies | applies
            else:
                keys.append(key)
            out.append(
                _Sum(
                    tuple(products),
                    initial,
                    limit,
                    floor,
                    applies,
                    rule.code,
                    spec.by_name[rule.blame].bit,
                    highest + max(initial, 0),
                )
            )
        return out

    def _number(self, number: Number | None, otherwise: int) -> int:
        if number is None:
            return otherwise
        return number(self._config) if callable(number) else number

    def _track_tile(self, m: Module, opcode: Signal, command: Signal, tile: SimpleNamespace) -> None:
        with m.Switch(opcode):
            with m.Case(Opcode.CONV):
                view = _fields(COMMANDS[Opcode.CONV], command)
                m.d.sync += [
                    tile.open.eq(1),
                    tile.complete.eq(view.last),
                    tile.height.eq(view.out_height),
                    tile.width.eq(view.out_width),
                    tile.blocks.eq(view.out_blocks),
                ]
            with m.Case(Opcode.OUTPUT):
                m.d.sync += tile.open.eq(0)

    def _extents(self, m: Module, key: Signal, sums: dict[int, list[_Sum]], step: Signal) -> SimpleNamespace:
        """The multiplier and its pipeline; starts when `run` rises with `step` at 0.

        Returns:
            `run` to drive, `broken` with `code` and `info` of the first Extent that is broken, `finished`.
        """
        flat = {
            k: [(s, i, product) for s in its for i, product in enumerate(s.products)]
            for k, its in sums.items()
        }
        bits = max(s.highest for its in sums.values() for s in its).bit_length()

        def at(number: Signal, assign: Callable[[_Sum, int, _Product, int], Sequence[Any]]) -> None:
            """Statements for each (key, step), as a table."""
            with m.Switch(key):
                for k, steps in flat.items():
                    with m.Case(k):
                        with m.Switch(number):
                            for n, (s, i, product) in enumerate(steps):
                                with m.Case(n):
                                    m.d.comb += assign(s, i, product, n)

        run, end = Signal(name="extents_run"), Signal(name="extents_end")
        with m.Switch(key):
            for k, steps in flat.items():
                with m.Case(k):
                    m.d.comb += end.eq(step == len(steps))

        # Operands
        count, stride = Signal(_COUNT_BITS, init=2), Signal(_STRIDE_BITS)
        first, last, skip, skip_to = Signal(), Signal(), Signal(), Signal.like(step)

        def operands(s: _Sum, i: int, product: _Product, n: int) -> Sequence[Any]:
            assert len(product.stride) <= _STRIDE_BITS
            assert product.count is None or len(product.count) <= _COUNT_BITS
            return [
                count.eq(2 if product.count is None else product.count),
                stride.eq(product.stride),
                first.eq(i == 0),
                last.eq(i == len(s.products) - 1),
                skip.eq(~s.applies if i == 0 else 0),
                skip_to.eq(n - i + len(s.products)),
            ]

        at(step, operands)
        valid1, first1, last1, step1 = Signal(), Signal(), Signal(), Signal.like(step)
        a, b = Signal(_COUNT_BITS), Signal(_STRIDE_BITS)
        m.d.sync += [
            valid1.eq(run & ~end & ~skip),
            first1.eq(first),
            last1.eq(last),
            step1.eq(step),
            a.eq(count - 1),
            b.eq(stride),
        ]
        with m.If(run & ~end):
            m.d.sync += step.eq(Mux(skip, skip_to, step + 1))

        # Product
        floor = Signal(32)
        at(step1, lambda s, i, product, n: [floor.eq(s.floor)] if i == 0 and s.floor is not None else [])
        valid2, first2, last2, step2 = Signal(), Signal(), Signal(), Signal.like(step)
        product2, below2 = Signal(_COUNT_BITS + _STRIDE_BITS), Signal()
        m.d.sync += [
            valid2.eq(valid1),
            first2.eq(first1),
            last2.eq(last1),
            step2.eq(step1),
            product2.eq(a * b),
            below2.eq(b < floor),
        ]

        # Sum
        initial = Signal(bits)
        at(step2, lambda s, i, product, n: [initial.eq(s.initial)] if i == 0 and s.initial else [])
        last3, step3 = Signal(), Signal.like(step)
        total, below3 = Signal(bits), Signal()
        m.d.sync += [last3.eq(valid2 & last2), step3.eq(step2)]
        with m.If(valid2):
            m.d.sync += total.eq(Mux(first2, initial, total) + product2)
            with m.If(first2):
                m.d.sync += below3.eq(below2)

        # Compare
        limit = Signal(32)
        out = SimpleNamespace(
            run=run, broken=Signal(), code=Signal(ErrorCode), info=Signal(9), finished=Signal()
        )

        def verdict(s: _Sum, i: int, product: _Product, n: int) -> Sequence[Any]:
            if i < len(s.products) - 1:
                return []
            return [limit.eq(s.limit), out.code.eq(s.code), out.info.eq(s.info)]

        at(step3, verdict)
        m.d.comb += [
            out.broken.eq(last3 & (below3 | (total > limit))),
            out.finished.eq(end & ~valid1 & ~valid2),
        ]
        return out


def _fields(spec: CommandSpec, command: Value) -> SimpleNamespace:
    """All fields of a command as attributes, cut out of its 512 bits."""
    out = SimpleNamespace()
    for f in spec.fields:
        value = command[f.bit : f.bit + f.width]
        setattr(out, f.name, value.as_signed() if f.signed else value)
    return out


def _holds(view: SimpleNamespace, when: tuple[tuple[str, int], ...]) -> Value:
    """All conditions of a rule."""
    return Cat(getattr(view, name) == value for name, value in when).all() if when else Const(1)


def _tile_rules(spec: CommandSpec, view: SimpleNamespace, tile: SimpleNamespace) -> list[_Rule]:
    """How CONV and OUTPUT pair up: isa.Checker says it in words."""
    broken = None
    if spec.opcode is Opcode.CONV:
        other_size = (view.out_height != tile.height) | (view.out_width != tile.width)
        broken = Mux(view.first, tile.open, ~tile.open | tile.complete | other_size) | (
            ~(view.first & view.last) & (view.out_blocks != 1)
        )
    elif spec.opcode is Opcode.OUTPUT:
        broken = ~tile.open | ~tile.complete
    elif spec.opcode is Opcode.END:
        broken = tile.open
    return [] if broken is None else [_Rule(broken, ErrorCode.TILE_ORDER, 0)]


def _first_set(m: Module, bits: Signal) -> Signal:
    """Index of the lowest bit that is set."""
    out = Signal(range(max(2, len(bits))), name=f"first_{bits.name}")
    for i in reversed(range(len(bits))):
        with m.If(bits[i]):
            m.d.comb += out.eq(i)
    return out
