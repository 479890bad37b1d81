"""Names in Detectron2's catalogs: from Python and from configs, from checkpoints and from shards."""

from __future__ import annotations

import copy
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import SCHEMA
from PIL import Image

from dsgan_datasets import LabelSchema, ShardError

pytestmark = [pytest.mark.frameworks, pytest.mark.usefixtures("one_thread")]

pycocotools_mask = pytest.importorskip("pycocotools.mask")
pytest.importorskip("detectron2")

import detectron2_support  # noqa: E402
from detectron2.config import CfgNode, get_cfg  # noqa: E402
from detectron2.data import (  # noqa: E402
    DatasetCatalog,
    DatasetMapper,
    MetadataCatalog,
)
from detectron2.utils.file_io import PathManager  # noqa: E402
from detectron2.utils.visualizer import Visualizer  # noqa: E402
from detectron2_support import ARCHITECTURES, config  # noqa: E402

from dsgan_datasets.adapters import detectron2 as adapter  # noqa: E402
from dsgan_datasets.adapters.detectron2 import registered as registry  # noqa: E402
from dsgan_datasets.adapters.detectron2.registered import RegisteredDataset  # noqa: E402

labeled = detectron2_support.labeled
checkpoint = detectron2_support.checkpoint
register = detectron2_support.register
real = detectron2_support.real


def test_metadata_of_each_task(register: Callable[..., RegisteredDataset]) -> None:
    for task in ("sem_seg", "instances", "panoptic"):
        register(task, task=task)
    register("object", task="instances", instances="object")
    colors = [list(color) for color in SCHEMA.palette]
    sem_seg, instances, panoptic, whole = map(MetadataCatalog.get, ("sem_seg", "instances", "panoptic", "object"))
    assert (sem_seg.stuff_classes, sem_seg.stuff_colors) == (list(SCHEMA.classes), colors)
    assert (sem_seg.ignore_label, sem_seg.evaluator_type) == (255, "sem_seg")
    assert sem_seg.stuff_dataset_id_to_contiguous_id == {0: 0, 1: 1, 2: 2, 3: 3}
    assert sem_seg.get("thing_classes") is None and instances.get("stuff_classes") is None
    assert (instances.thing_classes, instances.thing_colors) == (["left", "right", "hat"], colors[1:])
    assert instances.thing_dataset_id_to_contiguous_id == {1: 0, 2: 1, 3: 2}
    assert (instances.evaluator_type, panoptic.evaluator_type) == ("coco", "coco_panoptic_seg")
    assert (panoptic.stuff_classes, panoptic.thing_classes) == (["things", "background"], ["left", "right", "hat"])
    assert whole.thing_classes == ["object"] and whole.thing_dataset_id_to_contiguous_id == {1: 0}


def test_registering_reads_config_json_only(checkpoint: str, tmp_path: Path, clean: None) -> None:
    (tmp_path / "config.json").write_bytes((Path(checkpoint) / "config.json").read_bytes())
    dataset = adapter.register("no_weights", tmp_path, task="panoptic", device="cpu")
    assert len(DatasetCatalog.get("no_weights").registered.fingerprint) == 64
    assert dataset.record(7)["height"] == 16  # a record needs no sample
    with pytest.raises(Exception, match="safetensors"):
        dataset.sample(7)


