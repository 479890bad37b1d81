"""Imports are cheap, public names are documented, the package installs whole, in every way, and mypy sees all of it."""

from __future__ import annotations

import ast
import dataclasses
import doctest
import importlib
import inspect
import itertools
import os
import re
import runpy
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import pytest
import torch
from checkout import copy_of_package, copy_to, source_files

import dsgan_datasets
from dsgan_datasets import LabeledGenerator
from dsgan_datasets._deprecation import warn_renamed

ROOT = Path(__file__).resolve().parent.parent
FRAMEWORKS = ("detectron2", "mmseg", "mmengine", "mmcv", "webdataset", "ray", "huggingface_hub")


def python(code: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", code]
    env = {**os.environ, **environment}
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=300, check=False, env=env)


LOADED = f"import sys; {{}}; print([m for m in {FRAMEWORKS} if m in sys.modules])"


@pytest.mark.slow
@pytest.mark.parametrize("module", ["dsgan_datasets", "dsgan_datasets.tools.cli", "dsgan_datasets.shards"])
def test_import_loads_no_framework(tmp_path: Path, module: str) -> None:
    done = python(LOADED.format(f"import {module}"), tmp_path)
    assert done.stdout.strip() == "[]", done.stderr


@pytest.mark.slow
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


@pytest.mark.slow
@pytest.mark.parametrize("folder", [ROOT, Path("/")])
def test_adapters_and_tools_are_ours_from_anywhere(folder: Path) -> None:
    code = "import dsgan_datasets.adapters as a, dsgan_datasets.tools.cli as t; print(a.__name__, t.__name__)"
    done = python(code, folder)
    assert done.stdout.split() == ["dsgan_datasets.adapters", "dsgan_datasets.tools.cli"], done.stderr


STABILITY = (ROOT / "docs" / "stability.md").read_text()
PUBLIC_MODULES = re.findall(r"^- `(dsgan_datasets[\w.]*)`$", STABILITY, re.MULTILINE)


def public_names(module: ModuleType) -> list[str]:
    """`__all__`, or what the module defines under names without underscore."""
    if hasattr(module, "__all__"):
        return list(module.__all__)
    defined = inspect.getmembers(module, lambda value: getattr(value, "__module__", None) == module.__name__)
    return [name for name, _ in defined if not name.startswith("_")]


def undocumented(module: ModuleType) -> list[str]:
    """Public classes and functions without a docstring; one that `dataclass` or `NamedTuple` made does not count."""
    lacking = []
    for name in public_names(module):
        value = getattr(module, name)
        if inspect.isclass(value) or inspect.isfunction(value):
            text = value.__doc__ or ""
            generated = text.startswith((f"{value.__name__}(", f"{value.__name__}: "))
            if not text or generated:
                lacking.append(name)
    return lacking


def without_example(module: ModuleType) -> list[str]:
    """Public classes and functions whose docstring shows nobody how they are used."""
    values = {name: getattr(module, name) for name in public_names(module)}
    return [n for n, v in values.items() if (inspect.isclass(v) or callable(v)) and ">>>" not in (v.__doc__ or "")]


@pytest.mark.parametrize("name", PUBLIC_MODULES)
def test_public_modules_exist_and_document_their_names(name: str) -> None:
    if name.startswith("dsgan_datasets.adapters."):
        imported = {"mmseg": "mmengine", "huggingface": "datasets"}
        pytest.importorskip(imported.get(framework := name.rpartition(".")[2], framework))
    module = importlib.import_module(name)
    names = public_names(module)
    assert module.__doc__ and names
    assert sorted(set(names)) == sorted(names) and all(hasattr(module, public) for public in names)
    if hasattr(module, "__path__"):
        assert hasattr(module, "__all__"), "a package says what is public"
        # As ruff sorts them: constants, classes, functions.
        assert module.__all__ == sorted(module.__all__, key=lambda n: (not n.isupper(), not n[0].isupper(), n))
    assert undocumented(module) == []
    assert without_example(module) == []


def test_the_page_lists_the_modules() -> None:
    section = STABILITY.partition("## Public modules")[2].partition("## ")[0]
    assert "dsgan_datasets" in PUBLIC_MODULES and sorted(set(PUBLIC_MODULES)) == PUBLIC_MODULES
    assert section.count("\n- ") == len(PUBLIC_MODULES)


