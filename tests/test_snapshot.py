"""Snapshots: what is in them is read as it was written. What must not be read: test_hostile_files.py."""

from __future__ import annotations

import io
import os
import pickle
import pickletools
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch

from dsgan_datasets import CheckpointError, load_generator
from dsgan_datasets.checkpoints.snapshot import read_snapshot

GOLDEN = Path(__file__).parent / "golden"
SMALL = GOLDEN / "sg2ada_fullsnapshot16.pkl"


class Call:
    """Pickles as a call of `function`."""

    def __init__(self, function: Any, *args: Any) -> None:
        self.call = function, args

    def __reduce__(self) -> tuple[Any, Any]:
        return self.call


def save(path: Path, content: Any, protocol: int = 4) -> Path:
    path.write_bytes(pickle.dumps(content, protocol))
    return path


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_calls_are_refused_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, protocol: int) -> None:
    """As Python's own pickler writes them in each protocol."""
    monkeypatch.chdir(tmp_path)
    path = save(tmp_path / "evil.pkl", {"G_ema": Call(os.system, "touch CANARY")}, protocol)
    with pytest.raises(CheckpointError, match=r"evil.pkl: refused: the file asks for posix.system"):
        load_generator(path)
    assert not Path("CANARY").exists()


def test_embedded_source_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The real file, its module source replaced by code that would leave a trace."""
    monkeypatch.chdir(tmp_path)
    source = b"open('CANARY', 'w').close()"
    data = SMALL.read_bytes()
    empty = next(
        pos
        for (op, arg, _), (_, value, pos) in zip(
            pickletools.genops(data), list(pickletools.genops(data))[2:], strict=False
        )
        if op.name == "BINUNICODE" and arg == "module_src" and value == ""
    )
    armed = data[:empty] + b"X" + len(source).to_bytes(4, "little") + source + data[empty + 5 :]
    path = tmp_path / "armed.pkl"
    path.write_bytes(armed)
    assert load_generator(path, device="cpu").img_resolution == 16
    assert not Path("CANARY").exists()


def typed_storage(n: int) -> torch.TypedStorage:
    return torch.TypedStorage(
        wrap_storage=torch.arange(float(n)).untyped_storage(), dtype=torch.float32, _internal=True
    )


def test_strides_are_honored(tmp_path: Path) -> None:
    storage = io.BytesIO()
    torch.save(typed_storage(6), storage, _use_new_zipfile_serialization=False)
    nested = Call(torch.storage._load_from_bytes, storage.getvalue())
    content = {"t": Call(torch._utils._rebuild_tensor_v2, nested, 0, (2, 3), (1, 2), False, None)}
    tensor = read_snapshot(save(tmp_path / "strided.pkl", content))["t"]
    assert tensor.tolist() == [[0.0, 2.0, 4.0], [1.0, 3.0, 5.0]]


def test_sets_of_every_protocol(tmp_path: Path) -> None:
    for protocol in (2, 3, 4, 5):
        assert read_snapshot(save(tmp_path / "set.pkl", {"s": {1, 2}}, protocol)) == {"s": {1, 2}}


def test_both_numpy_module_names(tmp_path: Path) -> None:
    new = pickle.dumps({"x": __import__("numpy").float64(1.5)}, 4)
    for name in (b"numpy._core.multiarray", b"numpy.core.multiarray"):
        old = pickletools.optimize(new)
        data = old.replace(b"\x8c\x16numpy._core.multiarray", b"\x8c" + bytes([len(name)]) + name)
        start = data.index(b"\x95")  # drop the frame, whose length would no longer fit
        path = tmp_path / "scalar.pkl"
        path.write_bytes(data[:start] + data[start + 9 :])
        assert read_snapshot(path) == {"x": 1.5}


@pytest.mark.parametrize("dtype", ["<i8", ">i4", "<f2", ">f8", "|b1", "|u1"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_numpy_arrays(tmp_path: Path, dtype: str, order: Literal["C", "F"]) -> None:
    array = np.arange(6).reshape(2, 3).astype(dtype, order=order)
    for protocol in (3, 4):
        found = read_snapshot(save(tmp_path / "array.pkl", {"a": array}, protocol))["a"]
        assert found.dtype == array.dtype.newbyteorder("=") and found.tolist() == array.tolist()


@pytest.mark.parametrize("array", [np.array(["a"]), np.array([None]), np.zeros(1, "i4,i4"), np.array([1j])])
def test_numpy_arrays_of_other_things_are_refused(tmp_path: Path, array: np.ndarray) -> None:
    with pytest.raises(CheckpointError, match="numpy dtype .* is not on the allow-list"):
        read_snapshot(save(tmp_path / "array.pkl", {"a": array}, 3))


def test_numpy_arrays_fit_their_bytes(tmp_path: Path) -> None:
    data = pickle.dumps({"a": np.arange(3, dtype="u1")}, 3)
    path = tmp_path / "array.pkl"
    path.write_bytes(data.replace(b"K\x03\x85", b"K\x04\x85"))
    with pytest.raises(CheckpointError, match=r"array of shape \(4,\) has 3 bytes"):
        read_snapshot(path)


def test_the_averaged_generator_is_used() -> None:
    snapshot = read_snapshot(SMALL)
    averaged = snapshot["G_ema"].tensors()["mapping.fc0.weight"]
    assert not torch.equal(averaged, snapshot["G"].tensors()["mapping.fc0.weight"])
    loaded = load_generator(SMALL, device="cpu").state_dict()["mapping_network.fc0.weight"]
    assert torch.equal(loaded, averaged)


@pytest.mark.parametrize("content", [[], {"G": 1}, {"G_ema": None}])
def test_pickles_without_a_generator(tmp_path: Path, content: Any) -> None:
    with pytest.raises(CheckpointError, match="expected the dict|not a generator file: it holds"):
        load_generator(save(tmp_path / "other.pkl", content))
