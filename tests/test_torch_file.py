"""Files of torch.save come back as torch.load gives them. What must not be read: test_hostile_files.py."""

from __future__ import annotations

import argparse
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import GOLDEN
from torch import Tensor, nn

from dsgan_datasets import CheckpointError
from dsgan_datasets.checkpoints.torch_file import read_torch_file

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.bool, torch.uint8, torch.int8]
DTYPES += [torch.int16, torch.int32, torch.int64]


@pytest.fixture(params=["zip", "legacy"])
def save(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    def save(content: Any) -> Path:
        torch.save(content, tmp_path / "x.pt", _use_new_zipfile_serialization=request.param == "zip")
        return tmp_path / "x.pt"

    return save


def assert_same(found: Any, expected: Any) -> None:
    """Equal in values, and tensors in type, strides and storage too."""
    if isinstance(expected, dict):
        assert type(found) is dict and list(found) == list(expected)
        for key in expected:
            assert_same(found[key], expected[key])
    elif isinstance(expected, Tensor):
        assert type(found) is Tensor and not found.requires_grad and found.device.type == "cpu"
        assert (found.dtype, found.stride()) == (expected.dtype, expected.stride()) and torch.equal(found, expected)
    else:
        assert type(found) is type(expected) and found == expected


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_type_and_any_strides(save: Any, dtype: torch.dtype) -> None:
    values = torch.arange(24).reshape(2, 3, 4).to(dtype)
    content = {"all": values, "turned": values.permute(2, 0, 1), "part": values[1, ::2], "one": values[0, 0, 1]}
    content |= {"none": values[:0], "wide": values[0, 0, 0].expand(1, 1)}
    assert_same(read_torch_file(save(content)), content)


def test_a_state_dict(save: Any) -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).to(memory_format=torch.channels_last)
    path = save({"g_ema": network.state_dict(), "latent_avg": torch.zeros(5), "p": network[0].weight})
    found = read_torch_file(path)
    assert_same(found["g_ema"], dict(network.state_dict()))
    assert torch.equal(found["p"], network[0].weight) and found["p"].data_ptr() == found["g_ema"]["0.weight"].data_ptr()


def test_plain_values_and_training_arguments(save: Any) -> None:
    content = {"n": 3, "big": 2**70, "x": 0.5, "t": (1, [None, True]), "s": "é", "o": OrderedDict(a=1), "set": {1, 2}}
    assert read_torch_file(save(content)) == content
    with pytest.raises(CheckpointError, match=r"refused: the file asks for argparse\.Namespace"):
        read_torch_file(save({**content, "args": argparse.Namespace(size=256, path="x")}))


@pytest.mark.parametrize("file", sorted(GOLDEN.glob("*_ckpt/model_0.pth")), ids=lambda path: path.parent.name)
def test_real_files(file: Path) -> None:
    assert_same(read_torch_file(file), torch.load(file, weights_only=True))


def test_shared_weights_stay_shared(save: Any) -> None:
    """Not refused as repeated: they are no more than twice the file."""
    weight = torch.zeros(10_000_000)
    found = read_torch_file(save({"g": weight, "g_ema": weight.view(1000, -1)}))
    assert found["g"].data_ptr() == found["g_ema"].data_ptr()


@pytest.mark.parametrize(
    ("content", "asks"),
    [
        (torch.zeros(2, dtype=torch.complex64), "torch.ComplexFloatStorage"),
        (torch.eye(2).to_sparse(), "torch._utils._rebuild_sparse_tensor"),
        (torch.zeros(2, device="meta"), "torch._utils._rebuild_meta_tensor_no_storage"),
        (nn.Linear(1, 1), "torch.nn.modules.linear.Linear"),
        (Path("x"), rf"{type(Path()).__module__}.PosixPath"),  # pathlib._local under Python 3.13
    ],
    ids=["complex", "sparse", "meta", "module", "path"],
)
def test_what_is_no_plain_tensor_is_refused_by_name(save: Any, content: Any, asks: str) -> None:
    with pytest.raises(CheckpointError, match=rf"x.pt: refused: the file asks for {asks}, which is not"):
        read_torch_file(save({"x": content}))


def test_no_file(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "nothing.pt"):
        with pytest.raises(CheckpointError, match="is not a regular file"):
            read_torch_file(path)
