"""The oldest versions that `setup.py` allows make the same samples, bit for bit."""

from __future__ import annotations

import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from checkout import ROOT
from packaging.requirements import Requirement

#: Of the packages and of what pip unpacks on the way.
NEEDED_BYTES = 10 * 10**9
SAMPLES = """
import hashlib, json, sys
import torch
from dsgan_datasets import LabeledGenerator
torch.set_num_threads(1)
labeled = LabeledGenerator.from_pretrained("demo-faces", device="cpu")
batch = labeled.generate(range(8), seed=1, extras=("uncertainty",))
made = {name: getattr(batch, name) for name in ("index", "image", "mask", "uncertainty", "uncertainty_score")}
print(json.dumps({name: hashlib.sha256(field.numpy().tobytes()).hexdigest() for name, field in made.items()}))
"""


def floors() -> dict[str, str]:
    """Name -> oldest version, of what the package cannot do without."""
    found = {}
    for requirement in map(Requirement, importlib.metadata.requires("dsgan_datasets") or ()):
        if requirement.marker is None:  # those of extras have one
            (floor,) = requirement.specifier
            assert floor.operator == ">=", requirement
            found[requirement.name] = floor.version
    return found


@pytest.fixture
def oldest(tmp_path: Path) -> Iterator[Path]:
    """The interpreter of an environment with nothing but those, and what they need."""
    folder = tmp_path / "environment"
    if shutil.disk_usage(tmp_path).free < NEEDED_BYTES:
        pytest.skip(f"needs {NEEDED_BYTES / 1e9:.0f} GB of disk in {tmp_path.parent}")
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True, timeout=120)
    python = folder / "bin" / "python"
    install = [str(python), "-m", "pip", "install", "--quiet", "--no-input", "--only-binary", ":all:"]
    pins = [f"{name}=={version}" for name, version in floors().items()]
    try:
        done = subprocess.run([*install, *pins], capture_output=True, text=True, timeout=1200, check=False)
        if "ConnectionError" in done.stderr or "Connection to" in done.stderr:
            pytest.skip("no package index can be reached")
        assert done.returncode == 0, done.stderr
        yield python
    finally:
        shutil.rmtree(folder)  # 5 GB


@pytest.mark.extended
@pytest.mark.timeout(1500)
@pytest.mark.skipif(sys.version_info >= (3, 13), reason="NumPy 1.26, the oldest, has no wheels for Python 3.13")
def test_the_oldest_versions_make_the_same_samples(oldest: Path, tmp_path: Path) -> None:
    env = {**os.environ, "PYTHONPATH": str(ROOT)}

    def run(python: str, *words: str) -> str:
        done = subprocess.run([python, *words], env=env, capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    versions = "import importlib.metadata as m, sys; print(*(m.version(name) for name in sys.argv[1:]))"
    installed = run(str(oldest), "-c", versions, *floors()).split()
    assert all(found.startswith(floor) for found, floor in zip(installed, floors().values(), strict=True)), installed
    assert json.loads(run(str(oldest), "-c", SAMPLES)) == json.loads(run(sys.executable, "-c", SAMPLES))
    cli, shards = "dsgan_datasets.tools.cli", str(tmp_path / "shards")
    run(str(oldest), "-m", cli, "shards", "write", "demo-faces", shards, "--num-samples", "8", "--device", "cpu")
    assert "as the manifest says" in run(sys.executable, "-m", cli, "shards", "verify", shards)
