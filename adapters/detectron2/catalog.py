"""Names -> Detectron2's catalogs, from Python or from a config file; only config.json of a checkpoint is read."""

from __future__ import annotations

import inspect
import os
import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from typing import Any

from detectron2.config import CfgNode
from detectron2.config import defaults as detectron2_defaults
from detectron2.data import DatasetCatalog, DatasetFromList, MetadataCatalog, get_detection_dataset_dicts
from torch.utils.data import IterableDataset

from dsgan_datasets.adapters.detectron2.heads import check_config
from dsgan_datasets.adapters.detectron2.registered import (
    REGISTERED,
    MaskFormat,
    RegisteredDataset,
    forget,
    intern,
    lookup,
)
from dsgan_datasets.adapters.detectron2.streams import (
    MixedStream,
    RecordList,
    RecordStream,
    caller_in,
    no_end,
    refuse_joining,
)
from dsgan_datasets.adapters.detectron2.tasks import TaskName
from dsgan_datasets.checkpoints import CheckpointError
from dsgan_datasets.checkpoints.directory import CHECKPOINT_IS
from dsgan_datasets.checks import integer
from dsgan_datasets.device import Device
from dsgan_datasets.latents import check_seed
from dsgan_datasets.recipe import RENAMED, RecipeOverrides
from dsgan_datasets.remote.source import checkpoint_source
from dsgan_datasets.shards.locations import SHARDS_ARE, Locations
from dsgan_datasets.shards.source import ShardSource
from dsgan_datasets.sources.base import NamedSource
from dsgan_datasets.sources.relabeled import choose_classes
from dsgan_datasets.targets.instances import InstanceMode


def register(
    name: str,
    checkpoint: str | os.PathLike[str],
    *,
    seed: int = 0,
    length: int | None = None,
    task: TaskName = "sem_seg",
    things: Sequence[str] | None = None,
    instances: InstanceMode | None = None,
    min_instance_area: int | None = None,
    mask_format: MaskFormat = "polygon",
    classes: Sequence[str] | None = None,
    merge: Mapping[str, Sequence[str]] | None = None,
    device: Device = None,
    **recipe: Any,
) -> RegisteredDataset:
    """Put a generated dataset into DatasetCatalog and its classes into MetadataCatalog.

    Weights are loaded by the process that first needs a sample.

    Args:
        name: the entry of DATASETS.TRAIN or DATASETS.TEST.
        checkpoint: a path, the name of a built-in checkpoint, or "hf://org/name".
        seed: 0 … 2^64-1; another seed is another dataset.
        length: number of samples, for evaluation (a map-style dataset); None for a stream without end, for training.
        task: "sem_seg" gives masks of class ids; "instances" gives boxes and instance masks; "panoptic" gives both as
            PanopticFPN wants them: in the mask all things are 0, and the other classes are counted from 1; "keypoints"
            gives one object with its points, and with a mask of all things if there are masks.
        things: names of the classes that instances are made of; None for all but class 0, the background. Not for
            sem_seg.
        instances: for instances and panoptic only: "classes" is one instance a class, "components" one a connected
            region of a class, "object" a single one of all things together. None: classes.
        min_instance_area: pixels; smaller instances are left out. None: 1. Not for sem_seg.
        mask_format: of instances in records: "polygon", which the stock mapper takes with every INPUT.MASK_FORMAT, or
            "bitmask" (RLE), which is faster and needs INPUT.MASK_FORMAT to be "bitmask". Both mean the same pixels.
            `DSGANDatasetMapper` needs neither.
        classes: names of the classes to keep, in the order of their new ids; pixels of others are ignored.
        merge: new class name -> names of the classes it replaces, before `classes` are chosen.
        device: None is the current CUDA device of the process that loads, if there is one, else the CPU.
            "ray" or "ray://HOST:10001" are the workers of a Ray cluster, see `RemoteSource`.
        recipe: fields of `Recipe` to change, such as ``truncation_psi=0.7``.

    Returns:
        The dataset: its records and the addresses of its samples.

    Raises:
        CheckpointError: there is no such checkpoint, or its config.json is damaged.
        ValueError: an argument out of range or without effect in this task, or a name that is taken by another dataset.
            Registering the same dataset again is fine.

    Example:
        >>> dataset = register("faces", "demo-faces", device="cpu")
        >>> MetadataCatalog.get("faces").stuff_classes[:3]
        ['background', 'skin', 'neck']
    """
    return _register(
        name,
        choose_classes(checkpoint_source(checkpoint, device=device, **recipe), classes, merge),
        seed=seed,
        length=length,
        task=task,
        things=things,
        instances=instances,
        min_instance_area=min_instance_area,
        mask_format=mask_format,
    )


