"""Checkers that several tests share."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from dsgan_datasets import Sample, SampleBatch


def assert_same_samples(got: Iterable[Sample], expected: Iterable[Sample]) -> None:
    """Bit-identical in every field."""
    got, expected = list(got), list(expected)
    assert [int(s.index) for s in got] == [int(s.index) for s in expected]
    for a, b in zip(got, expected, strict=True):
        assert a.keys() == b.keys()
        for name in a:
            assert torch.equal(torch.as_tensor(a[name]), torch.as_tensor(b[name])), f"{name} of index {int(a.index)}"


def assert_partition(parts: list[list[int]], whole: Iterable[int]) -> None:
    """Every index in exactly one part."""
    assert sorted(i for part in parts for i in part) == sorted(whole)


def rows_by_index(batch: SampleBatch) -> dict[int, Sample]:
    return {int(sample.index): sample for sample in batch.rows()}
