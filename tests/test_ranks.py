"""One property of all trainers that run several ranks: one order, for any number of them, and across a resume."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from itertools import chain
from pathlib import Path

import pytest
from conftest import small_labeled
from ranks import END, MODULES, TRAINERS, B, Steps

#: (ranks before, ranks after, global batches at which the first ones stop): in either epoch, and between them.
CASES = [(1, 2, 3), (2, 3, 5), (3, 1, 4)]
#: Where a trainer saves at the end of an epoch only.
BETWEEN = [(1, 2, 4), (2, 3, 4), (3, 1, 4)]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("checkpoint") / "small"
    small_labeled().save_pretrained(path)
    return str(path)


@pytest.mark.extended
@pytest.mark.parametrize("trainer", TRAINERS)
def test_ranks_see_what_one_process_sees(trainer: str, tmp_path: Path, checkpoint: str) -> None:
    """Two epochs with a stop and a resume: in order of global batches, nothing is lost, doubled or repeated."""
    for module in MODULES.get(trainer, [])[:1]:
        pytest.importorskip(module.partition(".")[0])
    cases = BETWEEN if trainer == "ultralytics" else CASES
    runs: list[tuple[str, int, int, int]] = [("whole", 1, 0, END)]
    for before, after, stopped in cases:
        runs += [(f"{before}-{after}", before, 0, stopped), (f"{before}-{after}", after, stopped, END)]
    whole, *parts = seen_by(trainer, runs, tmp_path, checkpoint)
    assert len(whole) == END
    order = list(chain(*whole))
    if trainer == "ultralytics":  # shuffles
        assert sorted(order) == [-3, -3, -2, -2, -1, -1, *range(END * B - 6)]
    elif trainer != "mixture":  # whose order is tested beside it
        assert order == list(range(END * B))
    for case, first, rest in zip(cases, parts[::2], parts[1::2], strict=True):
        assert first + rest == whole, case


def seen_by(trainer: str, runs: list[tuple[str, int, int, int]], folder: Path, checkpoint: str) -> list[Steps]:
    """The indices of each global batch of each run; runs of one name find what the one before saved."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
    environment |= {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-m", "ranks", trainer, str(folder), checkpoint, json.dumps(runs)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=400, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    seen: list[Steps] = json.loads((folder / "seen.json").read_text())
    return seen
