"""Control and status registers: an AXI4-Lite subordinate.

Each access is answered after it has acted. What no access may do (an unknown address, a write to a read-only
register, a new program or window under a run, a start that is refused) is answered SLVERR and has no effect.

```
cycle   write                               read
0       AW and W accepted, in any order     AR accepted
1       acts; BVALID rises at its end       RDATA and RVALID rise at its end
2       B is offered                        R is offered
```
"""

from amaranth.hdl import Cat, Const, Module, Mux, Signal, Value
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from .config import NPUConfig
from .interfaces import AXI4Lite
from .isa import COUNTERS, CSR, ISA_VERSION, MAGIC, Control, Status, config_words

__all__ = ["RegisterBlock", "Settings"]

_OKAY, _SLVERR = 0, 2


class Settings(data.Struct):
    """What the host sets before a run; constant during it."""

    program_address: 32
    program_bytes: 32
    read_first: 32
    read_last: 32
    write_first: 32
    write_last: 32
    watchdog: 32


_SETTINGS = {
    CSR.PROGRAM_ADDRESS: "program_address",
    CSR.PROGRAM_BYTES: "program_bytes",
    CSR.READ_FIRST: "read_first",
    CSR.READ_LAST: "read_last",
    CSR.WRITE_FIRST: "write_first",
    CSR.WRITE_LAST: "write_last",
    CSR.WATCHDOG: "watchdog",
}


