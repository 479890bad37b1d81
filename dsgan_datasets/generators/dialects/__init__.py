"""Generator files of other projects -> config and tensors of ours. Layouts: docs/checkpoint-format.md."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dsgan_datasets.checkpoints.errors import CheckpointError
from dsgan_datasets.checkpoints.snapshot import PersistentObject, read_snapshot
from dsgan_datasets.checkpoints.tensors import digest_tensors
from dsgan_datasets.checkpoints.torch_file import read_torch_file
from dsgan_datasets.generators.base import IMAGE_CHANNELS, GeneratorConfig, Source
from dsgan_datasets.generators.stylegan1 import StyleGAN1Config
from dsgan_datasets.generators.stylegan2 import StyleGAN2Config
from dsgan_datasets.generators.stylegan3 import LayerConfig, StyleGAN3Config
from dsgan_datasets.latents import Quantity, domain, normals, philox_words

#: What can be read, for people.
READABLE = (
    "a checkpoint directory, a .pkl snapshot of stylegan2-ada-pytorch or stylegan3, a rosinality StyleGAN2 .pt "
    "(g_ema), or a StyleGAN1 .pt as DatasetGAN uses it (g_mapping, g_synthesis)"
)

#: How a file of torch.save begins that is no zip: protocol 2, and a magic number.
_TORCH_LEGACY = b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19\x2e"

Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class Foreign:
    """A generator as read from a file of another project.

    Attributes:
        config: its shape.
        tensors: under the names that our own files have.
        source: where it came from.
    """

    config: GeneratorConfig
    tensors: Tensors
    source: Source


def read_foreign(path: Path) -> Foreign:
    """Read a generator file of another project, running nothing from it.

    Raises:
        CheckpointError: it is none of `READABLE`, is damaged, or uses a setting that is not supported.
    """
    if not path.is_file():
        raise CheckpointError(f"{path} is no regular file")
    with path.open("rb") as file:
        start = file.read(len(_TORCH_LEGACY))
    # By content, not by name: people rename these files.
    if start[:4] == b"PK\x03\x04" or start == _TORCH_LEGACY:
        dialect, read = _torch_file(path)
    elif start[:1] == b"\x80":
        dialect, read = _snapshot(path)
    else:
        found = "is empty" if not start else "is no generator file"
        raise CheckpointError(f"{path} {found}: expected {READABLE}")
    try:
        config, tensors, notes = read()
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error
    except (LookupError, TypeError, ValueError, AttributeError, OverflowError, RuntimeError) as error:
        raise CheckpointError(f"{path} is no {dialect} as published: {error!r:.300}") from error
    if config.img_channels != 3:
        notes = [*notes, f"images: {IMAGE_CHANNELS[config.img_channels]}"]
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return Foreign(config, tensors, Source(path.name, digest, dialect, tuple(notes)))


Read = Callable[[], tuple[GeneratorConfig, Tensors, list[str]]]


# --- snapshot pickles of NVIDIA's PyTorch repositories ---


def _snapshot(path: Path) -> tuple[str, Read]:
    network = read_snapshot(path).get("G_ema")
    if not isinstance(network, PersistentObject):
        raise CheckpointError(f"{path} has no generator G_ema")
    if "layer_names" in network.child("synthesis").state:
        return "StyleGAN3 snapshot pickle, network G_ema", lambda: _stylegan3(network)
    return "StyleGAN2 snapshot pickle, network G_ema", lambda: _stylegan2(network)


def _common_fields(network: PersistentObject) -> dict[str, Any]:
    mapping = network.child("mapping")
    dense = mapping.child("fc0")
    _require("activation", dense.state["activation"], "lrelu")
    c_dim = network.state["c_dim"]
    return {
        "z_dim": network.state["z_dim"],
        "w_dim": network.state["w_dim"],
        "c_dim": c_dim,
        "embed_dim": mapping.child("embed").tensors()["weight"].shape[0] if c_dim else 0,
        "mapping_layers": mapping.state["num_layers"],
        "mapping_lr_multiplier": float(dense.state["bias_gain"]),
        "img_resolution": network.state["img_resolution"],
        "img_channels": network.state["img_channels"],
    }


def _require(name: str, value: object, expected: object) -> None:
    if value != expected:
        raise ValueError(f"{name} is {value!r:.40}, only {expected!r} is supported")


def _stylegan2(network: PersistentObject) -> tuple[GeneratorConfig, Tensors, list[str]]:
    synthesis = network.child("synthesis")
    blocks = {r: synthesis.child(f"b{r}") for r in synthesis.state["block_resolutions"]}
    layers = [block.child(f"conv{i}") for r, block in blocks.items() for i in ((0, 1) if r > 4 else (1,))]
    for layer in layers:
        _require("activation", layer.state["activation"], "lrelu")
        _require("use_noise", layer.state["use_noise"], True)
    clamp = layers[0].state["conv_clamp"]
    config = StyleGAN2Config(
        **_common_fields(network),
        channels={r: block.child("conv1").tensors()["weight"].shape[0] for r, block in blocks.items()},
        block=blocks[4].state["architecture"],
        conv_clamp=None if clamp is None else float(clamp),
    )
    tensors = network.child("mapping").tensors("mapping.")
    for name, tensor in synthesis.tensors("synthesis.").items():
        if name.endswith("resample_filter"):
            _check_filter(name, tensor, [1, 3, 3, 1])
        else:
            tensors[name] = tensor
    return config, tensors, []


def _check_filter(name: str, found: Tensor, taps: Sequence[float], gain: float = 1) -> None:
    """ValueError unless the filter is the separable one of these taps; other filters are not supported."""
    line = torch.tensor(taps, dtype=torch.float32)
    expected = torch.outer(line, line) / line.sum().square() * gain
    if found.numel() != expected.numel() or not torch.allclose(found.float().view_as(expected), expected):
        raise ValueError(f"{name} is not the filter {taps}; other filters are not supported")


def _stylegan3(network: PersistentObject) -> tuple[GeneratorConfig, Tensors, list[str]]:
    synthesis = network.child("synthesis")
    source = synthesis.child("input")
    names = [str(name) for name in synthesis.state["layer_names"]]
    layers = [synthesis.child(name) for name in names]
    clamp = layers[0].state["conv_clamp"]
    shapes = tuple(_stylegan3_layer(name, layer) for name, layer in zip(names, layers, strict=True))
    config = StyleGAN3Config(
        **_common_fields(network),
        input_channels=source.state["channels"],
        input_size=_square(source.state["size"]),
        input_sampling_rate=int(source.state["sampling_rate"]),
        bandwidth=float(source.state["bandwidth"]),
        layers=shapes,
        conv_clamp=None if clamp is None else float(clamp),
        output_scale=float(synthesis.state["output_scale"]),
    )
    for i, layer in enumerate(layers):
        _require(f"{names[i]}.is_torgb", layer.state["is_torgb"], i == len(layers) - 1)
        _require(f"{names[i]}.conv_clamp", layer.state["conv_clamp"], clamp)
    for ours, theirs in zip(config.layer_names, names, strict=True):
        _require("name of a layer", theirs, ours)
    tensors = {**network.child("mapping").tensors("mapping."), **synthesis.tensors("synthesis.")}
    kind = "R (rotation equivariant)" if any(len(shape.down_filter) == 2 for shape in shapes) else "T"
    return config, tensors, [f"configuration {kind}, {shapes[0].kernel}×{shapes[0].kernel} kernels"]


def _stylegan3_layer(name: str, layer: PersistentObject) -> LayerConfig:
    state, tensors = layer.state, layer.tensors()
    return LayerConfig(
        channels=state["out_channels"],
        size=int(name.split("_")[1]),
        sampling_rate=int(state["out_sampling_rate"]),
        kernel=state["conv_kernel"],
        up=state["up_factor"],
        down=state["down_factor"],
        up_filter=tuple(tensors["up_filter"].shape) if "up_filter" in tensors else (),
        down_filter=tuple(tensors["down_filter"].shape) if "down_filter" in tensors else (),
        padding=tuple(state["padding"]),
    )


def _square(size: Any) -> int:
    """The side of a (width, height)."""
    width, height = (int(n) for n in size)
    _require("width of the input", width, height)
    return width


# --- torch files ---


def _torch_file(path: Path) -> tuple[str, Read]:
    content = read_torch_file(path)
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{path} holds a {type(content).__name__}; expected {READABLE}")
    if isinstance(g_ema := content.get("g_ema"), Mapping):
        return "rosinality StyleGAN2, network g_ema", lambda: _rosinality(_named(g_ema), content.get("latent_avg"))
    if "g_synthesis.torgb.weight" in content:
        average = path.with_name(f"{path.stem}_avg_latent.npy")
        return "StyleGAN1 state dict (g_mapping, g_synthesis)", lambda: _datasetgan(_named(content), average)
    names = ", ".join(f"{name!r:.40}" for name in list(content)[:5]) or "nothing"
    raise CheckpointError(f"{path} is no generator file: it holds {names}; expected {READABLE}")


def _named(content: Mapping[Any, Any]) -> Tensors:
    """The tensors of a state dict."""
    wrong = [f"{k!r:.40}" for k, v in content.items() if not isinstance(k, str) or not isinstance(v, Tensor)]
    if wrong:
        raise ValueError(f"a state dict holds only named tensors, not {', '.join(wrong[:3])}")
    return dict(content)


def _rosinality(theirs: Tensors, average: object) -> tuple[GeneratorConfig, Tensors, list[str]]:
    count = len([name for name in theirs if re.fullmatch(r"convs\.\d+\.conv\.weight", name)])
    layers = {"b4.conv1": "conv1", **{f"b{8 << i // 2}.conv{i % 2}": f"convs.{i}" for i in range(count)}}
    to_rgb = {"b4.torgb": "to_rgb1", **{f"b{8 << i}.torgb": f"to_rgbs.{i}" for i in range(count // 2)}}
    ours: Tensors = {"synthesis.b4.const": theirs.pop("input.input")[0]}

    def take(name: str) -> Tensor:
        return theirs.pop(name)

    def scaled(name: str) -> Tensor:
        """Kernels [1, O, I, k, k] get the equalized gain that our layers leave to demodulation."""
        kernel = take(f"{name}.conv.weight")[0]
        return kernel / math.sqrt(kernel[0].numel())

    for i, (name, source) in enumerate(layers.items()):
        ours[f"synthesis.{name}.weight"] = scaled(source)
        ours[f"synthesis.{name}.bias"] = take(f"{source}.activate.bias")
        ours[f"synthesis.{name}.noise_strength"] = take(f"{source}.noise.weight").reshape([])
        ours[f"synthesis.{name}.noise_const"] = take(f"noises.noise_{i}")[0, 0]
    for name, source in to_rgb.items():
        ours[f"synthesis.{name}.weight"] = take(f"{source}.conv.weight")[0]
        ours[f"synthesis.{name}.bias"] = take(f"{source}.bias").flatten()
    for name, source in {**layers, **to_rgb}.items():
        for part in ("weight", "bias"):
            ours[f"synthesis.{name}.affine.{part}"] = take(f"{source}.conv.modulation.{part}")
    depth = len([name for name in theirs if re.fullmatch(r"style\.\d+\.weight", name)])
    for i in range(depth):
        for part in ("weight", "bias"):
            ours[f"mapping.fc{i}.{part}"] = take(f"style.{i + 1}.{part}")
    notes = ["no average w in the file: truncation is not possible without avg_latent"]
    if isinstance(average, Tensor):
        ours["mapping.w_avg"], notes = average.flatten(), []
    for name in [name for name in theirs if name.endswith(".kernel")]:
        _check_filter(name, take(name), [1, 3, 3, 1], gain=4)
    if theirs:
        raise ValueError(f"it has tensors that are not known: {sorted(theirs)[:3]}")
    config = StyleGAN2Config(
        z_dim=ours["mapping.fc0.weight"].shape[1],
        w_dim=ours["mapping.fc0.weight"].shape[0],
        mapping_layers=depth,
        img_resolution=4 << count // 2,
        img_channels=ours["synthesis.b4.torgb.weight"].shape[0],
        channels={4 << i: ours[f"synthesis.b{4 << i}.conv1.weight"].shape[0] for i in range(count // 2 + 1)},
        has_w_avg=isinstance(average, Tensor),
    )
    return config, ours, notes


def _datasetgan(theirs: Tensors, average: Path) -> tuple[GeneratorConfig, Tensors, list[str]]:
    # Drawn before anything is taken out, from the file's own tensors: the same file, the same noise.
    seed = int(digest_tensors(theirs)[:16], 16)
    noise_weight = re.compile(r"g_synthesis\.blocks\.(\d+)x\1\.epi1\.top_epi\.noise\.weight")
    resolutions = sorted(int(m[1]) for name in theirs if (m := noise_weight.fullmatch(name)))
    ours: Tensors = {}

    def take(ours_name: str, theirs_name: str) -> None:
        ours[ours_name] = theirs.pop(theirs_name)

    depth = len([name for name in theirs if re.fullmatch(r"g_mapping\.dense\d+\.weight", name)])
    for i in range(depth):
        take(f"mapping.fc{i}.weight", f"g_mapping.dense{i}.weight")
        # Their gain sqrt(2) is inside the activation, on the weights alone; ours follows it.
        ours[f"mapping.fc{i}.bias"] = theirs.pop(f"g_mapping.dense{i}.bias") / math.sqrt(2)
    for i, r in enumerate(resolutions):
        block, source = f"synthesis.b{r}", f"g_synthesis.blocks.{r}x{r}"
        if i == 0:
            take(f"{block}.bias", f"{source}.bias")
            ours[f"{block}.const"] = theirs.pop(f"{source}.const")[0]
        convs = {"conv1": "conv"} if i == 0 else {"conv0": "conv0_up", "conv1": "conv1"}
        for name, their_name in convs.items():
            take(f"{block}.{name}.weight", f"{source}.{their_name}.weight")
            take(f"{block}.{name}.bias", f"{source}.{their_name}.bias")
        for j in range(2):
            take(f"{block}.epilogue{j}.noise_strength", f"{source}.epi{j + 1}.top_epi.noise.weight")
            take(f"{block}.epilogue{j}.affine.weight", f"{source}.epi{j + 1}.style_mod.lin.weight")
            take(f"{block}.epilogue{j}.affine.bias", f"{source}.epi{j + 1}.style_mod.lin.bias")
            ours[f"{block}.epilogue{j}.noise_const"] = _fixed_noise(seed, 2 * i + j, r)
    for part in ("weight", "bias"):
        take(f"synthesis.torgb.{part}", f"g_synthesis.torgb.{part}")
    for name in [name for name in theirs if name.endswith("intermediate.kernel")]:
        _check_filter(name, theirs.pop(name), [1, 2, 1])
    if theirs:
        raise ValueError(f"it has tensors that are not known: {sorted(theirs)[:3]}")
    notes = [f"noise drawn from the weights' hash (seed {seed}), as the file has none"]
    if average.is_file():
        ours["mapping.w_avg"] = read_average(average)
        notes.append(f"average w from {average.name}")
    else:
        notes.append(f"no average w: truncation is not possible without avg_latent, or {average.name} beside the file")
    config = StyleGAN1Config(
        z_dim=ours["mapping.fc0.weight"].shape[1],
        w_dim=ours["mapping.fc0.weight"].shape[0],
        mapping_layers=depth,
        img_resolution=resolutions[-1],
        img_channels=ours["synthesis.torgb.weight"].shape[0],
        channels={r: ours[f"synthesis.b{r}.conv1.weight"].shape[0] for r in resolutions},
        has_w_avg=average.is_file(),
    )
    return config, ours, notes


def _fixed_noise(seed: int, layer: int, resolution: int) -> Tensor:
    """Standard normal noise [resolution, resolution]: the same for the same seed and layer."""
    words = philox_words(torch.tensor([layer]), resolution * resolution, seed=seed, domain=domain(Quantity.NOISE))
    return torch.from_numpy(normals(words).reshape(resolution, resolution).copy())


# --- the average w ---


def read_average(path: Path) -> Tensor:
    """Average w of a ``.npy`` file, see `average_w`.

    Raises:
        CheckpointError: no such file, or it holds something else.
    """
    if not path.is_file():
        raise CheckpointError(f"no file {path} with an average latent")
    try:
        latent = torch.from_numpy(np.load(path, allow_pickle=False))
    except Exception as error:  # a damaged file may raise anything at all
        raise CheckpointError(f"{path} is no .npy file of numbers, as an average latent should be") from error
    try:
        return average_w(latent)
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}") from error


def average_w(latent: Tensor | np.ndarray) -> Tensor:
    """Average w as one vector [w_dim], from [w_dim] or from equal rows [L, w_dim], as DatasetGAN stores it.

    Raises:
        ValueError: another shape, or rows that differ.
    """
    try:
        latent = torch.as_tensor(latent)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(
            f"an average latent must be a tensor or array of numbers, not {type(latent).__name__}"
        ) from error
    if latent.is_complex() or latent.dtype == torch.bool:
        raise ValueError(f"an average latent must be real numbers, not {latent.dtype}")
    if latent.dim() not in (1, 2) or not latent.numel() or not bool(latent.isfinite().all()):
        raise ValueError(f"an average latent must be finite numbers [w_dim] or [L, w_dim], not {list(latent.shape)}")
    rows = latent.detach().cpu().float().reshape(-1, latent.shape[-1])
    if not bool((rows == rows[0]).all()):
        raise ValueError("an average latent must be the same for all layers: truncation pulls every layer to one w")
    return rows[0].clone()
