"""What a `LabeledGenerator` schedules: latents -> image, labels and, where there is one, uncertainty."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, Self

import torch
from torch import Tensor

from dsgan_datasets.generators.base import FeatureGenerator
from dsgan_datasets.recipe import Recipe
from dsgan_datasets.targets.base import Target


@dataclass(frozen=True)
class Part:
    """A network of a labeler as a checkpoint stores it: what builds it, and its tensors.

    Example:
        >>> labeler = LabeledGenerator.from_pretrained("demo-faces", device="cpu").labeler
        >>> {stem: part.config["architecture"] for stem, part in labeler.parts().items()}
        {'generator': 'stylegan2', 'interpreter': 'pixel_ensemble'}
    """

    config: Mapping[str, Any]
    tensors: Mapping[str, Tensor]


class Labeler(Protocol):
    """A source of labeled images that scheduling, filter and checkpoints know nothing more about.

    Attributes:
        kind: name in config.json: "interpreted" or "joint".
        generator: gives the style vectors (z_dim, c_dim, num_ws, mean_w) and the resolution.
        targets: its labels, in order.
        has_uncertainty: whether `label` gives "uncertainty" and "uncertainty_score".
        scores: field of a label -> field of its score, of the labels that have one: "uncertainty_score" is that of the
            first label, "keypoints_uncertainty_score" that of another one. Beside each score there is the uncertainty
            of every pixel, "keypoints_uncertainty".
        has_probabilities: whether `label` gives "probabilities" if they are among the extras.

    Example:
        >>> labeler: Labeler = LabeledGenerator.from_pretrained("demo-faces", device="cpu").labeler
        >>> labeler.kind, dict(labeler.scores)
        ('interpreted', {'mask': 'uncertainty_score'})
    """

    kind: ClassVar[str]

    @property
    def generator(self) -> FeatureGenerator: ...

    @property
    def targets(self) -> tuple[Target, ...]: ...

    @property
    def has_uncertainty(self) -> bool: ...

    @property
    def scores(self) -> Mapping[str, str]: ...

    @property
    def has_probabilities(self) -> bool: ...

    @property
    def device(self) -> torch.device: ...

    def check(self, recipe: Recipe) -> None:
        """ValueError if the recipe asks for what this labeler cannot give."""

    def label(self, ws: Tensor, recipe: Recipe, extras: Collection[str] = ()) -> dict[str, Tensor]:
        """Fields of style vectors [N, num_ws, w_dim]: "image" uint8 [N, 3, H, W], each target's field, if it has them
        "uncertainty" [N, H, W] and "uncertainty_score" [N], and what is made only if asked for: "probabilities" of the
        classes of the mask, float16 [N, K, H, W]. On a GPU nothing in here waits for the device."""

    def parts(self) -> Mapping[str, Part]:
        """File stem -> network, in the order in which a checkpoint lists them."""

    def with_targets(self, targets: Sequence[Target]) -> Labeler:
        """The same networks whose labels mean something else: merged classes."""

    def to(self, device: torch.device | str) -> Self: ...


class LabelEdits:
    """What becomes of the labels of any labeler: they are rounded as their files hold them, the classes of masks are
    merged and uncertain pixels ignored, as the recipe says.

    Args:
        targets: of the labeler.
    """

    def __init__(self, targets: Sequence[Target]) -> None:
        self._targets = tuple(targets)
        if strangers := [target for target in self._targets if not hasattr(target, "field")]:
            raise ValueError(f"targets must be labels such as a LabelSchema, not {strangers!r:.80}")
        fields = [target.field for target in self._targets]
        if not fields or len(set(fields)) < len(fields):
            raise ValueError(f"a labeler needs a target for each of its labels, and none twice; got {fields}")
        # Made before a CUDA graph is captured, which cannot copy from the host, and kept as long as it may run.
        self._tables: dict[tuple[tuple[int, ...], torch.device], Tensor] = {}

    def __call__(self, labels: Mapping[str, Tensor], uncertainty: Tensor | None, recipe: Recipe) -> dict[str, Tensor]:
        """Labels [N, ...] by field, and "probabilities" where they were asked for, edited; `uncertainty` [N, H, W] or
        None."""
        edited, labeling = dict(labels), recipe.labeling
        edited |= {t.field: t.rounded(edited[t.field]) for t in self._targets if t.field in edited}
        if labeling.class_map is not None and "probabilities" in edited:
            classes = next(len(target.tally_names) for target in self._targets if target.field == "mask")
            edited["probabilities"] = merged_probabilities(edited["probabilities"], labeling.class_map, classes)
        if labeling.class_map is not None and "mask" in edited:
            edited["mask"] = self._table(labeling.class_map, edited["mask"].device)[edited["mask"]]
        if labeling.max_uncertainty is not None and uncertainty is not None:
            pixels = uncertainty > labeling.max_uncertainty
            edited |= {t.field: t.ignore(edited[t.field], pixels) for t in self._targets if t.field in edited}
        return edited

    def _table(self, class_map: tuple[int, ...], device: torch.device) -> Tensor:
        if (class_map, device) not in self._tables:
            self._tables[class_map, device] = torch.tensor(class_map, device=device)
        return self._tables[class_map, device]

    def __getstate__(self) -> dict[str, Any]:
        """Without tables, which belong to a device of this process."""
        return {**self.__dict__, "_tables": {}}


def merged_probabilities(probabilities: Tensor, table: Sequence[int], classes: int) -> Tensor:
    """Probabilities of other classes: those that become one class are added.

    Args:
        probabilities: [..., K, H, W].
        table: new id of each of the K classes; what is of a class with another id than 0 … classes - 1 is dropped.
        classes: how many there are then.

    Example:
        >>> merged_probabilities(torch.tensor([0.5, 0.25, 0.25]).view(3, 1, 1), [0, 1, 1], 2).flatten()
        tensor([0.5000, 0.5000])
    """
    shape = (*probabilities.shape[:-3], classes, *probabilities.shape[-2:])
    merged = torch.zeros(shape, device=probabilities.device)
    for old, new in enumerate(table):  # one after the other: a scattered sum has no order on a GPU
        if new < classes:
            merged[..., new, :, :] += probabilities[..., old, :, :]
    return merged.to(probabilities.dtype)
