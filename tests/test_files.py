from __future__ import annotations

import errno
import os
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from checkout import ROOT, source_files

from dsgan_datasets import load_generator, load_interpreter, read_photos
from dsgan_datasets.annotations import load_annotations
from dsgan_datasets.files import atomic_write, create, exists, is_file, is_folder, remove_leftovers, written_whole


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


def test_what_is_there_is_never_replaced_by_what_is_created(tmp_path: Path) -> None:
    create(tmp_path / "plan.json", b"mine")
    with pytest.raises(FileExistsError, match=r"is there already: .*plan\.json"):
        create(tmp_path / "plan.json", b"yours")
    assert [p.name for p in tmp_path.iterdir()] == ["plan.json"]
    assert (tmp_path / "plan.json").read_bytes() == b"mine"


def test_a_file_system_without_links_creates_as_well(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refused)
    create(tmp_path / "plan.json", b"mine")
    with pytest.raises(FileExistsError):
        create(tmp_path / "plan.json", b"yours")
    assert [(p.name, p.read_bytes()) for p in tmp_path.iterdir()] == [("plan.json", b"mine")]


def test_writers_with_one_process_number_do_not_share_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in two containers on one volume."""
    monkeypatch.setattr(os, "getpid", lambda: 1)
    path = tmp_path / "shard.tar"
    with atomic_write(path) as slow:
        slow.write(b"first")
        with atomic_write(path) as fast:
            fast.write(b"second")
        assert path.read_bytes() == b"second"
    assert path.read_bytes() == b"first" and [p.name for p in tmp_path.iterdir()] == ["shard.tar"]


@pytest.mark.parametrize("name", ["shard.tar", "shard[0-9]*.tar"])
def test_leftovers_of_the_dead_go_and_files_of_the_living_stay(tmp_path: Path, name: str) -> None:
    others = [".shard1.tar.00.tmp", f".{name}.txt", f"{name}.00.tmp"]
    for left in (*others, f".{name}.00.tmp"):
        (tmp_path / left).write_bytes(b"half")
    with atomic_write(tmp_path / name) as file:
        file.write(b"whole")
        remove_leftovers(tmp_path / name)
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([*others, name])
    assert (tmp_path / name).read_bytes() == b"whole"


def test_errors_of_other_files_keep_their_names(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="elsewhere"), atomic_write(tmp_path / "shard.tar"):
        (tmp_path / "elsewhere").read_bytes()
    with pytest.raises(OSError, match="^the source is gone$"), atomic_write(tmp_path / "shard.tar"):
        raise OSError("the source is gone")


def test_what_is_there_and_what_leads_nowhere(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "to-file").symlink_to("file")
    (tmp_path / "to-folder").symlink_to(".")
    (tmp_path / "broken").symlink_to("nowhere")
    (tmp_path / "circle").symlink_to("circle")
    names = ["file", "to-file", ".", "to-folder", "nowhere", "file/below", "broken", "circle", "a\0b", "\udce4"]
    found = [[ask(tmp_path / name) for name in names] for ask in (exists, is_file, is_folder)]
    assert found == [[True] * 4 + [False] * 6, [True] * 2 + [False] * 8, [False] * 2 + [True] * 2 + [False] * 6]


def write_to(path: Path) -> None:
    with written_whole(path):
        pass


@pytest.mark.parametrize(
    "ask",
    [
        exists,
        is_file,
        is_folder,
        load_generator,
        load_interpreter,
        load_annotations,
        partial(read_photos, size=(16, 16)),
        write_to,
    ],
)
def test_what_cannot_be_looked_up_is_not_called_missing(ask: Callable[[Path], object], tmp_path: Path) -> None:
    """To Python 3.14's Path.exists it is; a folder that may not be entered is no hindrance to root, so it is a name."""
    with pytest.raises(OSError, match="File name too long"):
        ask(tmp_path / ("x" * 300))


def test_nothing_asks_paths_themselves_whether_they_are_there() -> None:
    asked = re.compile(r"(?<!entry)\.(exists|is_dir|is_file)\b(?!\([^)])")
    assert asked.search("if (folder / name).is_file():") and asked.search("any(map(Path.is_dir, folders))")
    assert not asked.search("if entry.is_dir():")  # entries of an archive are not on a disk
    modules = source_files("/dsgan_datasets/**/*.py", "/adapters/**/*.py", "/tools/**/*.py")
    lines = [(name, line.strip()) for name in modules for line in (ROOT / name).read_text("utf-8").splitlines()]
    assert [each for each in lines if asked.search(each[1]) and not each[1].startswith((">>>", "..."))] == []
