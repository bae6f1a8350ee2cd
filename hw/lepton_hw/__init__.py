"""Lepton's hardware: configuration, instruction set and the NPU's gateware in Amaranth."""

__version__ = "0.1.0"
