"""Every command and every Python block of the README and of the first guides runs, in an empty folder."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from conftest import GOLDEN
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()
#: Pages of which every block and command runs.
RUN = ["README.md", "docs/shards.md", "docs/stream.md"]


class Step(NamedTuple):
    """A block of code, or a command."""

    code: str
    command: str


def steps(page: str) -> list[Step]:
    found = re.findall(r"^```python\n(.*?)^```|^    (dsgan .*?)$", (ROOT / page).read_text(), re.MULTILINE | re.DOTALL)
    return [Step(*each) for each in found]


@pytest.mark.parametrize("page", RUN)
def test_every_block_and_every_command_is_a_step(page: str) -> None:
    """Counted line by line, so that a block that the expression above does not see cannot be left out of the test."""
    lines = (ROOT / page).read_text().splitlines()
    fences = [i for i, line in enumerate(lines) if line.startswith("```")]
    opening, closing = fences[::2], fences[1::2]
    assert {lines[i] for i in opening} == {"```python"} and {lines[i] for i in closing} == {"```"}
    inside = {i for first, last in zip(opening, closing, strict=True) for i in range(first, last)}
    indented = [line.strip() for i, line in enumerate(lines) if line.startswith("    ") and i not in inside]
    assert {line.split()[0] for line in indented} <= {"dsgan", "make"}
    assert [line for line in indented if line.startswith("dsgan ")] == [s.command for s in steps(page) if s.command]
    assert lines.count("```python") == sum(bool(step.code) for step in steps(page))


def test_the_readme_is_short() -> None:
    assert len([word for word in README.split() if re.search(r"\w", word)]) <= 700


def paint(folder: Path) -> None:
    """What the person does between two commands: class 1 where an image is bright, class 2 in the middle."""
    (folder / "masks").mkdir()
    for path in (folder / "images").glob("*.png"):
        with Image.open(path) as image:
            gray = np.asarray(image.convert("L"))
        mask = (gray > np.median(gray)).astype(np.uint8)
        mask[6:10, 6:10] = 2
        Image.fromarray(mask).save(folder / "masks" / path.name)


def run(step: Step, folder: Path) -> None:
    words = ["-c", step.code]
    if step.command:
        words = ["-m", "dsgan_datasets.tools.cli", *shlex.split(step.command, comments=True)[1:]]
    if step.command.startswith("dsgan fit"):
        words += ["--steps", "100"]  # the result is not examined here
    done = subprocess.run(
        [sys.executable, *words],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
    )
    assert done.returncode == 0, f"{step}\n{done.stderr[-2000:]}"


@pytest.mark.extended
def test_readme(tmp_path: Path) -> None:
    """Its commands and blocks, and what the guide of fitting says in Python of the same files."""
    (tmp_path / "network-snapshot.pkl").write_bytes((GOLDEN / "sg2ada_fullsnapshot16.pkl").read_bytes())
    for step in steps("README.md"):
        if step.command.startswith("dsgan annotate check"):
            paint(tmp_path / "to-annotate")
        run(step, tmp_path)
    shutil.rmtree(tmp_path / "my-parts")
    run(next(step for step in steps("docs/fit.md") if step.code), tmp_path)
    assert (tmp_path / "my-parts").is_dir()


@pytest.mark.extended
@pytest.mark.parametrize("page", RUN[1:])
def test_guides(page: str, tmp_path: Path) -> None:
    """Blocks of a page build on each other, so they are one program; its commands come first."""
    for step in steps(page):
        if step.command:
            run(step, tmp_path)
    run(Step("".join(step.code for step in steps(page)), ""), tmp_path)


PAGES = [
    *(path.name for path in ROOT.glob("*.md")),
    *(str(p.relative_to(ROOT)) for f in ("benchmarks", "demo", "docs", "examples") for p in (ROOT / f).rglob("*.md")),
]


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", (ROOT / page).read_text()):
        assert (ROOT / page).parent.joinpath(target).exists(), target
