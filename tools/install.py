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
from collections.abc import Sequence
from dataclasses import dataclass
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
    found = {name: parts(name) for name in dict.fromkeys(args.frameworks)}
    todo = []
    for name, each in found.items():
        if any(part.original for part in each):
            _check_originals(name, each)
            print(f"{name}: in place, the original: {', '.join(map(str, each))}")
        elif all(part.is_pinned for part in each):
            print(f"{name}: in place")
        else:
            todo.append(name)
    for name in todo:
        _pip(["install", *_requirements(name)], args.dry_run)
        with tempfile.TemporaryDirectory() as folder:
            _install(name, Path(folder), args.dry_run)
        if not args.dry_run:
            if missing := [part.pin for part in parts(name) if not part.is_pinned]:
                raise RuntimeError(f"{name}: pip reported success, but {', '.join(missing)} is not installed")
            print(f"{name}: installed")
    if todo and not args.dry_run:
        print("`pip check` may complain about them; docs/install.md says why, and that it does no harm")


@dataclass(frozen=True)
class Part:
    """A distribution that a framework is made of, and what of it is installed.

    Attributes:
        package, pinned: the one that `dsgan install` installs, and its version.
        version: of that package, as installed; None if it is not.
        original: the original that holds the same modules, with its version; empty if that is not installed.

    Example:
        >>> print(Part("mmcv-lite", "2.2.0", None, "mmcv 2.1.0"))
        mmcv 2.1.0
    """

    package: str
    pinned: str
    version: str | None
    original: str

    @property
    def pin(self) -> str:
        """As pip writes it."""
        return f"{self.package}=={self.pinned}"

    @property
    def is_pinned(self) -> bool:
        """Whether the package is installed in exactly the version that the tests run with."""
        return self.version == self.pinned

    @property
    def found(self) -> list[str]:
        """What is installed, with its version: nothing, the package, the original, or both."""
        return [self.original] * bool(self.original) + [f"{self.package} {self.version}"] * (self.version is not None)

    def __str__(self) -> str:
        return " and ".join(self.found) or f"no {_ORIGINALS.get(self.package, self.package)}"


def parts(name: str) -> list[Part]:
    """What a framework of `FRAMEWORKS` is made of.

    Example:
        >>> [part.package for part in parts("mmseg")]
        ['onedl-mmengine', 'onedl-mmsegmentation', 'mmcv-lite']
    """
    pins = re.findall(r"^([\w.-]+)==([\w.]+)", _pins(name).read_text(encoding="utf-8"), re.MULTILINE)
    return [Part(package, pinned, _version(package), _original(package)) for package, pinned in pins]


def _original(package: str) -> str:
    original = _ORIGINALS.get(package)
    version = _version(original) if original else None
    return f"{original} {version}" if version else ""


def _pins(name: str) -> Path:
    """The requirements file of a framework, with hashes."""
    return Path(str(resources.files("dsgan_datasets.tools") / "frameworks" / f"{name}.txt"))


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _check_originals(name: str, found: Sequence[Part]) -> None:
    """An original is never replaced: it must be whole, and alone."""
    if twice := [part for part in found if len(part.found) > 1]:
        raise ValueError(
            f"{name}: {', '.join(map(str, twice))} are both installed, and hold the same modules. Run pip uninstall "
            f"{' '.join(word.split()[0] for part in twice for word in part.found)}, then install one of them"
        )
    if not all(part.original for part in found):
        originals = [part.original.split()[0] for part in found if part.original]
        raise ValueError(
            f"{name}: found {', '.join(map(str, found))}, which are not all originals. Install the others, as "
            f"docs/{name}.md says; or run pip uninstall {' '.join(originals)}, then this command again"
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
