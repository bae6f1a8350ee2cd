"""Cycle model: when each command of a program starts and ends, from the commands alone.

It walks through the program once, command by command, and keeps for each unit, the bus and the
semaphores the cycle up to which they are taken. Within a CONV it goes from block to block, since a
block's last pass waits for room in the output buffer; within a LOAD from burst to burst. The constants
at the top are the lengths of pipelines in the RTL; tests/system holds the result to within 3 % of it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from lepton_hw.config import BANKS, NPUConfig
from lepton_hw.isa import (
    COMMAND_BYTES,
    PARAMETER_ROWS,
    PARAMETER_ROWS_PER_TENSOR,
    Command,
    Mode,
    Opcode,
    PoolMode,
    Unit,
    unit_of,
)

__all__ = ["CommandTime", "CycleEstimate", "estimate"]

START_TO_FETCH = 7  # from START to the first fetch on the bus: the program's own check
CHECK = {
    Opcode.LOAD: 14,
    Opcode.FILL: 10,
    Opcode.CONV: 21,
    Opcode.OUTPUT: 24,
    Opcode.RESCALE: 9,
    Opcode.STORE: 14,
    Opcode.SYNC: 8,
    Opcode.END: 7,
}
"""Cycles that the checker needs for a command beside taking in its beats."""
QUEUE_DEPTH = 4
DISPATCH_TO_ISSUE = 3
POST_TO_WAIT = 4
FETCH_AHEAD = 8  # commands that the fetch buffer holds
FETCH_BURST = 4  # commands a fetch
LOAD_START = 4  # from issue to the first address on the bus
LOAD_BURST = 2  # from address to address of short rows
LOAD_NEXT = 3  # from the end of a burst to the address of the one that it lets go
LOAD_DONE = 4  # from the last beat to the post
CONV_SETUP = 11  # products before a CONV can start
FEED = 5  # from the feeder's loops to the array
ACCUMULATE = 3  # from the array's sums to an entry that can be read
OUTPUT_START = 12  # from issue to the first read of parameters
PARAMETERS = 0  # beside one cycle a vector
OUTPUT_PIPELINE = 14  # from the read of sums to the scratchpad
RESIDUAL_PIPELINE = 21  # more, for the slots B to D
STORE_START = 8
STORE_COMMAND = 20  # between the data of two commands
STORE_DONE = 4
STORE_NEXT = 8  # from a response to the data of the burst that it lets go
END_CYCLES = 6


@dataclass(frozen=True)
class CommandTime:
    """When a command was issued to its unit, and done."""

    issued: int
    done: int


@dataclass(frozen=True)
class CycleEstimate:
    """Cycles from start to interrupt, and each command's times."""

    total: int
    commands: tuple[CommandTime, ...]


@dataclass
class _UnitState:
    """A unit: when it can take the next command, and when it took the last ones."""

    free: int = 0
    issues: list[int] = field(default_factory=list)


@dataclass
class _Tile:
    """A CONV whose OUTPUT has not been reached: its last passes wait for room that OUTPUT gives."""

    index: int
    command: Command
    start: int
    issue: int
    posted: bool = False


class _Bus:
    """The read channel: in order, a beat a cycle, `latency` from address to first beat."""

    def __init__(self, config: NPUConfig, latency: int) -> None:
        self._config, self._latency = config, latency
        self._free = 0
        self._in_flight: deque[int] = deque()
        self._bursts: deque[tuple[int, int]] = deque()  # (address, end of data)

    def load(self, at: int, beats: int) -> int:
        """A burst of LOAD, asked for at cycle `at`; when its data end."""
        if len(self._in_flight) >= self._config.outstanding_reads:
            at = max(at, self._in_flight.popleft() + LOAD_NEXT)
        start = max(at + self._latency, self._free)
        self._free = start + beats
        self._in_flight.append(self._free)
        self._bursts.append((at, self._free))
        return self._free

    def fetch(self, at: int, beats: int) -> int:
        """A fetch at cycle `at`, behind the loads that were asked for before; when its data end."""
        while self._bursts and self._bursts[0][1] <= at:
            self._bursts.popleft()
        behind = max((end for asked, end in self._bursts if asked <= at), default=0)
        end = max(at + self._latency, behind) + beats
        self._free = max(self._free, end) if behind >= self._free else self._free + beats
        return end


