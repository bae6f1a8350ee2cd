"""The instruction set: the one place that says what a command, a CSR and an error code look like.

The RTL decoder and checker, the golden model, the assembler, the disassembler and ``docs/isa.md``
are all made from the tables here. Nothing else in the project holds a bit position.

A *program* is a sequence of 64-byte commands in external memory. Fields are packed in the order in
which they are declared, low bits first, and never straddle a 32-bit word.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from .config import BANKS, SEMAPHORES, NPUConfig

__all__ = [
    "COMMANDS",
    "COMMAND_BYTES",
    "COMMAND_WORDS",
    "CSR",
    "ISA_VERSION",
    "MAGIC",
    "PARAMETER_ROWS",
    "PARAMETER_ROWS_PER_TENSOR",
    "RESIDUAL_LEFT_SHIFT",
    "SUM_BITS",
    "Checker",
    "Command",
    "CommandError",
    "CommandSpec",
    "Control",
    "ErrorCode",
    "Extent",
    "Field",
    "Mode",
    "Opcode",
    "PoolMode",
    "Range",
    "Require",
    "Status",
    "Target",
    "Unit",
    "config_words",
    "decode",
    "encode",
    "unit_of",
]

ISA_VERSION = (1, 0)
"""Major, minor. A program for another major version is refused."""
MAGIC = 0x4E50_454C  # "LEPN", little-endian
COMMAND_WORDS = 16
COMMAND_BYTES = 4 * COMMAND_WORDS
PARAMETER_ROWS = 9
"""Parameter vectors a channel block: 4 of int32 biases, 4 of int32 multipliers, 1 of int8 shifts."""
PARAMETER_ROWS_PER_TENSOR = 4
"""Parameter vectors a channel block when multiplier and shift are in the command: the biases."""
RESIDUAL_LEFT_SHIFT = 20
"""TFLite's int8 ADD scales both inputs up by 2**20 before it rescales them."""
SUM_BITS = 32
"""Width of partial sums, biases and everything between the array and the clamp."""


class Opcode(enum.IntEnum):
    """What a command does. 0 is invalid, so that blank memory is not a program."""

    LOAD = 1  # external memory -> scratchpad, weight or parameter memory
    FILL = 2  # a constant byte -> scratchpad
    CONV = 3  # scratchpad, weights -> accumulators: one output tile, or a part of its sum
    OUTPUT = 4  # accumulators -> requantize, add, pool -> scratchpad
    RESCALE = 5  # constants of the residual add and of pooling, for the OUTPUTs that follow
    STORE = 6  # scratchpad -> external memory
    SYNC = 7  # waits and posts only
    END = 8  # end of the program: when all before it is done, the run is done


class Unit(enum.IntEnum):
    """The four units, each with a queue of its own that runs in program order."""

    LOAD = 0
    COMPUTE = 1
    OUTPUT = 2
    STORE = 3


class Target(enum.IntEnum):
    """Where a LOAD writes."""

    SCRATCHPAD = 0
    WEIGHTS = 1
    PARAMETERS = 2


class Mode(enum.IntEnum):
    """How CONV feeds the array."""

    VECTOR = 0  # a vector is N channels of one pixel; a pass is one kernel tap of one channel block
    PATCH = 1  # a vector is packed from up to four kernel rows of a thin input
    ROWS = 2  # depthwise: each column is a FIR filter over up to three image rows


class PoolMode(enum.IntEnum):
    """What OUTPUT does with a window of positions."""

    NONE = 0
    MAX = 1
    SUM = 2  # sum, then rescale: average pooling, mean


class ErrorCode(enum.IntEnum):
    """Why a run stopped."""

    NONE = 0
    OPCODE = 1  # no such opcode
    RESERVED = 2  # a reserved bit is set; info: its word
    FIELD = 3  # a field out of range; info: the field's first bit
    LOCAL_RANGE = 4  # beyond an on-chip memory; info: the first bit of the base address field
    READ_WINDOW = 5  # outside the read window; info as above
    WRITE_WINDOW = 6  # outside the write window; info as above
    TILE_ORDER = 7  # CONV and OUTPUT do not pair up
    UNSUPPORTED = 8  # an option this NPU was built without; info: the field's first bit
    PROGRAM = 9  # program address or length malformed, outside the read window, or no END
    READ_BUS = 10  # SLVERR or DECERR on data read by LOAD; info: the response
    WRITE_BUS = 11  # SLVERR or DECERR on a STORE; info: the response
    FETCH_BUS = 12  # SLVERR or DECERR on a command fetch; info: the response
    SEMAPHORE = 13  # a post took a semaphore past 255; info: the semaphore
    WATCHDOG = 14  # no progress for the watchdog's time; command: the oldest unfinished one
    ABORTED = 15  # the host wrote CONTROL.ABORT


