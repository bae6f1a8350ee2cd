"""The activation memory: four banks of vectors, interleaved by vector address, and the ports of all units.

    read     0: addresses of all ports to the banks | block RAM
             1: banks to ports                      | register per port
             2: feeder, residual: data              | store: rotate
             3: store: data
    write    0: arbitration; rotate a load's beat   | register per source
             1: source to bank                      | block RAM
             2: a read issued now sees it

Addresses and enables should come out of registers: in cycle 0 they go through the choice of a bank's address.
"""

from __future__ import annotations

from collections.abc import Sequence

from amaranth.hdl import Cat, Module, Mux, Signal, Value
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import exact_log2

from .block_ram import BlockRAM
from .config import BANKS, NPUConfig
from .interfaces import VectorRead

__all__ = ["FEEDER_PORTS", "GrantedRead", "Scratchpad", "VectorWrite", "window_layout"]

FEEDER_PORTS = 4
_BANK_BITS = exact_log2(BANKS)


class GrantedRead(wiring.Signature):
    """Read port that waits for its turn, seen from the reader.

    Members:
        request: the address; the read is granted when it is taken.
        data: what was read, `latency` cycles after the grant; undefined otherwise.
    """

    def __init__(self, depth: int, width: int, latency: int) -> None:
        self.latency = latency
        super().__init__({"request": Out(stream.Signature(range(depth))), "data": In(width)})


class VectorWrite(wiring.Signature):
    """Write port for whole vectors, always accepted, seen from the writer.

    Members:
        enable, address: the vector to write.
        data: its bytes.
    """

    def __init__(self, depth: int, width: int) -> None:
        super().__init__({"enable": Out(1), "address": Out(range(depth)), "data": Out(width)})


def window_layout(config: NPUConfig) -> data.StructLayout:
    """A write of up to `bus_bytes` bytes at a byte address: byte i goes to `address` + i if `mask[i]`."""
    return data.StructLayout(
        {
            "address": range(config.scratchpad_bytes),
            "data": config.bus_width,
            "mask": config.bus_bytes,
        }
    )


def _select(values: Sequence[Value], index: Value) -> Value:
    """`values[index]`, as a tree of multiplexers."""
    level = list(values)
    for bit in index:
        level = [Mux(bit, high, low) for low, high in zip(level[::2], level[1::2], strict=True)]
    return level[0]


def _rotate(value: Value, amount: Value, step: int) -> Value:
    """`value` rotated to the left by `amount` times `step` bits (to the right if `step` is negative)."""
    for i, bit in enumerate(amount):
        value = Mux(bit, value.rotate_left(step << i), value)
    return value


