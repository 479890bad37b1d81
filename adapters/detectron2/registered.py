"""A registered dataset: where its samples are addressed, what its classes are called, and its records."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any, Literal, get_args, overload

import numpy as np
from detectron2.structures import BoxMode
from pycocotools import mask as rle
from torch import Tensor

from dsgan_datasets._deprecation import moved
from dsgan_datasets.adapters.detectron2.tasks import TASKS, TaskName
from dsgan_datasets.checks import integer
from dsgan_datasets.latents import MAX_INDEX, check_seed
from dsgan_datasets.polygons import mask_to_polygons
from dsgan_datasets.samples import Sample, SampleBatch
from dsgan_datasets.sources.addresses import SampleAddress, parse
from dsgan_datasets.sources.base import NamedSource
from dsgan_datasets.targets.instances import InstanceMode

MaskFormat = Literal["bitmask", "polygon"]
Record = dict[str, Any]

#: Extensions of what `paths.encode` makes of a sample.
_EXTENSIONS = {"image": "ppm", "mask": "pgm"}

#: name -> dataset, in this process: what an address is resolved against.
REGISTERED: dict[str, RegisteredDataset] = {}


class RegisteredDataset:
    """Samples of a source and a seed under a name; the other arguments are those of `register`.

    There is one such object per name in each process. Sent to another process it becomes that process's own, so that
    paths resolve there; the weights load there when the first sample is needed.

    Attributes:
        source: the checkpoint, or the shards.
        length: number of samples; None: without end.
        labels: what the task makes of a sample's labels.
    """

    def __init__(
        self,
        name: str,
        source: NamedSource,
        *,
        seed: int = 0,
        length: int | None = None,
        task: TaskName = "sem_seg",
        things: Sequence[str] | None = None,
        instances: InstanceMode | None = None,
        min_instance_area: int | None = None,
        mask_format: MaskFormat = "polygon",
    ) -> None:
        if not isinstance(name, str) or not name:
            raise ValueError(f"name must be a word, not {name!r}")
        _check_choice("task", task, TaskName)
        _check_choice("mask_format", mask_format, MaskFormat)
        self.name = name
        self.source = source
        self.seed = check_seed(seed)
        self.length = None if length is None else integer("length", length, 1, MAX_INDEX + 1)
        self.task: TaskName = task
        self.mask_format: MaskFormat = mask_format
        self.height, self.width = source.image_size
        self.labels = TASKS[task](source, things=things, instances=instances, min_instance_area=min_instance_area)
        self.fingerprint = source.fingerprint
        self._block: dict[int, Sample] = {}

    @property
    def identity(self) -> dict[str, Any]:
        """What two registrations under one name must have in common."""
        return {
            **self.source.identity,
            "fingerprint": self.fingerprint,
            "seed": self.seed,
            "length": self.length,
            "task": self.task,
            **self.labels.identity,
            "mask_format": self.mask_format,
        }

    def path(self, index: int, kind: str) -> str:
        """Address of a sample's "image" or "mask"."""
        return str(SampleAddress(self.fingerprint[:8], kind, self.name, self.seed, index, _EXTENSIONS[kind]))

    def record(self, index: int) -> Record:
        """One sample in Detectron2's dataset format; nothing is generated for it."""
        record: Record = {
            "file_name": self.path(index, "image"),
            "height": self.height,
            "width": self.width,
            "image_id": index,
        }
        if self.labels.semantic:
            record["sem_seg_file_name"] = self.path(index, "mask")
        if self.labels.counted:
            record["annotations"] = LazyAnnotations(lambda: self.annotations(index))
        return record

    def sample(self, index: int) -> Sample:
        """A sample; generated or read again unless it is among those of the last batch."""
        block = self._block
        if index not in block:
            # What costs no more than this sample alone, as sets are often read in order.
            size = max(self.source.block, self.source.group)
            first = index - index % size
            numbers = range(first, min(first + size, self.length or MAX_INDEX + 1))
            block = self.keep(numbers, self.source.batch(numbers, seed=self.seed))
        return block[index]

    def keep(self, numbers: Sequence[int], batch: SampleBatch) -> dict[int, Sample]:
        """Make these the samples that need not be generated again."""
        self._block = block = dict(zip(numbers, batch.rows(), strict=True))
        return block

    def annotations(self, index: int) -> list[dict[str, Any]]:
        """Instances of a sample in Detectron2's dataset format: boxes, masks as RLE or exact polygons, keypoints."""
        found = self.labels.instances(self.sample(index))
        annotations: list[dict[str, Any]] = [
            {"bbox": box, "bbox_mode": BoxMode.XYXY_ABS, "category_id": category, "iscrowd": 0}
            for box, category in zip(found.boxes.tolist(), found.categories.tolist(), strict=True)
        ]
        if found.masks is not None:
            for annotation, mask in zip(annotations, self._encoded(found.masks), strict=True):
                annotation["segmentation"] = mask
        if found.keypoints is not None:
            for annotation, points in zip(annotations, found.keypoints.flatten(1).tolist(), strict=True):
                annotation["keypoints"] = points
        return annotations

    def _encoded(self, masks: Tensor) -> list[Any]:
        """Bool masks [I, H, W] in the dataset's `mask_format`."""
        if self.mask_format == "polygon":
            outlines = map(mask_to_polygons, masks.cpu().numpy())
            return [[polygon.flatten().astype(float).tolist() for polygon in polygons] for polygons in outlines]
        # pycocotools takes [H, W, I] in column-major order
        return list(rle.encode(np.asfortranarray(masks.permute(1, 2, 0).byte().cpu().numpy())))

    def __reduce__(self) -> tuple[Any, ...]:
        return _received, ({**self.__dict__, "_block": {}},)


