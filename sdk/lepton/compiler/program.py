"""A compiled program: its bytes, where its tensors lie, and how to run it on a device."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lepton_hw.config import NPUConfig
from lepton_hw.isa import COMMAND_BYTES, Command, encode
from lepton_sim.device import Device, RunResult

__all__ = ["ExternalTensor", "LayerInfo", "Program", "ProgramError", "ProgramResult"]


class ProgramError(RuntimeError):
    """A program that does not fit the device or its inputs, or that stopped with an error."""


@dataclass(frozen=True)
class ExternalTensor:
    """A tensor in external memory: NHWC, `channels` bytes a pixel, at `address`."""

    name: str
    address: int
    shape: tuple[int, int, int]


@dataclass(frozen=True)
class LayerInfo:
    """A layer of the program.

    Attributes:
        name, kind: its last operator's name, its anchor's class name.
        macs: multiply-accumulates of its operators.
        first_command, last_command: indices into the program; loads made early lie before.
    """

    name: str
    kind: str
    macs: int
    first_command: int
    last_command: int


@dataclass(frozen=True)
class ProgramResult:
    """Outputs by name (int8 [height, width, channels]) and what the device says of the run."""

    outputs: dict[str, NDArray[np.int8]]
    result: RunResult


@dataclass(frozen=True)
class Program:
    """Commands and constants for one configuration, at fixed addresses from 0.

    Attributes:
        config: the configuration it was compiled for.
        commands: in order; END is the last.
        command_layers: for each command its index into `layers`, -1 for none.
        constants: bytes to write before the first run, by address.
        inputs, outputs: the graph's tensors.
        memory_bytes: external memory that it needs.
        written: first and last byte of what it writes; for the write window.
        layers: what it computes.
    """

    config: NPUConfig
    commands: Sequence[Command]
    command_layers: Sequence[int]
    program_address: int
    constants: tuple[tuple[int, bytes], ...]
    inputs: Mapping[str, ExternalTensor]
    outputs: Mapping[str, ExternalTensor]
    memory_bytes: int
    written: tuple[int, int]
    layers: Sequence[LayerInfo]

    def load(self, device: Device) -> None:
        """Write commands and constants into the device's memory.

        Raises:
            ProgramError: the device has another configuration or too little memory.
        """
        if device.config != self.config:
            different = [
                f"{name} {getattr(self.config, name)} against {getattr(device.config, name)}"
                for name in self.config.__dataclass_fields__
                if getattr(self.config, name) != getattr(device.config, name)
            ]
            raise ProgramError(
                f"the program was compiled for another configuration (program against device): "
                f"{', '.join(different)}"
            )
        if device.memory_bytes < self.memory_bytes:
            raise ProgramError(
                f"the program needs {self.memory_bytes} bytes of external memory, "
                f"the device has {device.memory_bytes}"
            )
        for address, content in self.constants:
            device.write(address, np.frombuffer(content, np.uint8))
        device.write(self.program_address, np.frombuffer(encode(self.commands), np.uint8))

    def run(
        self,
        device: Device,
        inputs: Mapping[str, NDArray[np.int8]],
        *,
        load: bool = True,
        max_cycles: int = 1_000_000_000,
    ) -> ProgramResult:
        """Run once.

        Args:
            device: where.
            inputs: int8 [height, width, channels] by name.
            load: write commands and constants first; False where `load` was called before.

        Raises:
            ProgramError: an input missing or of another shape or dtype; the device stopped with an error.
        """
        if load:
            self.load(device)
        if set(inputs) != set(self.inputs):
            raise ProgramError(f"inputs must be {sorted(self.inputs)}, not {sorted(inputs)}")
        for name, tensor in self.inputs.items():
            value = np.asarray(inputs[name])
            if value.dtype != np.int8 or value.shape != tensor.shape:
                raise ProgramError(
                    f"input {name!r} must be int8 of shape {tensor.shape}, not {value.dtype} {value.shape}"
                )
            device.write(tensor.address, np.ascontiguousarray(value).view(np.uint8).reshape(-1))
        result = device.run(
            self.program_address,
            len(self.commands) * COMMAND_BYTES,
            read_window=(0, self.memory_bytes - 1),
            write_window=self.written,
            max_cycles=max_cycles,
        )
        if result.error is not None:
            index = result.error.command
            layer = self.command_layers[index] if index < len(self.command_layers) else -1
            where = f" in layer {self.layers[layer].name}" if layer >= 0 else ""
            raise ProgramError(f"{result.error}{where}")
        outputs = {}
        for name, tensor in self.outputs.items():
            raw = np.asarray(device.read(tensor.address, int(np.prod(tensor.shape))))
            outputs[name] = raw.view(np.int8).reshape(tensor.shape).copy()
        return ProgramResult(outputs, result)