def test_the_same_again_is_fine_and_anything_else_is_not(register: Callable[..., RegisteredDataset]) -> None:
    first = register()
    assert register() is first
    for different in ({"seed": 6}, {"length": 3}, {"task": "instances"}, {"truncation_psi": 0.5}):
        with pytest.raises(ValueError, match="'small' is already registered with"):
            register(**different)
    register("parts", task="instances")
    with pytest.raises(ValueError, match=r"'parts' is already registered with things \('left', .*\), not \('hat',\)"):
        register("parts", task="instances", things=["hat"])
    DatasetCatalog.register("taken", list)
    with pytest.raises(ValueError, match="'taken' is taken"):
        register("taken")
    DatasetCatalog.remove("small")
    MetadataCatalog.remove("small")
    assert register(seed=6).seed == 6  # as Detectron2 users make a name free


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"task": "semantic"}, "task must be one of sem_seg, instances, panoptic, keypoints, not 'semantic'"),
        ({"instances": "parts", "task": "instances"}, "instances must be one of classes, components, object"),
        ({"things": ["nose"], "task": "instances"}, "no class 'nose'; the classes are: background, left"),
        ({"things": [], "task": "instances"}, "at least one class"),
        ({"length": 0}, "length must be an integer in 1 …"),
        ({"min_instance_area": 0, "task": "panoptic"}, "min_instance_area must be an integer of at least 1"),
        ({"things": ["left"]}, "things has no effect here, as the task is sem_seg"),
        ({"instances": "classes"}, "instances has no effect here, as the task is sem_seg"),
        (
            {"things": ["left"], "min_instance_area": 1},
            "things, min_instance_area have no effect here, as the task is sem_seg, .*: leave them out",
        ),
        ({"psii": 1}, "no such recipe field: psii; the fields are: class_label"),
        ({"name": ""}, "name must be a word"),
    ],
)
def test_wrong_arguments(register: Callable[..., RegisteredDataset], arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        register(**arguments)
    assert "small" not in DatasetCatalog


def test_config_node(checkpoint: str, clean: None, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(
        f"""
DSGAN:
  DATASETS:
    - {{name: train, checkpoint: {checkpoint}, task: instances, instances: components, device: cpu}}
    - {{NAME: test, CHECKPOINT: {checkpoint}, SEED: 1, LENGTH: 4, TRUNCATION_PSI: 0.5}}
DATASETS: {{TRAIN: [train], TEST: [test]}}
"""
    )
    cfg = get_cfg()
    adapter.add_dsgan_config(cfg)
    cfg.merge_from_file(str(tmp_path / "config.yaml"))
    cfg.freeze()
    with pytest.warns(UserWarning, match="train, test has left and right parts: the stock DatasetMapper"):
        adapter.register_from_config(cfg)
    assert cfg.INPUT.MASK_FORMAT == "bitmask"
    assert len(DatasetCatalog.get("test")) == 4 and registry.lookup("train").labels.rule.mode == "components"
    assert registry.lookup("test").source.description.recipe.truncation_psi == 0.5
    cfg = cfg.clone()
    cfg.defrost()
    cfg.INPUT.RANDOM_FLIP = "none"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        adapter.register_from_config(cfg)  # twice is fine


def test_old_recipe_names_work_with_a_warning(register: Callable[..., RegisteredDataset]) -> None:
    with pytest.warns(DeprecationWarning, match="use truncation_psi") as warned:
        old = register(psi=0.5)
    assert warned[0].filename.endswith("detectron2_support.py")  # who called, not the library
    assert old.fingerprint == register("new", truncation_psi=0.5).fingerprint


@pytest.mark.parametrize(
    ("key", "entry", "message"),
    [
        (
            "DATASETS",
            {"name": "x", "checkpoint": "demo-faces", "sed": 1},
            "unknown keys sed; allowed: name, checkpoint, s",
        ),
        ("DATASETS", {"name": "x"}, r"lacks checkpoint \(a path, .* such as demo-faces, .*; or shards: a folder"),
        ("DATASETS", {"checkpoint": "demo-faces"}, r"lacks name \(the entry of DATASETS.TRAIN or DATASETS.TEST\)"),
        ("DATASETS", {"shards": "x"}, r"lacks name \(the entry"),
        ("DATASETS", {"name": "x", "shards": "x", "seed": 1}, "unknown keys seed; allowed: name, shards, length"),
        ("MIXTURES", {"name": "m", "generated": "no"}, r"lacks real \(the name of a dataset in DatasetCatalog\)"),
        ("DATASETS", "demo-faces", "must be a mapping with the keys name, checkpoint"),
        ("DATASETS", {"name": "x", "checkpoint": "demo-fases"}, "demo-fases"),
        ("DATASETS", {"name": "x", "checkpoint": "demo-faces", "truncation_psi": 9}, "truncation_psi must be"),
        ("MIXTURES", {"name": "m", "generated": "no", "real": "x"}, "no generated dataset 'no'"),
        ("MIXTURES", {"name": "m", "generated": "ok", "real": "x", "generated_fraction": 1.5}, "between 0 and 1"),
    ],
)
def test_wrong_entries_are_named(clean: None, key: str, entry: Any, message: str) -> None:
    cfg = get_cfg()
    adapter.add_dsgan_config(cfg)
    cfg.DSGAN.DATASETS = [{"name": "ok", "checkpoint": "demo-faces"}]
    cfg.DSGAN[key] = [*(cfg.DSGAN.DATASETS if key == "DATASETS" else []), entry]
    with pytest.raises(ValueError, match=rf"DSGAN.{key}\[{1 if key == 'DATASETS' else 0}\].*{message}"):
        adapter.register_from_config(cfg)
    with pytest.raises(ValueError, match="add_dsgan_config"):
        adapter.register_from_config(CfgNode())
    for function in (adapter.add_dsgan_config, adapter.register_from_config):
        with pytest.raises(ValueError, match=r"cfg must be a config of Detectron2, .*get_cfg\(\).*, not None"):
            function(None)


@pytest.mark.parametrize("task", ["sem_seg", "instances"])
def test_shards_give_what_the_checkpoint_gave(clean: None, tmp_path: Path, tars: str, task: str) -> None:
    of_task = {"task": task} if task == "sem_seg" else {"task": task, "things": ["skin", "hair"]}
    adapter.register_shards("read", tars, **of_task, length=3)
    adapter.register("made", "demo-faces", **of_task, seed=4, device="cpu")
    assert MetadataCatalog.get("read").as_dict().keys() == MetadataCatalog.get("made").as_dict().keys()
    read, made = DatasetCatalog.get("read"), registry.lookup("made")
    assert [record["image_id"] for record in read] == [0, 1, 2]
    cfg = config(tmp_path, ARCHITECTURES[task], INPUT__MIN_SIZE_TRAIN=(64,))
    for mapper in (DatasetMapper(cfg, True), adapter.DSGANDatasetMapper(cfg, True)):
        for place, record in enumerate(read):
            ours, theirs = mapper(copy.deepcopy(record)), mapper(made.record(100 + place))
            assert torch.equal(ours["image"], theirs["image"])
            if task == "sem_seg":
                assert torch.equal(ours["sem_seg"], theirs["sem_seg"])
            else:
                assert torch.equal(ours["instances"].gt_masks.tensor, theirs["instances"].gt_masks.tensor)
                assert torch.equal(ours["instances"].gt_boxes.tensor, theirs["instances"].gt_boxes.tensor)


def test_shards_that_are_refused(clean: None, checkpoint: str, tars: str, tmp_path: Path) -> None:
    with pytest.raises(ShardError, match=r"nowhere has no manifest.json"):
        adapter.register_shards("faces", str(tmp_path / "nowhere"))
    with pytest.raises(ValueError, match="length must be an integer in 1 … 24, not 25"):
        adapter.register_shards("faces", tars, length=25)
    adapter.register_shards("faces", tars)
    adapter.register_shards("faces", tars)
    with pytest.raises(ValueError, match="already registered with checkpoint None"):
        adapter.register("faces", checkpoint, device="cpu")
    with pytest.raises(ValueError, match="already registered with length 24, not 5"):
        adapter.register_shards("faces", tars, length=5)
    with pytest.raises(ValueError, match="is read from shards, which have an end"):
        adapter.RecordStream("faces")
    with pytest.raises(ValueError, match="name both datasets in DATASETS.TRAIN"):
        adapter.register_mixture("mixed", "faces", "photos")
    cfg = config(tmp_path)
    cfg.DSGAN.DATASETS = [{"name": "other", "shards": tars, "truncation_psi": 0.5}]
    with pytest.raises(
        ValueError, match=r"DSGAN.DATASETS\[0\].*unknown keys truncation_psi; allowed: name, shards, length, task"
    ):
        adapter.register_from_config(cfg)


@pytest.mark.parametrize("task", ["sem_seg", "instances", "panoptic"])
def test_visualizer_draws_records(register: Callable[..., RegisteredDataset], task: str) -> None:
    record = register(task=task).record(0)
    with PathManager.open(record["file_name"], "rb") as file:
        image = np.array(Image.open(file))
    drawn = Visualizer(image, MetadataCatalog.get("small"), scale=4).draw_dataset_dict(record).get_image()
    assert drawn.shape == (64, 64, 3) and len(np.unique(drawn)) > 10


def test_without_detectron2_the_import_says_what_to_install(tmp_path: Path) -> None:
    code = (
        "import sys, dsgan_datasets, dsgan_datasets.adapters\n"
        "assert not any(m.partition('.')[0] == 'detectron2' for m in sys.modules)\n"
        "sys.modules['detectron2'] = None\n"
        "try: import dsgan_datasets.adapters.detectron2\n"
        "except ImportError as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert "needs Detectron2" in done.stdout and "`dsgan install detectron2`" in done.stdout, done.stderr


def test_schema_without_sides_does_not_warn(clean: None) -> None:
    assert not LabelSchema(("a", "b")).flip_pairs
    cfg = get_cfg()
    adapter.add_dsgan_config(cfg)
    cfg.DSGAN.DATASETS = [{"name": "faces", "checkpoint": "demo-faces"}]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        adapter.register_from_config(cfg)


@pytest.mark.parametrize("entries", [None, 5, "faces"])
@pytest.mark.parametrize("key", ["DATASETS", "MIXTURES"])
def test_entries_that_are_no_list_are_refused_by_key(key: str, entries: Any) -> None:
    cfg = get_cfg()
    adapter.add_dsgan_config(cfg)
    cfg.DSGAN[key] = entries
    with pytest.raises(ValueError, match=f"DSGAN.{key} must be a list"):
        adapter.register_from_config(cfg)
