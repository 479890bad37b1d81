"""Every command and every Python block of the README runs, in order, in an empty folder."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import GOLDEN
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()
STEPS = re.findall(r"^```python\n(.*?)^```|^    (dsgan .*?)$", README, re.MULTILINE | re.DOTALL)


def test_every_block_and_every_command_is_a_step() -> None:
    """Counted line by line, so that a block that the expression above does not see cannot be left out of the test."""
    lines = README.splitlines()
    fences = [i for i, line in enumerate(lines) if line.startswith("```")]
    opening, closing = fences[::2], fences[1::2]
    assert {lines[i] for i in opening} == {"```python", "```yaml"} and {lines[i] for i in closing} == {"```"}
    inside = {i for first, last in zip(opening, closing, strict=True) for i in range(first, last)}
    indented = [line.strip() for i, line in enumerate(lines) if line.startswith("    ") and i not in inside]
    assert {line.split()[0] for line in indented} == {"dsgan", "make"}
    assert [line for line in indented if line.startswith("dsgan ")] == [command for _, command in STEPS if command]
    assert lines.count("```python") == sum(bool(code) for code, _ in STEPS)


def paint(folder: Path) -> None:
    """What the person does between two commands: class 1 where an image is bright, class 2 in the middle."""
    (folder / "masks").mkdir()
    for path in (folder / "images").glob("*.png"):
        with Image.open(path) as image:
            gray = np.asarray(image.convert("L"))
        mask = (gray > np.median(gray)).astype(np.uint8)
        mask[6:10, 6:10] = 2
        Image.fromarray(mask).save(folder / "masks" / path.name)


@pytest.mark.extended
def test_readme(tmp_path: Path) -> None:
    (tmp_path / "network-snapshot.pkl").write_bytes((GOLDEN / "sg2ada_fullsnapshot16.pkl").read_bytes())
    for code, command in STEPS:
        words = ["-c", code] if code else ["-m", "dsgan_datasets.tools.cli", *shlex.split(command, comments=True)[1:]]
        if command.startswith("dsgan annotate check"):
            paint(tmp_path / "to-annotate")
        if command.startswith("dsgan fit"):
            words += ["--steps", "100"]  # the result is not examined here
        done = subprocess.run(
            [sys.executable, *words],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
            env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
        )
        assert done.returncode == 0, f"{code or command}\n{done.stderr[-2000:]}"


PAGES = [
    *(path.name for path in ROOT.glob("*.md")),
    *(str(p.relative_to(ROOT)) for f in ("benchmarks", "demo", "docs", "examples") for p in (ROOT / f).rglob("*.md")),
]


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", (ROOT / page).read_text()):
        assert (ROOT / page).parent.joinpath(target).exists(), target
