from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from torch.utils.data import default_collate

from dsgan_datasets import LabeledGenerator, Sample, SampleBatch


def test_fields_are_attributes_and_keys(unfiltered: LabeledGenerator) -> None:
    batch = unfiltered.generate([3, 1], extras=("uncertainty", "latent"))
    assert batch.image is batch["image"] and batch.num_samples == 2
    assert batch.image.dtype == torch.uint8 and batch.image.shape == (2, 3, 16, 16)
    assert batch.mask.dtype == torch.int64 and batch.mask.shape == (2, 16, 16)
    assert batch.uncertainty_score.dtype == torch.float32 and batch.index.tolist() == [3, 1]
    assert batch.uncertainty.shape == (2, 16, 16) and batch.latent.shape == (2, 32)


def test_fields_not_asked_for_are_absent(unfiltered: LabeledGenerator) -> None:
    sample = next(unfiltered.generate([0]).rows())
    assert "uncertainty" not in sample and not hasattr(sample, "latent")
    with pytest.raises(AttributeError, match="it has: image, mask"):
        _ = sample.uncertainty


def test_stock_collate_makes_a_batch(unfiltered: LabeledGenerator) -> None:
    batch = unfiltered.generate(range(3))
    collated = default_collate(list(batch.rows()))
    assert type(collated) is SampleBatch
    assert all(torch.equal(collated[name], batch[name]) for name in batch)


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_pickling(unfiltered: LabeledGenerator, protocol: int) -> None:
    for thing in (unfiltered.generate([0, 1]), next(unfiltered.generate([0]).rows())):
        back = pickle.loads(pickle.dumps(thing, protocol))
        assert type(back) is type(thing) and all(torch.equal(back[name], thing[name]) for name in thing)
        assert type(copy.copy(thing)) is type(thing)


def test_pin_memory_keeps_the_type(monkeypatch: pytest.MonkeyPatch, unfiltered: LabeledGenerator) -> None:
    from torch.utils.data._utils.pin_memory import pin_memory

    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self, device=None: self)  # there may be no GPU
    assert type(pin_memory(unfiltered.generate([0]))) is SampleBatch


def test_repr_is_short(unfiltered: LabeledGenerator) -> None:
    assert repr(next(unfiltered.generate([0]).rows())).startswith("Sample(image=(3, 16, 16) uint8")
    assert isinstance(Sample(), dict)


@pytest.mark.parametrize(
    "other, words",
    [
        (5, "an item of type int"),
        ({"image": torch.zeros(3, 4, 4)}, "different fields"),
        ({"image": torch.zeros(3, 8, 4), "mask": torch.zeros(4, 4)}, r"image is \[3, 4, 4\] and \[3, 8, 4\]"),
    ],
)
def test_samples_that_do_not_fit_into_one_batch_are_named(other: Any, words: str) -> None:
    first = Sample({"image": torch.zeros(3, 4, 4), "mask": torch.zeros(4, 4)})
    assert SampleBatch.stack([first, first])["image"].shape == (2, 3, 4, 4)
    with pytest.raises(ValueError, match=words):
        SampleBatch.stack([first, other])
