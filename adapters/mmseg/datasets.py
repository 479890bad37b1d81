"""Generated samples as datasets of MMSegmentation: map-style, as a stream, and concatenated with real ones."""

from __future__ import annotations

import copy
import inspect
import math
import os
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Callable, Collection, Generator, Iterator, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from mmcv.transforms import LoadAnnotations
from mmengine.dataset import Compose, ConcatDataset
from mmengine.fileio import list_from_file
from mmengine.structures import PixelData
from mmseg.datasets.transforms import LoadDepthAnnotation
from mmseg.registry import DATASETS
from mmseg.structures import SegDataSample
from torch import Tensor
from torch.utils.data import Dataset

from dsgan_datasets.adapters.mmseg.files import SampleStore, open_shards, open_store
from dsgan_datasets.adapters.mmseg.flip import steps_of, warn_about_flips
from dsgan_datasets.adapters.mmseg.heads import check_heads
from dsgan_datasets.checkpoints.directory import CHECKPOINT_IS
from dsgan_datasets.checks import integer, position
from dsgan_datasets.device import Device
from dsgan_datasets.latents import MAX_INDEX, check_seed
from dsgan_datasets.recipe import RENAMED, RecipeOverrides
from dsgan_datasets.samples import SampleBatch
from dsgan_datasets.shards.locations import SHARDS_ARE, Locations
from dsgan_datasets.sources.datasets import SourceStream
from dsgan_datasets.sources.streaming import Uneven
from dsgan_datasets.targets.dense_map import DenseMap
from dsgan_datasets.targets.segmentation import LabelSchema

Item = dict[str, Any]
Pipeline = Sequence[Any] | None
Metainfo = Mapping[str, Any] | None


class _Samples(ABC):
    """What all kinds of dataset share: in which form they hand out samples. Subclasses say so of a kind of label."""

    #: The transform that loads the label by its path, and where it puts it.
    loads: ClassVar[type[Any]]
    key: ClassVar[str]

    def __init__(
        self, store: SampleStore[Any], *, length: int, seed: int, pipeline: Pipeline, metainfo: Metainfo
    ) -> None:
        self.store = store
        self._metainfo = {key: _loaded(value) for key, value in (metainfo or {}).items()}
        self.length = length
        self.seed = seed
        self.pipeline = None if pipeline is None else Compose(pipeline)
        self._loads_labels = any(isinstance(step, self.loads) for step in steps_of(self.pipeline))
        self._check()

    @abstractmethod
    def _check(self) -> None:
        """Raise a ValueError if the source, metainfo, the pipeline or the model does not suit."""

    @abstractmethod
    def _own_facts(self, index: int) -> Item:
        """What loading steps would know of the label."""

    @abstractmethod
    def _arrays(self, batch: SampleBatch) -> np.ndarray[Any, Any]:
        """The labels as their loading step leaves them, [N, H, W]."""

    @abstractmethod
    def _values(self, batch: SampleBatch) -> Tensor:
        """The labels as models take them, [N, 1, H, W], on their device."""

    @property
    @abstractmethod
    def metainfo(self) -> dict[str, Any]:
        """What MMSegmentation asks of a dataset."""

    #: Of the names in paths.
    img_suffix = seg_map_suffix = ".png"

    def full_init(self) -> None:  # noqa: B027
        """Nothing to do: ConcatDataset and RepeatDataset call it to have annotation files read."""

    def get_data_info(self, idx: int) -> Item:
        """What is known of a sample without making it, as BaseSegDataset's annotations say."""
        index = position(idx, self.length)
        return {**self._facts(index, self.store.source.image_size), **self._own_facts(index), "seg_fields": []}

    def _items(self, numbers: Sequence[int], batch: SampleBatch) -> list[Item]:
        """What the DataLoader gets of a batch of the samples with these numbers."""
        if self.pipeline is None:
            return self._packed(numbers, batch)
        items = [self.pipeline(item) for item in self._unpacked(numbers, batch)]
        if None in items:
            raise ValueError(
                f"the pipeline returned None for sample {numbers[items.index(None)]}: it must not drop samples"
            )
        return items

    def _packed(self, numbers: Sequence[int], batch: SampleBatch) -> list[Item]:
        """As PackSegInputs packs them; on the generator's device, masks as views."""
        images = batch.image.flip(1)  # RGB -> BGR
        items = []
        for image, label, index in zip(images, self._values(batch), numbers, strict=True):
            sample = SegDataSample(metainfo={**self._facts(index, tuple(image.shape[1:])), "reduce_zero_label": False})
            sample.set_data({_PACKED.get(self.key, self.key): PixelData(data=label)})
            items.append({"inputs": image, "data_samples": sample})
        return items

    def _unpacked(self, numbers: Sequence[int], batch: SampleBatch) -> Iterator[Item]:
        """As LoadImageFromFile and the label's loading step leave them: numpy arrays, moved to the CPU as one batch."""
        images = batch.image.flip(1).permute(0, 2, 3, 1).contiguous().cpu().numpy()
        for image, label, index in zip(images, self._arrays(batch), numbers, strict=True):
            item = {
                **self._facts(index, image.shape[:2]),
                **self._own_facts(index),
                "img": image,
                "seg_fields": [],
            }
            if not self._loads_labels:  # that step may stand after a resize, and adds the field itself
                item |= {self.key: label, "seg_fields": [self.key]}
            yield item

    def _facts(self, index: int, shape: tuple[int, ...]) -> Item:
        return {
            "img_path": self.store.path("image", self.seed, index),
            "img_shape": shape,
            "ori_shape": shape,
        }


