"""Writing shards: what is in them, that their bytes depend on nothing else, and what is refused."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import resource
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
import webdataset
import wids
from conftest import SCHEMA, small_labeled
from PIL import Image

from dsgan_datasets import LabeledGenerator, LabelSchema, ShardError, ShardMapDataset, write_shards
from dsgan_datasets.shards import Encoding, Folder, Manifest
from dsgan_datasets.shards.codec import decode
from dsgan_datasets.shards.errors import parse_json
from dsgan_datasets.shards.plan import Plan
from dsgan_datasets.tools.cli import main

ROOT = Path(__file__).resolve().parent.parent
EVERYTHING = Encoding(uncertainty=True, latent=True, parts=True)


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


# What is in them


def test_webdataset_reads_class_ids_and_the_generated_images(tmp_path: Path, filtered: LabeledGenerator) -> None:
    paths = write_shards(filtered, tmp_path, range(5, 12), seed=3, samples_per_shard=3)
    read = list(webdataset.WebDataset(paths, shardshuffle=False, empty_check=False).decode("l8"))
    assert [record["__key__"] for record in read] == [f"{i:09d}" for i in range(5, 12)]
    for record, sample in zip(read, filtered.generate(range(5, 12), seed=3).rows(), strict=True):
        assert np.array_equal(record["seg.png"], sample.mask.numpy())
        facts = record["json"]
        assert facts["fingerprint"] == filtered.fingerprint and facts["seed"] == 3
        assert facts["attempt"] == int(sample.attempt) and facts["license"] == filtered.license
        assert facts["tallies"] == {"mask": sample.mask.flatten().bincount(minlength=SCHEMA.num_classes).tolist()}
        assert np.float32(facts["uncertainty_score"]) == sample["uncertainty_score"].numpy()
    rgb = list(webdataset.WebDataset(paths, shardshuffle=False, empty_check=False).decode("rgb8"))
    for record, sample in zip(rgb, filtered.generate(range(5, 12), seed=3).rows(), strict=True):
        assert np.array_equal(record["png"], sample.image.permute(1, 2, 0).numpy())


def test_wids_reads_at_random_through_its_index(tmp_path: Path, filtered: LabeledGenerator) -> None:
    write_shards(filtered, tmp_path, range(7), samples_per_shard=3)
    dataset = wids.ShardListDataset(str(tmp_path / "wids.json"), localname=lambda url: url, transformations=[])
    assert len(dataset) == 7
    mask = np.asarray(Image.open(dataset[5][".seg.png"]))
    assert np.array_equal(mask, filtered.generate([5]).mask[0].numpy())


def test_the_tar_command_extracts_what_stock_detectron2_maps(tmp_path: Path, filtered: LabeledGenerator) -> None:
    detectron2_config = pytest.importorskip("detectron2.config")
    from detectron2.data import DatasetMapper

    (path,) = write_shards(filtered, tmp_path, range(2))
    subprocess.run(["tar", "-xf", path, "-C", str(tmp_path)], check=True)
    cfg = detectron2_config.get_cfg()
    cfg.INPUT.MIN_SIZE_TRAIN = (0,)
    cfg.INPUT.RANDOM_FLIP = "none"
    mapper = DatasetMapper(cfg, is_train=True)
    files = {"file_name": str(tmp_path / "000000001.png"), "sem_seg_file_name": str(tmp_path / "000000001.seg.png")}
    mapped = mapper({**files, "height": 16, "width": 16})
    sample = next(filtered.generate([1]).rows())
    assert torch.equal(mapped["sem_seg"].long(), sample.mask)
    assert torch.equal(mapped["image"].flip(0), sample.image)  # it trains on BGR


def test_entries_carry_no_time_user_or_host(tmp_path: Path, filtered: LabeledGenerator) -> None:
    (path,) = write_shards(filtered, tmp_path, range(3))
    with tarfile.open(path) as tar:
        assert {(m.mtime, m.uid, m.gid, m.uname, m.gname, oct(m.mode)) for m in tar} == {(0, 0, 0, "", "", "0o644")}
    description = json.loads((tmp_path / "manifest.json").read_text())
    assert description["made_with"]["torch"] == torch.__version__
    text = (tmp_path / "manifest.json").read_text() + (tmp_path / "wids.json").read_text()
    assert str(tmp_path) not in text and "hostname" not in text


def test_masks_are_gray_and_uncertainty_and_latents_come_back(tmp_path: Path, filtered: LabeledGenerator) -> None:
    (path,) = write_shards(filtered, tmp_path, range(3), encoding=EVERYTHING)
    with tarfile.open(path) as tar:
        files = {m.name.partition(".")[2]: tar.extractfile(m).read() for m in tar.getmembers()[:5]}  # type: ignore[union-attr]
    assert Image.open(io.BytesIO(files["seg.png"])).mode == "L"  # readers turn palettes into luminance
    expected = next(filtered.stream([0], extras=("uncertainty", "latent")))
    sample = decode(files, filtered.targets, filtered.image_size)
    assert set(sample) == set(expected)
    for name in expected.keys() - {"uncertainty"}:
        assert torch.equal(sample[name], expected[name]) and sample[name].dtype == expected[name].dtype
    assert float((sample["uncertainty"] - expected["uncertainty"]).abs().max()) <= 0.5 / 8192 + 1e-7


def test_parts_are_what_pycocotools_draws(tmp_path: Path, filtered: LabeledGenerator) -> None:
    from pycocotools import mask as codec

    (path,) = write_shards(filtered, tmp_path, range(2), encoding=EVERYTHING)
    for record in webdataset.WebDataset([path], shardshuffle=False, empty_check=False).decode("l8"):
        drawn = np.full_like(record["seg.png"], 255)
        for part in record["json"]["parts"]:
            region = codec.decode(part["rle"]).astype(bool)
            drawn[region] = part["class"]
            rows, columns = np.nonzero(region)
            x, y, width, height = part["box"]
            assert (columns.min(), rows.min()) == (x, y) and part["area"] == region.sum()
            assert (columns.max() + 1 - x, rows.max() + 1 - y) == (width, height)
        assert np.array_equal(drawn, record["seg.png"])


def test_jpeg_images_are_close_and_masks_still_exact(tmp_path: Path, filtered: LabeledGenerator) -> None:
    (path,) = write_shards(filtered, tmp_path, range(3), encoding=Encoding("jpg", quality=90))
    for record in webdataset.WebDataset([path], shardshuffle=False, empty_check=False):
        sample = decode(
            {n: data for n, data in record.items() if not n.startswith("__")}, filtered.targets, filtered.image_size
        )
        expected = next(filtered.generate([int(sample.index)]).rows())
        assert torch.equal(sample.mask, expected.mask)
        assert (sample.image.float() - expected.image.float()).abs().mean() < 12


def test_the_manifest_says_where_each_record_lies(tmp_path: Path, filtered: LabeledGenerator) -> None:
    write_shards(filtered, tmp_path, range(5), samples_per_shard=2)
    manifest = Manifest.read(Folder(tmp_path))
    assert [(s.first, s.last, s.count) for s in manifest.shards] == [(0, 1, 2), (2, 3, 2), (4, 4, 1)]
    for shard in manifest.shards:
        with tarfile.open(tmp_path / shard.name) as tar:
            heads = [m.offset for m in tar if m.name.endswith(".png") and ".seg." not in m.name]
        assert list(shard.offsets[:-1]) == heads
        assert shard.bytes == (tmp_path / shard.name).stat().st_size
        data = (tmp_path / shard.name).read_bytes()
        for number, (start, end) in enumerate(pairwise(shard.offsets)):
            assert shard.checksum(number) == hashlib.sha256(data[start:end]).hexdigest()[:32]
    assert Manifest.from_json(manifest.to_json(), "x") == manifest
    attempts = {i: a for shard in manifest.shards for i, a in shard.attempts.items()}
    batch = filtered.generate(range(5))
    assert [attempts.get(i, 0) for i in range(5)] == batch.attempt.tolist()


# Bytes


@pytest.mark.parametrize("workers", [1, 2, 4])
def test_bytes_do_not_depend_on_workers_or_on_the_order_of_writing(
    tmp_path: Path, filtered: LabeledGenerator, workers: int
) -> None:
    write_shards(filtered, tmp_path / "whole", range(10), samples_per_shard=3, encoding=EVERYTHING)
    folder = tmp_path / "parts"
    for first in (2, 0, 1, 3):
        write_shards(
            filtered,
            folder,
            range(10),
            samples_per_shard=3,
            encoding=EVERYTHING,
            workers=workers,
            shard_range=(first, first + 1),
        )
        assert ("manifest.json" in content(folder)) == (first == 3)
    assert content(folder) == content(tmp_path / "whole")


def test_a_second_call_mends_what_is_missing_or_damaged(tmp_path: Path, filtered: LabeledGenerator) -> None:
    first, second, _ = write_shards(filtered, tmp_path, range(7), samples_per_shard=3)
    reference = content(tmp_path)
    Path(first).unlink()
    Path(second).write_bytes(Path(second).read_bytes()[:-700] + b"x" * 700)
    untouched = (tmp_path / "shard-000002.tar").stat().st_mtime_ns
    write_shards(filtered, tmp_path, range(7), samples_per_shard=3)
    assert content(tmp_path) == reference
    assert (tmp_path / "shard-000002.tar").stat().st_mtime_ns == untouched


@pytest.mark.parametrize(
    ("indices", "samples_per_shard", "message"),
    [
        (range(8), 6, "samples_per_shard=6 cuts a view group of 4 samples: use 4 or 8"),
        (range(8), 3, "samples_per_shard=3 cuts a view group of 4 samples: use 4, or"),
        (range(10), 4, "num_samples=10 cuts a view group of 4 samples: use 8 or 12"),
        (range(2, 10), 4, "start=2 cuts a view group of 4 samples: use 0 or 4"),
    ],
)
def test_view_groups_are_never_cut(tmp_path: Path, indices: range, samples_per_shard: int, message: str) -> None:
    labeled = small_labeled(mixing_layer=2, group_size=4)
    with pytest.raises(ValueError, match=message):
        write_shards(labeled, tmp_path, indices, samples_per_shard=samples_per_shard)
    assert not content(tmp_path)


def test_whole_view_groups_are_written(tmp_path: Path) -> None:
    labeled = small_labeled(mixing_layer=2, group_size=4)
    write_shards(labeled, tmp_path / "two", range(4, 12), samples_per_shard=4)
    write_shards(labeled, tmp_path / "one", range(4, 12))  # one shard: nothing is cut
    expected = list(labeled.generate(range(4, 12)).rows())
    for name in ("two", "one"):
        read = ShardMapDataset(tmp_path / name)
        assert all(torch.equal(a.image, b.image) for a, b in zip(read, expected, strict=True))


# Faults


@contextmanager
def full_disk() -> Iterator[None]:
    """No file can grow beyond 8 kB: the system call that writes more fails."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8_000, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_leaves_nothing_half_written(tmp_path: Path, filtered: LabeledGenerator) -> None:
    write_shards(filtered, tmp_path / "whole", range(9), samples_per_shard=3)
    folder = tmp_path / "full"
    write_shards(filtered, folder, range(9), samples_per_shard=3, shard_range=(0, 1))
    before = content(folder)
    with full_disk(), pytest.raises(OSError, match=r"nothing was written.*shard-000001\.tar"):
        write_shards(filtered, folder, range(9), samples_per_shard=3)
    after = content(folder)
    assert {name: after[name] for name in before} == before and "shard-000001.tar" not in after
    write_shards(filtered, folder, range(9), samples_per_shard=3)
    assert content(folder) == content(tmp_path / "whole")


