// In-process simulator: the Verilated NPU, an AXI4 memory, and a C API for ctypes.
//
// One clock cycle, and why it needs no more evaluations than it does
// -------------------------------------------------------------------
// Call S the registers of the NPU, I its inputs, O = f(S, I) its outputs. Everything is clocked by the same
// edge of `clk`, and the memory below is a Moore machine: its outputs I of the next cycle depend only on
// handshakes of this one. A cycle is then
//
//     settle   eval, clk unchanged   O = f(S, I)       handshakes are read from O and I
//     edge     eval, clk toggled     S = g(S, I)       O is now f(new S, old I)
//     drive    no eval               I = new inputs from the memory model
//
// `settle` is skipped when `drive` changed no input, for then O is already f(S, I): a cycle without traffic
// costs one evaluation, a cycle with traffic two, and the outputs may depend on the inputs without a register
// between them. The usual third evaluation, for the falling edge, is gone because the build turns every
// `posedge` of the Verilog into `edge` (LEPTON_DUAL_EDGE): each toggle of `clk` is one cycle. Builds with
// waveforms keep `posedge`, so that clk looks as it should: low half = settle, high half = edge.

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstring>
#include <memory>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "Vlepton_npu.h"
#include "verilated.h"
#if defined(LEPTON_TRACE_FST)
#include "verilated_fst_c.h"
using Trace = VerilatedFstC;
#elif defined(LEPTON_TRACE_VCD)
#include "verilated_vcd_c.h"
using Trace = VerilatedVcdC;
#endif
#if defined(LEPTON_TRACE_FST) || defined(LEPTON_TRACE_VCD)
#define LEPTON_TRACE 1
#endif

#define API extern "C" __attribute__((visibility("default")))

static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "memory bytes are copied straight into signals");

// Verilator's own versions end the process; inside Python they have to be errors instead.
void vl_fatal(const char* file, int line, const char*, const char* message) {
    throw std::runtime_error(std::string(message) + " (" + file + ":" + std::to_string(line) + ")");
}
void vl_stop(const char* file, int line, const char*) {
    throw std::runtime_error(std::string("$stop at ") + file + ":" + std::to_string(line));
}
void vl_finish(const char* file, int line, const char*) {
    throw std::runtime_error(std::string("$finish at ") + file + ":" + std::to_string(line));
}

namespace {

constexpr uint8_t kOkay = 0;
constexpr uint8_t kDecodeError = 3;  // DECERR, Arm IHI 0022H A3.4.4
constexpr int kCsrTimeoutCycles = 1000;
constexpr size_t kEarlyBeats = 256;  // write data taken before its address: at most one longest burst

// Same order and types as `_Options` in harness.py.
struct Options {
    uint32_t read_latency;       // cycles from the AR handshake to the first R beat being valid, >= 1
    uint32_t write_latency;      // cycles from the last W handshake to B being valid, >= 1
    uint32_t read_outstanding;   // bursts accepted whose last beat is not transferred yet
    uint32_t write_outstanding;  // bursts accepted whose response is not transferred yet
    uint32_t bandwidth_beats;    // R and W beats together in `bandwidth_cycles` cycles;
    uint32_t bandwidth_cycles;   // 0: no limit but one beat a cycle on each channel
};

// First in, first out, with a capacity fixed at creation.
template <class T>
class Ring {
  public:
    explicit Ring(size_t capacity) {
        size_t size = 1;
        while (size < capacity) size *= 2;
        slots_.resize(size);
    }
    bool empty() const { return head_ == tail_; }
    size_t size() const { return tail_ - head_; }
    T& front() { return slots_[head_ & (slots_.size() - 1)]; }
    void push(const T& item) { slots_[tail_++ & (slots_.size() - 1)] = item; }
    void pop() { ++head_; }
    void clear() { head_ = tail_ = 0; }

  private:
    std::vector<T> slots_;
    size_t head_ = 0, tail_ = 0;
};

struct Burst {
    uint64_t address;   // of the next beat
    uint64_t ready_at;  // first cycle in which the first beat may be valid (reads)
    uint32_t beats;     // still to come
    uint8_t size;       // log2 of the bytes of a beat
    uint8_t response;   // so far (writes)
    uint8_t id;         // comes back with the data, or the response
};

struct Response {
    uint64_t ready_at;
    uint8_t code;
    uint8_t id;
};

template <size_t BusBytes>
struct WriteBeat {
    std::array<uint8_t, BusBytes> data;
    uint32_t strobe;
    bool last;
};

class Simulator {
    using Top = Vlepton_npu;
    // sizeof a port is its width in bytes for 32 (IData), 64 (QData) and more bits (VlWide) alike.
    static constexpr size_t kBusBytes = sizeof(std::remove_reference_t<decltype(std::declval<Top>().m_axi_rdata)>);
    using Beat = WriteBeat<kBusBytes>;