#: What PackSegInputs calls a field.
_PACKED = {"gt_seg_map": "gt_sem_seg"}


class _Masks(_Samples):
    """Masks of class ids."""

    loads = LoadAnnotations
    key = "gt_seg_map"

    #: Ids are those of the classes; 0 is one of them.
    reduce_zero_label = False
    label_map = None

    @property
    def schema(self) -> LabelSchema:
        """What the class ids mean."""
        schema: LabelSchema = self.store.source.schema
        return schema

    @property
    def metainfo(self) -> dict[str, Any]:
        """What MMSegmentation asks of a dataset: classes, palette (RGB), label_map, reduce_zero_label.

        `label_map` is None, as masks have the ids of the classes that were chosen already.
        """
        palette = [list(color) for color in self.schema.palette]
        own = {"classes": self.schema.classes, "palette": palette, "label_map": None, "reduce_zero_label": False}
        return copy.deepcopy({**own, **self._metainfo})

    @property
    def METAINFO(self) -> dict[str, Any]:
        """Classes and palette, where MMSegmentation's tools look for them."""
        return {key: value for key, value in self.metainfo.items() if key in ("classes", "palette")}

    @property
    def ignore_index(self) -> int:
        """The id of ignored pixels."""
        return self.schema.ignore_index

    def get_cat_ids(self, idx: int) -> list[int]:
        """The class ids in a sample's mask, which is made for that; ClassBalancedDataset asks for all of them."""
        mask = self.store.sample(position(idx, self.length), self.seed).mask
        return [i for i in mask.unique().tolist() if i != self.ignore_index]

    def _check(self) -> None:
        palette, classes = self._metainfo.get("palette"), self.schema.classes
        if palette is not None and len(palette) != len(classes):
            raise ValueError(f"metainfo has a palette of {len(palette)} colors for {len(classes)} classes: {classes}")
        warn_about_flips(self.pipeline, self.schema)
        check_heads(classes, of=type(self).__name__)

    def _facts(self, index: int, shape: tuple[int, ...]) -> Item:
        return {**super()._facts(index, shape), "seg_map_path": self.store.path("mask", self.seed, index)}

    def _own_facts(self, index: int) -> Item:
        return {"sample_idx": index, "label_map": None, "reduce_zero_label": False}

    def _arrays(self, batch: SampleBatch) -> np.ndarray[Any, Any]:
        return batch.mask.to(torch.uint8).cpu().numpy()

    def _values(self, batch: SampleBatch) -> Tensor:
        return batch.mask[:, None]


