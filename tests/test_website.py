"""The website is complete: it builds without a warning, and has an entry of every public name."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
import zlib
from pathlib import Path

import pytest
from test_packaging import PUBLIC_MODULES, ROOT, public_names

BUILD = [sys.executable, "-m", "mkdocs", "build", "--strict"]


def build(root: Path, out: Path) -> subprocess.CompletedProcess[str]:
    pytest.importorskip("mkdocs")
    command = [*BUILD, "--config-file", str(root / "mkdocs.yml"), "--site-dir", str(out)]
    env = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    return subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=300, check=False, env=env)


def entries(site: Path) -> set[str]:
    """Names that pages of the API define, from the inventory that other projects' documentation links by."""
    _, _, _, _, packed = (site / "objects.inv").read_bytes().split(b"\n", 4)
    return {line.split(" ")[0] for line in zlib.decompress(packed).decode().splitlines()}


@pytest.mark.extended
def test_every_public_name_has_an_entry(tmp_path: Path) -> None:
    done = build(ROOT, tmp_path / "site")
    assert done.returncode == 0 and "WARNING" not in done.stderr, done.stderr
    found = entries(tmp_path / "site")
    wanted = {f"{module}.{name}" for module in PUBLIC_MODULES for name in public_names(importlib.import_module(module))}
    assert wanted - found == set()
    assert (tmp_path / "site" / "index.html").is_file() and (tmp_path / "site" / "docs" / "stream.html").is_file()


@pytest.mark.extended
def test_a_broken_link_is_an_error(tmp_path: Path) -> None:
    """To another page, to a heading, and to one of the same page: planted in a copy with one page of each kind."""
    (tmp_path / "docs").mkdir()
    for name in ("mkdocs.yml", "docs/website.py"):
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    (tmp_path / "docs" / "stability.md").write_text("# Stability\n\n- `dsgan_datasets.uncertainty`\n")
    (tmp_path / "mkdocs.yml").write_text(
        (ROOT / "mkdocs.yml").read_text().partition("\nnav:")[0].replace('paths: ["."]', f'paths: ["{ROOT}"]')
        + "\nnav: [README.md, docs/stability.md, {API: API}]\n"
    )
    (tmp_path / "README.md").write_text("# Title\n\n[page](docs/stability.md#stability)\n")
    assert build(tmp_path, tmp_path / "good").returncode == 0
    links = ["docs/gone.md", "docs/stability.md#gone", "#absent"]
    (tmp_path / "README.md").write_text("# Title\n\n" + "\n".join(f"[page]({link})" for link in links))
    done = build(tmp_path, tmp_path / "bad")
    assert done.returncode != 0 and all(f"'{link}'" in done.stderr for link in links), done.stderr