class CSR(enum.IntEnum):
    """Byte offsets of the 32-bit control and status registers."""

    MAGIC = 0x000  # read-only: MAGIC
    VERSION = 0x004  # read-only: major << 16 | minor
    CONFIG0 = 0x008  # read-only: see config_words()
    CONFIG1 = 0x00C
    CONFIG2 = 0x010
    CONTROL = 0x020  # write 1: see Control
    STATUS = 0x024  # read-only: see Status
    IRQ_ENABLE = 0x028  # bit 0: drive the interrupt line
    IRQ_PENDING = 0x02C  # bit 0: a run has ended; write 1 to clear
    PROGRAM_ADDRESS = 0x030  # multiple of 64
    PROGRAM_BYTES = 0x034  # multiple of 64
    READ_FIRST = 0x040  # read window, first byte
    READ_LAST = 0x044  # read window, last byte (inclusive; below READ_FIRST: closed, as after reset)
    WRITE_FIRST = 0x048  # write window, first byte
    WRITE_LAST = 0x04C  # write window, last byte
    WATCHDOG = 0x050  # cycles without progress before the run is stopped; 0: never
    ERROR_CODE = 0x060  # read-only: ErrorCode of the last run
    ERROR_COMMAND = 0x064  # read-only: index of the command at fault
    ERROR_INFO = 0x068  # read-only: see ErrorCode
    CYCLES = 0x080  # read-only: cycles from start to interrupt
    COMMANDS = 0x084  # commands issued
    ARRAY_BUSY = 0x088  # cycles in which a vector entered the array
    STALL_LOAD = 0x08C  # cycles in which CONV waited on a semaphore while LOAD worked
    STALL_OUTPUT = 0x090  # ... or for room behind the array, or on a semaphore while OUTPUT worked
    STALL_STORE = 0x094  # ... while STORE worked
    STALL_WEIGHTS = 0x098  # cycles in which a pass of fewer than N vectors waited for its weights
    BYTES_READ = 0x09C  # bytes read by LOAD (payload)
    BYTES_WRITTEN = 0x0A0  # bytes written by STORE
    OUTPUT_BUSY = 0x0A4  # cycles in which the output stage worked
    LOAD_BUSY = 0x0A8  # cycles in which LOAD had work
    STORE_BUSY = 0x0AC  # cycles in which STORE had work


COUNTERS = tuple(c for c in CSR if c >= CSR.CYCLES)


class Control(enum.IntFlag):
    """Bits of CSR.CONTROL; each write of 1 acts once."""

    START = 1  # ignored with SLVERR while busy
    ABORT = 2  # stop the run: outstanding bus transfers finish, then ErrorCode.ABORTED


class Status(enum.IntFlag):
    """Bits of CSR.STATUS."""

    BUSY = 1
    DONE = 2  # the last run ended without an error
    ERROR = 4  # the last run ended with an error
    BUS_HUNG = 8  # the bus owes responses: no start until it has given them


@dataclass(frozen=True)
class Field:
    """A field of a command. `word` and `lsb` are set by the packing."""

    name: str
    width: int
    doc: str
    signed: bool = False
    default: int = 0
    word: int = -1
    lsb: int = -1

    @property
    def bit(self) -> int:
        """First bit within the 512-bit command."""
        return 32 * self.word + self.lsb

    @property
    def low(self) -> int:
        """Smallest value that can be encoded."""
        return -(1 << (self.width - 1)) if self.signed else 0

    @property
    def high(self) -> int:
        """Largest value that can be encoded."""
        return (1 << (self.width - (1 if self.signed else 0))) - 1


Number = int | Callable[[NPUConfig], int]


@dataclass(frozen=True)
class Range:
    """`field` lies in [low, high] and is a multiple of `multiple` (a power of two)."""

    field: str
    low: Number | None = None
    high: Number | None = None
    multiple: Number = 1
    when: tuple[tuple[str, int], ...] = ()
    code: ErrorCode = ErrorCode.FIELD


@dataclass(frozen=True)
class Require:
    """`holds(view, config)` is true.

    The view gives fields as attributes. In the RTL they are Amaranth values, so `holds` uses only
    comparisons, ``&``, ``|``, ``+``, ``-`` and bit selection with ``& mask``.
    """

    field: str
    holds: Callable[[Any, NPUConfig], Any]
    doc: str
    when: tuple[tuple[str, int], ...] = ()
    code: ErrorCode = ErrorCode.FIELD


