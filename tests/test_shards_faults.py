"""Shards of strangers, sets that several writers begin, and sets that change under an open reader."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import os
import shutil
import struct
import subprocess
import sys
import tarfile
import threading
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from measured import growth_of
from PIL import Image
from test_shards import content

from dsgan_datasets import (
    LabeledGenerator,
    ShardDataset,
    ShardError,
    ShardMapDataset,
    verify_shards,
    write_shards,
)
from dsgan_datasets.shards import Encoding, Folder, Manifest
from dsgan_datasets.shards.plan import Plan
from dsgan_datasets.shards.progress import Progress

EVERYTHING = Encoding(uncertainty=True, latent=True)
FIRST = "shard-000000.tar"


# Records of strangers


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory, filtered: LabeledGenerator) -> Path:
    path = tmp_path_factory.mktemp("reference")
    write_shards(filtered, path, range(2), encoding=EVERYTHING)
    return path


def entry(name: str, data: bytes = b"", **fields: object) -> bytes:
    """A file of a tar."""
    info = tarfile.TarInfo(name)
    info.size = len(data)
    for field, value in fields.items():
        setattr(info, field, value)
    return info.tobuf(tarfile.GNU_FORMAT) + data + bytes(-len(data) % 512)


def files_of(folder: Path) -> dict[str, bytes]:
    """Extension -> content of the first record."""
    with tarfile.open(folder / FIRST) as tar:
        members = [member for member in tar if member.name.startswith("000000000.")]
        return {member.name.partition(".")[2]: tar.extractfile(member).read() for member in members}  # type: ignore[union-attr]


def forged(reference: Path, out: Path, part: bytes) -> Path:
    """A set of one record with these bytes, and a manifest that fits them: what a stranger can offer."""
    manifest = Manifest.read(Folder(reference))
    part += bytes(-len(part) % 512)
    body = part + bytes(1024)
    plan = dataclasses.replace(manifest.plan, num_samples=1, samples_per_shard=1)
    shard = dataclasses.replace(
        manifest.shards[0],
        last=0,
        count=1,
        bytes=len(body),
        offsets=(0, len(part)),
        attempts={i: a for i, a in manifest.shards[0].attempts.items() if i == 0},
        sha256=hashlib.sha256(body).hexdigest(),
        checksums=hashlib.sha256(part).hexdigest()[:32],
    )
    out.mkdir(exist_ok=True)
    (out / shard.name).write_bytes(body)
    (out / "manifest.json").write_bytes(Manifest(plan, (shard,)).to_json())
    return out


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_of_zeros(height: int, width: int, color: int = 2) -> bytes:
    """A small file of a large picture; color 2 is RGB, 0 is gray."""
    row = bytes(1 + width * (3 if color == 2 else 1))
    pack = zlib.compressobj(9)
    body = b"".join(pack.compress(row) for _ in range(height)) + pack.flush()
    header = struct.pack(">IIBBBBB", width, height, 8, color, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def picture(form: str, size: tuple[int, int] = (16, 16), mode: str = "RGB", color: int = 0) -> bytes:
    buffer = io.BytesIO()
    Image.new(mode, size, color).save(buffer, form)
    return buffer.getvalue()


def npy(values: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, values)
    return buffer.getvalue()


def claims(shape: object, descr: str = "<f4") -> bytes:
    """An .npy file that claims a shape."""
    header = f"{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape!r}, }}".ljust(117).encode() + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header


def replaced(**files: bytes | None) -> Callable[[dict[str, bytes]], bytes]:
    """A record with other files; "__" in a name is a dot, None leaves a file out."""

    def make(record: dict[str, bytes]) -> bytes:
        changed = {**record, **{name.replace("__", "."): data for name, data in files.items()}}
        return b"".join(entry(f"000000000.{name}", data) for name, data in changed.items() if data is not None)

    return make


def said(**facts: object) -> Callable[[dict[str, bytes]], bytes]:
    """A record whose JSON says something else."""
    return lambda record: replaced(json=json.dumps({**json.loads(record["json"]), **facts}).encode())(record)


def more(data: bytes, *, first: bool = False) -> Callable[[dict[str, bytes]], bytes]:
    """A record with something before or after it."""
    return lambda record: data + replaced()(record) if first else replaced()(record) + data


def sparse(size: int) -> bytes:
    """A GNU sparse file without data that claims a size."""
    head = bytearray(entry("000000000.png", type=tarfile.GNUTYPE_SPARSE))
    for at, number in ((386, 0), (398, 0), (483, size)):
        head[at : at + 12] = b"%011o\0" % number
    head[148:156] = b" " * 8
    head[148:156] = b"%06o\0 " % sum(head)
    return bytes(head)


def pax(**fields: str) -> bytes:
    """A header that changes the meaning of the next one."""
    info = tarfile.TarInfo("000000000.png")
    info.pax_headers = fields
    return info.create_pax_header(info.get_info(), "utf-8")[:-512]


POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 16 16\n%%EndComments\nshowpage\n"
HOSTILE: dict[str, Callable[[dict[str, bytes]], bytes]] = {
    "an image of another size": replaced(png=picture("PNG", (17, 16))),
    "an image of 300 megapixels": replaced(png=png_of_zeros(100, 3_000_000)),
    "a mask of 300 megapixels": replaced(seg__png=png_of_zeros(100, 3_000_000, 0)),
    "an uncertainty of 300 megapixels": replaced(uncertainty__png=png_of_zeros(100, 3_000_000)),
    "a gray image": replaced(png=picture("PNG", mode="L")),
    "an image with transparency": replaced(png=picture("PNG", mode="RGBA")),
    "PostScript": replaced(png=POSTSCRIPT),
    "PostScript as a mask": replaced(seg__png=POSTSCRIPT),
    "another format": replaced(png=picture("BMP")),
    "an image that ends early": lambda record: replaced(png=record["png"][: len(record["png"]) // 2])(record),
    "a class beyond the schema": replaced(seg__png=picture("PNG", mode="L", color=200)),
    "no image": replaced(png=None),
    "no mask": replaced(seg__png=None),
    "no facts": replaced(json=None),
    "no latent": replaced(latent__npy=None),
    "one file too many": more(entry("000000000.txt", b"hello")),
    "a file twice": more(entry("000000000.png", picture("PNG"))),
    "a file of another record": more(entry("000000001.png", picture("PNG"))),
    "a symbolic link": more(entry("000000000.txt", type=tarfile.SYMTYPE, linkname="/etc/passwd")),
    "a hard link": more(entry("000000000.txt", type=tarfile.LNKTYPE, linkname="000000000.txt")),
    "a device": more(entry("000000000.dev", type=tarfile.CHRTYPE)),
    "a sparse file of 8 GB": more(sparse(8**11 - 1), first=True),
    "a long name of 4 GB": more(entry("././@LongLink", type=tarfile.GNUTYPE_LONGNAME, size=1 << 32), first=True),
    "a size of pax": more(pax(size=str(1 << 40)), first=True),
    "a sparse file of pax": more(pax(**{"GNU.sparse.major": "1", "GNU.sparse.realsize": str(1 << 40)}), first=True),
    "a size below zero": more(entry("000000000.txt", size=-512)),
    "a size beyond the record": more(entry("000000000.txt", size=1 << 40)),
    "half a header": more(entry("000000000.txt")[:300] + bytes(212)),
    "a name that is not text": more(entry("000000000.txt").replace(b"txt\0", b"\xff\xfe\xfd\0")),
    "zeros": lambda record: bytes(2048),
    "noise": lambda record: np.random.default_rng(0).bytes(4096),
    "JSON that is none": replaced(json=b"{"),
    "JSON that is a list": replaced(json=b"[1, 2]"),
    "JSON that is not text": replaced(json=b"\xff\xfe\x00"),
    "JSON nested 100,000 deep": replaced(json=b"[" * 100_000 + b"]" * 100_000),
    "JSON with a number of 10,000 digits": replaced(json=b'{"index": ' + b"1" * 10_000 + b"}"),
    "another index": said(index=1),
    "an index that is a bool": said(index=False),
    "another attempt": said(attempt=7),
    "no attempt": said(attempt=None),
    "another seed": said(seed=1),
    "another fingerprint": said(fingerprint="0" * 64),
    "another license": said(license="mine"),
    "a score that is not a number": said(uncertainty_score="high"),
    "a score that is none": said(uncertainty_score=float("nan")),
    "a score of 400 digits": said(uncertainty_score=10**400),
    "a class label that is a text": said(class_label="cat"),
    "a class label beyond 64 bits": said(class_label=1 << 70),
    "an empty latent": replaced(latent__npy=b""),
    "a latent of pickles": replaced(latent__npy=claims((1,), "|O") + b"cos\nsystem\n."),
    "a latent of 16 GB": replaced(latent__npy=claims((1 << 32,))),
    "a latent of many axes": replaced(latent__npy=claims((1,) * 64) + bytes(4)),
    "a latent below zero": replaced(latent__npy=claims((-1,))),
    "a latent of doubles": replaced(latent__npy=npy(np.zeros(8))),
    "a latent nested deep": replaced(latent__npy=claims("(" * 40)),
    "a latent whose header is no Python": replaced(latent__npy=claims((8,)).replace(b"descr", b"de\x00cr")),
    "a latent that ends early": replaced(latent__npy=npy(np.zeros(8, np.float32))[:-3]),
}


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("kind", [ShardMapDataset, ShardDataset])
def test_a_hostile_record_is_one_error_with_file_and_record(
    reference: Path, tmp_path: Path, name: str, kind: type[ShardDataset]
) -> None:
    record = files_of(reference)
    where = forged(reference, tmp_path / "set", HOSTILE[name](record))
    with pytest.raises(ShardError, match=rf"{FIRST} is damaged: record 000000000.*dsgan shards verify") as raised:
        list(kind(where)) if kind is ShardDataset else kind(where)[0]
    assert str(raised.value).isprintable() and len(str(raised.value)) < 1000


def test_what_is_not_hostile_is_read(reference: Path, tmp_path: Path) -> None:
    """Forging alone is not what is refused above."""
    where = forged(reference, tmp_path / "set", replaced()(files_of(reference)))
    sample, original = ShardMapDataset(where)[0], ShardMapDataset(reference)[0]
    assert set(sample) == set(original) and all(torch.equal(sample[name], original[name]) for name in sample)


@pytest.mark.parametrize("name", [name for name in HOSTILE if "mega" in name or "GB" in name or "pax" in name])
def test_a_small_record_takes_little_memory(reference: Path, tmp_path: Path, name: str) -> None:
    where = forged(reference, tmp_path / "set", HOSTILE[name](files_of(reference)))
    assert growth_of(lambda: ShardMapDataset(where)[0]) < 60e6
    (where / FIRST).write_bytes((where / FIRST).read_bytes()[:-1])  # has verify look into it, too
    assert growth_of(lambda: verify_shards(where)) < 60e6


def test_a_record_of_gigabytes_is_refused_before_it_is_read(reference: Path, tmp_path: Path) -> None:
    """A file of holes takes no room on a disk."""
    where = forged(reference, tmp_path / "set", replaced()(files_of(reference)))
    manifest = Manifest.read(Folder(where))
    size = 4 << 30
    shard = dataclasses.replace(manifest.shards[0], offsets=(0, size), bytes=size + 1024)
    (where / "manifest.json").write_bytes(Manifest(manifest.plan, (shard,)).to_json())
    os.truncate(where / FIRST, size + 1024)
    with pytest.raises(ShardError, match=f"a record of {size} bytes; images of this size need"):
        ShardDataset(where)


def test_more_shards_than_names_are_refused(reference: Path) -> None:
    plan = Manifest.read(Folder(reference)).plan
    with pytest.raises(
        ValueError, match=r"1000001 shards, a set has 1000000 at most: raise samples_per_shard.* to 2 or"
    ):
        dataclasses.replace(plan, num_samples=10**6 + 1, samples_per_shard=1)


def test_records_without_checksums_are_read_from_whole_shards_only(tmp_path: Path, filtered: LabeledGenerator) -> None:
    """Sets of format 1: a page of zeros gave another picture."""
    write_shards(filtered, tmp_path, range(4))
    manifest = Manifest.read(Folder(tmp_path))
    without = tuple(dataclasses.replace(shard, checksums=None) for shard in manifest.shards)
    (tmp_path / "manifest.json").write_bytes(Manifest(manifest.plan, without).to_json())
    assert [int(sample.index) for sample in ShardDataset(tmp_path)] == [0, 1, 2, 3]
    data = bytearray((tmp_path / FIRST).read_bytes())
    data[600:700] = bytes(100)
    (tmp_path / FIRST).write_bytes(data)
    for read in (lambda: list(ShardDataset(tmp_path)), lambda: ShardMapDataset(tmp_path)[3]):
        with pytest.raises(ShardError, match="SHA-256 is not the recorded one"):
            read()


# What the uncertainty looks like to other programs


@pytest.mark.parametrize("how", ["pil", "rgb8", "l8", "rgb", "torchrgb8"])
def test_stock_decoders_do_not_turn_uncertainty_white(reference: Path, how: str) -> None:
    import webdataset

    record = next(
        iter(webdataset.WebDataset(str(reference / FIRST), shardshuffle=False, empty_check=False).decode(how))
    )
    found = np.asarray(record["uncertainty.png"])
    white = 1.0 if how == "rgb" else 255
    assert (found == white).mean() < 0.05
    if how == "rgb8":
        exact = ShardMapDataset(reference)[0]["uncertainty"].numpy()
        assert np.array_equal((found[..., 0] * np.float32(256) + found[..., 2]) / np.float32(8192), exact)


# Several writers


def test_of_two_plans_at_once_one_wins(tmp_path: Path, filtered: LabeledGenerator) -> None:
    """Local disk and memory: creation never replaces, so both read the same plan afterwards."""
    plans = [Plan.of(filtered, range(4), seed, 2, Encoding()) for seed in range(8)]
    for where in (str(tmp_path / "set"), "memory://two-plans"):
        gate = threading.Barrier(len(plans))
        found: list[Plan | None] = []

        def begin(plan: Plan, where: str = where, gate: threading.Barrier = gate) -> None:
            progress = Progress(Folder(where))
            gate.wait()
            progress.begin(plan)
            found.append(progress.read_plan())  # noqa: B023

        threads = [threading.Thread(target=begin, args=(plan,)) for plan in plans]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(found) == len(plans) and len({plan.seed for plan in found if plan is not None}) == 1


def test_a_set_holds_no_shard_of_another_plan(tmp_path: Path, filtered: LabeledGenerator) -> None:
    """Even if the storage lets two plans begin: an entry says which plan it is of."""
    write_shards(filtered, tmp_path / "a", range(4), seed=0, samples_per_shard=2, shard_range=(0, 1))
    write_shards(filtered, tmp_path / "b", range(4), seed=1, samples_per_shard=2, shard_range=(1, 2))
    for file in ("shard-000001.tar", ".unfinished/shard-000001.tar.json"):
        shutil.copy(tmp_path / "b" / file, tmp_path / "a" / file)
    assert [problem.kind for problem in verify_shards(tmp_path / "a")] == ["unfinished"]
    with pytest.raises(ShardError, match=r"shard-000001\.tar is there already, with other bytes"):
        write_shards(filtered, tmp_path / "a", range(4), seed=0, samples_per_shard=2)
    assert not (tmp_path / "a" / "manifest.json").exists()


def test_a_set_that_another_writer_finished_meanwhile_is_kept(
    tmp_path: Path, filtered: LabeledGenerator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It looked, another process began and finished, it began."""
    begin, other = Progress.begin, threading.Event()

    def late(self: Progress, plan: Plan) -> None:
        if not other.is_set():
            other.set()
            write_shards(filtered, tmp_path, range(4), seed=1)
        begin(self, plan)

    monkeypatch.setattr(Progress, "begin", late)
    with pytest.raises(ShardError, match="seed is 0, there 1"):
        write_shards(filtered, tmp_path, range(4), seed=0)
    assert verify_shards(tmp_path) == [] and Manifest.read(Folder(tmp_path)).plan.seed == 1


