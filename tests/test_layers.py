"""Imports point downward: every module has a layer, and import-linter finds what is planted."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from checkout import copy_of_package

ROOT = Path(__file__).resolve().parent.parent
#: Packages whose modules have layers of their own.
SPLIT = {"dsgan_datasets.checkpoints", "dsgan_datasets.fitting"}


def modules() -> list[str]:
    """Modules and packages right below the package, and right below those that are split."""
    found = []
    for package in ("dsgan_datasets", *SPLIT):
        folder = ROOT / package.replace(".", "/")
        names = [p.stem for p in folder.glob("*.py") if p.stem != "__init__"]
        names += [p.name for p in folder.iterdir() if (p / "__init__.py").is_file()]
        found += [f"{package}.{name}" for name in names]
    found += ["dsgan_datasets.adapters", "dsgan_datasets.tools"]
    return sorted(set(found) - SPLIT)


def test_every_module_has_one_layer() -> None:
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    (layers,) = [contract["layers"] for contract in contracts if contract["id"] == "layers"]
    layered = [name for line in layers for name in re.split(r"\s*\|\s*", line)]
    required = {name for name in layered if not name.startswith("(")}
    assert len(layered) == len({name.strip("()") for name in layered}), "a module is in two layers"
    assert set(modules()) <= {name.strip("()") for name in layered}, "a module without a layer: see pyproject.toml"
    assert required <= set(modules()), "a layer without a module"


#: What is planted: file, line, and what lint-imports must print.
PLANTED = {
    "upward": (
        "dsgan_datasets/uncertainty.py",
        "from dsgan_datasets import labeled_generator",
        "dsgan_datasets.uncertainty -> dsgan_datasets.labeled_generator",
    ),
    "in a folder at the top": (
        "tools/stats.py",
        "import dsgan_datasets.adapters.mmseg.flip",
        "dsgan_datasets.tools.stats -> dsgan_datasets.adapters.mmseg.flip",
    ),
    "a circle": (
        "dsgan_datasets/export/layouts.py",
        "import dsgan_datasets.export.writing",
        "No cycles are allowed in dsgan_datasets.export",
    ),
    "the front door": (
        "dsgan_datasets/checks.py",
        "from dsgan_datasets import __version__",
        "dsgan_datasets.checks -> dsgan_datasets (",
    ),
}


def lint_imports(folder: Path) -> str:
    command = [sys.executable, "-c", "from importlinter.cli import lint_imports_command as c; c()", "--no-cache"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode in (0, 1) and "Analyzed" in done.stdout, done.stdout + done.stderr
    return f"exit {done.returncode}\n" + re.sub(r"\s+", " ", done.stdout)


@pytest.mark.extended
def test_what_is_planted_breaks_a_contract(tmp_path: Path) -> None:
    copy_of_package(tmp_path)
    before = lint_imports(tmp_path)
    for file, line, _ in PLANTED.values():
        with (tmp_path / file).open("a") as source:
            source.write(f"\n\ndef planted() -> None:\n    {line}\n")
    after = lint_imports(tmp_path)
    for what, (_, _, expected) in PLANTED.items():
        assert expected not in before and expected in after, what
    assert after.startswith("exit 1") and before.startswith("exit 0"), before
