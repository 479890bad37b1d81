"""Imports are cheap, the package installs whole, and mypy sees through the symlinks."""

from __future__ import annotations

import doctest
import importlib
import itertools
import os
import pkgutil
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
import torch

import dsgan_datasets

ROOT = Path(__file__).resolve().parent.parent
FRAMEWORKS = ("detectron2", "mmseg", "mmengine", "mmcv", "webdataset", "ray", "huggingface_hub")


def python(code: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", code]
    env = {**os.environ, **environment}
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=300, check=False, env=env)


LOADED = f"import sys; {{}}; print([m for m in {FRAMEWORKS} if m in sys.modules])"


@pytest.mark.parametrize("module", ["dsgan_datasets", "dsgan_datasets.tools.cli", "dsgan_datasets.shards"])
def test_import_loads_no_framework(tmp_path: Path, module: str) -> None:
    done = python(LOADED.format(f"import {module}"), tmp_path)
    assert done.stdout.strip() == "[]", done.stderr


def test_that_check_can_fail(tmp_path: Path) -> None:
    done = python(LOADED.format("import dsgan_datasets, webdataset"), tmp_path)
    assert done.stdout.strip() == "['webdataset']", done.stderr


@pytest.mark.frameworks
def test_both_frameworks_are_installed_here() -> None:
    """Otherwise the two tests above would prove nothing of them, and later tests could not train."""
    done = python(
        LOADED.format("import mmseg, detectron2.engine, mmseg.utils; mmseg.utils.register_all_modules()"), ROOT
    )
    assert done.returncode == 0 and "'detectron2', 'mmseg', 'mmengine', 'mmcv'" in done.stdout, done.stderr


@pytest.mark.parametrize("folder", [ROOT, Path("/")])
def test_adapters_and_tools_are_ours_from_anywhere(folder: Path) -> None:
    code = "import dsgan_datasets.adapters as a, dsgan_datasets.tools.cli as t; print(a.__name__, t.__name__)"
    done = python(code, folder)
    assert done.stdout.split() == ["dsgan_datasets.adapters", "dsgan_datasets.tools.cli"], done.stderr


def test_public_names_exist_and_have_docstrings() -> None:
    assert dsgan_datasets.__all__ == sorted(dsgan_datasets.__all__)
    assert all(getattr(dsgan_datasets, name).__doc__ for name in dsgan_datasets.__all__)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Source archive and wheel, the wheel built from the archive, from a copy of what git would carry."""
    copy = tmp_path_factory.mktemp("copy") / "project"
    ignored = shutil.ignore_patterns(".*", "__pycache__", "golden", "demo", "build", "dist", "*.egg-info", "results")
    shutil.copytree(ROOT, copy, symlinks=True, ignore=ignored)
    out = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), str(copy)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return out


def test_wheel_and_archive_hold_everything(built: Path) -> None:
    (wheel,), (archive,) = built.glob("*.whl"), built.glob("*.tar.gz")
    with zipfile.ZipFile(wheel) as z:
        in_wheel = set(z.namelist())
    with tarfile.open(archive) as t:
        in_archive = {name.partition("/")[2] for name in t.getnames()}
    modules = {
        f"dsgan_datasets/{Path(folder, name).relative_to(ROOT / 'dsgan_datasets')}"
        for folder, _, names in os.walk(ROOT / "dsgan_datasets", followlinks=True)
        for name in names
        if name.endswith(".py")
    }
    data = {
        "dsgan_datasets/py.typed",
        *(
            f"dsgan_datasets/pretrained/demo-faces/{name}"
            for name in ("config.json", "generator.safetensors", "interpreter.safetensors", "README.md")
        ),
    }
    assert len(modules) > 25 and modules | data <= in_wheel
    assert modules | data <= in_archive
    roots = {name.partition("/")[0] for name in in_wheel}
    assert roots == {"dsgan_datasets", next(r for r in roots if r.endswith(".dist-info"))}  # no bare adapters or tools


def test_wheel_works_from_a_folder_of_its_own(built: Path, tmp_path: Path) -> None:
    (wheel,) = built.glob("*.whl")
    command = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-deps",
        "--no-index",
        "--target",
        str(tmp_path / "site"),
    ]
    subprocess.run([*command, str(wheel)], check=True, timeout=300, capture_output=True)
    code = (
        "import dsgan_datasets, dsgan_datasets.adapters, dsgan_datasets.tools.cli as c; "
        "print(dsgan_datasets.__file__); c.main(['info', 'demo-faces'])"
    )
    done = python(code, tmp_path, PYTHONPATH=str(tmp_path / "site"))
    assert done.stdout.startswith(str(tmp_path / "site")) and "CC0-1.0" in done.stdout, done.stderr


def mypy(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "mypy", *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=600, check=False)


def test_types() -> None:
    done = mypy(cwd=ROOT)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("folder", ["adapters", "tools"])
def test_mypy_sees_through_the_symlinks(tmp_path: Path, folder: str) -> None:
    """A wrong type planted behind each symlink, across the package boundary, must be found."""
    copy = tmp_path / "project"
    copy.mkdir()
    for name in ("dsgan_datasets", "adapters", "tools", "pyproject.toml"):
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(
                source, copy / name, symlinks=True, ignore=shutil.ignore_patterns("pretrained", "__pycache__")
            )
        else:
            shutil.copy(source, copy / name)
    (copy / folder / "planted.py").write_text(
        '"""Planted."""\n\nfrom dsgan_datasets.latents import check_seed\n\nwrong: str = check_seed(0)\n'
    )
    done = mypy("-m", f"dsgan_datasets.{folder}.planted", cwd=copy)
    assert done.returncode == 1 and "Incompatible types in assignment" in done.stdout, done.stdout + done.stderr


@pytest.mark.parametrize("arguments", [["check", "."], ["format", "--check", "."]])
def test_ruff(arguments: list[str]) -> None:
    command = [sys.executable, "-m", "ruff", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout


def test_docstring_examples(tmp_path: Path) -> None:
    """The examples in docstrings run, as a reader would type them."""
    public = {name: getattr(dsgan_datasets, name) for name in dsgan_datasets.__all__}
    names = {**public, "torch": torch, "itertools": itertools}
    runner = doctest.DocTestRunner()
    for info in pkgutil.walk_packages(dsgan_datasets.__path__, "dsgan_datasets."):
        for example in doctest.DocTestFinder().find(importlib.import_module(info.name)):
            example.globs.update(names, tmp=tmp_path / example.name)  # each has a folder of its own
            runner.run(example)
    failed, attempted = runner.summarize(verbose=False)
    assert attempted > 15 and failed == 0
