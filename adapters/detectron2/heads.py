"""Whether a model's heads fit a registered dataset, asked before the first step: later it is an index out of bounds."""

from __future__ import annotations

from operator import attrgetter
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog

_THINGS = {"thing_classes": "MODEL.ROI_HEADS.NUM_CLASSES"}
_STUFF = {"stuff_classes": "MODEL.SEM_SEG_HEAD.NUM_CLASSES"}

#: MODEL.META_ARCHITECTURE -> the task that a dataset must have, and which key counts what its metadata name.
_ARCHITECTURES: dict[str, tuple[str, dict[str, str]]] = {
    "GeneralizedRCNN": ("instances", _THINGS),
    "RetinaNet": ("instances", {"thing_classes": "MODEL.RETINANET.NUM_CLASSES"}),
    "SemanticSegmentor": ("sem_seg", _STUFF),
    "PanopticFPN": ("panoptic", _THINGS | _STUFF),
}

#: The same of a model that was built without a config; of other models nothing is known.
_ATTRIBUTES = {"thing_classes": "roi_heads.num_classes", "stuff_classes": "sem_seg_head.predictor.out_channels"}


def check_config(cfg: CfgNode, name: str) -> None:
    """ValueError if the model of a config has another number of classes than a dataset; the message names them.

    Architectures other than Detectron2's own are not checked.
    """
    architecture = cfg.MODEL.META_ARCHITECTURE
    task, counts = _ARCHITECTURES.get(architecture, ("", {}))
    if counts and cfg.MODEL.KEYPOINT_ON:
        task, counts = "keypoints", {**counts, "keypoint_names": "MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS"}
    metadata = MetadataCatalog.get(name)
    for kind, key in counts.items():
        if metadata.get(kind) is None:
            raise ValueError(
                f"the model (MODEL.META_ARCHITECTURE {architecture}) needs {kind}, which dataset {name!r} does not "
                f"have: register it with task: {task}"
            )
        _check(name, kind, key, attrgetter(key)(cfg))


def check_model(model: Any, name: str) -> None:
    """The same for a model that is built, as from a LazyConfig."""
    for kind, attribute in _ATTRIBUTES.items():
        try:
            found = attrgetter(attribute)(getattr(model, "module", model))
        except AttributeError:
            continue
        if isinstance(found, int) and MetadataCatalog.get(name).get(kind) is not None:
            _check(name, kind, f"model.{attribute}", found)


def _check(name: str, kind: str, key: str, found: int) -> None:
    classes = MetadataCatalog.get(name).get(kind)
    if found != len(classes):
        raise ValueError(
            f"{key} is {found}, but dataset {name!r} has {len(classes)} {kind}: {', '.join(classes)}; set it to "
            f"{len(classes)}"
        )
