"""Generated sets, alone or beside images in files, as a dataset of Ultralytics."""

from __future__ import annotations

import random
from collections.abc import Sequence
from copy import deepcopy
from typing import Any

import numpy as np
from ultralytics.data.augment import RandomFlip
from ultralytics.data.dataset import YOLODataset

from dsgan_datasets.adapters.ultralytics.generated import Array, GeneratedSet, resized

#: Generated samples that Ultralytics looks at before it trains: for plots, class weights and the memory it will need.
_LOOKED_AT = 32

#: Samples that Mosaic chooses from are the last ones, at most.
_LONGEST_BUFFER = 1000


class DSGANYOLODataset(YOLODataset):  # type: ignore[misc]
    """A `YOLODataset` whose images are generated when they are asked for; the trainers of this package make it.

    Indices below the number of files are those files. The others are sample numbers, counted from there: with a
    checkpoint there are more of them than the length says, as every epoch has new ones. Whole batches are generated
    together. Mosaic and all other augmentations work as they do on files, and the horizontal flip exchanges the classes
    of left and right parts.

    Args:
        generated: the samples.
        files: whether `img_path` names images in files, too.
        keep: keep every sample once it was made, for a set that is read in each epoch.
        options: arguments of `YOLODataset`.

    Raises:
        ValueError: ``rect``, which sorts files by their shape; things with sides of which a mirror would make others.
    """

    def __init__(
        self,
        generated: GeneratedSet,
        *,
        img_path: str | list[str],
        files: bool = False,
        keep: bool = False,
        classes: Sequence[int] | None = None,
        batch_size: int = 16,
        **options: Any,
    ) -> None:
        if options.get("rect"):
            raise ValueError("rect=True sorts files by their shape, which generated images do not need: leave it out")
        self.generated = generated
        self.num_files = 0
        self._has_files = files
        self._keep = keep
        self._classes = None if classes is None else np.asarray(classes).reshape(1, -1)
        self._samples: dict[int, tuple[Array, dict[str, Any]]] = {}
        # Its own cache is for files: of generated images, `keep` says what stays.
        super().__init__(img_path=img_path, classes=classes, batch_size=batch_size, **{**options, "cache": None})
        self.ni = len(self)
        self._longest_buffer = min(len(self), batch_size * 8, _LONGEST_BUFFER)
        self.max_buffer_length = len(self) + 1  # never reached: `_trim` shortens the buffer

    def get_img_files(self, img_path: str | list[str]) -> list[str]:
        """Paths of the files; none if everything is generated."""
        return list(super().get_img_files(img_path)) if self._has_files else []

    def get_labels(self) -> list[dict[str, Any]]:
        """Labels of all files, and of the first generated samples: Ultralytics reads them before it trains."""
        labels = list(super().get_labels()) if self._has_files else []
        self.num_files = len(labels)
        numbers = range(min(self.generated.length, _LOOKED_AT))
        self.im_files = [*self.im_files, *map(self.generated.path, range(self.generated.length))]
        return labels + [label for _, label in self.generated.make(numbers)]

    def __len__(self) -> int:
        """Images of an epoch."""
        return self.num_files + self.generated.length

    def __getitems__(self, indices: Sequence[int]) -> list[dict[str, Any]]:
        """Several images, the generated ones made together; a DataLoader asks for whole batches."""
        self._make([index for index in indices if index >= self.num_files and index not in self._samples])
        return [self[index] for index in indices]

    def get_image_and_label(self, index: int) -> dict[str, Any]:
        """An image with its labels before augmentation; Mosaic and the like ask for others by this."""
        if index < self.num_files:
            label: dict[str, Any] = super().get_image_and_label(index)
        else:
            self._make([] if index in self._samples else [index])
            image, label = self._samples[index]
            label = deepcopy(label)
            height, width = label.pop("shape")
            label |= {"img": image, "ori_shape": (height, width), "resized_shape": image.shape[:2]}
            label["ratio_pad"] = (image.shape[0] / height, image.shape[1] / width)
            label = self.update_labels_info(label)
        self._trim(index)
        return label

    def build_transforms(self, hyp: Any) -> Any:
        """Those of Ultralytics, with a horizontal flip that knows left from right."""
        partners = self.generated.labels.partners if self.augment and (hyp.fliplr or hyp.copy_paste) else None
        if partners is not None:
            hyp.copy_paste = 0.0  # it mirrors instances, too
        transforms = super().build_transforms(hyp)
        if partners is not None:
            transforms.transforms = [
                SidedFlip(step, partners) if isinstance(step, RandomFlip) and step.direction == "horizontal" else step
                for step in transforms.transforms
            ]
        return transforms

    def _make(self, indices: Sequence[int]) -> None:
        """Generate samples together, and keep them until they are no longer needed."""
        if not indices:
            return
        for index, (image, label) in zip(
            indices, self.generated.make([index - self.num_files for index in indices]), strict=True
        ):
            if self._classes is not None:
                kept = (label["cls"] == self._classes).any(1)
                label["segments"] = [part for part, keep in zip(label["segments"], kept, strict=False) if keep]
                for key in ("cls", "bboxes", "keypoints"):
                    label[key] = None if label[key] is None else label[key][kept]
            if self.single_cls:
                label["cls"][:] = 0
            side = max(self.imgsz) if isinstance(self.imgsz, tuple | list) else self.imgsz
            self._samples[index] = resized(image, side), label

    def _trim(self, index: int) -> None:
        """Remember that an image was used, and forget the one that Mosaic need not choose from any longer."""
        if not self.augment:
            if not self._keep:
                self._samples.pop(index, None)
            return
        if index not in self.buffer:
            self.buffer.append(index)
        while len(self.buffer) > self._longest_buffer:
            oldest = self.buffer.pop(0)
            if oldest < self.num_files:
                self.ims[oldest] = self.im_hw0[oldest] = self.im_hw[oldest] = None
            else:
                self._samples.pop(oldest, None)

    def __getstate__(self) -> dict[str, Any]:
        """Without the samples: a worker makes its own."""
        return {**self.__dict__, "_samples": {}}


class SidedFlip:
    """A horizontal flip that exchanges the classes of left and right parts.

    Args:
        flip: Ultralytics' own.
        partners: for each class the one that takes its place in a mirror.
    """

    def __init__(self, flip: Any, partners: Array) -> None:
        self.p = flip.p
        self.partners = partners
        self._flip = RandomFlip(p=1.0, direction="horizontal", flip_idx=flip.flip_idx)

    def __call__(self, labels: dict[str, Any]) -> dict[str, Any]:
        """Image and labels, mirrored with probability `p`."""
        if random.random() >= self.p:
            return labels
        mirrored: dict[str, Any] = self._flip(labels)
        classes = mirrored["cls"]
        mirrored["cls"] = self.partners[classes.astype(np.int64)].astype(classes.dtype)
        return mirrored
