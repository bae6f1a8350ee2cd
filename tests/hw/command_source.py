"""Random commands for benches of the control unit: correct ones, and ones that are wrong in every way."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

from lepton_hw.config import NPUConfig
from lepton_hw.isa import (
    COMMAND_BYTES,
    COMMANDS,
    Checker,
    Command,
    CommandError,
    Extent,
    Mode,
    Opcode,
    Range,
    Target,
    decode,
    encode,
)

__all__ = ["CommandSource"]

_PAYLOAD = (Opcode.LOAD, Opcode.FILL, Opcode.CONV, Opcode.OUTPUT, Opcode.RESCALE, Opcode.STORE, Opcode.SYNC)


@dataclass
class CommandSource:
    """Draws commands for a configuration and its windows.

    Attributes:
        config: limits.
        read_window, write_window: first and last byte.
        random: where the choices come from.
    """

    config: NPUConfig
    read_window: tuple[int, int]
    write_window: tuple[int, int]
    random: random.Random
    wrong: dict[str, int] = field(default_factory=dict)

    def plausible(self, opcode: Opcode | None = None) -> Command:
        """A command with small numbers; it obeys the rules more often than not."""
        r, c = self.random, self.config
        n = c.array_size
        opcode = opcode or r.choice(_PAYLOAD)
        v: dict[str, int] = {}
        for slot in ("wait0", "wait1", "post0", "post1"):
            v |= {f"{slot}_semaphore": r.randrange(16), f"{slot}_count": r.randrange(16)}
        if opcode in (Opcode.LOAD, Opcode.FILL, Opcode.STORE):
            target = Target.SCRATCHPAD
            if opcode is Opcode.LOAD:
                v["target"] = target = r.choice(list(Target))
            grain = 1 if target is Target.SCRATCHPAD else c.bus_bytes
            v |= {
                "row_bytes": grain * r.randint(1, 4),
                "rows": r.randint(1, 4),
                "local_address": grain * r.randrange(8),
                "local_stride": grain * r.randrange(4),
            }
            if opcode is not Opcode.FILL:
                first, last = self.read_window if opcode is Opcode.LOAD else self.write_window
                span = max(0, last - first)
                base = min(0xFFFF_FFFF, first + r.randrange(max(1, span // 2)))
                v |= {"address": -(-base // grain) * grain & 0xFFFF_FFFF, "stride": grain * r.randrange(64)}
        elif opcode is Opcode.CONV:
            mode = r.choice(list(Mode))
            odd = r.choice((1, 2)) * 2 - 1
            v |= {
                "mode": mode,
                "first": r.randrange(2),
                "last": r.randrange(4) > 0,
                "wide": mode is Mode.PATCH and r.randrange(2),
                "input": n * r.randrange(4),
                "y_stride": odd,
                "x_stride": r.randrange(3),
                "in_height": r.randint(1, 3),
                "in_width": r.randint(1, 3),
                "out_height": r.randint(1, 2),
                "out_width": r.randint(1, 2),
                "stride_x": r.randint(1, 2),
                "row_samples": r.randint(4, 8),
                "dilation_y": odd,
                "kernel_width": 1,
                "row_length": r.randint(1, n),
                "pass_length": r.randint(1, n),
                "rows_per_pass": 1,
                "weights": r.randrange(c.weight_vectors),
                "out_blocks": r.choice((1, 1, 2)),
                "out_block_stride": r.randrange(2),
            }
            if v["wide"]:
                v["y_stride"] = 2
            if mode is Mode.VECTOR:
                v |= {
                    "in_blocks": r.randint(1, 3),
                    "block_stride": r.randrange(2),
                    "dilation_x": r.randint(1, 3),
                }
            if mode is Mode.ROWS and r.randrange(2):
                v |= {"kernel_width": 3, "rows_per_pass": c.depthwise_groups, "valid_from": r.randrange(3)}
        elif opcode is Opcode.OUTPUT:
            v |= {
                "pool_mode": r.randrange(3),
                "residual": r.randrange(2),
                "per_tensor": r.randrange(2),
                "out_height": r.randint(1, 3),
                "out_width": r.randint(1, 3),
                "output": n * r.randrange(4),
                "residual_input": n * r.randrange(4),
                "parameters": r.randrange(4),
                "shift": r.randint(-31, 30),
                "minimum": r.randint(-128, 0),
                "maximum": r.randint(0, 127),
            }
            for name in ("y_stride", "x_stride", "block_stride"):
                v |= {name: r.randrange(3), f"residual_{name}": r.randrange(3)}
        elif opcode is Opcode.RESCALE:
            for f in COMMANDS[opcode].fields[9:]:
                v[f.name] = r.randint(f.low, f.high)
            for name in ("own", "residual", "sum", "pool"):
                v[f"{name}_shift"] = r.randint(-31, 30)
            for name in ("sum", "pool"):
                v |= {f"{name}_minimum": r.randint(-128, 0), f"{name}_maximum": r.randint(0, 127)}
        elif opcode is Opcode.SYNC:
            v["unit"] = r.randrange(4)
        elif opcode is Opcode.END:
            v = {}
        return Command(opcode, **v)

    def suited(self, checker: Checker) -> Command:
        """A plausible command that fits the open tile: else long programs would stay at one tile error."""
        tile = checker.tile
        if tile is None:
            command = self.plausible()
            if command.opcode is Opcode.CONV:
                command.values["first"] = 1
            elif command.opcode is Opcode.OUTPUT:
                command = self.plausible(Opcode.SYNC)
        elif tile.complete:
            choices = (Opcode.OUTPUT, Opcode.OUTPUT, Opcode.LOAD, Opcode.RESCALE, Opcode.STORE)
            command = self.plausible(self.random.choice(choices))
        else:
            command = self.plausible(self.random.choice((Opcode.CONV, Opcode.CONV, Opcode.LOAD, Opcode.FILL)))
            if command.opcode is Opcode.CONV:
                command.values |= {"first": 0, "out_height": tile.height, "out_width": tile.width}
        if command.opcode is Opcode.CONV and not (command.first and command.last):
            command.values["out_blocks"] = 1
        return command

    def correct(self, checker: Checker) -> Command:
        """A command that `checker` accepts; it is then part of the checker's past."""
        while True:
            command = self.suited(checker)
            if checker.check(command) is None:
                return command

    def any_raw(self, checker: Checker) -> bytes:
        """64 bytes: correct, wrong in one place, at the edge of an Extent, or noise."""
        r = self.random
        kind = r.randrange(10)
        if kind == 0:
            raw = bytearray(encode([self.suited(checker)]))
            bit = r.randrange(8 * COMMAND_BYTES)
            raw[bit // 8] ^= 1 << bit % 8
            return bytes(raw)
        if kind == 1:
            opcode = r.choice((r.randrange(256), r.randrange(12)))
            return (
                bytes([opcode]) + bytes(COMMAND_BYTES - 1)
                if r.randrange(2)
                else bytes([opcode]) + r.randbytes(63)
            )
        if kind == 2:
            command = self.plausible(r.choice(list(Opcode)))
            if command.opcode is Opcode.CONV and (tile := checker.tile) is not None and r.randrange(4):
                # Out of place although it fits: only the order is wrong.
                values = {"out_height": tile.height, "out_width": tile.width, "out_blocks": 1}
                command.values |= {"first": r.randrange(2), **values}
            return encode([command])
        command = self.suited(checker)
        if kind <= 5:
            self._break_field(command)
        elif kind <= 8:
            self._to_edge(command, checker)
        return encode([command])

    def _break_field(self, command: Command) -> None:
        """An extreme or random value in one or two fields, preferably ones that rules speak of."""
        r = self.random
        spec = COMMANDS[command.opcode]
        named = [rule.field for rule in spec.rules if not isinstance(rule, Extent)]
        for _ in range(r.choice((1, 1, 2))):
            name = (
                r.choice(named) if named and r.randrange(3) else r.choice(spec.fields[1:] or spec.fields).name
            )
            f = spec.by_name[name]
            values = [f.low, f.low + 1, f.high, f.high - 1, 0, 1, 2, 3, r.randint(f.low, f.high)]
            for rule in spec.rules:
                if isinstance(rule, Range) and rule.field == name:
                    for limit in (rule.low, rule.high):
                        if limit is not None:
                            number = limit(self.config) if callable(limit) else limit
                            values += [number - 1, number, number + 1]
            command.values[name] = min(max(r.choice(values), f.low), f.high)

    def _to_edge(self, command: Command, checker: Checker) -> None:
        """Move the base of an Extent so that it ends at its limit, or a byte (or vector) off it."""
        r = self.random
        spec = COMMANDS[command.opcode]
        extents = [
            x for x in spec.rules if isinstance(x, Extent) and all(command.values[a] == b for a, b in x.when)
        ]
        if not extents:
            return
        extent = r.choice(extents)
        if r.randrange(3) == 0:  # large strides: long sums
            for name in [t[1] for t in extent.terms if isinstance(t[1], str)]:
                f = spec.by_name[name]
                command.values[name] = r.choice((f.high, r.randint(0, f.high), r.randrange(64)))
        if not isinstance(extent.base, str) or any(
            str(x).startswith("tile_") and checker.tile is None for t in extent.terms for x in t
        ):
            return
        windows = {"read": self.read_window, "write": self.write_window}
        if isinstance(extent.limit, str) and extent.limit in windows:
            limit = windows[extent.limit][1] + 1
        elif isinstance(extent.limit, str):
            limit = command.values[extent.limit]
        else:
            limit = extent.limit(self.config) if callable(extent.limit) else extent.limit

        def value(name: str | int) -> int:
            return checker._value(command, name)

        rest = value(extent.tail)
        for count, stride, shift in extent.terms:
            rest += (value(count) - 1) * value(stride) << checker._number(shift)
        grain = r.choice((1, self.config.array_size, self.config.bus_bytes))
        base = limit - rest + grain * r.choice((-1, 0, 0, 1))
        if isinstance(extent.limit, str) and extent.limit in windows and r.randrange(3) == 0:
            base = windows[extent.limit][0] - r.randrange(2)
        f = spec.by_name[extent.base]
        command.values[extent.base] = min(max(base, f.low), f.high)


def verdict(raw: bytes, checker: Checker) -> CommandError | None:
    """What isa.py says of a raw command; a correct one becomes part of the checker's past."""
    command = decode(raw)
    return command if isinstance(command, CommandError) else checker.check(command)