def register_shards(
    name: str,
    shards: Locations,
    *,
    length: int | None = None,
    task: TaskName = "sem_seg",
    things: Sequence[str] | None = None,
    instances: InstanceMode | None = None,
    min_instance_area: int | None = None,
    mask_format: MaskFormat = "polygon",
    classes: Sequence[str] | None = None,
    merge: Mapping[str, Sequence[str]] | None = None,
) -> RegisteredDataset:
    """Put samples in tar shards into DatasetCatalog and their classes into MetadataCatalog.

    A map-style dataset, for training and for evaluation: Detectron2's samplers shuffle it and share it among ranks.
    Only the manifest is read until a sample is asked for.

    Args:
        name: the entry of DATASETS.TRAIN or DATASETS.TEST.
        shards: a folder or URL of shards that `dsgan shards write` made, or several. Records are numbered by their
            place in them.
        length: number of samples, the first ones; None for all.
        task, things, instances, min_instance_area, mask_format, classes, merge: see `register`.

    Returns:
        The dataset: its records and the addresses of its samples.

    Raises:
        ShardError: no shards, or a damaged manifest.
        OSError: they cannot be read.
        ValueError: an argument out of range, or a name that is taken by another dataset.

    Example:
        >>> labeled = LabeledGenerator.from_pretrained("demo-faces", device="cpu")
        >>> _ = write_shards(labeled, tmp / "faces", range(3))
        >>> dataset = register_shards("tars", tmp / "faces")
        >>> len(DatasetCatalog.get("tars"))
        3
    """
    source = ShardSource(shards)
    return _register(
        name,
        choose_classes(source, classes, merge),
        length=len(source) if length is None else integer("length", length, 1, len(source)),
        task=task,
        things=things,
        instances=instances,
        min_instance_area=min_instance_area,
        mask_format=mask_format,
    )


def _register(name: str, source: NamedSource, **arguments: Any) -> RegisteredDataset:
    if name not in DatasetCatalog:
        forget(name)
    dataset = RegisteredDataset(name, source, **arguments)
    if name not in DatasetCatalog:
        _catalog(name, partial(_records, name), dataset.labels.metadata)
    elif not _is_generated(name):
        raise ValueError(f"the name {name!r} is taken by another dataset in DatasetCatalog: choose another one")
    return intern(dataset)


def register_mixture(name: str, generated: str, real: str, *, generated_fraction: float = 0.5, seed: int = 0) -> None:
    """Put a stream that mixes a generated with a real dataset into the catalogs.

    Args:
        name: of the mixture.
        generated: name of a dataset from `register`, without a length.
        real: name of any dataset in DatasetCatalog with the same classes; it is loaded when the mixture is first used.
        generated_fraction: share of generated records, between 0 and 1.
        seed: of the shuffling of the real records.

    Raises:
        ValueError: an argument out of range; when the mixture is used, real data that are not in the catalog, or
            classes that differ.

    Example:
        >>> drawn = register("drawn", "demo-faces", device="cpu")
        >>> DatasetCatalog.register("photos", lambda: [{"file_name": "1.jpg", "sem_seg_file_name": "1.png"}])
        >>> register_mixture("both", "drawn", "photos", generated_fraction=0.75)
        >>> [len(record) for record in itertools.islice(DatasetCatalog.get("both"), 4)]
        [2, 5, 5, 5]
    """
    dataset = lookup(generated)
    if dataset.length is not None:
        raise ValueError(
            f"a mixture has no end, but {generated!r} has length {dataset.length}: register a "
            "checkpoint without a length, or name both datasets in DATASETS.TRAIN"
        )
    if not isinstance(generated_fraction, float) or not 0 < generated_fraction < 1:
        raise ValueError(f"generated_fraction must lie between 0 and 1, not be {generated_fraction!r}")
    make = partial(_mixture, name, generated, real, generated_fraction, check_seed(seed))
    if name not in DatasetCatalog:
        _catalog(name, make, dataset.labels.metadata)
    elif getattr(DatasetCatalog[name], "args", None) != make.args:
        raise ValueError(f"the name {name!r} is already registered for something else: choose another one")