class _Depths(_Samples):
    """Maps of one channel, counted from the low end of their range: above 0 where they are known, and 0 where not."""

    loads = LoadDepthAnnotation
    key = "gt_depth_map"

    @property
    def target(self) -> DenseMap:
        """Range and unit of the map."""
        found = [target for target in self.store.source.targets if isinstance(target, DenseMap)]
        fitting = [target for target in found if target.num_channels == 1]
        if not fitting:
            fields = ", ".join(target.field for target in self.store.source.targets)
            raise ValueError(f"{type(self).__name__} needs a map of one channel; the labels of the samples: {fields}")
        return fitting[0]

    @property
    def metainfo(self) -> dict[str, Any]:
        """The range of what is handed out, and the step of its 16-bit PNG, for ``depth_rescale_factor``."""
        target = self.target
        own = {"max_depth": target.high - target.low + target.step, "depth_rescale_factor": target.step}
        return copy.deepcopy({**own, **self._metainfo})

    def _check(self) -> None:
        target = self.target
        for step in steps_of(self.pipeline):
            if isinstance(step, LoadDepthAnnotation) and not math.isclose(step.depth_rescale_factor, target.step):
                raise ValueError(
                    f"LoadDepthAnnotation has depth_rescale_factor={step.depth_rescale_factor}, but a step of "
                    f"{target.field} is {target.step!r}: set it to that, or leave the step out, as samples "
                    "come with their depth"
                )

    def _own_facts(self, index: int) -> Item:
        path = self.store.path(self.target.field, self.seed, index)
        return {"sample_idx": index, "depth_map_path": path, "category_id": 0}

    def _arrays(self, batch: SampleBatch) -> np.ndarray[Any, Any]:
        return self._values(batch)[:, 0].cpu().numpy()

    def _values(self, batch: SampleBatch) -> Tensor:
        target = self.target
        depth: Tensor = batch[target.field]
        return (depth - (target.low - target.step)).nan_to_num(0)


class _Generated(_Samples):
    """Which samples a checkpoint gives; the arguments are those of `DSGANSegDataset`."""

    def __init__(
        self,
        checkpoint: str | os.PathLike[str] | None = None,
        *,
        length: int | None = None,
        seed: int = 0,
        pipeline: Pipeline = None,
        device: Device = None,
        metainfo: Metainfo = None,
        merge: Mapping[str, Sequence[str]] | None = None,
        **recipe: Any,
    ) -> None:
        fields = list(RecipeOverrides.__annotations__)
        _check_keys(
            type(self),
            unknown=[name for name in recipe if name not in fields and name not in RENAMED],
            more=f", and to change the recipe {', '.join(fields)}. (Keys of a base config's dataset go with "
            "_delete_=True)",
            checkpoint=checkpoint,
            length=length,
        )
        assert checkpoint is not None and length is not None
        length, seed = integer("length", length, 1, MAX_INDEX), check_seed(seed)
        store = open_store(checkpoint, device, recipe, classes=_classes(metainfo), merge=merge)
        super().__init__(store, length=length, seed=seed, pipeline=pipeline, metainfo=metainfo)


class _Shards(_Samples):
    """Which samples shards hold; the arguments are those of `DSGANShardSegDataset`."""

    def __init__(
        self,
        shards: Locations | None = None,
        *,
        length: int | None = None,
        pipeline: Pipeline = None,
        metainfo: Metainfo = None,
        merge: Mapping[str, Sequence[str]] | None = None,
        **unknown: Any,
    ) -> None:
        decided = ". Everything else was decided when the shards were written"
        _check_keys(type(self), unknown=unknown, more=decided, shards=shards)
        assert shards is not None
        store = open_shards(shards, classes=_classes(metainfo), merge=merge)
        samples = store.source.num_samples
        assert samples is not None, "shards have an end"
        length = samples if length is None else integer("length", length, 1, samples)
        super().__init__(store, length=length, seed=0, pipeline=pipeline, metainfo=metainfo)


class _MapStyle(_Samples, Dataset[Item]):
    """Access by number, batch by batch."""

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Item:
        """One sample; negative indices count from the end."""
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[Item]:
        """Several samples, generated together; a stock DataLoader asks for whole batches."""
        numbers = [position(i, self.length) for i in indices]
        return self._items(numbers, self.store.generate(numbers, self.seed))