def intern(dataset: RegisteredDataset) -> RegisteredDataset:
    """The dataset of that name in this process: this one, unless an equal one is there already.

    Raises:
        ValueError: the name belongs to another dataset; the message names what differs.
    """
    known = REGISTERED.setdefault(dataset.name, dataset)
    for argument, value in dataset.identity.items():
        if (before := known.identity.get(argument)) != value:
            raise ValueError(
                f"dataset {dataset.name!r} is already registered with {argument} {before!r}, not "
                f"{value!r}: choose another name, or take it out of DatasetCatalog and MetadataCatalog first"
            )
    return known


def forget(name: str) -> None:
    """Free a name."""
    REGISTERED.pop(name, None)


def lookup(name: str) -> RegisteredDataset:
    """The dataset that is registered under a name; ValueError lists the names if there is none."""
    if name not in REGISTERED:
        raise ValueError(f"no generated dataset {name!r}; registered are: {', '.join(REGISTERED) or 'none'}")
    return REGISTERED[name]


def resolve(path: str) -> tuple[RegisteredDataset, int, str]:
    """The dataset, index and kind ("image" or "mask") that a path names.

    Raises:
        FileNotFoundError: there is no such sample; the message says why.
    """
    address = parse(path)
    name, index = address.name, address.index
    if address.kind not in _EXTENSIONS:
        raise FileNotFoundError(f"{path}: Detectron2 reads only {' and '.join(_EXTENSIONS)} by an address")
    if name not in REGISTERED:
        raise FileNotFoundError(f"{path}: {name!r} is not registered in this process; call register({name!r}, …)")
    dataset = REGISTERED[name]
    if (address.seed, address.fingerprint) != (dataset.seed, dataset.fingerprint[:8]):
        raise FileNotFoundError(
            f"{path} belongs to seed {address.seed} and fingerprint {address.fingerprint}, but {name!r} is registered "
            f"with seed {dataset.seed} and fingerprint {dataset.fingerprint[:8]}: it is a sample of another dataset"
        )
    last = MAX_INDEX if dataset.length is None else dataset.length - 1
    if index > last:
        raise FileNotFoundError(f"{path}: the index must be in 0 … {last}")
    return dataset, index, address.kind


class LazyAnnotations(Sequence[dict[str, Any]]):
    """Annotations of a record, encoded when they are first read; copied or pickled they are a plain list.

    A stock mapper copies the record and gets the list. The fast path never reads it, and nothing is encoded.

    Args:
        make: returns the list.
    """

    def __init__(self, make: Callable[[], list[dict[str, Any]]]) -> None:
        self._make = make

    @cached_property
    def _items(self) -> list[dict[str, Any]]:
        return self._make()

    @overload
    def __getitem__(self, index: int) -> dict[str, Any]: ...
    @overload
    def __getitem__(self, index: slice) -> list[dict[str, Any]]: ...
    def __getitem__(self, index: int | slice) -> dict[str, Any] | list[dict[str, Any]]:
        return self._items[index]

    def __len__(self) -> int:
        return len(self._items)

    def __reduce__(self) -> tuple[Any, ...]:
        return list, (self._items,)


def _received(state: dict[str, Any]) -> RegisteredDataset:
    """This process's dataset for one that was sent here."""
    dataset = RegisteredDataset.__new__(RegisteredDataset)
    dataset.__dict__.update(state)
    return intern(dataset)


def _check_choice(name: str, value: Any, choices: Any) -> None:
    if value not in get_args(choices):
        raise ValueError(f"{name} must be one of {', '.join(get_args(choices))}, not {value!r}")


__getattr__ = moved(__name__, {"Annotations": f"{__name__}:LazyAnnotations"})
