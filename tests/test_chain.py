"""Every kind of checkpoint through the whole chain: stream, shards, statistics, pictures and exports."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from conftest import GOLDEN
from golden_data import PROBES
from PIL import Image
from properties import assert_same_samples
from torch.utils.data import DataLoader

from dsgan_datasets import (
    DSGANIterableDataset,
    LabeledGenerator,
    ShardDataset,
    ShardMapDataset,
    load_generator,
    load_interpreter,
    verify_shards,
)
from dsgan_datasets.shards.source import ShardSource
from dsgan_datasets.sources import CheckpointSource, choose_classes
from dsgan_datasets.statistics import measure
from dsgan_datasets.tools.cli import main

pytestmark = pytest.mark.usefixtures("one_thread")
N = 6


def made(kind: str, out: Path) -> None:
    """The checkpoint that a command makes."""
    if kind == "clusters":
        pytest.importorskip("sklearn")
        options = ["--clusters", "4", "--num-samples", "6", "--map", "2", "--device", "cpu"]
        assert main(["cluster", str(GOLDEN / "sg2ada_fullsnapshot16.pkl"), str(out), *options]) == 0
    elif kind == "channel":
        file = PROBES / "sg2ada_4ch_32.pkl"
        assert main(["convert", str(file), str(out), "--classes", "background,lesion", "--label-channel"]) == 0
    else:
        assert main(["convert", str(PROBES / "semanticgan_32.pt"), str(out), "--classes", "a,b,c,d,e"]) == 0


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["clusters", "channel", "semanticgan"])
def test_from_a_checkpoint_to_exported_files(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint, shards = tmp_path / "checkpoint", tmp_path / "shards"
    made(kind, checkpoint)
    labeled = LabeledGenerator.from_pretrained(checkpoint, device="cpu")
    expected = labeled.generate(range(N), seed=3)
    assert load_generator(checkpoint, device="cpu").img_resolution == labeled.image_size[0]
    if kind == "clusters":
        assert load_interpreter(checkpoint, device="cpu").num_classes == 4

    stream = DSGANIterableDataset(labeled, seed=3, length=N, global_batch=2)
    assert torch.equal(torch.cat([batch["mask"] for batch in DataLoader(stream, batch_size=2)]), expected.mask)

    write = ["shards", "write", str(checkpoint), str(shards), "--num-samples", str(N), "--seed", "3", "--device", "cpu"]
    assert main([*write, "--samples-per-shard", "4"]) == 0 and not verify_shards(shards)
    assert main(["shards", "verify", str(shards)]) == 0
    assert main([*write, "--uncertainty"]) == 1 and "Traceback" not in capsys.readouterr().err
    source = ShardSource(shards)
    assert source.targets == labeled.targets
    assert_same_samples(list(ShardMapDataset(shards)), list(labeled.stream(range(N), seed=3)))
    order = [int(sample.index) for sample in ShardDataset(shards, shuffle=4, seed=1)]
    assert sorted(order) == list(range(N))

    chart = ["--out", str(tmp_path / "stats.png")]
    assert main(["stats", str(checkpoint), "--num-samples", str(N), "--device", "cpu", "--seed", "3", *chart]) == 0
    printed = capsys.readouterr().out
    assert all(name in printed for name in labeled.schema.classes) and "nan" not in printed.lower()
    of_shards, of_generator = measure(source, range(N)), measure(labeled, range(N), seed=3)
    assert of_shards.labels == of_generator.labels

    assert main(["preview", str(checkpoint), "--num-samples", "4", "--out", str(tmp_path / "sheet.png")]) == 0
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.width >= labeled.image_size[1]

    for layout in ("folder", "coco", "mmseg", "yolo-seg"):
        out = [tmp_path / f"{layout}-{name}" for name in ("shards", "checkpoint")]
        assert main(["export", str(shards), str(out[0]), "--format", layout]) == 0
        generated = ["--num-samples", str(N), "--seed", "3", "--device", "cpu"]
        assert main(["export", str(checkpoint), str(out[1]), "--format", layout, *generated]) == 0
        files = {path.relative_to(out[0]) for path in out[0].rglob("*.*")}
        assert files and files == {path.relative_to(out[1]) for path in out[1].rglob("*.*")}
        for file in files:
            if file.suffix in (".png", ".txt"):
                assert (out[0] / file).read_bytes() == (out[1] / file).read_bytes(), file
    manifest = json.loads((shards / "manifest.json").read_text())
    assert manifest["targets"] == [target.to_dict() for target in labeled.targets]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["clusters", "channel"])
def test_classes_are_merged_where_data_are_named(kind: str, tmp_path: Path) -> None:
    made(kind, tmp_path / "checkpoint")
    source = CheckpointSource(tmp_path / "checkpoint", device="cpu")
    first, second = source.schema.classes[:2]
    merged = choose_classes(source, merge={"both": [first, second]})
    masks, plain = merged.batch(range(3)).mask, source.batch(range(3)).mask
    assert torch.equal(masks == 0, plain <= 1) and merged.fingerprint != source.fingerprint
    rows = [sample.mask for sample in merged.stream(range(3))]
    assert torch.equal(torch.stack(rows), masks)
