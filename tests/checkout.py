"""Files of this checkout, and copies of it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

from pathspec import GitIgnoreSpec

ROOT = Path(__file__).resolve().parent.parent


def source_files(*patterns: str, but: Sequence[str] = ()) -> list[str]:
    """Files that git tracks, or would, among these patterns; all without patterns. They are written as in .gitignore.

    Works without git, and where a downloaded archive was unpacked.
    """
    chosen, left_out = GitIgnoreSpec.from_lines(patterns or ["*"]), GitIgnoreSpec.from_lines(but)
    return sorted(file for file in _not_ignored() if chosen.match_file(file) and not left_out.match_file(file))


def _not_ignored() -> Iterator[str]:
    ignored = GitIgnoreSpec.from_lines(["/.git", *(ROOT / ".gitignore").read_text(encoding="utf-8").splitlines()])
    for folder, below, files in os.walk(ROOT):
        here = Path(folder)
        links = [name for name in below if (here / name).is_symlink()]
        names = ((here / name).relative_to(ROOT).as_posix() for name in (*files, *links))
        yield from (name for name in names if not ignored.match_file(name))
        below[:] = [name for name in below if not ignored.match_file(f"{(here / name).relative_to(ROOT).as_posix()}/")]


def copy_to(folder: Path, *patterns: str, but: Sequence[str] = ()) -> Path:
    """What git would carry, of these patterns."""
    for name in source_files(*patterns, but=but):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / name, follow_symlinks=False)
    return folder


def copy_of_package(folder: Path) -> Path:
    """The sources with their settings, as static tools look at them after `make links`."""
    wanted = ("/dsgan_datasets", "/adapters", "/tools", "/pyproject.toml")
    copy_to(folder, *wanted, but=["/dsgan_datasets/pretrained"])
    for name in ("adapters", "tools"):
        (folder / "dsgan_datasets" / name).symlink_to(Path("..", name))
    return folder