@DATASETS.register_module()
class DSGANSegDataset(_Generated, _Masks, _MapStyle):
    """Generated samples as an MMSegmentation dataset; whole batches are generated together.

    Building it reads only the checkpoint's config.json. Weights load in the process that first needs a sample, and all
    datasets of a process that use a checkpoint in the same way share them.

    Args:
        checkpoint: a path, the name of a built-in checkpoint, or "hf://org/name".
        length: number of samples; must be given. Sample `i` is the same in a dataset of any length.
        seed: 0 … 2^64-1; another seed is another dataset.
        pipeline: None hands out packed samples on the generator's device, ready for SegDataPreProcessor: ``inputs``
            uint8 BGR [3, H, W], ``data_samples`` with ``gt_sem_seg`` int64 [1, H, W]. A list of transforms (it may be
            empty) gets samples as loaded: ``img`` uint8 BGR [H, W, 3] and ``gt_seg_map`` uint8 [H, W], numpy arrays.
            Loading steps are not needed, but do no harm; LoadAnnotations after a resize keeps masks at full size.
        device: None is the rank's current CUDA device if there is one, else the CPU. On a GPU: ``num_workers=0``.
            "ray" or "ray://HOST:10001" are the workers of a Ray cluster, see `RemoteSource`.
        metainfo: as for BaseSegDataset. ``dict(classes=("skin", "hair"))`` keeps these classes, numbered in this order;
            pixels of others are ignored. ``palette`` has an RGB color for each.
        merge: new class name -> names of the classes it replaces, such as ``dict(eye=["iris", "eye_white"])``; before
            the choice of classes.
        recipe: fields of `Recipe` to change, such as ``truncation_psi=0.5, reject_fraction=0``.

    Raises:
        CheckpointError: there is no such checkpoint, or it is damaged.
        ValueError: an argument that is missing, unknown or out of range.
        IndexError: when asked for a sample at or beyond the length.
        RuntimeError: when asked for a sample in a DataLoader worker, if the device is a GPU.

    Example:
        >>> dataset = DSGANSegDataset("demo-faces", length=100, device="cpu")
        >>> dataset.metainfo["classes"][:3]
        ('background', 'skin', 'neck')
        >>> dataset[7]["inputs"].shape, dataset[7]["data_samples"].img_path.rsplit("/", 2)[1:]
        (torch.Size([3, 64, 64]), ['image', 'demo-faces_0_7.png'])
    """


@DATASETS.register_module()
class DSGANDepthDataset(_Generated, _Depths, _MapStyle):
    """Generated samples with a map of one channel, such as depth, for MMSegmentation's depth estimators.

    MMSegmentation takes depths above 0, and 0 for unknown ones. So values are handed out as value - low + step, where
    `low` is the low end of the map's range and `step` one of 65,534 steps of the range: from a depth of `low` = 0 they
    differ by that step only. It is what LoadDepthAnnotation reads of the map's 16-bit PNG with
    ``depth_rescale_factor=step``; the step is in `metainfo`.

    Args:
        checkpoint, length, seed, device, recipe: see `DSGANSegDataset`.
        pipeline: None hands out packed samples: ``inputs`` uint8 BGR [3, H, W], ``data_samples`` with ``gt_depth_map``
            float32 [1, H, W]. A list of transforms gets samples as loaded: ``img`` uint8 BGR [H, W, 3] and
            ``gt_depth_map`` float32 [H, W], numpy arrays.

    Raises:
        ValueError: the samples have no such map, or a LoadDepthAnnotation with another factor; else as
            `DSGANSegDataset`.

    Example:
        >>> dataset = DSGANDepthDataset("my-depth", length=1000)  # doctest: +SKIP
        >>> dataset[0]["data_samples"].gt_depth_map.data.shape  # doctest: +SKIP
        torch.Size([1, 64, 64])
    """