@dataclass(frozen=True)
class Extent:
    """``base + sum((count - 1) * stride << shift) + tail <= limit``, all unsigned.

    `terms` holds (count field, stride field or number, shift). For the windows `limit` is
    "read" or "write" and the base must also not lie below the window. In the RTL one multiplier
    works through the terms, one a cycle.
    """

    code: ErrorCode
    base: str | int
    terms: tuple[tuple[str, str | int, Number], ...]
    tail: str | int
    limit: str | Number
    blame: str
    when: tuple[tuple[str, int], ...] = ()


Rule = Range | Require | Extent


@dataclass(frozen=True)
class CommandSpec:
    """One kind of command: its fields, in order, and the rules that are checked, in order."""

    opcode: Opcode
    unit: Unit | None
    doc: str
    fields: tuple[Field, ...]
    rules: tuple[Rule, ...]
    by_name: Mapping[str, Field] = field(default_factory=dict)

    def used_bits(self, word: int) -> int:
        """Mask of the bits of `word` that belong to a field; the others are reserved."""
        return sum(((1 << f.width) - 1) << f.lsb for f in self.fields if f.word == word)


def _pack(fields: Iterable[Field]) -> tuple[Field, ...]:
    word, lsb, out = 0, 0, []
    for f in fields:
        if lsb + f.width > 32:
            word, lsb = word + 1, 0
        out.append(Field(f.name, f.width, f.doc, f.signed, f.default, word, lsb))
        lsb += f.width
    assert word < COMMAND_WORDS, f"{out[-1].name} is in word {word}"
    return tuple(out)


_SYNC_WORD = tuple(
    f
    for slot, doc in (
        ("wait0", "before it acts, wait until the semaphore holds the count, and take it away"),
        ("wait1", "then the same with another semaphore"),
        ("post0", "when all its effects are visible, add the count to the semaphore"),
        ("post1", "then the same with another semaphore"),
    )
    for f in (
        Field(f"{slot}_semaphore", 4, f"{doc}"),
        Field(f"{slot}_count", 4, "how much (0: none)"),
    )
)


def _spec(
    opcode: Opcode, unit: Unit | None, doc: str, fields: tuple[Field, ...], *rules: Rule
) -> CommandSpec:
    pad = Field("_", 24, "")
    synced = opcode is not Opcode.END
    body = (
        Field("opcode", 8, "the command", default=int(opcode)),
        pad,
        *(_SYNC_WORD if synced else ()),
        *fields,
    )
    packed = tuple(f for f in _pack(body) if f.name != "_")
    return CommandSpec(opcode, unit, doc, packed, rules, {f.name: f for f in packed})


def _n(config: NPUConfig) -> int:
    return config.array_size


def _log2_n(config: NPUConfig) -> int:
    return config.array_size.bit_length() - 1


def _count(name: str, width: int, doc: str) -> Field:
    return Field(name, width, doc, default=1)


def _at_least_one(*names: str) -> tuple[Range, ...]:
    return tuple(Range(name, low=1) for name in names)


_LOCAL = Field("local_address", 24, "first byte on chip")
_TRANSFER = (
    _count("row_bytes", 24, "bytes a row"),
    _count("rows", 16, "rows"),
    Field("local_stride", 24, "bytes from row to row on chip"),
)
_EXTERNAL = (
    Field("address", 32, "first byte in external memory"),
    Field("stride", 32, "bytes from row to row in external memory"),
)
_SCRATCHPAD_ROWS = (("rows", "local_stride", 0),)
_VECTOR_STRIDES = ("y_stride", "x_stride", "block_stride")


def _local_extent(limit: Number, when: tuple[tuple[str, int], ...] = ()) -> Extent:
    return Extent(
        ErrorCode.LOCAL_RANGE, "local_address", _SCRATCHPAD_ROWS, "row_bytes", limit, "local_address", when
    )


def _window_extent(code: ErrorCode, window: str) -> Extent:
    return Extent(code, "address", (("rows", "stride", 0),), "row_bytes", window, "address")


def _bus(config: NPUConfig) -> int:
    return config.bus_bytes


def _aligned_when_wide(*names: str) -> tuple[Range, ...]:
    """Weight and parameter loads move whole beats."""
    return tuple(
        Range(name, multiple=_bus, when=(("target", int(target)),))
        for target in (Target.WEIGHTS, Target.PARAMETERS)
        for name in names
    )


