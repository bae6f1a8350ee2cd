"""Lepton's simulators: golden model, RTL simulation and cycle model behind one Device interface."""

__version__ = "0.1.0"