@pytest.mark.parametrize("name", ["run[12]", "run?", "run*", "{run1}", "run1!", "[!a]"])
@pytest.mark.parametrize("where", ["disk", "memory"])
def test_names_are_no_patterns(tmp_path: Path, filtered: LabeledGenerator, name: str, where: str) -> None:
    """A set whose name matches others' used to remove their progress."""
    root = str(tmp_path) if where == "disk" else f"memory://patterns-{abs(hash(name))}"
    others = [f"{root}/run1", f"{root}/run2", f"{root}/runx"]
    for other in others:
        write_shards(filtered, other, range(2), samples_per_shard=1, shard_range=(0, 1))
    before = [Folder(other).names(".unfinished") for other in others]
    write_shards(filtered, f"{root}/{name}", range(2), samples_per_shard=1)
    assert [Folder(other).names(".unfinished") for other in others] == before and all(before)
    assert Folder(f"{root}/{name}").names() == ["manifest.json", FIRST, "shard-000001.tar", "wids.json"]
    assert verify_shards(f"{root}/{name}") == [] and Folder(f"{root}/{name}").names(".unfinished") == []


def test_a_finished_set_is_not_written_to(tmp_path: Path, filtered: LabeledGenerator) -> None:
    write_shards(filtered, tmp_path, range(4), samples_per_shard=2)
    before = {path: path.stat().st_mtime_ns for path in [tmp_path, *tmp_path.iterdir()]}
    write_shards(filtered, tmp_path, range(4), samples_per_shard=2)
    assert {path: path.stat().st_mtime_ns for path in [tmp_path, *tmp_path.iterdir()]} == before