LOAD = _spec(
    Opcode.LOAD,
    Unit.LOAD,
    "Copy rows from external memory to an on-chip memory. To the scratchpad at any byte alignment; "
    "to the weight and parameter memories in whole bus beats.",
    (Field("target", 2, "Target"), _LOCAL, *_TRANSFER, *_EXTERNAL),
    Range("target", high=2),
    *_at_least_one("row_bytes", "rows"),
    *_aligned_when_wide("local_address", "row_bytes", "local_stride", "address", "stride"),
    _local_extent(lambda c: c.scratchpad_bytes, (("target", 0),)),
    _local_extent(lambda c: c.weight_bytes, (("target", 1),)),
    _local_extent(lambda c: c.parameter_bytes, (("target", 2),)),
    _window_extent(ErrorCode.READ_WINDOW, "read"),
)

FILL = _spec(
    Opcode.FILL,
    Unit.LOAD,
    "Write a constant byte to rows of the scratchpad: the padding of PATCH inputs.",
    (Field("value", 8, "the byte", signed=True), _LOCAL, *_TRANSFER),
    *_at_least_one("row_bytes", "rows"),
    _local_extent(lambda c: c.scratchpad_bytes),
)

STORE = _spec(
    Opcode.STORE,
    Unit.STORE,
    "Copy rows from the scratchpad to external memory, at any byte alignment.",
    (_LOCAL, *_TRANSFER, *_EXTERNAL),
    *_at_least_one("row_bytes", "rows"),
    _local_extent(lambda c: c.scratchpad_bytes),
    _window_extent(ErrorCode.WRITE_WINDOW, "write"),
)

_VECTOR = (("mode", int(Mode.VECTOR)),)
_PATCH = (("mode", int(Mode.PATCH)),)
_ROWS = (("mode", int(Mode.ROWS)),)


def _conv_extent(when: tuple[tuple[str, int], ...]) -> Extent:
    terms = (
        ("in_height", "y_stride", _log2_n),
        ("in_width", "x_stride", _log2_n),
        ("in_blocks", "block_stride", _log2_n),
        ("out_blocks", "out_block_stride", _log2_n),
    )
    return Extent(ErrorCode.LOCAL_RANGE, "input", terms, 1, lambda c: c.scratchpad_bytes, "input", when)


