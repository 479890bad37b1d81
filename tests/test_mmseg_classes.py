"""Classes chosen in a config, and what MMSegmentation's tools and wrappers ask of a dataset."""

from __future__ import annotations

import io
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import SCHEMA

from dsgan_datasets import LabeledGenerator, write_shards

pytestmark = [pytest.mark.frameworks, pytest.mark.usefixtures("one_thread")]
pytest.importorskip("mmseg")

import mmseg_support  # noqa: E402
from mmengine import fileio  # noqa: E402
from mmseg.datasets import BaseSegDataset  # noqa: E402
from mmseg.registry import DATASETS  # noqa: E402
from mmseg_support import LOADING, PACK, dataset, stream  # noqa: E402
from PIL import Image  # noqa: E402

checkpoint = mmseg_support.checkpoint
scope = mmseg_support.scope
real = mmseg_support.real

LEFT, RIGHT = SCHEMA.flip_pairs[0]
OTHERS = [i for i in range(SCHEMA.num_classes) if i not in (LEFT, RIGHT)]
NAMES = SCHEMA.classes


def masks(data: Any, number: int = 4) -> list[torch.Tensor]:
    return [item["data_samples"].gt_sem_seg.data[0].long() for item in itertools.islice(iter_of(data), number)]


def iter_of(data: Any) -> Any:
    return iter(data) if hasattr(data, "__iter__") else (data[i] for i in range(len(data)))


def relabeled(mask: torch.Tensor, groups: list[list[int]]) -> torch.Tensor:
    new = torch.full_like(mask, 255)
    for number, group in enumerate(groups):
        for old in group:
            new[mask == old] = number
    return new


@pytest.mark.parametrize("pipeline", [None, [PACK], [*LOADING, PACK]], ids=["packed", "loaded", "read by path"])
@pytest.mark.parametrize("kind", ["map", "stream", "shards"])
def test_chosen_classes_are_renumbered_and_others_ignored(
    checkpoint: str, unfiltered: LabeledGenerator, tmp_path: Path, kind: str, pipeline: Any
) -> None:
    names = [NAMES[OTHERS[-1]], NAMES[LEFT], NAMES[RIGHT]]
    options = {"metainfo": {"classes": names, "palette": [[1, 2, 3], [4, 5, 6], [7, 8, 9]]}, "pipeline": pipeline}
    if kind == "shards":
        config = _shards(unfiltered, tmp_path) | options
    else:
        config = {"map": dataset, "stream": stream}[kind](checkpoint, **options)
    data = DATASETS.build(config)
    assert data.metainfo["classes"] == names and data.metainfo["palette"] == options["metainfo"]["palette"]
    expected = unfiltered.generate(range(4)).mask
    for mask, old in zip(masks(data), expected, strict=True):
        assert torch.equal(mask, relabeled(old, [[OTHERS[-1]], [LEFT], [RIGHT]]))


def _shards(labeled: LabeledGenerator, folder: Path) -> dict[str, Any]:
    write_shards(labeled, folder / "tars", range(4))
    return {"type": "DSGANShardSegDataset", "shards": str(folder / "tars")}


def test_merged_classes(checkpoint: str, unfiltered: LabeledGenerator, tmp_path: Path) -> None:
    merge = {"side": [NAMES[LEFT], NAMES[RIGHT]]}
    data = DATASETS.build(dataset(checkpoint, merge=merge, metainfo={"classes": ("side", NAMES[OTHERS[0]])}))
    for mask, old in zip(masks(data), unfiltered.generate(range(4)).mask, strict=True):
        assert torch.equal(mask, relabeled(old, [[LEFT, RIGHT], [OTHERS[0]]]))
    (tmp_path / "classes.txt").write_text(f"side\n{NAMES[OTHERS[0]]}\n")
    of_file = DATASETS.build(dataset(checkpoint, merge=merge, metainfo={"classes": str(tmp_path / "classes.txt")}))
    assert tuple(of_file.metainfo["classes"]) == data.metainfo["classes"]