def test_a_generated_docstring_is_not_one() -> None:
    """That check can fail: dataclasses and named tuples without docstring get one made."""

    @dataclasses.dataclass
    class Bare:
        x: int

    class Pair(NamedTuple):
        x: int

    class Good:
        """Documented."""

    module = ModuleType("planted")
    vars(module).update(Bare=Bare, Pair=Pair, Good=Good, __all__=["Bare", "Good", "Pair"])
    assert Bare.__doc__ and Pair.__doc__
    assert undocumented(module) == ["Bare", "Pair"]
    assert without_example(module) == ["Bare", "Good", "Pair"]


def test_the_version_is_written_once() -> None:
    version = dsgan_datasets.__version__
    tracked = [ROOT / name for name in source_files("*.py", "*.toml")]
    found = [p.relative_to(ROOT) for p in tracked if f'"{version}"' in p.read_text(errors="replace")]
    assert found == [Path("dsgan_datasets/_version.py")]


def test_old_names_of_ours_are_errors_here() -> None:
    with pytest.raises(DeprecationWarning, match=r"old is deprecated .* 0\.4: use new"):
        warn_renamed("old", "new")


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Source archive and wheel, the wheel built from the archive, from a copy of what git would carry."""
    copy = copy_to(tmp_path_factory.mktemp("copy"), but=["/tests", "/benchmarks/results"])
    out = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), str(copy)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return out


def of_the_package() -> dict[str, str]:
    """Files that are installed: where they lie in the repository -> where in the wheel."""
    top = {name: f"dsgan_datasets/{name}" for name in source_files("/adapters", "/tools")}
    return top | {name: name for name in source_files("/dsgan_datasets")}


@pytest.mark.extended
def test_wheel_and_archive_hold_everything(built: Path) -> None:
    (wheel,), (archive,) = built.glob("*.whl"), built.glob("*.tar.gz")
    with zipfile.ZipFile(wheel) as z:
        in_wheel = {name for name in z.namelist() if ".dist-info/" not in name}
    with tarfile.open(archive) as t:
        in_archive = {member.name.partition("/")[2] for member in t.getmembers() if member.isfile()}
    assert in_wheel == set(of_the_package().values())  # in particular no bare adapters or tools
    assert {name for name in in_archive if name.startswith(("adapters/", "dsgan_datasets/", "tools/"))} == set(
        of_the_package()
    )
    assert wheel.name.startswith(f"dsgan_datasets-{dsgan_datasets.__version__}-")


def git(*words: str) -> list[str]:
    """What git lists of this checkout."""
    if shutil.which("git") is None:
        pytest.skip("git is not installed")
    if not (ROOT / ".git").exists():
        pytest.skip("an unpacked archive, not a repository of git")
    done = subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True)
    return done.stdout.splitlines()


def test_nothing_ignored_is_tracked() -> None:
    """A tracked link named .venv, for one, replaces the real folder in every checkout that it is merged into."""
    assert git("ls-files", "--cached", "--ignored", "--exclude-standard") == []


def test_the_files_of_this_checkout_are_what_git_lists() -> None:
    """Other tests find them without git."""
    listed = git("ls-files", "--cached", "--others", "--exclude-standard")
    assert source_files() == sorted({name for name in listed if os.path.lexists(ROOT / name)})


def test_every_package_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The quick form of the test above: what setup.py lists is what has an __init__.py."""
    import setuptools

    given: dict[str, Any] = {}
    monkeypatch.setattr(setuptools, "setup", given.update)
    runpy.run_path(str(ROOT / "setup.py"))
    folders = {Path(name).parent for name in of_the_package().values() if name.endswith("/__init__.py")}
    assert given["packages"] == sorted(str(folder).replace("/", ".") for folder in folders)
    assert given["version"] == dsgan_datasets.__version__


@pytest.mark.extended
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


