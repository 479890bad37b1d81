"""Samples and the name of a format -> a folder of files that appears when it is complete."""

from __future__ import annotations

import inspect
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from dsgan_datasets.cards import dataset_card
from dsgan_datasets.checks import integer
from dsgan_datasets.export.coco import Coco
from dsgan_datasets.export.folder import FolderLayout, ImageFolder
from dsgan_datasets.export.inputs import ExportInput
from dsgan_datasets.export.layouts import Layout, Options, Slot
from dsgan_datasets.export.mmseg import MMSeg
from dsgan_datasets.export.yolo import YoloPose, YoloSeg
from dsgan_datasets.files import written_whole
from dsgan_datasets.images import png
from dsgan_datasets.parallel import ahead
from dsgan_datasets.pictures import contact_sheet
from dsgan_datasets.samples import Sample, SampleBatch
from dsgan_datasets.targets.base import Target, find_target
from dsgan_datasets.targets.instances import InstanceMode
from dsgan_datasets.targets.keypoints import Keypoints
from dsgan_datasets.targets.parts import part_names

FORMATS: dict[str, type[Layout]] = {
    "folder": FolderLayout,
    "imagefolder": ImageFolder,
    "coco": Coco,
    "mmseg": MMSeg,
    "yolo-seg": YoloSeg,
    "yolo-pose": YoloPose,
}
"""Name of a format -> the layout that `export` writes."""

#: What distinguishes instances.
INSTANCES: tuple[InstanceMode, ...] = ("classes", "components")

#: Samples on the contact sheet.
_SHOWN = 12

#: Files that say what labels mean, by field; a field that is not listed has FIELD.json.
_DESCRIPTIONS = {"mask": "classes.json"}


def export(
    input: ExportInput,
    out: str | os.PathLike[str],
    format: str,
    *,
    labels: Sequence[str] | None = None,
    splits: Mapping[str, float] | None = None,
    palette: bool = False,
    things: Sequence[str] | None = None,
    instances: str = "classes",
    min_instance_area: int = 1,
    category: str = "object",
) -> dict[str, int]:
    """Write samples as the files of another format; what each holds is in docs/export.md.

    The folder appears when it is complete: until then it has a hidden name beside the final one, and an error or Ctrl-C
    removes it. Its bytes depend on the samples, these arguments and the library versions only.

    Args:
        input: the samples.
        out: folder to make; nothing may be there, or an empty folder.
        format: "folder", "imagefolder", "coco", "mmseg", "yolo-seg" or "yolo-pose".
        labels: fields of the labels to write, such as ``["mask"]``; None for all that the samples have. A label that
            the format cannot hold is an error, not left out in silence.
        splits: name -> share of the samples, such as ``{"val": 0.1}``: the last ones, in this order, and "train" is the
            rest. ``{}`` for one dataset without splits. None: ``{"val": 0.1}`` for mmseg and yolo, else ``{}``.
        palette: write masks in the colors of their classes too, to look at.
        things: for coco and yolo, names of the classes that instances are made of; None for all but class 0. All their
            pixels together are the object of keypoints.
        instances: for coco, "classes" (one instance for each class) or "components" (one for each connected region of a
            class, which yolo-seg always has).
        min_instance_area: pixels; smaller instances are left out.
        category: for coco and yolo-pose, what the object is called that keypoints belong to.

    Returns:
        split -> number of samples; the name is "" if there are no splits.

    Raises:
        ValueError: an argument out of range, something is at `out`, or the format cannot hold the labels: the message
            names formats that can.
        OSError: the folder cannot be written; nothing is left.

    Example:
        >>> labeled = LabeledGenerator.from_pretrained("demo-faces", device="cpu")
        >>> export(ExportInput.generated(labeled, 10), tmp / "faces", "folder", splits={"val": 0.2})
        {'train': 8, 'val': 2}
    """
    input, options, counts = _planned(input, format, labels, splits, things, instances, min_instance_area, category)
    with written_whole(Path(out)) as folder:
        layout = FORMATS[format](folder, input, options, {} if "" in counts else counts)
        _write(folder, layout, input, counts, palette, format)
    return counts


