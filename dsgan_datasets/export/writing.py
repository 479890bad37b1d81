"""A source and the name of a format -> a folder of files that appears when it is complete."""

from __future__ import annotations

import io
import json
import os
import shutil
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from PIL import Image
from torch import Tensor
from tqdm import tqdm

from dsgan_datasets.checks import integer
from dsgan_datasets.export.coco import Coco
from dsgan_datasets.export.folder import Folder
from dsgan_datasets.export.layouts import Layout, Options, Place
from dsgan_datasets.export.mmseg import MMSeg
from dsgan_datasets.export.source import Source
from dsgan_datasets.export.yolo import YoloSeg
from dsgan_datasets.pictures import contact_sheet
from dsgan_datasets.samples import Sample, SampleBatch
from dsgan_datasets.shards.codec import pixel_counts, png
from dsgan_datasets.targets.segmentation import LabelSchema

#: What `export` can write.
FORMATS: dict[str, type[Layout]] = {"folder": Folder, "coco": Coco, "mmseg": MMSeg, "yolo-seg": YoloSeg}

#: How instances are told apart.
INSTANCES = ("classes", "components")

#: Samples on the contact sheet.
_SHOWN = 12

Item = TypeVar("Item")
Result = TypeVar("Result")


def export(
    source: Source,
    out: str | os.PathLike[str],
    format: str,
    *,
    splits: Mapping[str, float] | None = None,
    palette: bool = False,
    things: Sequence[str] | None = None,
    instances: str = "classes",
    min_instance_area: int = 1,
) -> dict[str, int]:
    """Write samples as the files of another format; what each holds is in docs/export.md.

    The folder appears when it is complete: until then it has a hidden name beside the final one, and an error or Ctrl-C
    removes it. Its bytes depend on the samples, these arguments and the library versions only.

    Args:
        source: the samples.
        out: folder to make; nothing may be there, or an empty folder.
        format: "folder", "coco", "mmseg" or "yolo-seg".
        splits: name -> share of the samples, such as ``{"val": 0.1}``: the last ones, in this order, and "train" is the
            rest. ``{}`` for one dataset without splits. None: ``{"val": 0.1}`` for mmseg and yolo-seg, else ``{}``.
        palette: write colored masks too, to look at.
        things: for coco and yolo-seg, names of the classes that instances are made of; None for all but class 0.
        instances: for coco, "classes" (one instance a class) or "components" (one a connected region of a class, which
            yolo-seg always has).
        min_instance_area: pixels; smaller instances are left out.

    Returns:
        split -> number of samples; the name is "" if there are no splits.

    Raises:
        ValueError: an argument out of range, or something is at `out`.
        OSError: the folder cannot be written; nothing is left.

    Example:
        >>> labeled = LabeledGenerator.from_pretrained("demo-faces", device="cpu")
        >>> export(Source.generated(labeled, 10), tmp / "faces", "folder", splits={"val": 0.2})
        {'train': 8, 'val': 2}
    """
    if format not in FORMATS:
        raise ValueError(f"no format {format!r}; the formats are: {', '.join(FORMATS)}")
    options = _options(source.schema, things, instances, min_instance_area)
    layout_type = FORMATS[format]
    counts = _counts(source, layout_type.default_splits if splits is None else splits)
    with _folder_written_whole(Path(out)) as folder:
        layout = layout_type(folder, source, options, {} if "" in counts else counts)
        _write(folder, layout, source, counts, palette)
    return counts


def _options(schema: LabelSchema, things: Sequence[str] | None, instances: str, min_area: int) -> Options:
    if instances not in INSTANCES:
        raise ValueError(f"instances must be one of {', '.join(INSTANCES)}, not {instances!r}")
    names = schema.classes[1:] if things is None else [things] if isinstance(things, str) else things
    return Options(
        things=tuple(sorted({schema.index(name) for name in names})),
        components=instances == "components",
        min_area=integer("min_instance_area", min_area, 1),
    )


