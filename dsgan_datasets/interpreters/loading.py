"""A checkpoint directory or a folder of published classifiers -> an interpreter, by the architecture that it names."""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dsgan_datasets._deprecation import warn_renamed
from dsgan_datasets.checkpoints import directory as checkpoint_directory
from dsgan_datasets.checkpoints.errors import CheckpointError
from dsgan_datasets.checkpoints.tensors import check_numbers
from dsgan_datasets.checkpoints.torch_file import read_torch_file
from dsgan_datasets.device import Device, resolve_device
from dsgan_datasets.files import is_file
from dsgan_datasets.interpreters.base import Interpreter, LabelingOptions
from dsgan_datasets.interpreters.clusters import ClusterInterpreter
from dsgan_datasets.interpreters.convolutional import ConvolutionalInterpreter
from dsgan_datasets.interpreters.keypoint_ensemble import KeypointEnsemble
from dsgan_datasets.interpreters.map_ensemble import MapEnsemble
from dsgan_datasets.interpreters.pixel_ensemble import PixelEnsemble
from dsgan_datasets.recipe import Vote

BATCH_NORM_EPS = 1e-5

#: Position of each layer in the published nn.Sequential (1 and 4 are the ReLUs).
_LINEAR = ("layers.0", "layers.3", "layers.6")
_NORM = ("layers.2", "layers.5")


#: "architecture" in config.json -> class, built by its `from_parts`.
ARCHITECTURES: dict[str, type[Interpreter]] = {
    PixelEnsemble.architecture: PixelEnsemble,
    ClusterInterpreter.architecture: ClusterInterpreter,
    KeypointEnsemble.architecture: KeypointEnsemble,
    MapEnsemble.architecture: MapEnsemble,
    ConvolutionalInterpreter.architecture: ConvolutionalInterpreter,
}


def load_interpreter(
    path: str | os.PathLike[str], *, field: str | None = None, device: Device = None, vote: Vote | None = None
) -> Interpreter:
    """Load an interpreter. No code from the files is run.

    Args:
        path: a checkpoint directory or the name of a built-in checkpoint; or a folder of ``model_0.pth``,
            ``model_1.pth``, … as DatasetGAN and EditGAN publish them, of which the feature layout is not known
            (`PixelEnsemble.with_layout` adds it).
        field: of the label that it predicts, such as "keypoints", of a checkpoint with several; None is the first one.
        device: where to put it; None is the current CUDA device if there is one, else the CPU.
        vote: deprecated; pass ``LabelingOptions(vote=…)`` to `predict`.

    Returns:
        the class in `ARCHITECTURES` that config.json names; a `PixelEnsemble` for published classifiers.

    Raises:
        CheckpointError: nothing of that kind is there, or a file is damaged, was changed, or does not fit the others.

    Example:
        >>> load_interpreter("demo-faces", device="cpu").config["members"]
        10
    """
    source = checkpoint_directory.find(path)
    if is_file(source / "config.json"):
        stored = checkpoint_directory.read_config(source)
        other = f"interpreter_{field}" in checkpoint_directory.section(stored, "parts", source)
        stem = f"interpreter_{field}" if other else "interpreter"
        config, tensors = checkpoint_directory.read_part(stored, stem, source)
        interpreter = build_interpreter(config, tensors, device=device, source=source)
    else:
        interpreter = _published(source).to(resolve_device(device))
    if field is not None and field not in interpreter.fields:
        raise CheckpointError(f"{source}: none of its interpreters predicts {field!r:.40}")
    if vote is not None:
        warn_renamed("load_interpreter(vote=…)", "interpreter.predict(…, LabelingOptions(vote=…))")
        interpreter.check_options(LabelingOptions(vote))
        if isinstance(interpreter, PixelEnsemble):  # the one class that has the deprecated `label`
            interpreter.label_options = LabelingOptions(vote)
    return interpreter


def build_interpreter(
    config: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    *,
    device: Device = None,
    source: object = "interpreter",
) -> Interpreter:
    """An interpreter from its config and tensors.

    Args:
        config: with "architecture", a key of `ARCHITECTURES`.
        tensors: by name.
        device: where to put it; None is the current CUDA device if there is one, else the CPU.
        source: names config and tensors in errors.

    Raises:
        CheckpointError: an unknown architecture, or tensors that do not fit together or are not what config promises.
    """
    name = config.get("architecture")
    if not isinstance(name, str) or name not in ARCHITECTURES:
        raise CheckpointError(
            f"{source}: interpreter architecture {name!r:.60} is unknown; known: {', '.join(sorted(ARCHITECTURES))}"
        )
    for tensor_name, tensor in tensors.items():
        check_numbers(tensor, f"{source}: tensor {tensor_name}")
    try:
        interpreter = ARCHITECTURES[name].from_parts(config, tensors)
    except (KeyError, ValueError) as error:
        raise CheckpointError(f"{source}: the interpreter's tensors do not fit together: {error}") from error
    if interpreter.config != dict(config):
        raise CheckpointError(f"{source}: config.json promises {dict(config)}, the tensors are {interpreter.config}")
    return interpreter.to(resolve_device(device))