def check_export(
    input: ExportInput,
    format: str,
    *,
    labels: Sequence[str] | None = None,
    splits: Mapping[str, float] | None = None,
    palette: bool = False,
    things: Sequence[str] | None = None,
    instances: str = "classes",
    min_instance_area: int = 1,
    category: str = "object",
) -> None:
    """Raise what `export` would raise of these arguments, before samples are made that take long.

    Args:
        input: samples with the same labels, as many; none is asked for.
        format, labels, splits, palette, things, instances, min_instance_area, category: as for `export`.

    Raises:
        ValueError: an argument out of range, or the format cannot hold the labels.

    Example:
        >>> labeled = LabeledGenerator.from_pretrained("demo-faces", device="cpu")
        >>> check_export(ExportInput.generated(labeled, 10), "coco", instances="components")
    """
    input, _, _ = _planned(input, format, labels, splits, things, instances, min_instance_area, category)
    if palette:
        input.schema  # noqa: B018 - it raises what is wrong


def _planned(
    input: ExportInput,
    format: str,
    labels: Sequence[str] | None,
    splits: Mapping[str, float] | None,
    things: Sequence[str] | None,
    instances: str,
    min_instance_area: int,
    category: str,
) -> tuple[ExportInput, Options, dict[str, int]]:
    """What is written, in which manner, and how many samples to each split; see `export`."""
    if format not in FORMATS:
        raise ValueError(f"no format {format!r}; the formats are: {', '.join(FORMATS)}")
    input = input.choose(labels)
    _check_labels(format, input.targets)
    given = {"things": things, "instances": instances, "min_instance_area": min_instance_area, "category": category}
    options = _options(input, things, instances, min_instance_area, category)
    _check_used(format, input.targets, given)
    return input, options, _counts(input, FORMATS[format].default_splits if splits is None else splits)


def option_of(argument: str) -> str:
    """The option of `dsgan export` and `dsgan label` that is an argument of `export`.

    Example:
        >>> option_of("min_instance_area"), option_of("things")
        ('--min-instance-area', '--instance-class')
    """
    names = {"labels": "--label", "splits": "--split", "things": "--instance-class"}
    return names.get(argument, f"--{argument.replace('_', '-')}")


def formats_for(targets: Sequence[Target]) -> tuple[str, ...]:
    """Names of the formats that hold all of these labels.

    Example:
        >>> formats_for([Keypoints(("nose", "chin"))])
        ('folder', 'imagefolder', 'coco', 'yolo-pose')
    """
    return tuple(name for name, layout in FORMATS.items() if _fits(layout, targets))


def _fits(layout: type[Layout], targets: Sequence[Target]) -> bool:
    kinds = {target.kind for target in targets}
    held = layout.holds is None or kinds <= set(layout.holds)
    return held and (not layout.needs or not kinds.isdisjoint(layout.needs))


def _check_labels(format: str, targets: Sequence[Target]) -> None:
    """ValueError if the format cannot hold some of the labels, or needs others."""
    if format in (able := formats_for(targets)):
        return
    layout, fields = FORMATS[format], " and ".join(target.field for target in targets)
    way_out = f"the formats that hold {fields} are: {', '.join(able)}"
    kept = [target for target in targets if layout.holds is None or target.kind in layout.holds]
    foreign = " and ".join(target.field for target in targets if target not in kept)
    if foreign and _fits(layout, kept):
        names = [target.field for target in kept]
        options = " ".join(f"--label {name}" for name in names)
        way_out += f"; or leave out {foreign} with labels={names} ({options})"
    problem = f"cannot hold {foreign}" if foreign else f"needs {' or '.join(layout.needs)}"
    raise ValueError(f"format {format} {problem}; {way_out}")


def _check_used(format: str, targets: Sequence[Target], given: Mapping[str, Any]) -> None:
    """ValueError for an argument that changes nothing in this format, with these labels."""
    usual = inspect.signature(export).parameters
    used = set(FORMATS[format].takes)
    if find_target(targets, Keypoints) is None:
        used.discard("category")
    for name, value in given.items():
        if name not in used and value != usual[name].default:
            able = ", ".join(other for other, layout in FORMATS.items() if name in layout.takes)
            labels = " and ".join(target.field for target in targets)
            raise ValueError(
                f"{name} ({option_of(name)}) changes nothing in format {format} with {labels}: leave it out; "
                f"formats that have it are: {able}"
            )


