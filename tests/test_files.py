from __future__ import annotations

import os
from pathlib import Path

import pytest

from dsgan_datasets.files import atomic_write


def test_the_file_is_renamed_into_place(tmp_path: Path) -> None:
    path = tmp_path / "shard.tar"
    with atomic_write(path) as file:
        file.write(b"half")
        assert not path.exists()
        inode = os.fstat(file.fileno()).st_ino
    assert path.stat().st_ino == inode and path.read_bytes() == b"half"


def test_an_error_or_an_interrupt_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "shard.tar"
    path.write_bytes(b"old")
    for error in (RuntimeError, KeyboardInterrupt):
        with pytest.raises(error), atomic_write(path) as file:
            file.write(b"new")
            raise error
    assert [p.name for p in tmp_path.iterdir()] == ["shard.tar"] and path.read_bytes() == b"old"


def test_errors_name_the_file(tmp_path: Path) -> None:
    with (
        pytest.raises(OSError, match="nothing was written: .*nowhere/shard.tar"),
        atomic_write(tmp_path / "nowhere" / "shard.tar"),
    ):
        pass