def _published(source: Path) -> PixelEnsemble:
    """The classifiers in a folder of model_0.pth, model_1.pth, …"""
    files = _member_files(source)
    members = [_published_member(file) for file in files]
    for file, member in zip(files, members, strict=True):
        for name, tensor in member.items():
            if tensor.shape != members[0][name].shape:
                raise CheckpointError(
                    f"{file}: {name} has shape {list(tensor.shape)}, "
                    f"but {list(members[0][name].shape)} in {files[0].name}"
                )
    return PixelEnsemble(stack_members(members))


def stack_members(members: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Stack classifiers and fold their batch normalizations.

    Args:
        members: of each, the state dict of Linear, ReLU, BatchNorm, Linear, ReLU, BatchNorm, Linear with the names
            ``layers.0`` … ``layers.6``.

    Returns:
        the matrices of `EnsembleWeights`. BatchNorm computes a·x + d with a = γ / sqrt(σ² + ε) and d = β − μ·a; the
        layer after it computes W·(a·x + d) + b, which is (W·diag a)·x + (W·d + b).
    """

    def stacked(name: str) -> Tensor:
        return torch.stack([member[name].double() for member in members])

    weights, biases = [stacked(f"{_LINEAR[0]}.weight")], [stacked(f"{_LINEAR[0]}.bias")]
    for linear, norm in zip(_LINEAR[1:], _NORM, strict=True):
        scale = stacked(f"{norm}.weight") * (stacked(f"{norm}.running_var") + BATCH_NORM_EPS).rsqrt()
        shift = stacked(f"{norm}.bias") - stacked(f"{norm}.running_mean") * scale
        weight = stacked(f"{linear}.weight")
        weights.append(weight * scale.unsqueeze(1))
        biases.append(stacked(f"{linear}.bias") + (weight @ shift.unsqueeze(2)).squeeze(2))
    return {
        "w1": weights[0].permute(2, 0, 1).float(),
        "w2": weights[1].transpose(1, 2).float(),
        "w3": weights[2].transpose(1, 2).float(),
        **{f"b{i}": bias.float() for i, bias in enumerate(biases, start=1)},
    }


def _member_files(source: Path) -> list[Path]:
    """The files model_0.pth … model_(N-1).pth, which are the members that the layout knows.

    Other names are ignored with a note: DatasetGAN's training writes classifiers that are not finished yet into the
    same folder, such as model_20parts_iter5000_number_0.pth.
    """
    members: dict[int, Path] = {}
    others = []
    for file in sorted(source.glob("*.pth")):
        if match := re.fullmatch(r"model_(0|[1-9]\d*)\.pth", file.name, re.ASCII):
            members[int(match[1])] = file
        else:
            others.append(file.name)
    if not members:
        found = f"; {_listed(others)} are not named like that" if others else ""
        raise CheckpointError(
            f"{source} is not an interpreter: expected config.json, or a folder of model_0.pth, model_1.pth, …{found}"
        )
    if len(members) <= max(members):
        missing = next(number for number in count() if number not in members)
        raise CheckpointError(
            f"{source} has {len(members)} members, among them model_{max(members)}.pth, and lacks "
            f"model_{missing}.pth: copy the whole ensemble, or number the files from 0 without a gap"
        )
    if others:
        warnings.warn(
            f"{source}: only files named model_NUMBER.pth are members of the ensemble; ignored: {_listed(others)}",
            stacklevel=4,
        )
    return [members[number] for number in range(len(members))]


def _listed(names: Sequence[str]) -> str:
    """The names, or the first ones of many."""
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def _published_member(path: Path) -> dict[str, Tensor]:
    """State dict of one published classifier, with or without the ``module.`` prefix of DataParallel."""
    content = read_torch_file(path)
    if isinstance(content, dict) and "model_state_dict" in content:
        content = content["model_state_dict"]
    if not isinstance(content, dict) or not all(isinstance(v, Tensor) for v in content.values()):
        raise CheckpointError(f"{path} does not hold the state dict of a pixel classifier")
    member = {str(name).removeprefix("module."): tensor for name, tensor in content.items()}
    wanted = {
        *(f"{layer}.{kind}" for layer in _LINEAR for kind in ("weight", "bias")),
        *(f"{norm}.{kind}" for norm in _NORM for kind in ("weight", "bias", "running_mean", "running_var")),
    }
    if missing := sorted(wanted - member.keys()):
        raise CheckpointError(f"{path} is not a pixel classifier as published: it lacks {missing}")
    _check_member(member, path)
    for name in wanted:
        check_numbers(member[name], f"{path}: {name}")
    return {name: member[name] for name in sorted(wanted)}


def _check_member(member: Mapping[str, Tensor], path: Path) -> None:
    """Refuse shapes that do not follow from one another: folding would broadcast them to any size."""
    weights = [member[f"{layer}.weight"].shape for layer in _LINEAR]
    if any(len(shape) != 2 or 0 in shape for shape in weights):
        raise CheckpointError(f"{path}: the weights have shapes {[list(s) for s in weights]}, expected three matrices")
    for i, layer in enumerate(_LINEAR):
        width = weights[i][0]
        expected: dict[str, tuple[int, ...]] = {f"{layer}.bias": (width,)}
        if i < len(_NORM):
            expected |= {f"{_NORM[i]}.{kind}": (width,) for kind in ("weight", "bias", "running_mean", "running_var")}
            expected[f"{_LINEAR[i + 1]}.weight"] = (weights[i + 1][0], width)
        for name, shape in expected.items():
            if member[name].shape != shape:
                raise CheckpointError(f"{path}: {name} has shape {list(member[name].shape)}, expected {list(shape)}")