@DATASETS.register_module()
class DSGANShardSegDataset(_Shards, _Masks, _MapStyle):
    """Samples in tar shards as an MMSegmentation dataset, with random access; nothing is generated.

    Building it reads only the manifest. Samples are read on the CPU: DataLoader workers do their work.

    Args:
        shards: a folder or URL of shards that `dsgan shards write` made, or several.
        length: number of samples, the first ones; None for all.
        pipeline, metainfo, merge: see `DSGANSegDataset`.

    Raises:
        ShardError: no shards, or damaged ones (those that a sample lies in when it is read).
        OSError: they cannot be read.
        ValueError: an argument that is unknown or out of range.
        IndexError: when asked for a sample at or beyond the length.

    Example:
        >>> labeled = LabeledGenerator.from_pretrained("demo-faces", device="cpu")
        >>> _ = write_shards(labeled, tmp / "faces", range(6))
        >>> dataset = DSGANShardSegDataset(tmp / "faces")
        >>> len(dataset), dataset[5]["inputs"].shape
        (6, torch.Size([3, 64, 64]))
    """


@DATASETS.register_module()
class DSGANShardDepthDataset(_Shards, _Depths, _MapStyle):
    """Samples in tar shards with a map of one channel; see `DSGANDepthDataset` and `DSGANShardSegDataset`.

    Example:
        >>> len(DSGANShardDepthDataset("depth-shards"))  # doctest: +SKIP
        1000
    """


class _Stream(_Generated, SourceStream[Item]):
    """Samples one after the other; the arguments are those of `DSGANSegIterableDataset`."""

    length: int

    def __init__(
        self,
        checkpoint: str | os.PathLike[str] | None = None,
        *,
        length: int | None = None,
        start: int = 0,
        global_batch: int | None = None,
        loader_batch_size: int | None = None,
        uneven: Uneven | None = None,
        same_epoch: bool = False,
        prefetch: int | None = None,
        duty_cycle: float = 1.0,
        **options: Any,
    ) -> None:
        _Generated.__init__(self, checkpoint, length=length, **options)
        SourceStream.__init__(
            self,
            self.store.source,
            seed=self.seed,
            start=start,
            length=self.length,
            global_batch=global_batch,
            loader_batch_size=loader_batch_size,
            uneven=uneven,
            same_epoch=same_epoch,
            prefetch=prefetch,
            duty_cycle=duty_cycle,
        )

    def _made(self, numbers: Callable[[], Iterator[int]]) -> Generator[Item]:
        for made, batch in self._batches(numbers):
            self.store.remember(made, batch, self.seed)
            yield from self._items(made, batch)

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.source = self.store.source  # that of this process


@DATASETS.register_module()
class DSGANSegIterableDataset(_Stream, _Masks):
    """Generated samples as a stream, made ahead on a thread; ranks and workers share it without gap or overlap.

    The fastest way on a GPU. In a config: ``sampler=None`` beside it, and `DSGANResumeHook` among the hooks, which
    gives it the global batch (batch size · ranks): the order of the samples is then the same for any number of ranks
    and workers.

    Args:
        checkpoint: see `DSGANSegDataset`, as for all arguments but these.
        length: samples an epoch has, over all ranks; must be given, as MMEngine's logger asks for it. On several ranks
            what does not fill a global batch is left out. When they are used up, the next ones follow.
        start: number of the first sample.
        global_batch, loader_batch_size, uneven, same_epoch, prefetch, duty_cycle: see `DSGANIterableDataset`.

    Raises:
        CheckpointError, ValueError, RuntimeError: see `DSGANSegDataset`.

    Example:
        >>> stream = DSGANSegIterableDataset("demo-faces", length=10**6, device="cpu")
        >>> next(iter(stream))["inputs"].shape, len(stream)
        (torch.Size([3, 64, 64]), 1000000)
    """


@DATASETS.register_module()
class DSGANDepthIterableDataset(_Stream, _Depths):
    """Generated samples with a map of one channel as a stream; see `DSGANDepthDataset`, `DSGANSegIterableDataset`.

    Example:
        >>> stream = DSGANDepthIterableDataset("my-depth", seed=1)  # doctest: +SKIP
        >>> next(iter(stream))["inputs"].dtype  # doctest: +SKIP
        torch.uint8
    """