class RegisterBlock(wiring.Component):
    """The registers of `isa.CSR`.

    Arguments:
        config: published in CONFIG0 to CONFIG2.

    Members:
        bus: AXI4-Lite. The two low address bits are ignored; bytes without a strobe keep their value.
        irq: an interrupt is pending and enabled.
        settings: the plain registers. Both windows are closed after reset.
        start: CONTROL.START was accepted (one cycle); also clears IRQ_PENDING.
        abort: CONTROL.ABORT was written during a run (one cycle).
        busy: a run is under way: START and writes to `settings` are refused.
        hung: the bus owes responses: START is refused.
        ended: a run ends (one cycle): IRQ_PENDING is set.
        done, error: STATUS of the last run.
        error_code, error_command, error_info: as the CSRs of those names.
        counters: in the order of isa.COUNTERS.
    """

    def __init__(self, config: NPUConfig) -> None:
        self._config = config
        super().__init__(
            {
                "bus": In(AXI4Lite()),
                "irq": Out(1),
                "settings": Out(Settings, init={"read_first": 1, "write_first": 1}),
                "start": Out(1),
                "abort": Out(1),
                "busy": In(1),
                "hung": In(1),
                "ended": In(1),
                "done": In(1),
                "error": In(1),
                "error_code": In(4),
                "error_command": In(32),
                "error_info": In(32),
                "counters": In(data.ArrayLayout(32, len(COUNTERS))),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        irq_enable = Signal()
        irq_pending = Signal()
        m.d.comb += self.irq.eq(irq_enable & irq_pending)
        with m.If(self.ended):
            m.d.sync += irq_pending.eq(1)
        self._write(m, irq_enable, irq_pending)
        self._read(m, irq_enable, irq_pending)
        return m

    def _write(self, m: Module, irq_enable: Signal, irq_pending: Signal) -> None:
        """AW and W are held until both are there, so that their order does not matter."""
        bus = self.bus
        address, have_address = Signal(10), Signal()
        value, strobes, have_data = Signal(32), Signal(4), Signal()
        m.d.comb += [bus.awready.eq(~have_address), bus.wready.eq(~have_data)]
        with m.If(bus.awvalid & bus.awready):
            m.d.sync += [address.eq(bus.awaddr[2:]), have_address.eq(1)]
        with m.If(bus.wvalid & bus.wready):
            m.d.sync += [value.eq(bus.wdata), strobes.eq(bus.wstrb), have_data.eq(1)]

        with m.If(bus.bvalid & bus.bready):
            m.d.sync += bus.bvalid.eq(0)
        act = Signal()
        refused = Signal(init=1)
        m.d.comb += act.eq(have_address & have_data & ~bus.bvalid)
        with m.If(act):
            m.d.sync += [
                have_address.eq(0),
                have_data.eq(0),
                bus.bvalid.eq(1),
                bus.bresp.eq(Mux(refused, _SLVERR, _OKAY)),
            ]

        with m.Switch(address):
            with m.Case(CSR.CONTROL >> 2):
                bits = Signal(2)
                m.d.comb += [
                    bits.eq(Mux(strobes[0], value[:2], 0)),
                    refused.eq((bits & Control.START).any() & (self.busy | self.hung)),
                    self.start.eq(act & (bits & Control.START).any() & ~refused),
                    self.abort.eq(act & (bits & Control.ABORT).any() & self.busy & ~refused),
                ]
            with m.Case(CSR.IRQ_ENABLE >> 2):
                m.d.comb += refused.eq(0)
                with m.If(act & strobes[0]):
                    m.d.sync += irq_enable.eq(value[0])
            with m.Case(CSR.IRQ_PENDING >> 2):
                m.d.comb += refused.eq(0)
                # An end in this very cycle is a new event: it stays pending.
                with m.If(act & strobes[0] & value[0] & ~self.ended):
                    m.d.sync += irq_pending.eq(0)
            for csr, name in _SETTINGS.items():
                with m.Case(csr >> 2):
                    m.d.comb += refused.eq(self.busy)
                    register = Value.cast(getattr(self.settings, name))
                    for i in range(4):
                        with m.If(act & ~refused & strobes[i]):
                            m.d.sync += register[8 * i : 8 * i + 8].eq(value[8 * i : 8 * i + 8])
        with m.If(self.start):
            m.d.sync += irq_pending.eq(0)

    def _read(self, m: Module, irq_enable: Signal, irq_pending: Signal) -> None:
        config = config_words(self._config)
        status = Cat(self.busy, self.done, self.error, self.hung)
        assert list(Status) == [1 << i for i in range(4)]
        registers: dict[CSR, Value] = {
            CSR.MAGIC: Const(MAGIC, 32),
            CSR.VERSION: Const(ISA_VERSION[0] << 16 | ISA_VERSION[1], 32),
            CSR.CONFIG0: Const(config[0], 32),
            CSR.CONFIG1: Const(config[1], 32),
            CSR.CONFIG2: Const(config[2], 32),
            CSR.CONTROL: Const(0, 32),
            CSR.STATUS: status,
            CSR.IRQ_ENABLE: irq_enable,
            CSR.IRQ_PENDING: irq_pending,
            CSR.ERROR_CODE: self.error_code,
            CSR.ERROR_COMMAND: self.error_command,
            CSR.ERROR_INFO: self.error_info,
        }
        registers |= {csr: Value.cast(getattr(self.settings, name)) for csr, name in _SETTINGS.items()}
        registers |= {csr: self.counters[i] for i, csr in enumerate(COUNTERS)}
        missing = set(CSR) - set(registers)
        assert not missing, missing

        bus = self.bus
        address, have_address = Signal(10), Signal()
        m.d.comb += bus.arready.eq(~have_address)
        with m.If(bus.arvalid & bus.arready):
            m.d.sync += [address.eq(bus.araddr[2:]), have_address.eq(1)]
        with m.If(bus.rvalid & bus.rready):
            m.d.sync += bus.rvalid.eq(0)
        with m.If(have_address & ~bus.rvalid):
            m.d.sync += [have_address.eq(0), bus.rvalid.eq(1), bus.rresp.eq(_OKAY)]
            with m.Switch(address):
                for csr, value in registers.items():
                    with m.Case(csr >> 2):
                        m.d.sync += bus.rdata.eq(value)
                with m.Default():
                    m.d.sync += [bus.rdata.eq(0), bus.rresp.eq(_SLVERR)]