def _options(input: ExportInput, things: Sequence[str] | None, mode: str, min_area: int, category: str) -> Options:
    if mode not in INSTANCES:
        raise ValueError(f"instances must be one of {', '.join(INSTANCES)}, not {mode!r}")
    chosen = (things,) if isinstance(things, str) else None if things is None else tuple(things)
    (category,) = part_names("category", [category])
    options = Options(chosen, mode, integer("min_instance_area", min_area, 1), category)
    if chosen is not None:
        options.rule(input.schema)  # fails at once for an unknown class
    return options


def _counts(input: ExportInput, splits: Mapping[str, float]) -> dict[str, int]:
    """Samples of every split, whole view groups; at least one each."""
    if not splits:
        return {"": input.num_samples}
    for name, share in splits.items():
        if not name.isidentifier() or name == "train" or not 0 < share < 1:
            raise ValueError(
                f"a split is a name and a share between 0 and 1, such as val=0.1, not {name}={share}; train is the rest"
            )
    counts: dict[str, int] = {}
    end, group = input.num_samples, input.source.group
    for name, share in reversed(list(splits.items())):
        # A view group stays on one side: the first index of the split is a multiple of its size.
        first = input.start + end - max(1, round(share * input.num_samples))
        begin = first // group * group - input.start
        counts[name], end = end - begin, begin
    if end < 1:
        raise ValueError(f"{input.num_samples} samples are too few for the splits {dict(splits)} and train: take more")
    return {"train": end, **{name: counts[name] for name in splits}}


def _write(
    folder: Path, layout: Layout, input: ExportInput, counts: Mapping[str, int], palette: bool, format: str
) -> None:
    schema = input.schema if palette else None
    splits = (split for split, count in counts.items() for _ in range(count))
    progress = tqdm(input.samples, "exporting", total=input.num_samples, unit="sample", delay=2)

    def encoded(item: tuple[Sample, str]) -> tuple[Sample, Slot, dict[str, bytes], Any]:
        sample, slot = item[0], Slot(input.name_of(item[0]), item[1])
        files, summary = layout.annotate(sample, slot)
        files = {layout.image_path(slot): png(sample.image), **files}
        if schema is not None:
            files[slot.path("masks_color", "png")] = png(schema.colored(sample.mask))
        return sample, slot, files, summary

    shown: list[Sample] = []
    workers = min(4, os.cpu_count() or 1)
    with (folder / "samples.jsonl").open("w", encoding="utf-8") as records:
        for sample, slot, files, summary in ahead(encoded, zip(progress, splits, strict=True), workers):
            for name, content in files.items():
                path = folder / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
            layout.collect(sample, slot, summary)
            record = {"image": layout.image_path(slot), "split": slot.split, **_facts(sample, input)}
            records.write(json.dumps(record) + "\n")
            if len(shown) < _SHOWN:
                shown.append(Sample({name: value.cpu() for name, value in sample.items()}))
    layout.finish()
    for target in input.targets:
        description = folder / _DESCRIPTIONS.get(target.field, f"{target.field}.json")
        description.write_text(json.dumps(target.to_dict(), indent=1) + "\n", encoding="utf-8")
    title = f"{input.num_samples} samples · seed {input.seed} · {input.fingerprint[:8]} · {input.source.license}"
    contact_sheet(SampleBatch.stack(shown), input.targets, title=title).save(folder / "preview.png")
    card = dataset_card(
        input.targets,
        num_samples=input.num_samples,
        image_size=input.source.image_size,
        license=input.source.license,
        fingerprint=input.fingerprint,
        seed=input.seed,
        start=input.start,
        layout=f"Files: format {format} of `dsgan export`; `samples.jsonl` says what made each sample.",
    )
    (folder / "README.md").write_text(card, encoding="utf-8", errors="backslashreplace")  # a license may be anything


def _facts(sample: Sample, input: ExportInput) -> dict[str, Any]:
    """What made a sample, as in a shard's json."""
    facts: dict[str, Any] = {"index": int(sample.index), "seed": input.seed, "attempt": int(sample.attempt)}
    if input.facts is not None:
        facts |= input.facts[int(sample.index)]
    if "uncertainty_score" in sample:
        facts["uncertainty_score"] = round(float(sample["uncertainty_score"]), 6)
    if "class_label" in sample:
        facts["class_label"] = int(sample["class_label"])
    tallies = {t.field: t.tally(sample[t.field][None])[0].tolist() for t in input.targets}
    return {**facts, "tallies": tallies, "fingerprint": input.fingerprint, "license": input.source.license}