  public:
    static constexpr size_t bus_bytes() { return kBusBytes; }

    // The memory belongs to the caller and outlives the simulator.
    Simulator(uint8_t* memory, uint64_t memory_bytes, const Options& options)
        : options_(options),
          memory_(memory),
          memory_bytes_(memory_bytes),
          context_(std::make_unique<VerilatedContext>()),
          reads_(options.read_outstanding),
          writes_(options.write_outstanding),
          responses_(options.write_outstanding),
          early_(kEarlyBeats) {
#if defined(LEPTON_TRACE)
        context_->traceEverOn(true);
#endif
        top_ = std::make_unique<Top>(context_.get(), "lepton_npu");
        top_->clk = 0;
        top_->rst = 0;
        clear_axil();
        clear_model();
        top_->eval();
    }

    ~Simulator() {
        trace_close();
        top_->final();
    }

    uint64_t cycle() const { return cycle_; }
    uint64_t read_beats() const { return read_beats_; }
    uint64_t write_beats() const { return write_beats_; }
    const std::string& fault() const { return fault_; }
    void set_fault(const std::string& text) {
        if (fault_.empty()) fault_ = text;
    }

    bool irq() {
        settle();
        return top_->irq;
    }

    void reset(uint64_t cycles) {
        fault_.clear();
        clear_axil();
        clear_model();
        top_->rst = 1;
        changed_ = true;
        for (uint64_t i = 0; i < cycles; ++i) {
            one_cycle<false>();
            clear_model();  // a manager in reset drives no VALID, but may do so before its first clock edge
        }
        top_->rst = 0;
        changed_ = true;
    }

    uint64_t step(uint64_t cycles) {
        uint64_t done = 0;
        for (; done < cycles && fault_.empty(); ++done) one_cycle<false>();
        return done;
    }

    uint64_t run_until_irq(uint64_t max_cycles) {
        uint64_t done = 0;
        settle();
        // irq is a register in the NPU, so its value right after the clock edge is the settled one.
        for (; done < max_cycles && !top_->irq && fault_.empty(); ++done) one_cycle<false>();
        return done;
    }

    // AXI4-Lite transfers: address and data offered together, each withdrawn after its own handshake.
    int csr_write(uint32_t address, uint32_t data) {
        top_->s_axil_awaddr = address;
        top_->s_axil_wdata = data;
        top_->s_axil_wstrb = 0xF;
        top_->s_axil_awvalid = top_->s_axil_wvalid = top_->s_axil_bready = 1;
        changed_ = true;
        for (int i = 0; i < kCsrTimeoutCycles && fault_.empty(); ++i) {
            one_cycle<true>();
            if (axil_.aw) top_->s_axil_awvalid = 0;
            if (axil_.w) top_->s_axil_wvalid = 0;
            changed_ |= axil_.aw || axil_.w;
            if (axil_.b) {
                clear_axil();
                return axil_.bresp;
            }
        }
        clear_axil();
        return -1;
    }

    int csr_read(uint32_t address, uint32_t* data) {
        top_->s_axil_araddr = address;
        top_->s_axil_arvalid = top_->s_axil_rready = 1;
        changed_ = true;
        for (int i = 0; i < kCsrTimeoutCycles && fault_.empty(); ++i) {
            one_cycle<true>();
            if (axil_.ar) {
                top_->s_axil_arvalid = 0;
                changed_ = true;
            }
            if (axil_.r) {
                clear_axil();
                *data = axil_.rdata;
                return axil_.rresp;
            }
        }
        clear_axil();
        return -1;
    }

    bool trace_open(const char* path, uint64_t first, uint64_t last) {
#if defined(LEPTON_TRACE)
        trace_close();
        trace_ = std::make_unique<Trace>();
        top_->trace(trace_.get(), 99);
        trace_->open(path);
        if (!trace_->isOpen()) {
            trace_.reset();
            return false;
        }
        trace_first_ = first;
        trace_last_ = last;
        return true;
#else
        (void)path, (void)first, (void)last;
        return false;
#endif
    }

    void trace_close() {
#if defined(LEPTON_TRACE)
        if (trace_) trace_->close();
        trace_.reset();
#endif
    }

