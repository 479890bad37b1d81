"""A checkpoint whose samples have all kinds of labels: masks, keypoints and a map of depth."""

from __future__ import annotations

import torch
from conftest import SCHEMA, small_ensemble, small_labeled

from dsgan_datasets import InterpretedLabeler, LabeledGenerator
from dsgan_datasets.interpreters.keypoint_ensemble import KeypointEnsemble
from dsgan_datasets.interpreters.map_ensemble import MapEnsemble
from dsgan_datasets.targets.base import Target
from dsgan_datasets.targets.dense_map import DenseMap
from dsgan_datasets.targets.keypoints import Keypoints

POINTS = Keypoints(("nose", "left_eye", "right_eye"), skeleton=((0, 1), (0, 2)), flip_pairs=((1, 2),))
DEPTH = DenseMap("depth", low=-1.5, high=1.5, unit="m")


def labeled_with(*kinds: str) -> LabeledGenerator:
    """16-pixel samples with some of "mask", "keypoints", "depth"; accepts every draw."""
    stock = small_labeled()
    channels, layout = list(stock.generator.feature_channels), stock.generator.features

    def weights(outputs: int) -> dict[str, torch.Tensor]:
        return dict(small_ensemble(channels, classes=outputs, seed=outputs).state_dict())

    interpreters = {
        "mask": small_ensemble(channels, layout=layout, seed=33),  # all classes in nearly every sample
        "keypoints": KeypointEnsemble(weights(2 * POINTS.num_points), sigma=0.1, layout=layout, channels=channels),
        "depth": MapEnsemble(
            weights(1), field="depth", low=DEPTH.low, high=DEPTH.high, layout=layout, channels=channels
        ),
    }
    targets: dict[str, Target] = {"mask": SCHEMA, "keypoints": POINTS, "depth": DEPTH}
    labeler = InterpretedLabeler(
        stock.generator, [interpreters[kind] for kind in kinds], [targets[kind] for kind in kinds]
    )
    return LabeledGenerator(labeler, stock.recipe)
