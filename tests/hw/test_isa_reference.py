"""docs/isa.md is what isa.py says."""

from __future__ import annotations

from pathlib import Path

import pytest

from lepton_hw.isa import COMMANDS, CSR, ErrorCode
from lepton_hw.isa_reference import main, reference

PAGE = Path(__file__).parents[2] / "docs" / "isa.md"


def test_the_page_is_fresh() -> None:
    assert PAGE.read_text(encoding="utf-8") == reference(), (
        "docs/isa.md is stale: python -m lepton_hw.isa_reference -o docs/isa.md"
    )


def test_the_page_holds_everything() -> None:
    """Each command, field, register and error code, and a line for each rule."""
    text = reference()
    for spec in COMMANDS.values():
        section = text.split(f"### {spec.opcode.name}\n")[1].split("\n##")[0]
        for f in spec.fields:
            bits = f"{f.lsb + f.width - 1}:{f.lsb}" if f.width > 1 else f"{f.lsb}"
            assert f"| {f.word} | {bits} | `{f.name}` |" in section
        numbered = [line for line in section.splitlines() if line.split(".")[0].isdigit()]
        assert len(numbered) == len(spec.rules)
    for register in CSR:
        assert f"| {register.value:#05x} | {register.name} |" in text
    for code in ErrorCode:
        assert f"| {code.value} | {code.name} |" in text


def test_it_writes_files_and_standard_output(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["-o", str(tmp_path / "isa.md")])
    assert (tmp_path / "isa.md").read_text(encoding="utf-8") == reference()
    main([])
    assert capsys.readouterr().out == reference()