  private:
    struct AxilHandshakes {
        bool aw, w, b, ar, r;
        uint8_t bresp, rresp;
        uint32_t rdata;
    };

    void clear_axil() {
        top_->s_axil_awvalid = top_->s_axil_wvalid = top_->s_axil_arvalid = 0;
        top_->s_axil_bready = top_->s_axil_rready = 0;
        changed_ = true;
    }

    void clear_model() {
        reads_.clear();
        writes_.clear();
        responses_.clear();
        early_.clear();
        reads_open_ = writes_open_ = 0;
        credit_ = 0;
        write_granted_ = false;
        top_->m_axi_rvalid = top_->m_axi_bvalid = 0;
        top_->m_axi_arready = top_->m_axi_awready = top_->m_axi_wready = 0;
        changed_ = true;
    }

    void settle() {
        if (changed_) {
            top_->eval();
            changed_ = false;
        }
    }

    void edge() {
#if defined(LEPTON_DUAL_EDGE)
        top_->clk ^= 1;
        top_->eval();
#else
        dump(10 * cycle_);
        top_->clk = 1;
        top_->eval();
        dump(10 * cycle_ + 5);
        top_->clk = 0;
        changed_ = true;
#endif
    }

    void dump(uint64_t time) {
#if defined(LEPTON_TRACE)
        if (!trace_ || cycle_ < trace_first_) return;
        if (cycle_ >= trace_last_) {
            trace_close();
            return;
        }
        context_->time(time);
        trace_->dump(time);
#else
        (void)time;
#endif
    }

    // Inputs are written only through this, so that an unchanged cycle needs no `settle`.
    template <class Port, class Value>
    void drive(Port& port, Value value) {
        if (port != value) {
            port = value;
            changed_ = true;
        }
    }

    template <bool WithCsr>
    void one_cycle() {
        settle();
        Top& top = *top_;
        if (WithCsr) {
            axil_.aw = top.s_axil_awvalid && top.s_axil_awready;
            axil_.w = top.s_axil_wvalid && top.s_axil_wready;
            axil_.b = top.s_axil_bvalid && top.s_axil_bready;
            axil_.ar = top.s_axil_arvalid && top.s_axil_arready;
            axil_.r = top.s_axil_rvalid && top.s_axil_rready;
            axil_.bresp = top.s_axil_bresp;
            axil_.rresp = top.s_axil_rresp;
            axil_.rdata = top.s_axil_rdata;
        }
        const bool ar = top.m_axi_arvalid && top.m_axi_arready;
        const bool r = top.m_axi_rvalid && top.m_axi_rready;
        const bool aw = top.m_axi_awvalid && top.m_axi_awready;
        const bool w = top.m_axi_wvalid && top.m_axi_wready;
        const bool b = top.m_axi_bvalid && top.m_axi_bready;
        // The payloads have to be taken before the clock edge replaces them.
        if (ar) accept_read();
        if (aw) accept_write();
        if (w) accept_beat();
        if (r) {
            ++read_beats_;
            if (top.m_axi_rlast) --reads_open_;
        }
        if (b) --writes_open_;

        edge();
        ++cycle_;
        drive_memory(r, w, b);
    }

    void accept_read() {
        Burst burst = checked_burst("AR", top_->m_axi_araddr, top_->m_axi_arlen, top_->m_axi_arsize,
                                    top_->m_axi_arburst, top_->m_axi_arid);
        burst.ready_at = cycle_ + options_.read_latency;
        reads_.push(burst);
        ++reads_open_;
    }

    void accept_write() {
        writes_.push(checked_burst("AW", top_->m_axi_awaddr, top_->m_axi_awlen, top_->m_axi_awsize,
                                   top_->m_axi_awburst, top_->m_axi_awid));
        ++writes_open_;
        while (!early_.empty() && !writes_.empty()) {
            store(early_.front());
            early_.pop();
        }
    }

    void accept_beat() {
        Beat beat;
        std::memcpy(beat.data.data(), &top_->m_axi_wdata, kBusBytes);
        beat.strobe = static_cast<uint32_t>(top_->m_axi_wstrb);
        beat.last = top_->m_axi_wlast;
        ++write_beats_;
        if (writes_.empty()) {
            early_.push(beat);
        } else {
            store(beat);
        }
    }

