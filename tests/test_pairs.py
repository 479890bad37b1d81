"""Benchmarks beside another checkout: the ratio has the right direction, and what cannot be compared is refused."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT / "benchmarks"))

import pairs  # noqa: E402
from measuring import BenchmarkError  # noqa: E402

#: Takes the seconds and results that the library of the checkout names.
SCRIPT = """
import argparse, sys
sys.path.append({benchmarks!r})
import pairs, torch
import dsgan_datasets as library
parser = argparse.ArgumentParser()
pairs.add_options(parser)
measurement = pairs.Measurement({{"case": library.SECONDS}}, pairs.moments([torch.tensor(library.RESULT)]))
sys.exit(pairs.run_pairs(parser.parse_args(), sys.argv[1:], lambda: measurement))
"""


def checkout(folder: Path, seconds: float, result: int) -> Path:
    (folder / "dsgan_datasets").mkdir(parents=True)
    (folder / "dsgan_datasets" / "__init__.py").write_text(f"SECONDS, RESULT = {seconds}, {result}\n")
    return folder


@pytest.fixture
def ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    script = tmp_path / "benchmark.py"
    script.write_text(SCRIPT.format(benchmarks=str(ROOT / "benchmarks")))
    monkeypatch.setattr(sys, "argv", [str(script)])
    monkeypatch.setattr(pairs, "HERE", checkout(tmp_path / "ours", 2.0, 7))
    return tmp_path


@pytest.mark.extended
def test_above_one_this_checkout_is_faster(ours: Path) -> None:
    assert pairs.compare([], checkout(ours / "slower", 3.0, 7), pairs=2) == {"case": [1.5, 1.5]}


@pytest.mark.slow
def test_what_cannot_be_compared_is_refused(ours: Path) -> None:
    with pytest.raises(BenchmarkError, match="gives other results"):
        pairs.compare([], checkout(ours / "other", 2.0, 8), pairs=1)
    (ours / "empty").mkdir()
    with pytest.raises(BenchmarkError, match=r"empty was to be measured, but .* was imported|ended with 1"):
        pairs.compare([], ours / "empty", pairs=1)
