"""The guide's blocks, and what one process really reads in a loop, in Lightning and in transformers' Trainer."""

from __future__ import annotations

import re
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch
from sources import NumberSource
from torch.utils.data import DataLoader
from torchvision.transforms import v2

from dsgan_datasets import DSGANDataset, DSGANIterableDataset, LabeledGenerator, Mixture, export, push_to_hub  # noqa: F401

GUIDE = (Path(__file__).resolve().parent.parent / "docs" / "trainers.md").read_text()
BLOCKS = dict(re.findall(r"^## ([^\n]+)\n(?:(?!^## ).)*?^```python\n(.*?)^```", GUIDE, re.MULTILINE | re.DOTALL))
PRELUDE = re.search(r"^```python\n(.*?)^```", GUIDE, re.MULTILINE | re.DOTALL)
#: A SegFormer as small as can be.
SMALL: dict[str, Any] = {
    "hidden_sizes": [8, 16, 16, 16],
    "depths": [1, 1, 1, 1],
    "num_attention_heads": [1, 1, 1, 1],
    "decoder_hidden_size": 16,
    "semantic_loss_ignore_index": 255,
}


def numbers(length: int | None = None, **options: Any) -> DSGANIterableDataset:
    return DSGANIterableDataset(NumberSource(), length=length, **options)  # type: ignore[arg-type]


def network() -> Any:
    """A LightningModule that notes what it sees."""
    lightning = pytest.importorskip("lightning")

    class Network(lightning.LightningModule):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.Conv2d(3, 12, 1)
            self.seen: list[list[int]] = []
            self.validated: list[int] = []

        def training_step(self, batch: Any, _: int) -> torch.Tensor:
            self.seen.append(batch.index.tolist())
            return torch.nn.functional.cross_entropy(self.layer(batch.image / 255), batch.mask)

        def validation_step(self, batch: Any, _: int) -> None:
            self.validated += batch.index.tolist()

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), 1e-3)

    return Network()


def test_the_guide_has_a_block_for_each_trainer() -> None:
    assert list(BLOCKS) == [
        "PyTorch",
        "torchdata",
        "Lightning",
        "Trainer of transformers",
        "datasets",
        "accelerate",
        "Mixtures with real data",
    ]
    assert all(len(block.strip().splitlines()) <= 10 for block in BLOCKS.values())
    assert GUIDE.count("```python") == len(BLOCKS) + 1


NEEDS = {"Lightning": "lightning", "Trainer of transformers": "transformers", "datasets": "datasets"}


@pytest.mark.slow
@pytest.mark.parametrize("section", BLOCKS)
def test_the_guide_runs(
    section: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unfiltered: LabeledGenerator
) -> None:
    pytest.importorskip(NEEDS.get(section, "torch"))
    pytest.importorskip("accelerate")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    trained: list[Any] = []
    names: dict[str, Any] = {"train": trained.append, "small": SMALL}
    if section == "Lightning":
        names["network"] = network()
    assert PRELUDE is not None
    exec(PRELUDE[1], names)
    if section != "Trainer of transformers":  # whose network wants more than 16 pixels
        names["labeled"] = unfiltered  # faster
    exec(BLOCKS[section], names)
    seen = [batch.index.tolist() for batch in trained if "index" in batch]
    if section == "PyTorch":
        assert list(chain(*seen)) == list(range(128))
        names["stream"].load_state_dict({**names["state"], "batches": 3})
        assert int(next(iter(names["stream"])).index) == 64 + 24
    if section == "accelerate":
        assert list(chain(*seen)) == list(range(96))
    if section == "Lightning":
        assert list(chain(*names["network"].seen)) == list(range(32))
        assert (tmp_path / "lightning.ckpt").is_file()
    if section == "Mixtures with real data":
        assert len(trained) == 8 and names["mixture"].origin(63).part in (0, 1)


