"""The RTL simulator that runs in this process: build, cache, memory model, `Device`."""

from .device import RtlDevice
from .harness import HarnessError, MemoryTiming
from .verilator_tool import ToolError

__all__ = ["HarnessError", "MemoryTiming", "RtlDevice", "ToolError"]