CONV = _spec(
    Opcode.CONV,
    Unit.COMPUTE,
    "Sum one output tile: for each of `out_blocks` blocks of N output channels, all its passes; a "
    "pass holds one N x N weight tile and streams the tile's positions, row by row, through the "
    "array. See docs/architecture.md for the three modes.",
    (
        Field("mode", 2, "Mode"),
        Field("first", 1, "the first pass starts new sums (else they go on from the CONV before)", default=1),
        Field("last", 1, "the last pass hands the sums to the output stage", default=1),
        Field("wide", 1, "PATCH: two windows of N bytes at any alignment (else four within a vector)"),
        Field("restart_weights", 1, "each block of output channels uses the same weight tiles"),
        Field("pad_value", 8, "what lies outside the input: its zero point", signed=True),
        Field("row_length", 8, "PATCH: bytes a kernel row (kernel width * channels)", default=1),
        Field("pass_length", 8, "PATCH: lanes of a pass that are used", default=1),
        Field("input", 24, "first byte of the input in the scratchpad"),
        Field("rows_per_pass", 2, "ROWS: kernel rows a pass", default=1),
        Field("y_stride", 20, "vectors from row to row"),
        _count("in_blocks", 12, "blocks of N input channels that are summed"),
        Field("x_stride", 20, "vectors from pixel to pixel (PATCH: bytes from position to position)"),
        _count("out_blocks", 12, "blocks of N output channels"),
        Field("block_stride", 20, "vectors from input block to input block"),
        Field("out_block_stride", 20, "vectors that the input moves on for each output block (depthwise)"),
        _count("in_height", 16, "rows of the input; outside is padding"),
        _count("in_width", 16, "pixels a row of the input; outside is padding"),
        _count("out_height", 16, "rows of the tile"),
        _count("out_width", 16, "pixels a row of the tile"),
        Field("y_start", 16, "input row of the tile's first kernel tap", signed=True),
        Field("x_start", 16, "input pixel of the first tap (ROWS: of a row's first sample)", signed=True),
        _count("kernel_height", 8, "kernel rows"),
        _count("kernel_width", 8, "kernel taps a row (ROWS: at most the vertical rows of the array)"),
        _count("stride_y", 8, "input rows from output to output"),
        _count("stride_x", 8, "input pixels from output to output"),
        _count("dilation_y", 8, "input rows from tap to tap"),
        _count("dilation_x", 8, "input pixels from tap to tap"),
        Field("valid_from", 8, "ROWS: the sample that completes a row's first output"),
        Field("weights", 20, "first vector in the weight memory (wraps around)"),
        _count("row_samples", 16, "ROWS: samples streamed a row"),
    ),
    Range("mode", high=2),
    Require(
        "mode", lambda v, c: v.mode != Mode.PATCH if not c.patch_mode else (v.mode == v.mode),
        "PATCH needs the option patch_mode", code=ErrorCode.UNSUPPORTED,
    ),
    Require(
        "mode", lambda v, c: v.mode != Mode.ROWS if not c.rows_mode else (v.mode == v.mode),
        "ROWS needs the option rows_mode", code=ErrorCode.UNSUPPORTED,
    ),
    *_at_least_one(
        "in_blocks", "out_blocks", "in_height", "in_width", "out_height", "out_width",
        "kernel_height", "kernel_width", "stride_y", "stride_x", "dilation_y", "dilation_x",
    ),
    Range("weights", high=lambda c: c.weight_vectors - 1),
    Range("input", multiple=_n, when=_VECTOR),
    Range("input", multiple=_n, when=_ROWS),
    # PATCH: one input block, whole kernel rows, rows in banks that never meet
    Range("in_blocks", high=1, when=_PATCH),
    Range("kernel_width", high=1, when=_PATCH),
    Range("row_length", low=1, high=_n, when=_PATCH),
    Range("pass_length", low=1, high=_n, when=_PATCH),
    Require(
        "y_stride", lambda v, c: ((v.y_stride & 3) == 2) & ((v.dilation_y & 1) == 1),
        "wide windows: y_stride is 2 mod 4 and dilation_y odd", when=(*_PATCH, ("wide", 1)),
    ),
    Require(
        "y_stride", lambda v, c: (v.y_stride & v.dilation_y & 1) == 1,
        "narrow windows: y_stride and dilation_y odd", when=(*_PATCH, ("wide", 0)),
    ),
    # ROWS: taps of a pass fit the vertical rows, and its image rows lie in different banks
    Range("in_blocks", high=1, when=_ROWS),
    Range("dilation_x", high=1, when=_ROWS),
    Range("kernel_width", high=lambda c: c.depthwise_taps, when=_ROWS),
    Range("rows_per_pass", low=1, high=lambda c: c.depthwise_groups, when=_ROWS),
    Require(
        "kernel_width", lambda v, c: (v.rows_per_pass == 1) | (v.kernel_width == 3),
        "more than one kernel row a pass needs a kernel width of 3", when=_ROWS,
    ),
    Require(
        "y_stride", lambda v, c: (v.rows_per_pass == 1) | ((v.y_stride & v.dilation_y & 1) == 1),
        "more than one kernel row a pass needs y_stride and dilation_y odd", when=_ROWS,
    ),
    Require(
        "valid_from", lambda v, c: v.valid_from < v.kernel_width,
        "valid_from is below kernel_width", when=_ROWS,
    ),
    Extent(
        ErrorCode.FIELD, "valid_from", (("out_width", "stride_x", 0),), 1, "row_samples", "row_samples", _ROWS
    ),
    Extent(
        ErrorCode.FIELD, 0, (("out_height", "out_width", 0),), "out_width",
        lambda c: c.accumulator_depth, "out_height",
    ),
    _conv_extent(_VECTOR),
    _conv_extent(_ROWS),
    Extent(
        ErrorCode.LOCAL_RANGE,
        "input",
        (("in_height", "y_stride", _log2_n), ("out_width", "x_stride", 0)),
        "row_length",
        lambda c: c.scratchpad_bytes,
        "input",
        _PATCH,
    ),
)  # fmt: skip

_RESIDUAL = (("residual", 1),)

