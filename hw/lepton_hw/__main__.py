"""Write the Verilog of a preset: python -m lepton_hw --preset base -o lepton_npu.v"""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys
import tempfile
from pathlib import Path

from .config import PRESETS, ConfigError, NPUConfig
from .verilog import generate


def _configuration(preset: str, changes: list[str]) -> NPUConfig:
    values: dict[str, object] = {}
    kinds = {f.name: f.type for f in dataclasses.fields(NPUConfig)}
    for change in changes:
        name, _, text = change.partition("=")
        if name not in kinds:
            raise ConfigError(f"no field {name!r}; the fields are {', '.join(kinds)}")
        try:
            values[name] = {"true": True, "false": False}[text] if kinds[name] == "bool" else int(text, 0)
        except (KeyError, ValueError):
            wanted = "true or false" if kinds[name] == "bool" else "a number"
            raise ConfigError(f"{name} must be {wanted}, not {text!r}") from None
    return dataclasses.replace(PRESETS[preset], **values)  # type: ignore[arg-type]


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m lepton_hw", description="Write the Verilog of a Lepton NPU."
    )
    parser.add_argument("--preset", choices=PRESETS, default="base", help="configuration (default: base)")
    parser.add_argument(
        "--set", action="append", default=[], metavar="FIELD=VALUE", dest="changes",
        help="change a field of the preset, e.g. requantize_lanes=4; may be repeated",
    )  # fmt: skip
    parser.add_argument("-o", "--output", type=Path, help="file to write (default: standard output)")
    options = parser.parse_args(arguments)
    try:
        config = _configuration(options.preset, options.changes)
        text = generate(config)
    except (ConfigError, RuntimeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if options.output is None:
        sys.stdout.write(text)
        return 0
    try:
        # written beside the target and moved over it: no reader ever sees half a file
        handle, temporary = tempfile.mkstemp(dir=options.output.parent, suffix=".tmp")
        with os.fdopen(handle, "w") as file:
            file.write(text)
        os.chmod(temporary, 0o644)
        os.replace(temporary, options.output)
    except OSError as error:
        print(f"error: cannot write {options.output}: {error.strerror}", file=sys.stderr)
        return 1
    print(f"{options.output}: {config}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
