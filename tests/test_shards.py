from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
import webdataset
from conftest import SCHEMA
from PIL import Image

from dsgan_datasets import LabeledGenerator, shards
from dsgan_datasets.shards import write_shards


def test_webdataset_reads_what_was_generated(tmp_path: Path, filtered: LabeledGenerator) -> None:
    paths = write_shards(filtered, tmp_path, range(5, 12), seed=3, samples_per_shard=3)
    batch = filtered.generate(range(5, 12), seed=3)
    read = list(webdataset.WebDataset([str(p) for p in paths], shardshuffle=False))
    assert [r["__key__"] for r in read] == [f"{i:09d}" for i in range(5, 12)]
    for record, sample in zip(read, batch.rows(), strict=True):
        image = Image.open(io.BytesIO(record["png"]))
        mask = Image.open(io.BytesIO(record["seg.png"]))
        assert (image.mode, mask.mode) == ("RGB", "L")  # readers turn palette masks into luminance
        assert torch.equal(torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1), sample.image)
        assert torch.equal(torch.from_numpy(np.asarray(mask).copy()).long(), sample.mask)
        facts = json.loads(record["json"])
        assert facts["fingerprint"] == filtered.fingerprint and facts["seed"] == 3
        assert facts["attempt"] == int(sample.attempt)
        assert sum(facts["pixels"]) == 256 and len(facts["pixels"]) == SCHEMA.num_classes


def test_same_samples_same_bytes(tmp_path: Path, filtered: LabeledGenerator) -> None:
    first = write_shards(filtered, tmp_path / "a", range(6), samples_per_shard=3)
    second = write_shards(filtered, tmp_path / "b", range(6), samples_per_shard=3)
    assert [p.read_bytes() for p in first] == [p.read_bytes() for p in second]
    with tarfile.open(first[0]) as tar:
        assert {(m.mtime, m.uid, m.gid, m.uname) for m in tar} == {(0, 0, 0, "")}


def test_a_failed_write_leaves_no_shard(
    tmp_path: Path, filtered: LabeledGenerator, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def full(*arguments: object) -> dict[str, bytes]:
        calls.append(1)
        if len(calls) > 4:
            raise OSError(28, "No space left on device")
        return {"a.json": b"{}"}

    monkeypatch.setattr(shards, "record", full)
    with pytest.raises(OSError, match="No space"):
        write_shards(filtered, tmp_path, range(6), samples_per_shard=3)
    assert [p.name for p in tmp_path.iterdir()] == ["shard-000000.tar"]


def test_existing_shards_are_not_overwritten(tmp_path: Path, filtered: LabeledGenerator) -> None:
    (path,) = write_shards(filtered, tmp_path, range(2))
    before = path.read_bytes()
    with pytest.raises(ValueError, match="already holds shard-000000.tar"):
        write_shards(filtered, tmp_path, range(2), seed=1)
    assert path.read_bytes() == before


@pytest.mark.parametrize("indices", [range(0), range(0, 8, 2), range(-1, 3)])
def test_bad_ranges(tmp_path: Path, filtered: LabeledGenerator, indices: range) -> None:
    with pytest.raises(ValueError, match="range of step 1"):
        write_shards(filtered, tmp_path, indices)