OUTPUT = _spec(
    Opcode.OUTPUT,
    Unit.OUTPUT,
    "Take the tile that the CONV before it finished: add the bias, requantize, clamp; add a "
    "residual; pool; write to the scratchpad. Tile height, width and blocks are the CONV's.",
    (
        Field("pool_mode", 2, "PoolMode"),
        Field("residual", 1, "add a residual (constants: RESCALE)"),
        Field("per_tensor", 1, "multiplier and shift are those of this command; else the parameters'"),
        Field("single_rounding", 1, "round the requantized sums once (TFLite's FULLY_CONNECTED); else twice"),
        Field("zero_point", 8, "zero point of the requantized sums", signed=True),
        Field("minimum", 8, "lower clamp of the requantized sums", signed=True, default=-128),
        Field("maximum", 8, "upper clamp of the requantized sums", signed=True, default=127),
        _count("out_height", 16, "rows of the output"),
        _count("out_width", 16, "pixels a row of the output"),
        _count("pool_height", 8, "rows of a pooling window"),
        _count("pool_width", 8, "pixels a row of a pooling window"),
        _count("pool_stride_y", 8, "rows from window to window"),
        _count("pool_stride_x", 8, "pixels from window to window"),
        Field("pool_y_start", 16, "tile row of the first window; taps outside are skipped", signed=True),
        Field("pool_x_start", 16, "tile pixel of the first window", signed=True),
        Field("parameters", 16, "first vector in the parameter memory"),
        Field("shift", 6, "per_tensor: TFLite shift, positive is left", signed=True),
        Field("multiplier", 31, "per_tensor: TFLite multiplier"),
        Field("output", 24, "first byte of the output in the scratchpad"),
        Field("y_stride", 20, "vectors from row to row of the output"),
        Field("x_stride", 20, "vectors from pixel to pixel of the output"),
        Field("block_stride", 20, "vectors from block to block of the output"),
        Field("residual_input", 24, "first byte of the residual in the scratchpad"),
        Field("residual_y_stride", 20, "vectors from row to row of the residual"),
        Field("residual_x_stride", 20, "vectors from pixel to pixel of the residual"),
        Field("residual_block_stride", 20, "vectors from block to block of the residual"),
    ),
    Range("pool_mode", high=2),
    *_at_least_one("out_height", "out_width", "pool_height", "pool_width", "pool_stride_y", "pool_stride_x"),
    Range("pool_height", high=1, when=(("pool_mode", 0),)),
    Range("pool_width", high=1, when=(("pool_mode", 0),)),
    Require("minimum", lambda v, c: v.minimum <= v.maximum, "minimum is not above maximum"),
    Range("shift", low=-31, high=30),
    Range("output", multiple=_n),
    Range("residual_input", multiple=_n, when=_RESIDUAL),
    Extent(
        ErrorCode.LOCAL_RANGE, "parameters", (("tile_blocks", PARAMETER_ROWS, 0),), PARAMETER_ROWS,
        lambda c: c.parameter_vectors, "parameters", (("per_tensor", 0),),
    ),
    Extent(
        ErrorCode.LOCAL_RANGE, "parameters", (("tile_blocks", PARAMETER_ROWS_PER_TENSOR, 0),),
        PARAMETER_ROWS_PER_TENSOR, lambda c: c.parameter_vectors, "parameters", (("per_tensor", 1),),
    ),
    Extent(
        ErrorCode.LOCAL_RANGE,
        "output",
        (
            ("out_height", "y_stride", _log2_n),
            ("out_width", "x_stride", _log2_n),
            ("tile_blocks", "block_stride", _log2_n),
        ),
        1,
        lambda c: c.scratchpad_bytes,
        "output",
    ),
    Extent(
        ErrorCode.LOCAL_RANGE,
        "residual_input",
        (
            ("tile_height", "residual_y_stride", _log2_n),
            ("tile_width", "residual_x_stride", _log2_n),
            ("tile_blocks", "residual_block_stride", _log2_n),
        ),
        1,
        lambda c: c.scratchpad_bytes,
        "residual_input",
        _RESIDUAL,
    ),
)  # fmt: skip

RESCALE = _spec(
    Opcode.RESCALE,
    Unit.OUTPUT,
    "Set the constants of the residual add and of pooling. They hold for the OUTPUTs that follow; "
    "at the start of a run all are 0.",
    (
        Field("residual_zero_point", 8, "zero point of the residual", signed=True),
        Field("sum_zero_point", 8, "zero point of the sum", signed=True),
        Field("sum_minimum", 8, "lower clamp of the sum", signed=True, default=-128),
        Field("sum_maximum", 8, "upper clamp of the sum", signed=True, default=127),
        Field("own_multiplier", 31, "rescale of the requantized value"),
        Field("residual_multiplier", 31, "rescale of the residual"),
        Field("sum_multiplier", 31, "rescale of the sum"),
        Field("own_shift", 6, "", signed=True),
        Field("residual_shift", 6, "", signed=True),
        Field("sum_shift", 6, "", signed=True),
        Field("pool_shift", 6, "", signed=True),
        Field("pool_multiplier", 31, "SUM: rescale of the window's sum"),
        Field("pool_bias", 32, "SUM: added to the window's sum before the rescale", signed=True),
        Field("pool_zero_point", 8, "SUM: zero point of the pooled value", signed=True),
        Field("pool_minimum", 8, "lower clamp of the pooled value", signed=True, default=-128),
        Field("pool_maximum", 8, "upper clamp of the pooled value", signed=True, default=127),
    ),
    *(Range(f"{name}_shift", low=-31, high=30) for name in ("own", "residual", "sum", "pool")),
    Require("sum_minimum", lambda v, c: v.sum_minimum <= v.sum_maximum, "minimum is not above maximum"),
    Require("pool_minimum", lambda v, c: v.pool_minimum <= v.pool_maximum, "minimum is not above maximum"),
)