def test_leftovers_of_the_progress_do_not_matter_where_nothing_can_be_removed(
    tmp_path: Path, filtered: LabeledGenerator, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_shards(filtered, tmp_path, range(2))
    (tmp_path / ".unfinished").mkdir()
    (tmp_path / ".unfinished" / "plan.json").write_text("{}")

    def read_only(*_: object, **__: object) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(shutil, "rmtree", read_only)
    assert write_shards(filtered, tmp_path, range(2)) == [str(tmp_path / FIRST)]


# A set that changes under an open reader


@pytest.mark.parametrize("kind", [ShardDataset, ShardMapDataset])
def test_another_set_in_the_place_of_an_open_one_is_noticed(
    tmp_path: Path, filtered: LabeledGenerator, kind: type[ShardDataset]
) -> None:
    for name, seed in (("here", 0), ("new", 1)):
        write_shards(filtered, tmp_path / name, range(4), samples_per_shard=2, seed=seed)
    dataset = kind(tmp_path / "here")
    assert [int(dataset[i].index) for i in range(4)] == [0, 1, 2, 3] if kind is ShardMapDataset else list(dataset)
    shutil.rmtree(tmp_path / "here")
    shutil.move(tmp_path / "new", tmp_path / "here")
    with pytest.raises(
        ShardError, match="here holds another set, or a repaired one, since it was opened: open it anew"
    ):
        [dataset[i] for i in range(4)] if kind is ShardMapDataset else list(dataset)
    assert len(list(kind(tmp_path / "here"))) == 4


def test_a_state_of_another_set_is_refused(tmp_path: Path, filtered: LabeledGenerator) -> None:
    """Of the same checkpoint, as long, but of another seed or other indices."""
    write_shards(filtered, tmp_path / "a", range(4))
    write_shards(filtered, tmp_path / "b", range(4), seed=1)
    write_shards(filtered, tmp_path / "c", range(4, 8))
    state = ShardDataset(tmp_path / "a").state_dict()
    ShardDataset(tmp_path / "a").load_state_dict(state)
    for other in ("b", "c"):
        with pytest.raises(ValueError, match="cannot resume: plans"):
            ShardDataset(tmp_path / other).load_state_dict(state)


def test_a_repaired_set_reads_as_before(tmp_path: Path, filtered: LabeledGenerator) -> None:
    from dsgan_datasets.shards import repair_shards

    write_shards(filtered, tmp_path, range(4), samples_per_shard=2)
    before, dataset = content(tmp_path), ShardMapDataset(tmp_path)
    (tmp_path / FIRST).write_bytes(bytes(len(before[FIRST])))
    with pytest.raises(ShardError, match="is damaged"):
        dataset[0]
    repair_shards(tmp_path, filtered)
    assert content(tmp_path) == before and int(dataset[0].index) == 0


# The benchmarks, with less of everything


@pytest.mark.extended
@pytest.mark.parametrize(
    ("words", "printed"),
    [
        (["damage.py", "--flips", "36", "--pages", "6"], "equal   in all"),
        (["network_faults.py", "--faults", "24"], "refused   status_503"),
    ],
)
def test_the_benchmarks_find_nothing(words: list[str], printed: str) -> None:
    root = Path(__file__).resolve().parent.parent
    command = [sys.executable, str(root / "benchmarks" / words[0]), *words[1:]]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert printed in done.stdout and "VIOLATION" not in done.stdout