def test_a_folder_that_vanishes_is_said(
    tmp_path: Path, filtered: LabeledGenerator, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "mount"
    stream = filtered.stream

    def vanishing(*args: object, **kwargs: object) -> Iterator[object]:
        for i, sample in enumerate(stream(*args, **kwargs)):  # type: ignore[arg-type]
            if i == 3:
                shutil.rmtree(folder)
            yield sample

    monkeypatch.setattr(filtered, "stream", vanishing)
    with pytest.raises(OSError, match="removed the file meanwhile"):
        write_shards(filtered, folder, range(8), samples_per_shard=8)


@pytest.mark.parametrize("place", ["/proc/faces", "{file}/faces"])
def test_a_target_that_cannot_be_written(
    tmp_path: Path, filtered: LabeledGenerator, place: str, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="faces|file"):
        write_shards(filtered, place.format(file=tmp_path / "file"), range(2))


# Refusals


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"seed": 1}, "seed is 1, there 0"),
        ({"samples_per_shard": 3}, "samples_per_shard is 3, there 2"),
        ({"encoding": Encoding("jpg")}, 'encoding.image_format is "jpg", there "png"'),
        ({"indices": range(5)}, "num_samples is 5, there 4"),
        ({"indices": range(1, 5)}, "start is 1, there 0"),
    ],
)
@pytest.mark.parametrize("finished", [True, False])
def test_other_arguments_into_the_same_folder_are_refused_by_name(
    tmp_path: Path, filtered: LabeledGenerator, change: dict[str, object], named: str, finished: bool
) -> None:
    arguments: dict[str, object] = {"indices": range(4), "seed": 0, "samples_per_shard": 2}
    write_shards(filtered, tmp_path, **arguments, shard_range=None if finished else (0, 1))  # type: ignore[arg-type]
    before = content(tmp_path)
    with pytest.raises(ShardError, match="holds other shards") as raised:
        write_shards(filtered, tmp_path, **{**arguments, **change})  # type: ignore[arg-type]
    assert named in str(raised.value)
    assert content(tmp_path) == before


