"""Killed exports and checkpoints, with few kills; benchmarks/kill_exports.py has done many."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.parametrize(
    ("kills", "subjects"),
    [
        pytest.param(6, ["export yolo", "replace"], marks=pytest.mark.slow),
        pytest.param(40, [], marks=pytest.mark.extended),
    ],
)
def test_nothing_half_written_has_its_final_name(kills: int, subjects: list[str]) -> None:
    chosen = [word for subject in subjects for word in ("--subject", subject)]
    command = [sys.executable, "benchmarks/kill_exports.py", "--kills", str(kills), "--seed", "5", *chosen]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{kills}  in all" in done.stdout