def test_nothing_is_a_link() -> None:
    """A ZIP archive of the repository has text files in place of links, and would not install."""
    assert [name for name in source_files() if (ROOT / name).is_symlink()] == []


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of a new environment that sees the dependencies of this one, but not its dsgan_datasets."""
    folder = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True, timeout=120)
    (site,) = folder.glob("lib/python*/site-packages")
    # Folders that are added by a .pth file do not have theirs read: our own editable installation stays out.
    (site / "dependencies.pth").write_text(sysconfig.get_paths()["purelib"])
    return folder / "bin" / "python"


@pytest.mark.extended
@pytest.mark.parametrize("way", ["zip", "editable", "git", "sdist"])
def test_every_way_to_install(way: str, built: Path, fresh: Path, tmp_path: Path) -> None:
    if way == "git" and shutil.which("git") is None:
        pytest.skip("git is not installed")
    copy = copy_to(tmp_path / "project", but=["/tests", "/benchmarks/results"])
    if way == "git":
        identity = ["-c", "user.name=a", "-c", "user.email=a@example.org", "-c", "core.autocrlf=false"]
        for command in (["init", "--quiet"], ["add", "--all"], [*identity, "commit", "--quiet", "-m", "all"]):
            subprocess.run(["git", *command], cwd=copy, check=True, timeout=60)
    sources = {
        "zip": [shutil.make_archive(str(tmp_path / "main"), "zip", tmp_path, "project")],
        "editable": ["--editable", str(copy)],
        "git": [f"git+{copy.as_uri()}"],
        "sdist": [str(archive) for archive in built.glob("*.tar.gz")],
    }
    install = ["-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--force-reinstall"]
    done = subprocess.run(
        [str(fresh), *install, *sources[way]], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    code = (
        "import dsgan_datasets.adapters as a, dsgan_datasets.tools.cli as c, dsgan_datasets as d;"
        "print(a.__file__, c.__file__, d.__file__); c.main(['info', 'demo-faces'])"
    )
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [str(fresh), "-c", code], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=120, check=False
    )
    assert "CC0-1.0" in done.stdout, done.stderr
    home = copy if way == "editable" else fresh.parent.parent
    assert all(Path(file).is_relative_to(home) for file in done.stdout.splitlines()[0].split())


def mypy(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "mypy", *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=600, check=False)


@pytest.mark.extended
@pytest.mark.parametrize("folder", ["adapters", "tools"])
def test_mypy_sees_the_folders_at_the_top(tmp_path: Path, folder: str) -> None:
    """A wrong type planted in each, across the package boundary, must be found."""
    copy = copy_of_package(tmp_path / "project")
    (copy / folder / "planted.py").write_text(
        '"""Planted."""\n\nfrom dsgan_datasets.latents import check_seed\n\nwrong: str = check_seed(0)\n'
    )
    done = mypy("-m", f"dsgan_datasets.{folder}.planted", cwd=copy)
    assert done.returncode == 1 and "Incompatible types in assignment" in done.stdout, done.stdout + done.stderr


def module_name(installed: str) -> str:
    return installed.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def written_examples() -> set[str]:
    """Dotted names of all docstrings of the package that show an example, found without importing anything."""

    def walk(node: ast.AST, name: str) -> Iterator[str]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.ClassDef | ast.FunctionDef):
                if ">>>" in (ast.get_docstring(child) or ""):
                    yield f"{name}.{child.name}"
                if isinstance(child, ast.ClassDef):
                    yield from walk(child, f"{name}.{child.name}")

    found: set[str] = set()
    for file, installed in of_the_package().items():
        if file.endswith(".py"):
            module = module_name(installed)
            tree = ast.parse((ROOT / file).read_text())
            found |= set(walk(tree, module)) | ({module} if ">>>" in (ast.get_docstring(tree) or "") else set())
    return found


@pytest.mark.slow
def test_docstring_examples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clean: None) -> None:
    """The examples in docstrings run, as a reader would type them: all of them."""
    # Half of them load the same checkpoint.
    usual, load = ("demo-faces", {"device": "cpu"}), LabeledGenerator.from_pretrained
    shared = load(usual[0], **usual[1])
    monkeypatch.setattr(
        LabeledGenerator,
        "from_pretrained",
        lambda name, **options: shared if (name, options) == usual else load(name, **options),
    )
    public = {name: getattr(dsgan_datasets, name) for name in dsgan_datasets.__all__}
    names = {**public, "torch": torch, "itertools": itertools}
    runner = doctest.DocTestRunner()
    ran = set()
    for name in sorted(module_name(file) for file in of_the_package().values() if file.endswith(".py")):
        for example in doctest.DocTestFinder().find(importlib.import_module(name)):
            if example.examples:
                ran.add(example.name)
            example.globs.update(names, tmp=tmp_path / example.name)  # each has a folder of its own
            runner.run(example)
    assert ran == written_examples()
    assert runner.summarize(verbose=False).failed == 0