# --- PyTorch --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [(0, 2), pytest.param((2, 0), marks=pytest.mark.extended)], ids=str)
def test_a_loop_with_augmentations_validation_and_a_resume(
    unfiltered: LabeledGenerator, tmp_path: Path, workers: tuple[int, int]
) -> None:
    normalize = v2.Compose([v2.ToDtype(torch.float32, scale=True), v2.Normalize([0.5] * 3, [0.25] * 3)])
    crop = v2.RandomResizedCrop(16, scale=(0.5, 1.0), antialias=True)
    augment = v2.Compose([crop, v2.RandomAffine(degrees=10), v2.ColorJitter(0.3, 0.3, 0.3), normalize])

    def trained(workers: int, steps: int) -> list[list[int]]:
        stream = DSGANIterableDataset(unfiltered, transforms=augment, global_batch=4)
        net = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 1), torch.nn.BatchNorm2d(8), torch.nn.Conv2d(8, 4, 1))
        if (tmp_path / "last.pt").exists():
            saved = torch.load(tmp_path / "last.pt")
            net.load_state_dict(saved["net"])
            stream.load_state_dict(saved["data"])
        seen = []
        for batch in DataLoader(stream, batch_size=4, num_workers=workers):
            assert batch["image"].dtype == torch.float32 and batch["mask"].dtype == torch.int64
            torch.nn.functional.cross_entropy(net(batch["image"]), batch["mask"], ignore_index=255).backward()
            seen.append(batch["index"].tolist())
            if len(seen) == steps:
                break
        torch.save({"net": net.state_dict(), "data": stream.state_dict(step=steps)}, tmp_path / "last.pt")
        return seen

    assert trained(workers[0], 3) == [list(range(4 * g, 4 * g + 4)) for g in range(3)]
    assert trained(workers[1], 4) == [list(range(4 * g, 4 * g + 4)) for g in range(3, 7)]
    held_out = DSGANDataset(unfiltered, 6, seed=1, transforms=normalize)
    assert [batch["index"].tolist() for batch in DataLoader(held_out, batch_size=4)] == [[0, 1, 2, 3], [4, 5]]


# --- Lightning ------------------------------------------------------------------------------------------------------


