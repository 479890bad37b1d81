"""`dsgan install`: the training frameworks, in the versions that the adapters are tested with, into this environment.

None of them can be an ordinary dependency: mmcv-lite asks for mmengine under its other name, the Detectron2 wheel is
tagged for Python 3.10 and asks for numpy<2, and Ultralytics is licensed under the AGPL-3.0. All of them work as
installed here: what they import comes from the extras of this package, they themselves by hash and without their
dependencies.
"""

from __future__ import annotations

import argparse
import re
import shlex
import subprocess
import sys
import tempfile
from importlib import metadata, resources
from pathlib import Path

from dsgan_datasets.tools import options

FRAMEWORKS = ("detectron2", "mmseg", "ultralytics")

#: Pinned distribution -> the original, which holds the same modules.
_ORIGINALS = {
    "sal-detectron2": "detectron2",
    "onedl-mmengine": "mmengine",
    "onedl-mmsegmentation": "mmsegmentation",
    "mmcv-lite": "mmcv",
}
#: Wheels of pure Python that are tagged for one version of it: that version, and the tag.
_TAGGED = {"detectron2": ("3.10", "cp310-none-any")}


def add_parser(verbs: options.Verbs[argparse.ArgumentParser]) -> None:
    """Declare the command."""
    parser = options.add_verb(
        verbs,
        "install",
        "install training frameworks into this Python environment, in the versions that the tests run with",
        "dsgan install detectron2\n  dsgan install mmseg ultralytics --dry-run",
        kept="what pip has finished is installed: run the same command again",
    )
    parser.add_argument(
        "frameworks",
        nargs="+",
        choices=FRAMEWORKS,
        metavar="FRAMEWORK",
        help="detectron2, mmseg (MMSegmentation, maintained fork) or ultralytics (AGPL-3.0)",
    )
    parser.add_argument("--dry-run", action="store_true", help="print the commands of pip, and run none")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Install what is missing."""
    todo = [name for name in dict.fromkeys(args.frameworks) if _missing(name)]
    for name in dict.fromkeys(args.frameworks):
        if name not in todo:
            print(f"{name}: in place")
    for name in todo:
        _check_originals(name)
    for name in todo:
        _pip(["install", *_requirements(name)], args.dry_run)
        with tempfile.TemporaryDirectory() as folder:
            _install(name, Path(folder), args.dry_run)
        if not args.dry_run:
            if missing := _missing(name):
                raise RuntimeError(f"{name}: pip reported success, but {', '.join(missing)} is not installed")
            print(f"{name}: installed")
    if todo and not args.dry_run:
        print("`pip check` may complain about them; docs/install.md says why, and that it does no harm")


def _pins(name: str) -> Path:
    """The requirements file of a framework, with hashes."""
    return Path(str(resources.files("dsgan_datasets.tools") / "frameworks" / f"{name}.txt"))


def _missing(name: str) -> list[str]:
    """Pins that are not installed in exactly that version."""
    pins = re.findall(r"^([\w.-]+)==([\w.]+)", _pins(name).read_text(encoding="utf-8"), re.MULTILINE)
    return [f"{package}=={version}" for package, version in pins if _version(package) != version]


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _check_originals(name: str) -> None:
    found = [_ORIGINALS.get(pin.partition("==")[0], "") for pin in _missing(name)]
    if installed := [f"{package} {_version(package)}" for package in found if package and _version(package)]:
        raise ValueError(
            f"{name}: {', '.join(installed)} is installed, the original, which the adapter is written for as well. To "
            f"replace it, run pip uninstall {' '.join(package.split()[0] for package in installed)} first"
        )


def _requirements(name: str) -> list[str]:
    """What a framework imports: our extra of that name."""
    listed = metadata.requires("dsgan_datasets") or []
    found = [re.fullmatch(rf"(.+?)\s*;\s*extra\s*==\s*['\"]{name}['\"]", line) for line in listed]
    return [match[1] for match in found if match]


def _install(name: str, folder: Path, dry_run: bool) -> None:
    pins = ["--no-deps", "--require-hashes", "-r", str(_pins(name))]
    if name not in _TAGGED:
        _pip(["install", "--no-build-isolation", *pins], dry_run)
        return
    version, tag = _TAGGED[name]
    only = ["--only-binary=:all:", "--python-version", version]
    _pip(["download", *only, "--dest", str(folder), *pins], dry_run)
    for wheel in folder.glob(f"*-{tag}.whl"):
        wheel.rename(wheel.with_name(wheel.name.replace(tag, "py3-none-any")))
    wheels = [str(wheel) for wheel in folder.glob("*.whl")] or [f"{folder}/*-py3-none-any.whl"]
    _pip(["install", "--no-deps", "--no-index", *wheels], dry_run)


def _pip(words: list[str], dry_run: bool) -> None:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input", "--retries", "10", *words]
    if dry_run:
        print(shlex.join(command))
    elif subprocess.run([*command, "--quiet"], check=False).returncode:
        raise RuntimeError(f"pip failed, as it says above; the command was: {shlex.join(command)}")
