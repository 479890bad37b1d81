"""Invariant 5: a pickle never gets to run anything, and what is refused is named."""

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
from dsgan_datasets.checkpoints.snapshot import PersistentObject, read_snapshot

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
@pytest.mark.parametrize(
    ("function", "args", "named"),
    [
        (os.system, ("touch CANARY",), "posix.system"),
        (eval, ("open('CANARY', 'w')",), "(builtins|__builtin__).eval"),
        (exec, ("open('CANARY', 'w')",), "(builtins|__builtin__).exec"),
        (getattr, (os, "system"), "(builtins|__builtin__).getattr"),
        (__import__, ("os",), "(builtins|__builtin__).__import__"),
        (torch.load, ("CANARY",), "torch"),
        (pickle.loads, (b"",), "_?pickle.loads"),
    ],
)
def test_calls_are_refused_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, function: Any, args: tuple[Any, ...], named: str, protocol: int
) -> None:
    monkeypatch.chdir(tmp_path)
    args = tuple("os" if a is os else a for a in args)
    path = save(tmp_path / "evil.pkl", {"G_ema": Call(function, *args)}, protocol)
    with pytest.raises(CheckpointError, match=rf"refused: the file asks for {named}"):
        load_generator(path)
    assert not Path("CANARY").exists()


def test_the_nested_pickle_of_a_storage_is_restricted_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    inner = io.BytesIO()
    for header in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}):
        pickle.dump(header, inner, 2)
    pickle.dump(Call(os.system, "touch CANARY"), inner, 2)
    path = save(tmp_path / "nested.pkl", {"G_ema": Call(torch.storage._load_from_bytes, inner.getvalue())})
    with pytest.raises(CheckpointError, match="nested file of a storage: refused: the file asks for posix.system"):
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


def test_functions_on_the_list_cannot_be_changed(tmp_path: Path) -> None:
    for setter in (b"}X\x08\x00\x00\x00__call__K\x01sb.", b"N}X\x05\x00\x00\x00_makeK\x01s\x86b."):
        path = tmp_path / "mutate.pkl"
        path.write_bytes(b"\x80\x02ctorch._utils\n_rebuild_parameter\n" + setter)
        with pytest.raises(CheckpointError, match="tries to change a Name"):
            read_snapshot(path)
    assert load_generator(SMALL, device="cpu").z_dim == 32


@pytest.mark.parametrize("keep", [0, 1, 2, 100, 0.5, 0.99])
def test_truncated_files(tmp_path: Path, keep: float) -> None:
    data = SMALL.read_bytes()
    path = tmp_path / "cut.pkl"
    path.write_bytes(data[: int(keep * len(data)) if isinstance(keep, float) else keep])
    with pytest.raises(CheckpointError, match=r"cut\.pkl"):
        load_generator(path)


def test_flipped_bytes_end_in_our_error_or_load(tmp_path: Path) -> None:
    data = SMALL.read_bytes()
    random = torch.Generator().manual_seed(0)
    path = tmp_path / "flipped.pkl"
    refused = 0
    for position in torch.randint(len(data), (150,), generator=random).tolist():
        path.write_bytes(data[:position] + bytes([data[position] ^ 0x41]) + data[position + 1 :])
        try:
            load_generator(path, device="cpu")
        except CheckpointError:
            refused += 1
    assert refused  # structure was hit at least once; a flip inside a weight goes unnoticed, as in any file of weights


def typed_storage(n: int) -> torch.TypedStorage:
    return torch.TypedStorage(
        wrap_storage=torch.arange(float(n)).untyped_storage(), dtype=torch.float32, _internal=True
    )


def test_strides_are_honoured(tmp_path: Path) -> None:
    storage = io.BytesIO()
    torch.save(typed_storage(6), storage, _use_new_zipfile_serialization=False)
    nested = Call(torch.storage._load_from_bytes, storage.getvalue())
    content = {"t": Call(torch._utils._rebuild_tensor_v2, nested, 0, (2, 3), (1, 2), False, None)}
    tensor = read_snapshot(save(tmp_path / "strided.pkl", content))["t"]
    assert tensor.tolist() == [[0.0, 2.0, 4.0], [1.0, 3.0, 5.0]]
    assert PersistentObject("X", {"_buffers": {"t": tensor}}).tensors()["t"].is_contiguous()


@pytest.mark.parametrize(
    ("size", "stride", "offset"),
    [((5,), (1,), 0), ((2, 2), (4, 1), 0), ((4,), (1,), 1), ((10**6, 10**6), (0, 0), 0), ((2,), (-1,), 1)],
)
def test_tensors_stay_inside_their_storage(
    tmp_path: Path, size: tuple[int, ...], stride: tuple[int, ...], offset: int
) -> None:
    storage = io.BytesIO()
    torch.save(typed_storage(4), storage, _use_new_zipfile_serialization=False)
    nested = Call(torch.storage._load_from_bytes, storage.getvalue())
    content = {"t": Call(torch._utils._rebuild_tensor_v2, nested, offset, size, stride, False, None)}
    with pytest.raises(CheckpointError, match="tensor"):
        read_snapshot(save(tmp_path / "big.pkl", content))


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
    with pytest.raises(CheckpointError, match="expected the dict|no generator G_ema"):
        load_generator(save(tmp_path / "other.pkl", content))


def persistent(state: dict[str, Any]) -> Any:
    """Pickles as a network object with that state."""

    class Reconstruct:
        def __reduce__(self) -> Any:
            return _reconstruct_persistent_obj, ({"type": "class", "class_name": "X", "state": state},)

    return Reconstruct()


def _reconstruct_persistent_obj(meta: Any) -> Any:
    raise AssertionError("never called")


@pytest.mark.parametrize("kind", ["list of modules", "modules within modules"])
def test_networks_that_are_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    import sys
    import types

    module = types.ModuleType("torch_utils.persistence")
    module._reconstruct_persistent_obj = _reconstruct_persistent_obj  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torch_utils", types.ModuleType("torch_utils"))
    monkeypatch.setitem(sys.modules, "torch_utils.persistence", module)
    monkeypatch.setattr(_reconstruct_persistent_obj, "__module__", "torch_utils.persistence")
    network = persistent({})
    for _ in range(40):  # 2^40 modules, if each path to one counted
        network = persistent({"_modules": {"a": network, "b": network}})
    modules = (
        [1] if kind == "list of modules" else {"synthesis": persistent({"block_resolutions": []}), "mapping": network}
    )
    path = save(tmp_path / "odd.pkl", {"G_ema": persistent({"_modules": modules})})
    with pytest.raises(CheckpointError, match=r"odd\.pkl|expected a dict"):
        load_generator(path)


def test_persistent_ids_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "pid.pkl"
    path.write_bytes(b"\x80\x02X\x01\x00\x00\x00aQ.")
    with pytest.raises(CheckpointError, match="persistent id"):
        read_snapshot(path)