def test_the_classes_of_the_schema_change_nothing(checkpoint: str) -> None:
    plain = DATASETS.build(dataset(checkpoint))
    same = DATASETS.build(dataset(checkpoint, metainfo={"classes": list(NAMES), "dataset_type": "faces"}))
    assert same[3]["data_samples"].img_path == plain[3]["data_samples"].img_path
    assert same.metainfo["classes"] == list(NAMES) and same.metainfo["dataset_type"] == "faces"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"metainfo": {"classes": ["wheel"]}}, "no class 'wheel'; the classes are: "),
        ({"metainfo": {"classes": [NAMES[0], NAMES[0]]}}, "no name twice"),
        ({"metainfo": {"classes": [NAMES[LEFT]]}}, "trades places in a mirror: choose both"),
        ({"metainfo": {"classes": "skin"}}, "list of names, or a file of them, not 'skin'"),
        ({"metainfo": ["skin"]}, "metainfo must be a dict"),
        ({"metainfo": {"palette": [[0, 0, 0]]}}, "a palette of 1 colors for 4 classes"),
        ({"merge": {"a": ["wheel"]}}, "no class 'wheel'"),
    ],
)
def test_classes_that_are_not_there(checkpoint: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DATASETS.build(dataset(checkpoint, **options))


def test_a_flip_of_other_classes_is_refused(checkpoint: str) -> None:
    names = [NAMES[RIGHT], NAMES[LEFT]]
    flip = {"type": "DSGANRandomFlip", "checkpoint": checkpoint, "prob": 1.0}
    options: dict[str, Any] = {"metainfo": {"classes": names}}
    with pytest.raises(ValueError, match="DSGANRandomFlip exchanges sides of the classes .* give it the same"):
        DATASETS.build(dataset(checkpoint, pipeline=[flip, PACK], **options))
    plain, flipped = (
        masks(DATASETS.build(dataset(checkpoint, pipeline=steps, **options)))
        for steps in ([PACK], [{**flip, "classes": names}, PACK])
    )
    swap = torch.arange(256)
    swap[0], swap[1] = 1, 0
    for a, b in zip(plain, flipped, strict=True):
        assert torch.equal(b, swap[a.flip(1)])


def test_what_tools_read_of_a_dataset(checkpoint: str, unfiltered: LabeledGenerator) -> None:
    """confusion_matrix.py, browse_dataset.py and the wrappers, by the names of BaseSegDataset."""
    names = (NAMES[OTHERS[-1]], NAMES[OTHERS[0]])
    data = DATASETS.build(dataset(checkpoint, length=6, metainfo={"classes": names}))
    stock = BaseSegDataset(metainfo={"classes": names}, lazy_init=True)
    for name in ("metainfo", "METAINFO", "ignore_index", "reduce_zero_label", "label_map", "img_suffix"):
        assert type(getattr(data, name)) is type(getattr(stock, name)) or name == "label_map", name
    assert (data.ignore_index, data.reduce_zero_label) == (255, False)
    assert data.METAINFO["classes"] == names and set(data.metainfo) == set(stock.metainfo)
    info = data.get_data_info(-1)
    assert info["sample_idx"] == 5
    assert np.asarray(Image.open(io.BytesIO(fileio.get(info["seg_map_path"])))).shape == (16, 16)
    for index, mask in enumerate(unfiltered.generate(range(6)).mask):
        new = relabeled(mask, [[OTHERS[-1]], [OTHERS[0]]])
        assert data.get_cat_ids(index) == [i for i in new.unique().tolist() if i != 255]
    data.metainfo["classes"] = ()
    assert data.metainfo["classes"] == names


def test_the_wrappers_take_it(checkpoint: str) -> None:
    faces = dataset(checkpoint, length=6, pipeline=[PACK])
    repeated = DATASETS.build({"type": "RepeatDataset", "dataset": faces, "times": 3})
    balanced = DATASETS.build({"type": "ClassBalancedDataset", "dataset": faces, "oversample_thr": 0.9})
    joined = DATASETS.build({"type": "ConcatDataset", "datasets": [faces, faces]})
    assert (len(repeated), len(joined)) == (18, 12) and len(balanced) >= 6
    for wrapper in (repeated, balanced, joined):
        assert wrapper.metainfo["classes"] == NAMES
        assert wrapper[5]["data_samples"].gt_sem_seg.data.shape == (1, 16, 16)
        assert wrapper.get_data_info(5)["seg_map_path"].endswith(".png")


def test_arrays_may_be_drawn_on_and_changed(checkpoint: str) -> None:
    """OpenCV draws on contiguous, writable arrays only; a change does not reach the next sample."""
    data = DATASETS.build(dataset(checkpoint, pipeline=[]))
    before = data[2]["img"].copy()
    for item in (data[2], *data.__getitems__([2, 3])):
        for name in ("img", "gt_seg_map"):
            assert item[name].flags.c_contiguous and item[name].flags.writeable, name
            item[name][:] = 7
    assert np.array_equal(data[2]["img"], before)