def _bursts(command: Command, config: NPUConfig) -> Iterator[int]:
    """Beats of each burst of a transfer: bursts end at multiples of the longest one."""
    size, limit = config.bus_bytes, config.burst_beats
    for row in range(command.rows):
        address = command.address + row * command.stride
        first, last = address // size, (address + command.row_bytes - 1) // size
        while first <= last:
            end = min(last, first // limit * limit + limit - 1)
            yield end - first + 1
            first = end + 1


class _Model:
    def __init__(
        self, commands: Sequence[Command], config: NPUConfig, latency: int, write_latency: int
    ) -> None:
        self.commands, self.config = commands, config
        self.latency, self.write_latency = latency, write_latency
        self.bus = _Bus(config, latency)
        self.units = {unit: _UnitState() for unit in Unit}
        self.posts: dict[int, deque[int]] = {}
        self.dispatched = START_TO_FETCH
        self.fetched: list[int] = []
        self.taken: list[int] = []
        self.times: list[CommandTime] = []
        self.room = config.output_depth
        self.releases: deque[tuple[int, int]] = deque()  # (cycle, entries)
        self.tile: _Tile | None = None
        self.blocked: list[tuple[int, int]] = []  # when STORE gets no data from the scratchpad
        self.blocking: list[tuple[int, int]] = []
        self.unanswered: deque[int] = deque()  # when the responses of write bursts come
        self.pipeline_free = 0

    def run(self) -> CycleEstimate:
        """The estimate."""
        for i, command in enumerate(self.commands):
            at = self._dispatch(i, command)
            if command.opcode is Opcode.END:
                end = max([at, *(t.done for t in self.times)]) + END_CYCLES
                self.times.append(CommandTime(at, end))
                break
            unit = unit_of(command)
            assert unit is not None
            state = self.units[unit]
            issue = self._wait(
                command, max(at + DISPATCH_TO_ISSUE, state.issues[-1] + 1 if state.issues else 0)
            )
            self.times.append(CommandTime(issue, issue))
            if command.opcode is Opcode.CONV and command.last:
                # taken when the one before is over and its own products are made
                start = max(issue + CONV_SETUP, state.free)
                self.tile = _Tile(i, command, start, issue)
                state.issues.append(max(issue, start - 1))
                continue
            taken, end = self._execute(command, state, issue)
            state.issues.append(taken)
            self._finish(i, taken, end)
        return CycleEstimate(self.times[-1].done, tuple(self.times))

    def _finish(self, index: int, issued: int, done: int) -> None:
        self.times[index] = CommandTime(issued, done)
        if self.tile is None or index != self.tile.index or not self.tile.posted:
            self._post(self.commands[index], done)

    def _post_tile(self) -> None:
        """Somebody waits for a CONV before its OUTPUT is reached: as if there were room for its sums."""
        assert self.tile is not None, "a wait that no earlier post satisfies"
        c = self.tile.command
        passes, samples = self._passes(c)
        length = max(samples, self.config.array_size)
        self._post(c, self.tile.start + c.out_blocks * passes * length + 2)
        self.tile.posted = True

    def _post(self, command: Command, done: int) -> None:
        for slot in ("post0", "post1"):
            for _ in range(command.values[f"{slot}_count"]):
                self.posts.setdefault(command.values[f"{slot}_semaphore"], deque()).append(done)

    def _dispatch(self, index: int, command: Command) -> int:
        """When the command is in its unit's queue."""
        if index >= len(self.fetched):
            ahead = index - (FETCH_AHEAD - FETCH_BURST)
            at = self.taken[ahead] if ahead >= 0 else START_TO_FETCH
            beats = FETCH_BURST * COMMAND_BYTES // self.config.bus_bytes
            end = self.bus.fetch(at, beats)
            per_command = COMMAND_BYTES // self.config.bus_bytes
            self.fetched += [end - beats + per_command * (k + 1) for k in range(FETCH_BURST)]
        beats = COMMAND_BYTES // self.config.bus_bytes
        start = max(self.fetched[index], self.dispatched + beats)
        self.taken.append(start)
        at = start + CHECK[command.opcode]
        unit = unit_of(command)
        if unit is not None:
            issues = self.units[unit].issues
            if len(issues) >= QUEUE_DEPTH:
                at = max(at, issues[-QUEUE_DEPTH] + 1)
        self.dispatched = at
        return at

    def _wait(self, command: Command, at: int) -> int:
        for slot in ("wait0", "wait1"):
            for _ in range(command.values[f"{slot}_count"]):
                semaphore = command.values[f"{slot}_semaphore"]
                if not self.posts.get(semaphore):
                    self._post_tile()
                queue = self.posts[semaphore]
                at = max(at, queue.popleft() + POST_TO_WAIT)
        return at

    def _execute(self, command: Command, state: _UnitState, issue: int) -> tuple[int, int]:
        """Run a command from its issue on: when its unit took it, when it is done."""
        taken = max(issue, state.free)
        match command.opcode:
            case Opcode.SYNC:
                return issue, taken
            case Opcode.FILL:
                beats = command.rows * (-(-command.row_bytes // self.config.bus_bytes))
                state.free = taken + beats + 2
                return taken, state.free + LOAD_DONE
            case Opcode.RESCALE:
                state.free = taken + 1
                return taken, taken + 1
            case Opcode.LOAD:
                ask = max(issue + LOAD_START, state.free)
                end = ask
                for beats in _bursts(command, self.config):
                    end = self.bus.load(ask, beats)
                    ask += LOAD_BURST if command.rows > 1 else 1
                state.free = ask
                return taken, end + LOAD_DONE
            case Opcode.STORE:
                return taken, self._store(command, state, issue)
            case Opcode.CONV:  # a part of a sum: nothing leaves the accumulator
                passes, samples = self._passes(command)
                start = max(issue + CONV_SETUP, state.free)
                state.free = start + passes * max(samples, self.config.array_size)
                return start, state.free + 2
            case Opcode.OUTPUT:
                return self._output(command, state, issue)
        raise AssertionError(command)

    def _store(self, command: Command, state: _UnitState, issue: int) -> int:
        """Bursts one after the other, as many unanswered as the configuration allows."""
        at = max(issue + STORE_START, state.free)
        for beats in _bursts(command, self.config):
            if len(self.unanswered) >= self.config.outstanding_writes:
                at = max(at, self.unanswered.popleft() + STORE_NEXT)
            for start, end in self.blocked:
                if start <= at + beats and at < end:
                    at = end
            at += beats
            self.unanswered.append(at + self.write_latency)
        state.free = at + STORE_COMMAND
        return at + self.write_latency + STORE_DONE

    def _passes(self, c: Command) -> tuple[int, int]:
        """Passes of one block, and samples of one pass."""
        positions = c.out_height * c.out_width
        if c.mode == Mode.VECTOR:
            return c.in_blocks * c.kernel_height * c.kernel_width, positions
        if c.mode == Mode.PATCH:
            return -(-c.kernel_height * c.row_length // c.pass_length), positions
        lead = c.kernel_width - 1 - c.valid_from
        return -(-c.kernel_height // c.rows_per_pass), lead + c.out_height * c.row_samples

    @staticmethod
    def _holds_banks(c: Command) -> bool:
        """Whether a CONV reads the same banks of the scratchpad in every cycle, so that STORE must wait."""
        if c.mode == Mode.PATCH:
            return True  # all of them
        step = c.x_stride * (c.stride_x if c.mode == Mode.VECTOR else 1)
        return step % (BANKS if c.mode == Mode.VECTOR else 2) == 0

    def _output(self, o: Command, state: _UnitState, issue: int) -> tuple[int, int]:
        """An OUTPUT together with the CONV before it, block by block."""
        assert self.tile is not None
        tile, n = self.tile, self.config.array_size
        c = tile.command
        compute = self.units[Unit.COMPUTE]
        passes, samples = self._passes(c)
        length = max(samples, n)
        positions = c.out_height * c.out_width
        groups = n // self.config.requantize_lanes
        frame = groups * (4 if o.residual else 1)
        taps = o.out_height * o.out_width * o.pool_height * o.pool_width
        drain = taps * frame
        if o.pool_mode == PoolMode.SUM:
            drain += o.out_height * o.out_width * frame
        rows = PARAMETER_ROWS_PER_TENSOR if o.per_tensor else PARAMETER_ROWS
        to_entry = FEED + 2 * n + 1 + ACCUMULATE
        pipeline = OUTPUT_PIPELINE + (RESIDUAL_PIPELINE if o.residual else 0)

        taken = max(issue, state.free)
        start, reader = tile.start, max(taken + OUTPUT_START, self.pipeline_free)
        last = start
        for _ in range(c.out_blocks):
            last = self._reserve(start + (passes - 1) * length, positions)
            start = last + length
            # the reader follows the last pass, or goes at its own speed behind it
            reader = max(reader + rows + PARAMETERS, last + to_entry)
            arrived = last + samples + to_entry
            reader = max(reader + drain, arrived + frame)
            self.releases.append((reader, positions))
        if self._holds_banks(c):
            self.blocking.append((tile.start, start))
        compute.free = start
        self._finish(tile.index, tile.issue, max(last + samples, last + n + FEED) + 2)
        self.tile = None
        state.free = reader - OUTPUT_START  # the next command is prepared meanwhile
        self.pipeline_free = reader
        return taken, reader + pipeline

    def _reserve(self, at: int, entries: int) -> int:
        """When `entries` of the output buffer are free, not before `at`."""
        while self.releases and (self.room < entries or self.releases[0][0] <= at):
            cycle, count = self.releases.popleft()
            if self.room < entries:
                at = max(at, cycle)
            self.room += count
        self.room -= entries
        return at


def estimate(
    commands: Sequence[Command], config: NPUConfig, *, latency: int = 32, write_latency: int = 32
) -> CycleEstimate:
    """Estimate the cycles of a program.

    Args:
        commands: a correct program: END last, waits satisfied by posts before them.
        config: the NPU that runs it.
        latency: of the memory, from an accepted read address to the first beat.
        write_latency: from the last beat of a write to its response.
    """
    first = _Model(commands, config, latency, write_latency)
    result = first.run()
    if not first.blocking:
        return result
    # stores run beside CONVs that come after them: with the times of these known, once more
    second = _Model(commands, config, latency, write_latency)
    second.blocked = first.blocking
    return second.run()
