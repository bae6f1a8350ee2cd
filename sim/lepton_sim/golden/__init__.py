"""The golden model: executes programs on a memory image, bit-exact with the hardware, without cycles.

Commands run strictly in program order. A program that keeps the rules of docs/architecture.md has the same
result in the hardware, however its units overlap; `lint` says whether it does.
"""

from .executor import GoldenDevice
from .lint import Conflict, conflicts, lint

__all__ = ["Conflict", "GoldenDevice", "conflicts", "lint"]