class Scratchpad(wiring.Component):
    """Four banks of vectors with one read and one write a cycle each.

    Ports of one priority class never wait for those below. A window of bus bytes that lies across two vectors
    needs two banks, and gets them in the same cycle. Addresses wrap around at the end of the memory.
    Reads that meet a write of the same vector give undefined data for it.

    Arguments:
        config: the NPU's configuration.

    Members:
        feeder: four vector reads, never stalled. No two may want one bank in one cycle; if they do, the one
            of the lower index gets it and the data of the other is wrong.
        residual: vector reads; they wait for the feeder.
        store: reads of bus bytes at any byte address; they wait for the feeder and for `residual`.
        output: vector writes, never stalled.
        load: windows (see `window_layout`); they wait for `output`.
    """

    feeder_latency = 2
    """Cycles from `enable` to the data of the feeder's reads."""
    residual_latency = 2
    """Cycles from the grant to the data of a residual read."""
    store_latency = 3
    """Cycles from the grant to the data of a store read."""
    write_latency = 2
    """A read issued this many cycles after a write was accepted, or later, sees it."""

    def __init__(self, config: NPUConfig) -> None:
        self._config = config
        vectors, width = config.scratchpad_vectors, 8 * config.array_size
        super().__init__(
            {
                "feeder": In(VectorRead(vectors, width, self.feeder_latency)).array(FEEDER_PORTS),
                "residual": In(GrantedRead(vectors, width, self.residual_latency)),
                "store": In(GrantedRead(config.scratchpad_bytes, config.bus_width, self.store_latency)),
                "output": In(VectorWrite(vectors, width)),
                "load": In(stream.Signature(window_layout(config))),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        config = self._config
        banks = []
        for i in range(BANKS):
            bank = BlockRAM(8 * config.array_size, config.scratchpad_vectors // BANKS, granularity=8)
            m.submodules[f"bank{i}"] = bank
            banks.append(bank)
        self._read(m, banks)
        self._write(m, banks)
        return m

    def _window(self, m: Module, name: str, address: Value) -> tuple[Value, list[Value], list[Value]]:
        """A window: offset in its first vector; for each bank whether it is touched, and its row there."""
        n, bus = self._config.array_size, self._config.bus_bytes
        offset = address[: exact_log2(n)]
        bank = address[exact_log2(n) :][:_BANK_BITS]
        row = address[exact_log2(n) + _BANK_BITS :]
        straddles = Signal(name=f"{name}_straddles")
        after = Signal(len(row), name=f"{name}_after")
        m.d.comb += [straddles.eq(offset > n - bus), after.eq(row + 1)]
        touched = [(bank == i) | (straddles & (bank == (i - 1) % BANKS)) for i in range(BANKS)]
        # Only a window that begins in the last bank ends in the next row, and then in the first bank.
        rows = [Mux(bank == BANKS - 1, after, row), *[row] * (BANKS - 1)]
        return offset, touched, rows

    def _read(self, m: Module, banks: list[BlockRAM]) -> None:
        n, bus = self._config.array_size, self._config.bus_bytes
        residual, store = self.residual.request, self.store.request
        offset, store_touches, store_rows = self._window(m, "store_read", store.payload)

        store_blocked = Signal(BANKS)
        feeder_wants = Signal(BANKS)
        for i, bank in enumerate(banks):
            wants = [port.enable & (port.address[:_BANK_BITS] == i) for port in self.feeder]
            residual_wants = residual.valid & (residual.payload[:_BANK_BITS] == i)
            row = store_rows[i]
            for want, address in reversed(
                [
                    *((want, port.address) for want, port in zip(wants, self.feeder, strict=True)),
                    (residual_wants, residual.payload),
                ]
            ):
                row = Mux(want, address[_BANK_BITS:], row)
            m.d.comb += [
                feeder_wants[i].eq(Cat(*wants).any()),
                store_blocked[i].eq((feeder_wants[i] | residual_wants) & store_touches[i]),
                bank.read.address.eq(row),
                bank.read.enable.eq(feeder_wants[i] | residual_wants | (store.valid & store_touches[i])),
            ]
        m.d.comb += [
            residual.ready.eq(~_select(list(feeder_wants), residual.payload[:_BANK_BITS])),
            store.ready.eq(~store_blocked.any()),
        ]

        outputs = [bank.read.data for bank in banks]
        readers = [(f"feeder{i}", port.address, port.data) for i, port in enumerate(self.feeder)]
        for name, address, value in [*readers, ("residual", residual.payload, self.residual.data)]:
            source = Signal(_BANK_BITS, name=f"{name}_bank")
            vector = Signal(8 * n, name=f"{name}_vector", reset_less=True)
            m.d.sync += [source.eq(address[:_BANK_BITS]), vector.eq(_select(outputs, source))]
            m.d.comb += value.eq(vector)

        # Byte i of the store's vector is that of the window's first vector if i >= offset, else of the next.
        first_bank = store.payload[exact_log2(n) :][:_BANK_BITS]
        store_vector = Signal(8 * n, reset_less=True)
        window = Signal(8 * bus, reset_less=True)
        for i in range(n):
            source = Signal(_BANK_BITS, name=f"store_bank{i}")
            lane = slice(8 * i, 8 * i + 8)
            m.d.sync += [
                source.eq(first_bank if i == n - 1 else Mux(offset <= i, first_bank, first_bank + 1)),
                store_vector[lane].eq(_select([output[lane] for output in outputs], source)),
            ]
        offset1, offset2 = Signal.like(offset), Signal.like(offset)
        m.d.sync += [offset1.eq(offset), offset2.eq(offset1)]
        m.d.sync += window.eq(_rotate(store_vector, offset2, -8))
        m.d.comb += self.store.data.eq(window)

    def _write(self, m: Module, banks: list[BlockRAM]) -> None:
        n, bus = self._config.array_size, self._config.bus_bytes
        beat = self.load.payload
        offset, load_touches, load_rows = self._window(m, "load_write", beat.address)

        output_data = Signal(8 * n, reset_less=True)
        load_data = Signal(8 * n, reset_less=True)  # byte i: what may go to byte i of a vector
        output_row = Signal(len(banks[0].write_address))
        m.d.sync += [
            output_data.eq(self.output.data),
            output_row.eq(self.output.address[_BANK_BITS:]),
            load_data.eq(_rotate(beat.data, offset[: exact_log2(bus)], 8).replicate(n // bus)),
        ]
        # The mask over two vectors: the first, and the one after.
        mask = Signal(2 * n)
        m.d.comb += mask.eq(beat.mask << offset)
        first_bank = beat.address[exact_log2(n) :][:_BANK_BITS]

        clash = Signal(BANKS)
        accepted = Signal()
        m.d.comb += [self.load.ready.eq(~clash.any()), accepted.eq(self.load.valid & self.load.ready)]
        for i, bank in enumerate(banks):
            output_wants = Signal(name=f"output_wants{i}")
            output_writes = Signal(name=f"output_writes{i}")
            load_mask = Signal(n, name=f"load_mask{i}")
            load_row = Signal(len(bank.write_address), name=f"load_row{i}")
            is_first = first_bank == i
            m.d.comb += [
                output_wants.eq(self.output.enable & (self.output.address[:_BANK_BITS] == i)),
                clash[i].eq(output_wants & load_touches[i]),
                bank.write_enable.eq(load_mask | output_writes.replicate(n)),
                bank.write_address.eq(Mux(output_writes, output_row, load_row)),
                bank.write_data.eq(Mux(output_writes, output_data, load_data)),
            ]
            m.d.sync += [
                output_writes.eq(output_wants),
                load_row.eq(load_rows[i]),
                load_mask.eq(Mux(is_first, mask[:n], mask[n:]) & (accepted & load_touches[i]).replicate(n)),
            ]
