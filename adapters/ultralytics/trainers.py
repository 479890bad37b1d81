"""Ultralytics' trainers and validators, for data YAMLs that name generated images."""

from __future__ import annotations

from typing import Any

from ultralytics.models.yolo.detect import DetectionTrainer, DetectionValidator
from ultralytics.models.yolo.pose import PoseTrainer, PoseValidator
from ultralytics.models.yolo.segment import SegmentationTrainer, SegmentationValidator
from ultralytics.utils import colorstr

from dsgan_datasets.adapters.ultralytics.data_yaml import completed, generated_set
from dsgan_datasets.adapters.ultralytics.datasets import DSGANYOLODataset
from dsgan_datasets.adapters.ultralytics.loading import build_loader


class _ReadsGenerated:
    """What trainers and validators share: which dataset a split gets."""

    args: Any
    data: Any

    def _generated_dataset(self, img_path: str, mode: str, batch: int | None, stride: int) -> DSGANYOLODataset | None:
        """The dataset of a split; None if the data YAML has only files for it."""
        generated, files = generated_set(self.data, mode)
        if generated is None:
            return None
        return DSGANYOLODataset(
            generated,
            files=files,
            img_path=img_path,
            imgsz=self.args.imgsz,
            batch_size=batch or 16,
            augment=mode == "train",
            hyp=self.args,
            rect=bool(self.args.rect) and mode == "train",
            single_cls=self.args.single_cls or False,
            stride=stride,
            prefix=colorstr(f"{mode}: "),
            task=self.args.task,
            classes=self.args.classes,
            data=self.data,
        )


class _TrainsOnGenerated(_ReadsGenerated):
    """Goes before a trainer of Ultralytics among the base classes of ours."""

    model: Any
    train_loader: Any

    def get_dataset(self) -> dict[str, Any]:
        """The content of the data YAML, complete."""
        given = self.args.data
        self.args.data = completed(given, self.save_dir, self.args.task)  # type: ignore[attr-defined]
        data: dict[str, Any] = super().get_dataset()  # type: ignore[misc]
        if self.ddp:  # type: ignore[attr-defined]
            # The processes of a multi-GPU training start with an empty folder, and write the complete YAML there.
            self.args.data = given
        return data

    def build_dataset(self, img_path: str, mode: str = "train", batch: int | None = None) -> Any:
        """The dataset of a split: generated, files, or both."""
        model = getattr(self.model, "module", self.model)
        stride = max(int(model.stride.max()), 32)
        generated = self._generated_dataset(img_path, mode, batch, stride)
        return super().build_dataset(img_path, mode, batch) if generated is None else generated  # type: ignore[misc]

    def get_dataloader(self, dataset_path: str, batch_size: int = 16, rank: int = 0, mode: str = "train") -> Any:
        """The loader of a split."""
        if generated_set(self.data, mode)[0] is None:
            return super().get_dataloader(dataset_path, batch_size, rank, mode)  # type: ignore[misc]
        dataset = self.build_dataset(dataset_path, mode, batch_size)
        train = mode == "train"
        return build_loader(
            dataset, batch_size, self.args.workers, train=train, drop_last=bool(self.args.compile) and train
        )

    def run_callbacks(self, event: str) -> None:
        """Callbacks of an event; before those of an epoch, the loader goes to it."""
        if event == "on_train_epoch_start" and hasattr(self.train_loader.sampler, "set_epoch"):
            self.train_loader.sampler.set_epoch(self.epoch)  # type: ignore[attr-defined]
        super().run_callbacks(event)  # type: ignore[misc]