def fit(net: Any, data: Any, **options: Any) -> Any:
    import lightning

    trainer = lightning.Trainer(
        accelerator="cpu", devices=1, logger=False, enable_progress_bar=False, enable_model_summary=False, **options
    )
    return trainer


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(("length", "saved_at"), [(None, 3), (20, 3), (20, 5), (20, 7)])
@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.extended)])
def test_lightning_continues_with_the_next_sample(
    tmp_path: Path, length: int | None, saved_at: int, workers: int
) -> None:
    pytest.importorskip("lightning")
    from lightning.pytorch.callbacks import ModelCheckpoint

    from dsgan_datasets.adapters.lightning import DSGANDataModule

    def data() -> Any:
        return DSGANDataModule(NumberSource(), batch_size=4, length=length, val_length=8, num_workers=workers)  # type: ignore[arg-type]

    def trained(steps: int, **options: Any) -> Any:
        net = network()
        saving = ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=saved_at, save_top_k=-1)
        module = data()
        trainer = fit(net, module, max_steps=steps, max_epochs=-1, callbacks=[saving], val_check_interval=None)
        trainer.fit(net, datamodule=module, **options)
        return net

    first = trained(saved_at)
    whole = [list(range(4 * i, 4 * i + 4)) for i in range(12)]
    assert first.seen == whole[:saved_at]
    second = trained(12, ckpt_path=str(tmp_path / f"step={saved_at}.ckpt"))
    assert second.seen == whole[saved_at:]
    assert set(second.validated) <= set(range(8))


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("stopped_by", ["max_steps", "should_stop"])
@pytest.mark.parametrize(("stopped_at", "length"), [(3, 20), (5, 20), (7, 20), (3, None)])
def test_lightning_continues_where_a_training_was_stopped(
    tmp_path: Path, stopped_at: int, length: int | None, stopped_by: str
) -> None:
    """Its epoch is over then, that of the stream is not."""
    lightning = pytest.importorskip("lightning")
    from dsgan_datasets.adapters.lightning import DSGANDataModule

    class Stopping(lightning.Callback):  # type: ignore[misc, name-defined]
        def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
            trainer.should_stop = trainer.global_step == stopped_at

    seen = []
    for steps, checkpoint in ((stopped_at, None), (12, str(tmp_path / "last.ckpt"))):
        net, module = network(), DSGANDataModule(NumberSource(), batch_size=4, length=length)  # type: ignore[arg-type]
        first = checkpoint is None and stopped_by == "should_stop"
        stop = {"max_steps": 100, "callbacks": [Stopping()]} if first else {"max_steps": steps}
        trainer = fit(net, module, max_epochs=-1, limit_train_batches=5, enable_checkpointing=False, **stop)
        trainer.fit(net, datamodule=module, ckpt_path=checkpoint)
        trainer.save_checkpoint(tmp_path / "last.ckpt")
        seen += net.seen
    assert seen == [list(range(4 * i, 4 * i + 4)) for i in range(12)]


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.extended)])
def test_lightning_names_the_epochs_of_any_loader(workers: int) -> None:
    pytest.importorskip("lightning")
    from dsgan_datasets.adapters.lightning import EpochCallback

    net = network()
    loader = DataLoader(numbers(20, global_batch=4), batch_size=4, num_workers=workers)
    options = {"limit_train_batches": 2, "callbacks": [EpochCallback()], "enable_checkpointing": False}
    fit(net, None, max_epochs=2, **options).fit(net, loader)
    assert list(chain(*net.seen)) == [*range(8), *range(20, 28)]


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_lightning_continues_after_an_epoch_with_workers(tmp_path: Path) -> None:
    """Lightning loads no state of the loader then, and its workers begin before a callback can name the epoch."""
    pytest.importorskip("lightning")
    from dsgan_datasets.adapters.lightning import DSGANDataModule

    seen = []
    for epochs, checkpoint in ((1, None), (3, str(tmp_path / "end.ckpt"))):
        net = network()
        module = DSGANDataModule(NumberSource(), batch_size=4, length=8, num_workers=1)  # type: ignore[arg-type]
        trainer = fit(net, module, max_epochs=epochs, enable_checkpointing=False)
        trainer.fit(net, datamodule=module, ckpt_path=checkpoint)
        trainer.save_checkpoint(tmp_path / "end.ckpt")
        seen.append(list(chain(*net.seen)))
    assert seen == [[*range(8)], [*range(8, 24)]]


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_lightning_cuts_epochs_short_and_takes_mixtures() -> None:
    pytest.importorskip("lightning")
    from dsgan_datasets.adapters.lightning import DSGANDataModule

    net = network()
    module = DSGANDataModule(NumberSource(), batch_size=4, length=20)  # type: ignore[arg-type]
    fit(net, module, max_epochs=2, limit_train_batches=2, enable_checkpointing=False).fit(net, datamodule=module)
    assert list(chain(*net.seen)) == [*range(8), *range(20, 28)]
    net = network()
    real = DSGANDataset(NumberSource(), 3)  # type: ignore[arg-type]
    mixture = Mixture([numbers(start=10), real], [1, 1], length=8)
    module = DSGANDataModule(mixture, batch_size=4)
    fit(net, module, max_epochs=2, enable_checkpointing=False).fit(net, datamodule=module)
    assert list(chain(*net.seen)) == [mixture.origin(n).number for n in range(16)]
    with pytest.raises(ValueError, match="give one instead of a stream"):
        DSGANDataModule(mixture, batch_size=4, val_length=4)


# --- transformers ---------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.extended)])
def test_the_trainer_of_transformers(tmp_path: Path, workers: int) -> None:
    """A tiny SegFormer, which is told nothing about columns, and continues in the middle of an epoch."""
    transformers = pytest.importorskip("transformers")
    from dsgan_datasets.adapters.huggingface import for_trainer, label_names

    labeled = LabeledGenerator.from_pretrained("demo-faces", device="cpu")
    pictures = [image.float() / 255 for image in labeled.generate(range(18)).image]

    def trained(steps: int, **options: Any) -> list[int]:
        seen: list[int] = []

        class Noting(transformers.SegformerForSemanticSegmentation):  # type: ignore[misc, name-defined]
            def forward(self, pixel_values: torch.Tensor, labels: Any = None, **more: Any) -> Any:
                if self.training:
                    seen.extend(
                        next((i for i, p in enumerate(pictures) if torch.equal(p, image)), -1) for image in pixel_values
                    )
                return super().forward(pixel_values, labels=labels, **more)

        config = transformers.SegformerConfig(**label_names(labeled.targets), **SMALL)
        arguments = transformers.TrainingArguments(
            str(tmp_path),
            max_steps=steps,
            per_device_train_batch_size=2,
            save_steps=4,
            dataloader_num_workers=workers,
            report_to=[],
            use_cpu=True,
            disable_tqdm=True,
        )
        stream = DSGANIterableDataset(labeled, length=6, global_batch=2)  # the order of any number of workers
        trainer = transformers.Trainer(
            Noting(config),
            arguments,
            train_dataset=for_trainer(stream),
            eval_dataset=for_trainer(DSGANDataset(labeled, 4, seed=1)),
        )
        trainer.train(**options)
        assert "eval_loss" in trainer.evaluate()
        return seen

    assert trained(4) == list(range(8))
    assert trained(8, resume_from_checkpoint=True) == list(range(8, 16))