def _records(name: str) -> RecordStream | RecordList:
    _check_loader(name, endless=lookup(name).length is None)
    return RecordStream(name) if lookup(name).length is None else RecordList(name)


def _check_loader(name: str, *, endless: bool) -> None:
    """ValueError if what asks for the records is a loader of Detectron2 that they do not suit.

    Its config is read off the stack of calls: the catalog is asked by name only.
    """
    if endless:
        refuse_joining(name)
    if endless and caller_in("detectron2.data.build", function="_test_loader_from_config") is not None:
        raise ValueError(f"DATASETS.TEST: {no_end(name)}")
    training = caller_in("detectron2.data.build", function="_train_loader_from_config")
    if training is not None:
        check_config(training.f_locals["cfg"], name)


def _mixture(name: str, generated: str, real: str, fraction: float, seed: int) -> MixedStream:
    _check_loader(name, endless=True)
    if real not in DatasetCatalog:
        others = ", ".join(sorted(set(DatasetCatalog) - {name, generated}))
        raise ValueError(
            f"mixture {name!r} has real: {real!r}, which is not in DatasetCatalog: register it before the training "
            f"begins, or name one that is there: {others}"
        )
    records = get_detection_dataset_dicts([real])
    if isinstance(records, IterableDataset):
        raise ValueError(f"{real!r} is a stream: real data to mix in must have a length")
    for kind in ("thing_classes", "stuff_classes"):
        ours, theirs = (MetadataCatalog.get(name).get(kind) for name in (generated, real))
        if ours is not None and theirs is not None and list(ours) != list(theirs):
            raise ValueError(f"{kind} of {generated!r} are {list(ours)}, but those of {real!r} are {list(theirs)}")
    if isinstance(records, list):
        records = DatasetFromList(records, copy=False)  # in one block of memory that workers share
    return MixedStream(generated, records, generated_fraction=fraction, seed=seed)


def _catalog(name: str, make: Callable[[], Any], metadata: dict[str, Any]) -> None:
    try:
        MetadataCatalog.get(name).set(**metadata)
    except AssertionError as error:
        raise ValueError(f"MetadataCatalog already knows {name!r} differently; remove it there first") from error
    DatasetCatalog.register(name, make)


def _is_generated(name: str) -> bool:
    make = DatasetCatalog[name]
    return isinstance(make, partial) and make.func is _records


def _node() -> CfgNode:
    return CfgNode({"DATASETS": [], "MIXTURES": []})


# The config.yaml of a training is then read by any program that imports this, with `get_cfg` alone.
detectron2_defaults._C.DSGAN = _node()


def add_dsgan_config(cfg: CfgNode) -> None:
    """Give a config the DSGAN node with its defaults, and set INPUT.MASK_FORMAT to "bitmask".

    DSGAN.DATASETS is a list of arguments of `register`, or of `register_shards` where an entry has ``shards`` in place
    of ``checkpoint``; DSGAN.MIXTURES is one of arguments of `register_mixture`. Bit masks are made faster than the
    polygons of Detectron2's default, which work as well.

    Example:
        >>> from detectron2.config import get_cfg
        >>> cfg = get_cfg()
        >>> add_dsgan_config(cfg)
        >>> cfg.DSGAN.DATASETS
        []
    """
    _check_config_node(cfg)
    cfg.DSGAN = _node()
    cfg.INPUT.MASK_FORMAT = "bitmask"