def _counts(source: Source, splits: Mapping[str, float]) -> dict[str, int]:
    """Samples of every split, whole groups of views; at least one each."""
    if not splits:
        return {"": source.num_samples}
    for name, share in splits.items():
        if not name.isidentifier() or name == "train" or not 0 < share < 1:
            raise ValueError(
                f"a split is a name and a share between 0 and 1, such as val=0.1, not {name}={share}; train is the rest"
            )
    counts: dict[str, int] = {}
    end = source.num_samples
    for name, share in reversed(list(splits.items())):
        # A group of views stays on one side: the first index of the split is a multiple of their number.
        first = source.start + end - max(1, round(share * source.num_samples))
        begin = first // source.group_size * source.group_size - source.start
        counts[name], end = end - begin, begin
    if end < 1:
        raise ValueError(f"{source.num_samples} samples are too few for the splits {dict(splits)} and train: take more")
    return {"train": end, **{name: counts[name] for name in splits}}


@contextmanager
def _folder_written_whole(out: Path) -> Iterator[Path]:
    """A folder to write to, under a temporary name; renamed when the block ends without error, else removed."""
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise ValueError(f"{out} exists: choose another name for the export, or remove it")
    temporary = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    try:
        temporary.mkdir(parents=True)
        yield temporary
        temporary.replace(out)
    except OSError as error:
        if error.filename is not None and not os.fspath(error.filename).startswith(os.fspath(temporary)):
            raise  # about another file: the source cannot be read
        raise OSError(error.errno, f"{error.strerror or error}, nothing was written", os.fspath(out)) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _write(folder: Path, layout: Layout, source: Source, counts: Mapping[str, int], palette: bool) -> None:
    splits = (split for split, count in counts.items() for _ in range(count))
    progress = tqdm(source.samples, "exporting", total=source.num_samples, unit="sample", delay=2)

    def encoded(item: tuple[Sample, str]) -> tuple[Sample, Place, dict[str, bytes], Any]:
        sample, place = item[0], Place(f"{int(item[0].index):09d}", item[1])
        files, told = layout.annotate(sample, place)
        files = {layout.image_path(place): png(sample.image), **files}
        if palette:
            files[place.path("masks_color", "png")] = colored(sample.mask, source.schema)
        return sample, place, files, told

    shown: list[Sample] = []
    with (folder / "samples.jsonl").open("w", encoding="utf-8") as records:
        for sample, place, files, told in _ahead(encoded, zip(progress, splits, strict=True)):
            for name, content in files.items():
                path = folder / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
            layout.note(sample, place, told)
            record = {"image": layout.image_path(place), "split": place.split, **_facts(sample, source)}
            records.write(json.dumps(record) + "\n")
            if len(shown) < _SHOWN:
                shown.append(Sample({name: value.cpu() for name, value in sample.items()}))
    layout.finish()
    (folder / "classes.json").write_text(json.dumps(source.schema.to_dict(), indent=1) + "\n", encoding="utf-8")
    title = f"{source.num_samples} samples · seed {source.seed} · {source.fingerprint[:8]} · {source.license}"
    contact_sheet(SampleBatch.stack(shown), source.schema, title=title).save(folder / "preview.png")


def _facts(sample: Sample, source: Source) -> dict[str, Any]:
    """What made a sample, as in a shard's json."""
    facts: dict[str, Any] = {
        "index": int(sample.index),
        "seed": source.seed,
        "attempt": int(sample.attempt),
        "score": round(float(sample.uncertainty_score), 6),
        "pixels": pixel_counts(sample.mask, source.schema.num_classes),
        "fingerprint": source.fingerprint,
        "license": source.license,
    }
    if "class_label" in sample:
        facts["class_label"] = int(sample.class_label)
    return facts


def colored(mask: Tensor, schema: LabelSchema) -> bytes:
    """A mask [H, W] as PNG in the colors of its classes, ignored pixels white; a palette image of the ids."""
    picture = Image.fromarray(mask.cpu().byte().numpy())
    colors = [*schema.palette, *[(255, 255, 255)] * (256 - schema.num_classes)]
    picture.putpalette([value for color in colors for value in color])
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG")
    return buffer.getvalue()


def _ahead(function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
    """``map(function, items)`` on threads, a few items ahead: Pillow's encoding leaves Python to the generator."""
    workers = min(4, os.cpu_count() or 1)
    waiting: deque[Future[Result]] = deque()
    with ThreadPoolExecutor(workers, "dsgan-export") as pool:
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) > 4 * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