def test_items_of_the_trainer() -> None:
    pytest.importorskip("transformers")
    from dsgan_datasets.adapters.huggingface import for_trainer

    with pytest.raises(ValueError, match="expected a stream or a map-style dataset of samples, not 7"):
        for_trainer(7)
    with pytest.raises(ValueError, match="expected a stream or a map-style dataset of samples, not 'faces'"):
        for_trainer("faces")
    with pytest.raises(ValueError, match="items need masks; these samples have 1"):
        for_trainer([1])[0]
    source = NumberSource()
    endless = for_trainer(DSGANIterableDataset(source))  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        len(endless)
    finite = for_trainer(numbers(6), preprocess=lambda image: image.float() - 1)
    assert len(finite) == 6 and next(iter(finite))["pixel_values"].tolist() == [[[-1.0]]] * 3
    rows = iter(finite)
    next(rows), next(rows)
    again = for_trainer(numbers(6))
    again.load_state_dict(finite.state_dict())
    assert len(list(again)) == 4
    assert for_trainer(DSGANDataset(source, 3)).__getitems__([2, 0])[0].keys() == {"pixel_values", "labels"}  # type: ignore[arg-type]


@pytest.mark.slow
def test_rows_of_datasets(monkeypatch: pytest.MonkeyPatch, unfiltered: LabeledGenerator) -> None:
    pytest.importorskip("datasets")
    import numpy as np
    from datasets.distributed import split_dataset_by_node

    from dsgan_datasets.adapters import huggingface

    monkeypatch.setattr(huggingface, "_BLOCK", 4)
    labeled = unfiltered
    for wrong in ("demo-faces", DSGANIterableDataset(labeled)):
        with pytest.raises(ValueError, match="expected a LabeledGenerator or another source of samples"):
            huggingface.to_hf_dataset(wrong, 3)  # type: ignore[arg-type]

    def rows() -> Any:
        return huggingface.to_hf_dataset(labeled, 18, seed=3, start=2)

    def indices(dataset: Any) -> list[int]:
        return [row["index"] for row in dataset]

    whole = list(range(2, 20))
    first = rows()
    started = iter(first)
    seen = [next(started) for _ in range(7)]
    sample = labeled.generate([2], seed=3)
    assert np.array_equal(np.array(seen[0]["image"]).transpose(2, 0, 1), sample.image[0].numpy())
    assert np.array_equal(np.array(seen[0]["mask"]), sample.mask[0].numpy())
    second = rows()
    second.load_state_dict(first.state_dict())
    assert [row["index"] for row in seen] + indices(second) == whole
    for ranks in (1, 2, 3):
        parts = [indices(split_dataset_by_node(rows(), rank=rank, world_size=ranks)) for rank in range(ranks)]
        assert sorted(chain(*parts)) == whole
    loader = DataLoader(rows().select_columns("index"), batch_size=2, num_workers=2)
    assert sorted(i for batch in loader for i in batch["index"].tolist()) == whole
    with pytest.raises(ValueError, match="length must be an integer"):
        huggingface.to_hf_dataset(labeled, 0)


def test_wrong_arguments_are_named(unfiltered: LabeledGenerator) -> None:
    pytest.importorskip("lightning")
    from dsgan_datasets.adapters.huggingface import label_names
    from dsgan_datasets.adapters.lightning import DSGANDataModule

    for size in (0, 2.5, "4"):
        with pytest.raises(ValueError, match="batch_size must be an integer of at least 1"):
            DSGANDataModule(unfiltered, batch_size=size)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="expected labels, such as the `targets`"):
        label_names(unfiltered)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="the labels are: none"):
        label_names([])
    with pytest.raises(ValueError, match="expected a LabeledGenerator"):
        DSGANIterableDataset(LabeledGenerator)  # type: ignore[arg-type]