def register_from_config(cfg: CfgNode) -> None:
    """Register the entries of DSGAN.DATASETS and DSGAN.MIXTURES.

    Keys are the parameters of `register` and of `Recipe`, those of `register_shards` where there is ``shards``, and
    those of `register_mixture`, in lower or upper case. Entries without ``mask_format`` have INPUT.MASK_FORMAT.

    Raises:
        ValueError: an entry that is wrong, or a dataset without end in DATASETS.TEST; the message names it and what is
            allowed.

    Warns:
        UserWarning: INPUT.RANDOM_FLIP is "horizontal" and a dataset has left and right parts.

    Example:
        >>> from detectron2.config import get_cfg
        >>> cfg = get_cfg()
        >>> add_dsgan_config(cfg)
        >>> entry = {"name": "from_config", "checkpoint": "demo-faces", "truncation_psi": 0.9, "reject_fraction": 0.0}
        >>> cfg.DSGAN.DATASETS = [entry]
        >>> register_from_config(cfg)
        >>> "from_config" in DatasetCatalog
        True
    """
    _check_config_node(cfg)
    if "DSGAN" not in cfg:
        raise ValueError("the config has no DSGAN node: call add_dsgan_config(cfg) before merging files into it")
    recipe = list(RecipeOverrides.__annotations__)
    masks = {"mask_format": cfg.INPUT.MASK_FORMAT}
    datasets = [
        _call(register_shards, entry, f"DSGAN.DATASETS[{i}]", defaults=masks)
        if _names_shards(entry)
        else _call(register, entry, f"DSGAN.DATASETS[{i}]", recipe, defaults=masks)
        for i, entry in enumerate(_listed(cfg, "DATASETS"))
    ]
    for i, entry in enumerate(_listed(cfg, "MIXTURES")):
        _call(register_mixture, entry, f"DSGAN.MIXTURES[{i}]")
    endless = {name for name, dataset in REGISTERED.items() if dataset.length is None}
    endless |= {str(entry[key]) for entry in cfg.DSGAN.MIXTURES for key in entry if str(key).lower() == "name"}
    for name in cfg.DATASETS.TEST:
        if name in endless:
            raise ValueError(f"DATASETS.TEST: {no_end(name)}")
    sided = [dataset.name for dataset in datasets if dataset.labels.sided]
    if sided and cfg.INPUT.RANDOM_FLIP == "horizontal":
        warnings.warn(
            f"INPUT.RANDOM_FLIP is 'horizontal' and {', '.join(sided)} has left and right parts: the stock "
            "DatasetMapper mirrors the picture and keeps the labels, which makes them wrong. Use DSGANDatasetMapper, "
            "which exchanges them, or set INPUT.RANDOM_FLIP: none",
            stacklevel=2,
        )


#: What a key that may be missing from an entry says.
_NEEDED = {
    "name": "the entry of DATASETS.TRAIN or DATASETS.TEST",
    "checkpoint": f"{CHECKPOINT_IS}; or shards: {SHARDS_ARE}",
    "generated": "the name of a dataset without length in DSGAN.DATASETS",
    "real": "the name of a dataset in DatasetCatalog",
}


def _check_config_node(cfg: Any) -> None:
    if not isinstance(cfg, CfgNode):
        raise ValueError(
            f"cfg must be a config of Detectron2, as detectron2.config.get_cfg() gives, not {cfg!r:.80}; datasets of a "
            "LazyConfig are registered by register()"
        )


def _names_shards(entry: Any) -> bool:
    return isinstance(entry, Mapping) and any(str(key).lower() == "shards" for key in entry)


def _listed(cfg: Any, key: str) -> list[Any]:
    entries = cfg.DSGAN[key]
    if not isinstance(entries, list | tuple):
        raise ValueError(f"DSGAN.{key} must be a list of mappings, not {entries!r:.80}")
    return list(entries)


def _call(
    function: Callable[..., Any],
    entry: Any,
    place: str,
    more: Collection[str] = (),
    *,
    defaults: Mapping[str, Any] | None = None,
) -> Any:
    """Call a function with the entry of a config."""
    parameters = inspect.signature(function).parameters.values()
    allowed = [p.name for p in parameters if p.kind is not p.VAR_KEYWORD] + sorted(more)
    required = [p.name for p in parameters if p.default is p.empty and p.kind is not p.VAR_KEYWORD]
    if not isinstance(entry, Mapping):
        raise ValueError(f"{place} must be a mapping with the keys {', '.join(required)} …, not {entry!r}")
    arguments = {str(key).lower(): value for key, value in entry.items()}
    old = RENAMED if more else {}
    if unknown := sorted(set(arguments) - set(allowed) - set(old)):
        raise ValueError(f"{place} {dict(entry)} has unknown keys {', '.join(unknown)}; allowed: {', '.join(allowed)}")
    if missing := [f"{key} ({_NEEDED[key]})" for key in required if key not in arguments]:
        raise ValueError(f"{place} {dict(entry)} lacks {', '.join(missing)}; allowed: {', '.join(allowed)}")
    try:
        return function(**{**(defaults or {}), **arguments})
    except (ValueError, CheckpointError) as error:
        raise ValueError(f"{place} {dict(entry)}: {error}") from error