class _ValidatesOnGenerated(_ReadsGenerated):
    """Goes before a validator of Ultralytics among the base classes of ours."""

    stride: Any

    def __call__(self, trainer: Any = None, model: Any = None, **options: Any) -> Any:
        """Validate; see Ultralytics."""
        if trainer is None:
            self.args.data = completed(self.args.data, self.save_dir, self.args.task)  # type: ignore[attr-defined]
        return super().__call__(trainer, model, **options)  # type: ignore[misc]

    def get_dataloader(self, dataset_path: str, batch_size: int) -> Any:
        """The loader of the split."""
        dataset = self._generated_dataset(dataset_path, self.args.split, batch_size, int(self.stride))
        if dataset is None:
            return super().get_dataloader(dataset_path, batch_size)  # type: ignore[misc]
        return build_loader(dataset, batch_size, self.args.workers, train=False)


class DSGANDetectionTrainer(_TrainsOnGenerated, DetectionTrainer):
    """Trains detection on generated images: ``YOLO(…).train(trainer=DSGANDetectionTrainer, data="faces.yaml", …)``.

    See `DSGANSegmentationTrainer`.

    Example:
        >>> YOLO("yolo11n.yaml").train(trainer=DSGANDetectionTrainer, data="faces.yaml", imgsz=64)  # doctest: +SKIP
    """


class DSGANSegmentationTrainer(_TrainsOnGenerated, SegmentationTrainer):
    """Trains instance segmentation on images that are generated meanwhile; nothing of them is written.

    With a data YAML that has one line, ``dsgan: {checkpoint: demo-faces}``::

        YOLO("yolo11n-seg.yaml").train(trainer=DSGANSegmentationTrainer, data="faces.yaml", epochs=100, imgsz=64)

    Keys of ``dsgan`` are the arguments of `GeneratedSet`, and ``val`` with those that differ for validation. Every
    epoch has `length` new samples; a resumed training continues with those of its next epoch. Names of classes come
    from the checkpoint. Images in files may be there, too: under ``train`` they are mixed with the generated ones,
    under ``val`` they are what is validated on.

    Raises:
        ValueError: a ``dsgan`` that is wrong, or a YAML that says something else of the classes.

    Example:
        >>> model = YOLO("yolo11n-seg.yaml")  # doctest: +SKIP
        >>> model.train(trainer=DSGANSegmentationTrainer, data="faces.yaml", imgsz=64)  # doctest: +SKIP
    """


class DSGANPoseTrainer(_TrainsOnGenerated, PoseTrainer):
    """Trains pose estimation on generated images, of a checkpoint with keypoints: one object in each image.

    See `DSGANSegmentationTrainer`; ``kpt_shape``, ``flip_idx`` and names of points come from the checkpoint.

    Example:
        >>> YOLO("yolo11n-pose.yaml").train(trainer=DSGANPoseTrainer, data="points.yaml", imgsz=64)  # doctest: +SKIP
    """


class DSGANDetectionValidator(_ValidatesOnGenerated, DetectionValidator):
    """Validates detection on generated images: ``model.val(validator=DSGANDetectionValidator, data="faces.yaml")``.

    Example:
        >>> model = YOLO("runs/detect/train/weights/best.pt")  # doctest: +SKIP
        >>> found = model.val(validator=DSGANDetectionValidator, data="faces.yaml")  # doctest: +SKIP
    """


class DSGANSegmentationValidator(_ValidatesOnGenerated, SegmentationValidator):
    """Validates segmentation on generated images: ``model.val(validator=DSGANSegmentationValidator, data=…)``.

    Example:
        >>> model = YOLO("runs/segment/train/weights/best.pt")  # doctest: +SKIP
        >>> found = model.val(validator=DSGANSegmentationValidator, data="faces.yaml")  # doctest: +SKIP
    """


class DSGANPoseValidator(_ValidatesOnGenerated, PoseValidator):
    """Validates pose estimation on generated images: ``model.val(validator=DSGANPoseValidator, data="faces.yaml")``.

    Example:
        >>> model = YOLO("runs/pose/train/weights/best.pt")  # doctest: +SKIP
        >>> found = model.val(validator=DSGANPoseValidator, data="points.yaml")  # doctest: +SKIP
    """
