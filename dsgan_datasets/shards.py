"""Samples -> WebDataset tars. First version: it writes whole shards; resuming and verifying are still to come.

A record is three files of one key: ``000000007.png`` (image), ``000000007.seg.png`` (mask: 8-bit greyscale, pixel =
class id, 255 = ignore) and ``000000007.json`` (what made it). See docs/shard-format.md.
"""

from __future__ import annotations

import io
import json
import os
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor
from tqdm import tqdm

from dsgan_datasets.files import written_whole
from dsgan_datasets.labeled_generator import LabeledGenerator
from dsgan_datasets.samples import Sample


def write_shards(
    labeled: LabeledGenerator,
    outdir: str | os.PathLike[str],
    indices: range,
    *,
    seed: int = 0,
    samples_per_shard: int = 1000,
) -> list[Path]:
    """Write the samples of consecutive indices as tar shards.

    The bytes depend only on the checkpoint's fingerprint, seed, indices, samples_per_shard and library versions. A
    shard appears under its final name only when it is whole.

    Args:
        labeled: makes the samples.
        outdir: folder; is made if needed.
        indices: ``range(first, last)``, step 1.
        seed: of the dataset, 0 … 2^64-1.
        samples_per_shard: the last shard may hold fewer.

    Returns:
        the shards, ``shard-000000.tar`` and on.

    Raises:
        ValueError: nothing to write, or a shard of that name is already there.
        OSError: the folder cannot be written.

    Example:
        >>> labeled = LabeledGenerator.from_pretrained("demo-faces", device="cpu")
        >>> [path.name for path in write_shards(labeled, tmp, range(6), samples_per_shard=4)]
        ['shard-000000.tar', 'shard-000001.tar']
    """
    if indices.step != 1 or not indices or indices.start < 0 or samples_per_shard < 1:
        raise ValueError(
            f"indices must be a range of step 1 with something in it, samples_per_shard at least 1: {indices}"
        )
    folder = Path(outdir)
    folder.mkdir(parents=True, exist_ok=True)
    blocks = [indices[i : i + samples_per_shard] for i in range(0, len(indices), samples_per_shard)]
    paths = [folder / f"shard-{number:06d}.tar" for number in range(len(blocks))]
    if present := [path.name for path in paths if path.exists()]:
        raise ValueError(f"{folder} already holds {', '.join(present[:3])}: choose another folder, or remove them")
    samples = labeled.stream(tqdm(indices, "writing shards", unit="sample", delay=2), seed=seed)
    for path, block in zip(paths, blocks, strict=True):
        _write_tar(path, (next(samples) for _ in block), labeled, seed)
    return paths


def _write_tar(path: Path, samples: Iterator[Sample], labeled: LabeledGenerator, seed: int) -> None:
    with written_whole(path) as file, tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for sample in samples:
            for name, content in record(sample, labeled, seed).items():
                entry = tarfile.TarInfo(name)  # time, user and group are 0: equal samples, equal bytes
                entry.size = len(content)
                tar.addfile(entry, io.BytesIO(content))


def record(sample: Sample, labeled: LabeledGenerator, seed: int) -> dict[str, bytes]:
    """The files of one sample: name -> content."""
    key = f"{int(sample.index):09d}"
    facts: dict[str, Any] = {
        "index": int(sample.index),
        "seed": seed,
        "attempt": int(sample.attempt),
        "score": round(float(sample.score), 6),
        "pixels": sample.mask.flatten().bincount(minlength=labeled.schema.num_classes).tolist(),
        "fingerprint": labeled.fingerprint,
        "license": labeled.license,
    }
    if "class_label" in sample:
        facts["class_label"] = int(sample.class_label)
    return {
        f"{key}.png": png(sample.image),
        f"{key}.seg.png": png(sample.mask),
        f"{key}.json": json.dumps(facts).encode(),
    }


def png(picture: Tensor) -> bytes:
    """An image [3, H, W] as RGB, or a mask [H, W] as 8-bit greyscale whose pixels are class ids, losslessly."""
    array = picture.cpu().byte()
    pillow = Image.fromarray(array.permute(1, 2, 0).numpy() if array.dim() == 3 else array.numpy())
    buffer = io.BytesIO()
    pillow.save(buffer, format="PNG")
    return buffer.getvalue()
