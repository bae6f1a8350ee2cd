// Stand-in for the NPU in the tests of RtlDevice: its CSRs (the test fills in their addresses) and a control
// unit that acts out a way to end a run. PROGRAM_BYTES says which: 1 command = success after WATCHDOG cycles,
// 2 = an error, 3 = hangs until ABORT, 4 = hangs for good, 5 = an interrupt without DONE or ERROR.
// CYCLES reads the run's length; ERROR_INFO of an error run is `INFO`; BYTES_READ and BYTES_WRITTEN read the
// first and last byte of the write window, so that the test sees what the device has set.
module lepton_npu (
    input clk, input rst, output irq,
    input [11:0] s_axil_awaddr, input [2:0] s_axil_awprot, input s_axil_awvalid, output s_axil_awready,
    input [31:0] s_axil_wdata, input [3:0] s_axil_wstrb, input s_axil_wvalid, output s_axil_wready,
    output [1:0] s_axil_bresp, output reg s_axil_bvalid, input s_axil_bready,
    input [11:0] s_axil_araddr, input [2:0] s_axil_arprot, input s_axil_arvalid, output s_axil_arready,
    output reg [31:0] s_axil_rdata, output [1:0] s_axil_rresp, output reg s_axil_rvalid, input s_axil_rready,
    output m_axi_awid, output [31:0] m_axi_awaddr, output [7:0] m_axi_awlen, output [2:0] m_axi_awsize,
    output [1:0] m_axi_awburst, output m_axi_awlock, output [3:0] m_axi_awcache, output [2:0] m_axi_awprot,
    output m_axi_awvalid, input m_axi_awready,
    output [127:0] m_axi_wdata, output [15:0] m_axi_wstrb, output m_axi_wlast,
    output m_axi_wvalid, input m_axi_wready,
    input m_axi_bid, input [1:0] m_axi_bresp, input m_axi_bvalid, output m_axi_bready,
    output m_axi_arid, output [31:0] m_axi_araddr, output [7:0] m_axi_arlen, output [2:0] m_axi_arsize,
    output [1:0] m_axi_arburst, output m_axi_arlock, output [3:0] m_axi_arcache, output [2:0] m_axi_arprot,
    output m_axi_arvalid, input m_axi_arready,
    input m_axi_rid, input [127:0] m_axi_rdata, input [1:0] m_axi_rresp, input m_axi_rlast,
    input m_axi_rvalid, output m_axi_rready
);
    assign {m_axi_awid, m_axi_awaddr, m_axi_awlen, m_axi_awsize, m_axi_awburst, m_axi_awlock, m_axi_awcache,
            m_axi_awprot, m_axi_awvalid, m_axi_wdata, m_axi_wstrb, m_axi_wlast, m_axi_wvalid, m_axi_bready,
            m_axi_arid, m_axi_araddr, m_axi_arlen, m_axi_arsize, m_axi_arburst, m_axi_arlock, m_axi_arcache,
            m_axi_arprot, m_axi_arvalid, m_axi_rready, s_axil_bresp, s_axil_rresp} = 0;

    reg [31:0] write_first, write_last, program_bytes, watchdog, cycles, code, command, info;
    reg busy, done, failed, enable, pending;
    assign irq = pending & enable;
    wire write = s_axil_awvalid & s_axil_wvalid & ~s_axil_bvalid;
    assign s_axil_awready = write;
    assign s_axil_wready = write;
    assign s_axil_arready = ~s_axil_rvalid;
    wire [11:0] where = s_axil_awaddr;
    wire [31:0] data = s_axil_wdata;

    always @(posedge clk) begin
        s_axil_bvalid <= write | (s_axil_bvalid & ~s_axil_bready);
        s_axil_rvalid <= (s_axil_arvalid & s_axil_arready) | (s_axil_rvalid & ~s_axil_rready);
        if (s_axil_arvalid & s_axil_arready) case (s_axil_araddr)
            `MAGIC: s_axil_rdata <= `MAGIC_VALUE;
            `VERSION: s_axil_rdata <= `VERSION_VALUE;
            `CONFIG0: s_axil_rdata <= `CONFIG0_VALUE;
            `CONFIG1: s_axil_rdata <= `CONFIG1_VALUE;
            `CONFIG2: s_axil_rdata <= `CONFIG2_VALUE;
            `STATUS: s_axil_rdata <= {29'd0, failed, done, busy};
            `ERROR_CODE: s_axil_rdata <= code;
            `ERROR_COMMAND: s_axil_rdata <= command;
            `ERROR_INFO: s_axil_rdata <= info;
            `CYCLES: s_axil_rdata <= cycles;
            `BYTES_READ: s_axil_rdata <= write_first;
            `BYTES_WRITTEN: s_axil_rdata <= write_last;
            default: s_axil_rdata <= 0;
        endcase
        if (busy) begin
            cycles <= cycles + 1;
            if (cycles == watchdog && program_bytes != 192 && program_bytes != 256) begin
                busy <= 0;
                pending <= 1;
                done <= program_bytes == 64;
                failed <= program_bytes == 128;
                code <= program_bytes == 128 ? `ERROR : 0;
                command <= 1;
                info <= `INFO;
            end
        end
        if (write) case (where)
            `WRITE_FIRST: write_first <= data;
            `WRITE_LAST: write_last <= data;
            `PROGRAM_BYTES: program_bytes <= data;
            `WATCHDOG: watchdog <= data;
            `IRQ_ENABLE: enable <= data[0];
            `IRQ_PENDING: if (data[0]) pending <= 0;
            `CONTROL: begin
                if (data[0]) {busy, done, failed, cycles, code} <= {1'b1, 66'd0};
                if (data[1] && program_bytes == 192) begin
                    {busy, failed, pending} <= 3'b011;
                    code <= `ABORTED;
                    command <= 0;
                    info <= 0;
                end
            end
            default: ;
        endcase
        if (rst) {s_axil_bvalid, s_axil_rvalid, busy, done, failed, enable, pending} <= 0;
    end
endmodule