    // Rules that a burst of the NPU has to keep (Arm IHI 0022H A3.4.1); broken ones are reported, not repaired.
    Burst checked_burst(const char* channel, uint64_t address, uint32_t length, uint8_t size, uint8_t type,
                        uint8_t id) {
        const uint64_t beats = length + 1;
        const uint64_t first = address >> size << size;
        std::string problem;
        if (type != 1) {
            problem = "burst type " + std::to_string(type) + " is not INCR (1)";
        } else if ((size_t{1} << size) > kBusBytes) {
            problem = "beats of " + std::to_string(1u << size) + " bytes are wider than the bus of " +
                      std::to_string(kBusBytes) + " bytes";
        } else if ((address >> 12) != ((first + (beats << size) - 1) >> 12)) {
            problem = "a burst of " + std::to_string(beats) + " beats of " + std::to_string(1u << size) +
                      " bytes at address " + std::to_string(address) + " crosses a 4 KiB boundary";
        }
        if (!problem.empty()) protocol_fault(channel, problem);
        return Burst{address, 0, static_cast<uint32_t>(beats), size, kOkay, id};
    }

    void protocol_fault(const char* channel, const std::string& problem) {
        set_fault(std::string("AXI4 rule broken by the NPU on ") + channel + " in cycle " +
                  std::to_string(cycle_) + ": " + problem);
    }

    static void advance(Burst& burst) {
        burst.address = ((burst.address >> burst.size) + 1) << burst.size;
        --burst.beats;
    }

    void store(const Beat& beat) {
        Burst& burst = writes_.front();
        const uint64_t word = burst.address & ~uint64_t{kBusBytes - 1};
        if (word < memory_bytes_) {
            uint8_t* to = memory_ + word;
            constexpr uint32_t all = static_cast<uint32_t>((uint64_t{1} << kBusBytes) - 1);
            if (beat.strobe == all) {
                std::memcpy(to, beat.data.data(), kBusBytes);
            } else {
                for (size_t i = 0; i < kBusBytes; ++i) {
                    if (beat.strobe >> i & 1) to[i] = beat.data[i];
                }
            }
        } else {
            burst.response = kDecodeError;
        }
        advance(burst);
        if (beat.last != (burst.beats == 0)) {
            protocol_fault("W", beat.last ? "WLAST before the last beat of its burst"
                                          : "no WLAST on the last beat of its burst");
        }
        if (burst.beats == 0) {
            responses_.push(Response{cycle_ + options_.write_latency, burst.response, burst.id});
            writes_.pop();
        }
    }

    // Chooses the memory's outputs for the cycle that has just begun (`cycle_`). A VALID stays up, with its
    // payload, until its handshake: only channels that are free or were just transferred are touched.
    void drive_memory(bool r, bool w, bool b) {
        Top& top = *top_;
        if (w) write_granted_ = false;
        const bool read_free = r || !top.m_axi_rvalid;
        const bool read_due = read_free && !reads_.empty() && reads_.front().ready_at <= cycle_;
        bool read_grant = read_due;
        if (options_.bandwidth_cycles == 0) {
            write_granted_ = true;
        } else {
            // Tokens: every cycle earns `bandwidth_beats`, a beat costs `bandwidth_cycles`. The cap lets no
            // idle time be saved up, yet never clips a memory that is asked for a beat every cycle.
            const int64_t cost = options_.bandwidth_cycles;
            const int64_t cap = cost + options_.bandwidth_beats - 1;
            credit_ = std::min<int64_t>(credit_ + options_.bandwidth_beats, cap);
            read_grant = false;
            const bool write_first = write_first_;
            for (int turn = 0; turn < 2; ++turn) {
                const bool write_turn = (turn == 0) == write_first;
                if (credit_ < cost) break;
                if (write_turn && !write_granted_) {
                    write_granted_ = true;
                    credit_ -= cost;
                    write_first_ = false;
                } else if (!write_turn && read_due) {
                    read_grant = true;
                    credit_ -= cost;
                    write_first_ = true;
                }
            }
        }
        if (read_grant) {
            present_read();
        } else if (r) {
            drive(top.m_axi_rvalid, 0);
        }
        if (b || !top.m_axi_bvalid) {
            const bool due = !responses_.empty() && responses_.front().ready_at <= cycle_;
            if (due) {
                drive(top.m_axi_bresp, responses_.front().code);
                drive(top.m_axi_bid, responses_.front().id);
                responses_.pop();
            }
            drive(top.m_axi_bvalid, due);
        }
        drive(top.m_axi_wready, write_granted_ && early_.size() < kEarlyBeats);
        drive(top.m_axi_arready, reads_open_ < options_.read_outstanding);
        drive(top.m_axi_awready, writes_open_ < options_.write_outstanding);
    }

