// Stand-in for the NPU in the tests of the RTL simulator: the same ports, and inside a block copier that can
// also only read or only write. Some of its handshakes depend on inputs without a register between them, which
// AXI discourages and the simulator has to get right all the same.
//
// CSRs: 00 identity (ro), 04 source, 08 destination, 0C beats in all, 10 beats a burst, 14 control (write:
// bit 0 start, 1 no writes, 2 no reads, 3 slow RREADY, 4 break the 4 KiB rule, 5 W before AW, 6 narrow bursts),
// 18 status (ro: bit 0 done, 2:1 worst RRESP, 4:3 worst BRESP, 5 unstable R seen), 1C clear irq (write),
// 20 outstanding bursts, 24 cycles from the first AR to the first R (ro), 28 cycles of the run (ro),
// 2C cycles from the last W to the last B (ro), 30 beats accepted without a stall (ro). Others: SLVERR.
module lepton_npu (
    input clk, input rst, output irq,
    input [11:0] s_axil_awaddr, input [2:0] s_axil_awprot, input s_axil_awvalid, output s_axil_awready,
    input [31:0] s_axil_wdata, input [3:0] s_axil_wstrb, input s_axil_wvalid, output s_axil_wready,
    output [1:0] s_axil_bresp, output s_axil_bvalid, input s_axil_bready,
    input [11:0] s_axil_araddr, input [2:0] s_axil_arprot, input s_axil_arvalid, output s_axil_arready,
    output [31:0] s_axil_rdata, output [1:0] s_axil_rresp, output s_axil_rvalid, input s_axil_rready,
    output m_axi_awid, output [31:0] m_axi_awaddr, output [7:0] m_axi_awlen, output [2:0] m_axi_awsize,
    output [1:0] m_axi_awburst, output m_axi_awlock, output [3:0] m_axi_awcache, output [2:0] m_axi_awprot,
    output m_axi_awvalid, input m_axi_awready,
    output [`DATA_WIDTH-1:0] m_axi_wdata, output [`DATA_WIDTH/8-1:0] m_axi_wstrb, output m_axi_wlast,
    output m_axi_wvalid, input m_axi_wready,
    input m_axi_bid, input [1:0] m_axi_bresp, input m_axi_bvalid, output m_axi_bready,
    output m_axi_arid, output [31:0] m_axi_araddr, output [7:0] m_axi_arlen, output [2:0] m_axi_arsize,
    output [1:0] m_axi_arburst, output m_axi_arlock, output [3:0] m_axi_arcache, output [2:0] m_axi_arprot,
    output m_axi_arvalid, input m_axi_arready,
    input m_axi_rid, input [`DATA_WIDTH-1:0] m_axi_rdata, input [1:0] m_axi_rresp, input m_axi_rlast,
    input m_axi_rvalid, output m_axi_rready
);
    localparam BYTES = `DATA_WIDTH / 8;
    localparam [2:0] SIZE = $clog2(BYTES);

    reg [31:0] source, destination, beats, burst, outstanding;
    reg [6:0] mode;
    reg running, done;
    reg [1:0] worst_r, worst_b;

    // ---- CSRs. AW and W are taken together, with a ready that looks at the valids.
    reg b_valid, r_valid, b_error, r_error;
    reg [31:0] r_data;
    wire csr_write = s_axil_awvalid & s_axil_wvalid & (~b_valid | s_axil_bready);
    wire csr_read = s_axil_arvalid & (~r_valid | s_axil_rready);
    assign s_axil_awready = csr_write;
    assign s_axil_wready = csr_write;
    assign s_axil_arready = csr_read;
    assign s_axil_bvalid = b_valid;
    assign s_axil_bresp = b_error ? 2'd2 : 2'd0;
    assign s_axil_rvalid = r_valid;
    assign s_axil_rresp = r_error ? 2'd2 : 2'd0;
    assign s_axil_rdata = r_data;
    wire start = csr_write && s_axil_awaddr == 12'h014 && s_axil_wdata[0];

    reg [31:0] latency, run_cycles, write_latency, smooth;
    reg unstable;
    always @(posedge clk) begin
        if (s_axil_bready) b_valid <= 0;
        if (s_axil_rready) r_valid <= 0;
        if (csr_write) begin
            b_valid <= 1;
            b_error <= 0;
            case (s_axil_awaddr)
                12'h004: source <= s_axil_wdata;
                12'h008: destination <= s_axil_wdata;
                12'h00C: beats <= s_axil_wdata;
                12'h010: burst <= s_axil_wdata;
                12'h014: mode <= s_axil_wdata[6:0];
                12'h01C: ;
                12'h020: outstanding <= s_axil_wdata;
                default: b_error <= 1;
            endcase
        end
        if (csr_read) begin
            r_valid <= 1;
            r_error <= 0;
            case (s_axil_araddr)
                12'h000: r_data <= 32'h434F5059;
                12'h004: r_data <= source;
                12'h018: r_data <= {26'd0, unstable, worst_b, worst_r, done};
                12'h024: r_data <= latency;
                12'h028: r_data <= run_cycles;
                12'h02C: r_data <= write_latency;
                12'h030: r_data <= smooth;
                default: begin r_data <= 0; r_error <= 1; end
            endcase
        end
        if (rst) begin b_valid <= 0; r_valid <= 0; outstanding <= 8; burst <= 16; end
    end

    wire no_writes = mode[1], no_reads = mode[2], slow = mode[3], break_rule = mode[4], w_first = mode[5];
    wire narrow = mode[6];
    wire [2:0] size = narrow ? 3'd1 : SIZE;
    wire [31:0] step = 32'd1 << size;

    // ---- AR
    reg [31:0] ar_left, ar_address, ar_open;
    wire [31:0] ar_beats = ar_left < burst ? ar_left : burst;
    assign m_axi_arvalid = running && ar_left != 0 && ar_open < outstanding;
    assign m_axi_araddr = break_rule ? ar_address + 32'd4096 - step : ar_address;
    assign m_axi_arlen = ar_beats[7:0] - 8'd1;
    assign m_axi_arsize = size;
    assign m_axi_arburst = 1;
    assign {m_axi_arid, m_axi_arlock, m_axi_arcache, m_axi_arprot} = 0;
    wire ar = m_axi_arvalid & m_axi_arready;

    // ---- R, into a FIFO of 1024 beats
    reg [`DATA_WIDTH-1:0] fifo [0:1023];
    reg [31:0] fifo_in, fifo_out;
    reg toggle;
    wire room = fifo_in - fifo_out < 32'd1000;
    assign m_axi_rready = m_axi_rvalid & room & (~slow | toggle);
    wire r = m_axi_rvalid & m_axi_rready;
    reg seen_ar, seen_r, held;
    reg [`DATA_WIDTH+2:0] held_payload;
    wire [`DATA_WIDTH+2:0] r_payload = {m_axi_rlast, m_axi_rresp, m_axi_rdata};

    // ---- AW and W: both run ahead on their own; in the mode `w_first` AW waits for the data to be through
    reg [31:0] aw_left, aw_address, w_left, w_in_burst, b_left;
    wire [31:0] aw_beats = aw_left < burst ? aw_left : burst;
    assign m_axi_awvalid = running && aw_left != 0 && (~w_first || w_left == 0);
    assign m_axi_awaddr = aw_address;
    assign m_axi_awlen = aw_beats[7:0] - 8'd1;
    assign m_axi_awsize = size;
    assign m_axi_awburst = 1;
    assign {m_axi_awid, m_axi_awlock, m_axi_awcache, m_axi_awprot} = 0;
    wire aw = m_axi_awvalid & m_axi_awready;
    assign m_axi_wvalid = running && w_left != 0 && (no_reads || fifo_in != fifo_out);
    assign m_axi_wdata = no_reads ? {(BYTES/4){w_left}} : fifo[fifo_out[9:0]];
    wire [31:0] lane = (destination + (beats - w_left) * step) & (BYTES - 1);
    assign m_axi_wstrb = narrow ? {{(BYTES-2){1'b0}}, 2'b11} << lane : {BYTES{1'b1}};
    assign m_axi_wlast = w_in_burst == burst - 1 || w_left == 1;
    wire w = m_axi_wvalid & m_axi_wready;
    assign m_axi_bready = m_axi_bvalid;
    wire b = m_axi_bvalid & m_axi_bready;

    always @(posedge clk) begin
        toggle <= ~toggle;
        held <= m_axi_rvalid & ~m_axi_rready;
        held_payload <= r_payload;
        if (held && (~m_axi_rvalid || held_payload != r_payload)) unstable <= 1;
        if (running) run_cycles <= run_cycles + 1;
        if (ar) seen_ar <= 1;
        if (m_axi_rvalid) seen_r <= 1;
        if ((seen_ar | ar) & ~(seen_r | m_axi_rvalid)) latency <= latency + 1;
        if (w_left == 0 && b_left != 0 && ~m_axi_bvalid) write_latency <= write_latency + 1;
        ar_open <= ar_open + {31'd0, ar} - {31'd0, r & m_axi_rlast};
        if (ar) begin
            ar_left <= ar_left - ar_beats;
            ar_address <= ar_address + ar_beats * step;
        end
        if (r) begin
            if (~no_writes) begin fifo[fifo_in[9:0]] <= m_axi_rdata; fifo_in <= fifo_in + 1; end
            if (m_axi_rresp > worst_r) worst_r <= m_axi_rresp;
            smooth <= smooth + 1;
        end
        if (aw) begin
            aw_left <= aw_left - aw_beats;
            aw_address <= aw_address + aw_beats * step;
            b_left <= b_left + 1 - {31'd0, b};
        end else if (b) b_left <= b_left - 1;
        if (b && m_axi_bresp > worst_b) worst_b <= m_axi_bresp;
        if (w) begin
            w_left <= w_left - 1;
            w_in_burst <= m_axi_wlast ? 0 : w_in_burst + 1;
            if (~no_reads) fifo_out <= fifo_out + 1;
        end
        if (running && ar_left == 0 && ar_open == 0 && aw_left == 0 && w_left == 0 && b_left == 0) begin
            running <= 0;
            done <= 1;
        end
        if (csr_write && s_axil_awaddr == 12'h01C) done <= 0;
        if (start) begin
            running <= 1;
            done <= 0;
            {worst_r, worst_b, unstable, seen_ar, seen_r, held} <= 0;
            {latency, run_cycles, write_latency, smooth} <= 0;
            ar_left <= s_axil_wdata[2] ? 0 : beats;
            aw_left <= s_axil_wdata[1] ? 0 : beats;
            w_left <= s_axil_wdata[1] ? 0 : beats;
            {w_in_burst, b_left, fifo_in, fifo_out} <= 0;
            ar_address <= source;
            aw_address <= destination;
        end
        if (rst) begin
            {running, done, toggle, held} <= 0;
            {ar_open, ar_left, aw_left, w_left, b_left} <= 0;
        end
    end
    assign irq = done;
endmodule
