"""Lepton's SDK: train, quantize, compile and run neural networks on the Lepton NPU."""

__version__ = "0.1.0"