SYNC = _spec(Opcode.SYNC, None, "Wait and post only, in the queue of `unit`.", (Field("unit", 2, "Unit"),))

END = _spec(Opcode.END, None, "The end of the program. What lies behind it is not read as commands.", ())

COMMANDS: dict[Opcode, CommandSpec] = {
    s.opcode: s for s in (LOAD, FILL, CONV, OUTPUT, RESCALE, STORE, SYNC, END)
}


@dataclass(frozen=True)
class CommandError:
    """What is wrong with a command."""

    code: ErrorCode
    info: int = 0
    message: str = ""


class Command:
    """One command: an opcode and values of its fields, given by name.

    Raises:
        ValueError: an unknown field, or a value that its bits cannot hold.
    """

    __slots__ = ("opcode", "values")

    def __init__(self, opcode: Opcode, **values: int) -> None:
        spec = COMMANDS[Opcode(opcode)]
        self.opcode = spec.opcode
        self.values = {f.name: f.default for f in spec.fields}
        for name, value in values.items():
            f = spec.by_name.get(name)
            if f is None or name == "opcode":
                known = ", ".join(n for n in spec.by_name if n != "opcode")
                raise ValueError(f"{spec.opcode.name} has no field {name!r}; its fields are {known}")
            if not f.low <= int(value) <= f.high:
                raise ValueError(f"{spec.opcode.name}.{name} must lie in [{f.low}, {f.high}], not {value}")
            self.values[name] = int(value)

    def __getattr__(self, name: str) -> int:
        try:
            return self.values[name]
        except KeyError:
            raise AttributeError(name) from None

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Command) and self.values == other.values

    def __hash__(self) -> int:
        return hash(tuple(self.values.values()))

    def __repr__(self) -> str:
        spec = COMMANDS[self.opcode]
        shown = (
            f"{f.name}={self.values[f.name]}" for f in spec.fields[1:] if self.values[f.name] != f.default
        )
        return f"{self.opcode.name}({', '.join(shown)})"


def unit_of(command: Command) -> Unit | None:
    """The unit whose queue the command goes through; None for END."""
    if command.opcode is Opcode.SYNC:
        return Unit(command.unit)
    return COMMANDS[command.opcode].unit


def encode(commands: Iterable[Command]) -> bytes:
    """The program's bytes: 64 a command, 32-bit little-endian words."""
    out = bytearray()
    for command in commands:
        words = [0] * COMMAND_WORDS
        for f in COMMANDS[command.opcode].fields:
            words[f.word] |= (command.values[f.name] & ((1 << f.width) - 1)) << f.lsb
        for word in words:
            out += word.to_bytes(4, "little")
    return bytes(out)


def decode(raw: bytes) -> Command | CommandError:
    """One command from its 64 bytes, or what is wrong with its opcode or reserved bits."""
    if len(raw) != COMMAND_BYTES:
        raise ValueError(f"a command is {COMMAND_BYTES} bytes, not {len(raw)}")
    words = [int.from_bytes(raw[4 * i : 4 * i + 4], "little") for i in range(COMMAND_WORDS)]
    try:
        spec = COMMANDS[Opcode(words[0] & 0xFF)]
    except ValueError:
        return CommandError(ErrorCode.OPCODE, words[0] & 0xFF, f"no opcode {words[0] & 0xFF}")
    for i, word in enumerate(words):
        if word & ~spec.used_bits(i):
            return CommandError(ErrorCode.RESERVED, i, f"{spec.opcode.name}: reserved bits set in word {i}")
    command = Command(spec.opcode)
    for f in spec.fields:
        value = words[f.word] >> f.lsb & ((1 << f.width) - 1)
        command.values[f.name] = value - (1 << f.width) if f.signed and value > f.high else value
    return command


@dataclass
class Tile:
    """The tile that CONV has begun and OUTPUT has not yet taken."""

    height: int
    width: int
    blocks: int
    complete: bool


