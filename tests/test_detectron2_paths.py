"""dsgan:// paths on Detectron2's PathManager."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dsgan_datasets import LabeledGenerator

pytestmark = [pytest.mark.frameworks, pytest.mark.usefixtures("one_thread")]

pycocotools_mask = pytest.importorskip("pycocotools.mask")
pytest.importorskip("detectron2")

import detectron2_support  # noqa: E402
from detectron2.data import (  # noqa: E402
    DatasetCatalog,
    DatasetMapper,
)
from detectron2.utils.file_io import PathManager  # noqa: E402
from detectron2_support import SEED, config  # noqa: E402

from dsgan_datasets.adapters.detectron2.registered import RegisteredDataset  # noqa: E402
from dsgan_datasets.sources.addresses import parse  # noqa: E402

labeled = detectron2_support.labeled
checkpoint = detectron2_support.checkpoint
register = detectron2_support.register
real = detectron2_support.real


def test_paths_give_the_very_sample(register: Callable[..., RegisteredDataset], labeled: LabeledGenerator) -> None:
    dataset = register(task="sem_seg")
    expected = labeled.generate([3, 40], seed=SEED)
    for row, index in enumerate((3, 40)):
        record = dataset.record(index)
        assert record["file_name"] == f"dsgan://{labeled.fingerprint[:8]}/image/small_{SEED}_{index}.ppm"
        with PathManager.open(record["file_name"], "rb") as file:
            image = np.array(Image.open(file))
        with PathManager.open(record["sem_seg_file_name"], "rb") as file:
            assert file.seekable()
            mask = Image.open(file)
            assert mask.mode == "L"
            mask = np.array(mask)
        assert torch.equal(torch.from_numpy(image).permute(2, 0, 1), expected.image[row])
        assert np.array_equal(mask, expected.mask[row].numpy())
    assert PathManager.exists(record["file_name"]) and PathManager.isfile(record["file_name"])
    assert not PathManager.exists(record["file_name"] + "s") and not PathManager.isdir(record["file_name"])


def test_paths_of_other_datasets_are_refused(register: Callable[..., RegisteredDataset]) -> None:
    path = register(length=10).path(9, "image")
    address = parse(path)
    fingerprint = address.fingerprint
    for wrong, message in (
        (replace(address, fingerprint="00000000"), f"registered with seed {SEED} and fingerprint {fingerprint}"),
        (replace(address, seed=4), f"registered with seed {SEED} and fingerprint {fingerprint}"),
        (replace(address, name="other"), "'other' is not registered in this process"),
        (replace(address, index=10), "the index must be in 0 … 9"),
        (f"{fingerprint}/image/small_{SEED}_-1.ppm", "expected dsgan://FINGERPRINT"),
        (f"{fingerprint}/js/small_{SEED}_9.ppm", "Detectron2 reads only image and mask by an address"),
        (f"small/{SEED}/{fingerprint}/9/image", "expected dsgan://FINGERPRINT"),
    ):
        wrong = str(wrong).removeprefix("dsgan://")
        assert not PathManager.exists(f"dsgan://{wrong}")
        with pytest.raises(FileNotFoundError, match=message):
            PathManager.open(f"dsgan://{wrong}", "rb")
    assert PathManager.exists(register("faces/train").path(0, "mask"))  # a name may have slashes
    with pytest.raises(ValueError, match="can only be read"):
        PathManager.open(path, "wb")


def test_one_generation_a_sample(
    register: Callable[..., RegisteredDataset], asked: list[list[int]], tmp_path: Path
) -> None:
    """Image, mask and annotations are read from one block, by the stock mapper too."""
    register("stream", task="panoptic")
    mapper = DatasetMapper(config(tmp_path, "PanopticFPN"), True)
    stream = iter(DatasetCatalog.get("stream"))
    for record in itertools.islice(stream, 12):
        mapper(record)
    stream.close()  # type: ignore[attr-defined]
    generated = list(itertools.chain(*asked))
    assert len(generated) == len(set(generated)) and set(generated) >= set(range(12))
    asked.clear()
    for record in DatasetCatalog.get(register("set", task="panoptic", length=3).name):
        mapper(record)
    assert asked == [[0], [1], [2]]