def test_another_recipe_or_schema_or_version_is_refused_by_name(
    tmp_path: Path, filtered: LabeledGenerator, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_shards(filtered, tmp_path, range(4), samples_per_shard=2, shard_range=(0, 1))
    other = small_labeled(threshold=None, reject_fraction=0.0, truncation_cutoff=3)
    with pytest.raises(ShardError, match=r"recipe\.sampling\.truncation_cutoff is 3, there null"):
        write_shards(other, tmp_path, range(4), samples_per_shard=2)
    renamed = LabelSchema(("background", "left", "right", "cap"), flip_pairs=((1, 2),))
    with pytest.raises(ShardError, match=r"targets\[0\]\.classes"):
        write_shards(
            LabeledGenerator(
                filtered.labeler.with_targets([renamed]), filtered.recipe, calibration=filtered.calibration
            ),
            tmp_path,
            range(4),
            samples_per_shard=2,
        )
    monkeypatch.setattr(np, "__version__", "9.9")
    with pytest.raises(ShardError, match=r'made_with\.numpy is "9\.9".*verify --repair'):
        write_shards(filtered, tmp_path, range(4), samples_per_shard=2)


def test_tars_of_someone_else_are_not_overwritten(tmp_path: Path, filtered: LabeledGenerator) -> None:
    (tmp_path / "shard-000000.tar").write_bytes(b"mine")
    with pytest.raises(ShardError, match=r"already holds shard-000000\.tar"):
        write_shards(filtered, tmp_path, range(2))
    assert content(tmp_path) == {"shard-000000.tar": b"mine"}


@pytest.mark.parametrize("indices", [range(0), range(0, 8, 2), range(-1, 3), [1, 2]])
def test_bad_ranges(tmp_path: Path, filtered: LabeledGenerator, indices: range) -> None:
    with pytest.raises(ValueError, match="range of step 1"):
        write_shards(filtered, tmp_path, indices)
    assert not content(tmp_path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"samples_per_shard": 0}, "samples_per_shard must be an integer in 1"),
        ({"shard_range": (3, 9)}, "holds no shard: there are 2"),
        ({"shard_range": (1, 1)}, "holds no shard"),
        ({"workers": 0}, "workers must be an integer of at least 1"),
        ({"engine": "spark"}, '"local" or "ray"'),
        ({"seed": -1}, "seed"),
    ],
)
def test_bad_arguments(tmp_path: Path, filtered: LabeledGenerator, arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        write_shards(filtered, tmp_path, range(4), **{"samples_per_shard": 2, **arguments})  # type: ignore[arg-type]
    assert not content(tmp_path)


@pytest.mark.parametrize("arguments", [{"image_format": "gif"}, {"quality": 0}, {"quality": 101}])
def test_bad_encodings(arguments: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"image_format|quality"):
        Encoding(**arguments)  # type: ignore[arg-type]


def test_plans_survive_their_json(filtered: LabeledGenerator) -> None:
    plan = Plan.of(filtered, range(3, 9), 2**64 - 1, 4, EVERYTHING)
    again = Plan.from_dict(parse_json(json.dumps(plan.to_dict()).encode(), "x"))
    assert again == plan and again.differences(plan) == []
    other = dataclasses.replace(plan, seed=0, num_samples=7)
    assert again.differences(other) == [f"seed is {2**64 - 1}, there 0", "num_samples is 6, there 7"]


# The command


def test_the_command_writes_resumes_and_refuses(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["shards", "write", "demo-faces", str(tmp_path), "--num-samples", "4", "--samples-per-shard", "2"]
    assert main([*command, "--shard-range", "0:1", "--device", "cpu"]) == 0
    printed = capsys.readouterr().out
    assert "2 samples in 1 shard " in printed and "still missing" in printed
    assert main([*command, "--device", "cpu"]) == 0
    assert "4 samples in 2 shards" in capsys.readouterr().out
    assert main([*command, "--device", "cpu", "--seed", "1"]) == 1
    assert "seed is 1, there 0" in capsys.readouterr().err
    assert main([*command, "--shard-range", "two"]) == 2
    assert "'two' is not A:B" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("works", [["writing"], pytest.param(["repairing", "uploading"], marks=pytest.mark.extended)])
def test_kills_leave_nothing_half_written(works: list[str]) -> None:
    """The benchmark, which forks workers from a parent that has imported torch, with fewer kills."""
    command = [sys.executable, "benchmarks/kill.py", "--works", *works, "--kills", "16", "--seed", "7"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "16  in all" in done.stdout