class Checker:
    """Checks commands in program order, as the control unit does before it issues them.

    Args:
        config: the NPU's configuration.
        read_window: first and last byte that may be read.
        write_window: first and last byte that may be written.
    """

    def __init__(
        self,
        config: NPUConfig,
        read_window: tuple[int, int] = (0, 0xFFFF_FFFF),
        write_window: tuple[int, int] = (0, 0xFFFF_FFFF),
    ) -> None:
        self.config = config
        self.windows = {"read": read_window, "write": write_window}
        self.tile: Tile | None = None

    def _number(self, value: Number) -> int:
        return value(self.config) if callable(value) else value

    def _value(self, command: Command, name: str | int) -> int:
        if isinstance(name, int):
            return name
        if name.startswith("tile_"):
            assert self.tile is not None
            return int(getattr(self.tile, name.removeprefix("tile_")))
        return command.values[name]

    def check(self, command: Command) -> CommandError | None:
        """What is wrong with the command, or None. Keeps track of the open tile."""
        spec = COMMANDS[command.opcode]
        error = self._tile_order(command)
        if error is not None:
            return error
        for rule in spec.rules:
            if any(command.values[name] != value for name, value in rule.when):
                continue
            error = self._broken(rule, command, spec)
            if error is not None:
                return error
        self._track_tile(command)
        return None

    def _tile_order(self, command: Command) -> CommandError | None:
        tile, opcode = self.tile, command.opcode
        message = None
        if opcode is Opcode.CONV:
            if command.first and tile is not None:
                message = "CONV starts a tile before OUTPUT has taken the one before"
            elif not command.first and (tile is None or tile.complete):
                message = "CONV goes on with a tile that is not open"
            elif tile is not None and (command.out_height, command.out_width) != (tile.height, tile.width):
                message = "CONV goes on with a tile of another size"
            elif not (command.first and command.last) and command.out_blocks != 1:
                message = "a tile summed by several CONVs has one block of output channels"
        elif opcode is Opcode.OUTPUT and (tile is None or not tile.complete):
            message = "OUTPUT without a finished tile"
        elif opcode is Opcode.END and tile is not None:
            message = "END with a tile that no OUTPUT has taken"
        return CommandError(ErrorCode.TILE_ORDER, 0, message) if message else None

    def _track_tile(self, command: Command) -> None:
        if command.opcode is Opcode.CONV:
            self.tile = Tile(command.out_height, command.out_width, command.out_blocks, bool(command.last))
        elif command.opcode is Opcode.OUTPUT:
            self.tile = None

    def _broken(self, rule: Rule, command: Command, spec: CommandSpec) -> CommandError | None:
        name = spec.opcode.name
        if isinstance(rule, Extent):
            total = self._value(command, rule.base) + self._value(command, rule.tail)
            for count, stride, shift in rule.terms:
                total += (self._value(command, count) - 1) * self._value(command, stride) << self._number(
                    shift
                )
            info = spec.by_name[rule.blame].bit
            if isinstance(rule.limit, str) and rule.limit in self.windows:
                first, last = self.windows[rule.limit]
                base = self._value(command, rule.base)
                if base < first or total > last + 1:
                    message = (
                        f"{name}: bytes {base:#x} to {total - 1:#x} are outside the {rule.limit} "
                        f"window, {first:#x} to {last:#x}"
                    )
                    return CommandError(rule.code, info, message)
                return None
            limit = (
                self._value(command, rule.limit) if isinstance(rule.limit, str) else self._number(rule.limit)
            )
            if total > limit:
                return CommandError(
                    rule.code, info, f"{name}.{rule.blame}: reaches {total}, the limit is {limit}"
                )
            return None
        f = spec.by_name[rule.field]
        value = command.values[rule.field]
        if isinstance(rule, Require):
            if not rule.holds(command, self.config):
                return CommandError(rule.code, f.bit, f"{name}.{f.name} = {value}: {rule.doc}")
            return None
        low = f.low if rule.low is None else self._number(rule.low)
        high = f.high if rule.high is None else self._number(rule.high)
        if not low <= value <= high:
            return CommandError(rule.code, f.bit, f"{name}.{f.name} must lie in [{low}, {high}], not {value}")
        multiple = self._number(rule.multiple)
        if value % multiple:
            return CommandError(
                rule.code, f.bit, f"{name}.{f.name} must be a multiple of {multiple}, not {value}"
            )
        return None


def config_words(config: NPUConfig) -> tuple[int, int, int]:
    """What CONFIG0 to CONFIG2 read as. Two configurations that run different programs differ here."""

    def log2(value: int) -> int:
        return value.bit_length() - 1

    return (
        log2(config.array_size)
        | log2(config.bus_bytes) << 4
        | log2(config.requantize_lanes) << 8
        | config.rows_mode << 12
        | config.patch_mode << 13
        | log2(BANKS) << 16
        | log2(SEMAPHORES) << 20,
        log2(config.scratchpad_bytes) | log2(config.weight_bytes) << 8 | log2(config.parameter_bytes) << 16,
        log2(config.accumulator_depth)
        | log2(config.output_depth) << 8
        | log2(config.burst_beats) << 16
        | log2(config.outstanding_reads) << 20
        | log2(config.outstanding_writes) << 24,
    )
