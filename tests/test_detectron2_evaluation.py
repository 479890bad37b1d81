"""Evaluators on finite generated datasets."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from dsgan_datasets import LabeledGenerator

pytestmark = [pytest.mark.frameworks, pytest.mark.usefixtures("one_thread")]

pycocotools_mask = pytest.importorskip("pycocotools.mask")
pytest.importorskip("detectron2")

import detectron2_support  # noqa: E402
from detectron2.data import (  # noqa: E402
    DatasetCatalog,
    MetadataCatalog,
    build_detection_test_loader,
)
from detectron2.evaluation import inference_on_dataset  # noqa: E402
from detectron2_support import StockTrainer, config, train  # noqa: E402

from dsgan_datasets.adapters import detectron2 as adapter  # noqa: E402
from dsgan_datasets.adapters.detectron2.registered import Record, RegisteredDataset  # noqa: E402
from dsgan_datasets.targets.instances import tight_boxes  # noqa: E402

labeled = detectron2_support.labeled
checkpoint = detectron2_support.checkpoint
register = detectron2_support.register
real = detectron2_support.real


class Oracle(torch.nn.Module):
    """Predicts the truth, or half of it."""

    def __init__(self, dataset: RegisteredDataset, labeled: LabeledGenerator) -> None:
        super().__init__()
        self.dataset, self.labeled = dataset, labeled

    def forward(self, inputs: list[Record]) -> list[Record]:
        from detectron2.structures import Boxes, Instances

        outputs = []
        for record in inputs:
            assert not {"instances", "annotations"} & set(record)
            (sample,) = self.labeled.generate([record["image_id"]], seed=self.dataset.seed).rows()
            sem_seg = torch.nn.functional.one_hot(self.dataset.labels.sem_seg(sample.mask), 4).permute(2, 0, 1)
            outputs.append({"sem_seg": sem_seg})
            if self.dataset.labels.counted:
                truth = self.dataset.labels.instances(sample)
                found = Instances((16, 16), pred_boxes=Boxes(tight_boxes(truth.masks)), pred_masks=truth.masks)
                found.pred_classes, found.scores = truth.categories, torch.ones(len(truth.categories))
                outputs[-1]["instances"] = found
        return outputs


@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize("task", ["sem_seg", "instances", "panoptic"])
def test_evaluation_of_a_finite_set(
    register: Callable[..., RegisteredDataset], labeled: LabeledGenerator, tmp_path: Path, task: str, fast: bool
) -> None:
    dataset = register(task=task, length=5)
    cfg = config(tmp_path)
    mapper = adapter.DSGANDatasetMapper(cfg, False) if fast else None
    loader = build_detection_test_loader(cfg, "small", mapper=mapper)
    evaluator = adapter.build_evaluator("small", str(tmp_path))
    results = inference_on_dataset(Oracle(dataset, labeled), loader, evaluator)
    if task != "instances":
        assert results["sem_seg"]["mIoU"] == pytest.approx(100)
    if task != "sem_seg":
        assert results["segm"]["AP"] == pytest.approx(100) and results["bbox"]["AP"] == pytest.approx(100)
    wrong = inference_on_dataset(Oracle(register("other", seed=9, task=task), labeled), loader, evaluator)
    assert (wrong["sem_seg"]["mIoU"] if task != "instances" else wrong["segm"]["AP"]) < 90  # that can fail


def test_no_stale_annotations(
    register: Callable[..., RegisteredDataset], labeled: LabeledGenerator, tmp_path: Path
) -> None:
    """Another seed under the same name in a later run: the evaluator must not take the annotations of the first."""
    for seed in (1, 2):
        dataset = register(seed=seed, task="instances", length=3)
        loader = build_detection_test_loader(config(tmp_path), "small")
        evaluator = adapter.build_evaluator("small", str(tmp_path))
        results = inference_on_dataset(Oracle(dataset, labeled), loader, evaluator)
        assert results["segm"]["AP"] == pytest.approx(100)
        DatasetCatalog.remove("small")
        MetadataCatalog.remove("small")
    with pytest.raises(ValueError, match="evaluator_type None; there are evaluators for sem_seg, coco"):
        adapter.build_evaluator("nothing", str(tmp_path))


def test_a_finite_set_is_a_list(register: Callable[..., RegisteredDataset]) -> None:
    register("set", length=4)
    records = DatasetCatalog.get("set")
    assert [r["image_id"] for r in records] == [0, 1, 2, 3] and records[-1]["image_id"] == 3
    for outside in (4, -5):
        with pytest.raises(IndexError, match="out of range for a dataset of 4"):
            records[outside]
    register("endless")
    with pytest.raises(ValueError, match="'endless' has no end, .*register it with a length"):
        adapter.RecordList("endless")


def test_finite_sets_train_and_mix_with_lists(
    register: Callable[..., RegisteredDataset], real: int, tmp_path: Path
) -> None:
    register("set", length=6)
    cfg = config(tmp_path, train="set", SOLVER__MAX_ITER=3)
    _, seen = train(StockTrainer, cfg)
    assert sorted(itertools.chain(*seen))[:6] == [0, 0, 1, 1, 2, 2]  # stock sampler: two shuffled epochs of six
