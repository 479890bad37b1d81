"""Files of this checkout, and copies of it."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def git_files(*patterns: str) -> list[str]:
    """Files that git tracks, or would: new ones that it does not ignore."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "--", *patterns]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=True).stdout
    return sorted({name for name in listed.splitlines() if (ROOT / name).exists()})


def copy_to(folder: Path, *patterns: str) -> Path:
    """What git would carry, of these patterns."""
    for name in git_files(*patterns):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / name, follow_symlinks=False)
    return folder


def copy_of_package(folder: Path) -> Path:
    """The sources with their settings, as static tools look at them after `make links`."""
    copy_to(folder, "dsgan_datasets", "adapters", "tools", "pyproject.toml", ":!dsgan_datasets/pretrained")
    for name in ("adapters", "tools"):
        (folder / "dsgan_datasets" / name).symlink_to(Path("..", name))
    return folder
