"""Mask R-CNN from the model zoo on the parts of faces, as a LazyConfig.

    python examples/detectron2/train_lazy.py --config-file examples/detectron2/lazy.py [train.max_iter=100 …]

Detectron2's own tools/lazyconfig_train_net.py takes this file as well.
"""

from detectron2 import model_zoo
from detectron2.config import LazyCall as L
from detectron2.data import build_detection_test_loader, build_detection_train_loader, get_detection_dataset_dicts
from omegaconf import OmegaConf

from dsgan_datasets.adapters.detectron2 import DSGANDatasetMapper, build_evaluator, register

register("parts_train", "demo-faces", task="instances")
register("parts_val", "demo-faces", task="instances", seed=1, length=20)

dataloader = OmegaConf.create()
dataloader.train = L(build_detection_train_loader)(
    dataset=L(get_detection_dataset_dicts)(names="parts_train"),
    mapper=L(DSGANDatasetMapper)(is_train=True, image_format="BGR", flip_prob=0.5),
    total_batch_size=4,
    num_workers=0,
)
dataloader.test = L(build_detection_test_loader)(
    dataset=L(get_detection_dataset_dicts)(names="parts_val", filter_empty=False),
    mapper=L(DSGANDatasetMapper)(is_train=False, image_format="BGR"),
)
dataloader.evaluator = L(build_evaluator)(name="parts_val", output_dir="output/lazy")

model = model_zoo.get_config("common/models/mask_rcnn_fpn.py").model
model.roi_heads.num_classes = 11
model.backbone.bottom_up.freeze_at = 0  # from scratch: nothing to freeze
model.backbone.bottom_up.stem.norm = model.backbone.bottom_up.stages.norm = "BN"
model.proposal_generator.anchor_generator.sizes = [[4], [8], [16], [32], [64]]
model.pixel_std = [58.0, 57.0, 57.0]

optimizer = model_zoo.get_config("common/optim.py").SGD
optimizer.lr = 0.002
lr_multiplier = model_zoo.get_config("common/coco_schedule.py").lr_multiplier_1x
train = model_zoo.get_config("common/train.py").train
train.update(device="cpu", init_checkpoint="", output_dir="output/lazy", max_iter=100)