@DATASETS.register_module()
class DSGANConcatDataset(ConcatDataset):
    """MMEngine's ConcatDataset, which hands each of its datasets the whole of its share of a batch.

    The stock class requests single samples; each then costs a GPU as much as a batch.

    Args:
        datasets: configs, generated and real ones; their classes and palettes must be the same.
        lazy_init, ignore_keys: see https://mmengine.readthedocs.io (``ignore_keys=["palette"]`` for other colors).

    Example:
        >>> faces = dict(type=DSGANSegDataset, checkpoint="demo-faces", device="cpu")
        >>> both = DSGANConcatDataset([dict(faces, length=30), dict(faces, length=10, seed=1)])
        >>> len(both), len(both.__getitems__([3, 35, 4]))
        (40, 3)
    """

    def __init__(
        self,
        datasets: Sequence[Any] | None = None,
        lazy_init: bool = False,
        ignore_keys: str | list[str] | None = None,
        **unknown: Any,
    ) -> None:
        _check_keys(type(self), unknown=unknown, datasets=datasets)
        super().__init__(datasets, lazy_init, ignore_keys)

    def __getitems__(self, indices: Sequence[int]) -> list[Any]:
        """Several samples, in the order asked for."""
        shares: dict[int, list[tuple[int, int]]] = defaultdict(list)
        for place, index in enumerate(indices):
            child, inner = self._get_ori_dataset_idx(index)
            shares[child].append((place, inner))
        items: dict[int, Any] = {}
        for child, share in shares.items():
            places, inner_indices = zip(*share, strict=True)
            items.update(zip(places, _get_items(self.datasets[child], inner_indices), strict=True))
        return [items[place] for place in range(len(indices))]


def _get_items(dataset: Any, indices: Sequence[int]) -> list[Any]:
    """As a DataLoader asks a dataset: for all of them if it can, else one by one."""
    if hasattr(dataset, "__getitems__"):
        items: list[Any] = dataset.__getitems__(indices)
        return items
    return [dataset[i] for i in indices]


def _loaded(value: Any) -> Any:
    """A value of metainfo; as in MMEngine, a text may name a file with a class a line."""
    return list_from_file(value) if isinstance(value, str) and os.path.isfile(value) else value


def _classes(metainfo: Metainfo) -> Sequence[str] | None:
    """The classes that metainfo chooses, if it does.

    Raises:
        ValueError: metainfo is not a dict, or its classes are not names.
    """
    if metainfo is not None and not isinstance(metainfo, Mapping):
        raise ValueError(f"metainfo must be a dict such as dict(classes=('skin', 'hair')), not {metainfo!r:.60}")
    classes = _loaded((metainfo or {}).get("classes"))
    if classes is not None and (isinstance(classes, str) or not all(isinstance(name, str) for name in classes)):
        raise ValueError(f"classes in metainfo must be a list of names, or a file of them, not {classes!r:.60}")
    return classes if classes is None else list(classes)


#: What a key that may be missing from a config says.
_NEEDED = {
    "checkpoint": CHECKPOINT_IS,
    "shards": SHARDS_ARE,
    "datasets": "a list of configs of datasets, generated and real ones",
    "length": "the number of samples in the dataset: any number will do, as samples are made when they are asked for; "
    "for training, iterations * batch size is never seen twice",
}


def _check_keys(dataset: type, *, unknown: Collection[str], more: str = "", **needed: Any) -> None:
    """ValueError for keys of a config that a dataset does not know, or lacks: the one place where that is said.

    Args:
        dataset: its type.
        unknown: keys that are not arguments of it.
        more: what else it takes.
        needed: arguments that it must have; None is one that is missing.
    """
    if unknown:
        bases: list[type] = [_Generated, dataset] if issubclass(dataset, _Generated) else [dataset]
        taken = {name: each for base in bases for name, each in inspect.signature(base).parameters.items()}
        own = [name for name, parameter in taken.items() if parameter.kind is not parameter.VAR_KEYWORD]
        raise ValueError(f"{dataset.__name__} does not know {', '.join(unknown)}: it takes {', '.join(own)}{more}")
    if missing := [key for key, value in needed.items() if value is None]:
        what = "; and ".join(f"{key} ({_NEEDED[key]})" for key in missing)
        raise ValueError(f"{dataset.__name__} needs {what}")