    void present_read() {
        Top& top = *top_;
        Burst& burst = reads_.front();
        const uint64_t word = burst.address & ~uint64_t{kBusBytes - 1};
        const bool inside = word < memory_bytes_;
        if (inside) {
            std::memcpy(&top.m_axi_rdata, memory_ + word, kBusBytes);
        } else {
            std::memset(&top.m_axi_rdata, 0, kBusBytes);
        }
        top.m_axi_rresp = inside ? kOkay : kDecodeError;
        top.m_axi_rid = burst.id;
        top.m_axi_rvalid = 1;
        advance(burst);
        top.m_axi_rlast = burst.beats == 0;
        if (burst.beats == 0) reads_.pop();
        changed_ = true;
    }

    const Options options_;
    uint8_t* const memory_;
    const uint64_t memory_bytes_;
    std::unique_ptr<VerilatedContext> context_;
    std::unique_ptr<Top> top_;
    uint64_t cycle_ = 0;
    bool changed_ = true;  // an input differs from what the last eval saw
    std::string fault_;

    Ring<Burst> reads_, writes_;
    Ring<Response> responses_;
    Ring<Beat> early_;
    uint32_t reads_open_ = 0, writes_open_ = 0;
    int64_t credit_ = 0;
    bool write_granted_ = false;  // wready, and its share of the bandwidth, until a beat uses it
    bool write_first_ = false;    // who is served first when both channels want the last token
    uint64_t read_beats_ = 0, write_beats_ = 0;
    AxilHandshakes axil_{};

#if defined(LEPTON_TRACE)
    std::unique_ptr<Trace> trace_;
    uint64_t trace_first_ = 0, trace_last_ = 0;
#endif
};

// Runs `body`; what Verilator throws becomes the simulator's fault, for no exception may cross into ctypes.
template <class Result, class Body>
Result guarded(Simulator* simulator, Result failed, Body body) {
    try {
        return body();
    } catch (const std::exception& error) {
        simulator->set_fault(error.what());
        return failed;
    }
}

}  // namespace

API uint32_t lepton_bus_bytes() { return Simulator::bus_bytes(); }

API Simulator* lepton_create(uint8_t* memory, uint64_t memory_bytes, const Options* options) {
    try {
        return new Simulator(memory, memory_bytes, *options);
    } catch (const std::exception&) {
        return nullptr;
    }
}

API void lepton_destroy(Simulator* simulator) { delete simulator; }

API void lepton_reset(Simulator* simulator, uint64_t cycles) {
    guarded(simulator, 0, [&] { return simulator->reset(cycles), 0; });
}

// CSR accesses return the AXI response (0 = OKAY), or -1 when none came.
API int lepton_csr_read(Simulator* simulator, uint32_t address, uint32_t* data) {
    return guarded(simulator, -1, [&] { return simulator->csr_read(address, data); });
}

API int lepton_csr_write(Simulator* simulator, uint32_t address, uint32_t data) {
    return guarded(simulator, -1, [&] { return simulator->csr_write(address, data); });
}

API uint64_t lepton_step(Simulator* simulator, uint64_t cycles) {
    return guarded(simulator, uint64_t{0}, [&] { return simulator->step(cycles); });
}

API uint64_t lepton_run_until_irq(Simulator* simulator, uint64_t max_cycles) {
    return guarded(simulator, uint64_t{0}, [&] { return simulator->run_until_irq(max_cycles); });
}

API int lepton_irq(Simulator* simulator) {
    return guarded(simulator, 0, [&] { return int{simulator->irq()}; });
}

API uint64_t lepton_cycle(Simulator* simulator) { return simulator->cycle(); }

API void lepton_traffic(Simulator* simulator, uint64_t* read_beats, uint64_t* write_beats) {
    *read_beats = simulator->read_beats();
    *write_beats = simulator->write_beats();
}

// Empty while all is well; else what went wrong first. Only a reset clears it.
API const char* lepton_fault(Simulator* simulator) { return simulator->fault().c_str(); }

API int lepton_trace_open(Simulator* simulator, const char* path, uint64_t first, uint64_t last) {
    return guarded(simulator, 0, [&] { return int{simulator->trace_open(path, first, last)}; });
}

API void lepton_trace_close(Simulator* simulator) {
    guarded(simulator, 0, [&] { return simulator->trace_close(), 0; });
}
