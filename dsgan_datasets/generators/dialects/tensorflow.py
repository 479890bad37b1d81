"""Pickles of NVIDIA's TensorFlow code and its forks: StyleGAN2, StyleGAN2-ADA and StyleGAN1, network ``Gs``.

A network is an object with nested components, each with a list of (name, array); TensorFlow itself is not needed. Such
files carry the source of their network (``build_module_src``), which NVIDIA's code runs; here it is never looked at.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dsgan_datasets.checkpoints.pickles import VENDORED, Foreign, not_allowed
from dsgan_datasets.generators.dialects.base import Dialect, Found, ImportedGenerator, Tensors, require, take
from dsgan_datasets.generators.dialects.noise import check_doubling, drawn, fixed_noise, seed_of
from dsgan_datasets.generators.dialects.shapes import mapping_shape, synthesis_shape, table_of_classes
from dsgan_datasets.generators.dialects.states import count
from dsgan_datasets.generators.stylegan1 import StyleGAN1Config
from dsgan_datasets.generators.stylegan2 import StyleGAN2Config

_CLASSES = frozenset(f"{module}.Network" for module in VENDORED) | {"tfutil.Network"}
#: Settings that change nothing here, of the original and of forks: shapes come from the tensors.
_HARMLESS = frozenset(
    (
        *("architecture", "beta", "blur_filter", "clip_style", "components", "conditioning", "conv_clamp"),
        *("dlatent_avg_beta", "dlatent_broadcast", "dlatent_size", "dtype", "fmap_base", "fmap_decay"),
        *("fmap_max", "fmap_min", "force_clean_graph", "fp16_channels_last", "func_name", "fused_modconv"),
        *("fused_scale", "generator_name", "gradient", "image_shape", "impl", "init_res", "input_transform"),
        *("is_training", "is_validation", "label_fmaps", "label_size", "latent_size", "mapping_fmaps"),
        *("mapping_func", "mapping_layers", "mapping_lrmul", "mapping_nonlinearity", "min_h", "min_w"),
        *("mirror_augment", "name", "nonlinearity", "normalize_latents", "num_channels", "num_fp16_res"),
        *("output_scale", "randomize_noise", "res_log2", "resample_kernel", "resolution", "resolution_h"),
        *("resolution_w", "return_dlatents", "structure", "style_mixing_prob", "synthesis_func"),
        *("truncation_cutoff", "truncation_cutoff_val", "truncation_psi", "truncation_psi_val"),
        *("use_instance_norm", "use_noise", "use_pixel_norm", "use_styles", "use_wscale", "verbose"),
        *("w_avg_beta",),
    )
)
#: Settings whose value must be this one.
_REQUIRED = {
    "nonlinearity": "lrelu",
    "mapping_nonlinearity": "lrelu",
    "use_wscale": True,
    "use_styles": True,
    "use_pixel_norm": False,
    "use_instance_norm": True,
    "normalize_latents": True,
    "fmap_decay": 1,
    "fused_scale": "auto",
    "resample_kernel": [1, 3, 3, 1],
    "blur_filter": [1, 2, 1],
}


def _find(content: Any) -> Found | None:
    """The last network of the file, which is the averaged one."""
    parts = [content.get("Gs", content.get("G_ema"))] if isinstance(content, Mapping) else content
    parts = parts if isinstance(parts, list | tuple) else [parts]
    networks = [part for part in parts if isinstance(part, Foreign) and part.name in _CLASSES]
    return Found(networks[-1], "Gs" if len(networks) > 1 else "", content) if networks else None


def _read(found: Found, _: Path) -> ImportedGenerator:
    state = found.network.state
    settings, unknown = _settings(found.network)
    variables: Tensors = {}
    _collect(found.network, variables)
    ours: Tensors = {}
    if "dlatent_avg" in variables:
        ours["mapping.w_avg"] = variables.pop("dlatent_avg").reshape(-1)
    notes = [f"network version {state.get('version')}"]
    if unknown:
        notes.append(f"settings that are not known, taken to be harmless: {', '.join(sorted(unknown)[:8])}")
    if variables.get("lod", torch.zeros(1, device="cpu")).flatten()[:1].gt(0).any():
        notes.append("its training had not grown to the last resolution, of which the images are")
    sides = _sides(variables)
    if not sides:
        raise ValueError("it has no layers such as 4x4/Conv: is it damaged, or the network of something else?")
    check_doubling([(int(height), int(width)) for height, width in (side.split("x") for side in sides)])
    for name, expected in _REQUIRED.items():
        if name in settings:
            value = settings[name]
            require(name, list(value) if isinstance(value, tuple | np.ndarray) else value, expected)
    is_stylegan1 = f"{sides[0]}/Const/StyleMod/weight" in variables
    normalize = _mapping(variables, ours, gain=math.sqrt(2) if is_stylegan1 else 1)
    read = _stylegan1 if is_stylegan1 else _stylegan2
    return read(variables, ours, sides, {"normalize": normalize}, settings, notes)


def _settings(network: Foreign) -> tuple[dict[str, Any], set[str]]:
    """Keyword arguments of a network and its components, and the names of those that are not known."""
    found: dict[str, Any] = {}
    for part in _networks(network):
        kwargs = part.state.get("static_kwargs", {})
        found |= kwargs if isinstance(kwargs, Mapping) else {}
    return found, {str(name)[:40] for name in found if name not in _HARMLESS}


def _networks(network: Foreign) -> list[Foreign]:
    components = network.state.get("components", {})
    below = list(components.values()) if isinstance(components, Mapping) else []
    for part in below:
        if not isinstance(part, Foreign) or part.name not in _CLASSES:
            raise not_allowed(getattr(part, "name", type(part).__name__))
    return [network, *below]


def _collect(network: Foreign, into: Tensors) -> None:
    """The variables of a network and its components."""
    for part in _networks(network):
        variables = part.state.get("variables", ())
        if not isinstance(variables, Sequence):
            raise ValueError("its variables are not a list")
        for name, value in variables:
            if not isinstance(name, str) or not isinstance(value, np.ndarray | int | float):
                raise ValueError(f"it has a variable that is not a named array: {name!r:.40}")
            into[name] = torch.from_numpy(np.array(value, dtype=np.float32))


def _sides(variables: Tensors) -> list[str]:
    """Names of the resolutions, coarse to fine: "4x4", "8x8", …"""
    pattern = re.compile(r"(\d{1,5})x(\d{1,5})/(Conv|Conv1|Const)/.*")
    sides = {(int(m[1]), int(m[2])) for name in variables if (m := pattern.fullmatch(name))}
    return [f"{height}x{width}" for height, width in sorted(sides)]


def _mapping(variables: Tensors, ours: Tensors, gain: float) -> str:
    """The mapping network; returns how z and class are normalized. `gain` is in their weights, not their biases."""
    for i in range(count(variables, r"Dense\d+/weight")):
        ours[f"mapping.fc{i}.weight"] = take(variables, f"Dense{i}/weight").t().contiguous()
        ours[f"mapping.fc{i}.bias"] = take(variables, f"Dense{i}/bias") / gain
    if "LabelConcat/weight" in variables:
        ours |= table_of_classes(variables.pop("LabelConcat/weight"))
        return "joined"
    if "LabelEmbed/weight" in variables:
        ours["mapping.embed.weight"] = variables.pop("LabelEmbed/weight").t().contiguous()
        ours["mapping.embed.bias"] = take(variables, "LabelEmbed/bias")
    return "apart"


def _kernel(weight: Tensor, *, flipped: bool = False) -> Tensor:
    """[kh, kw, in, out] -> [out, in, kh, kw]; kernels of layers that change the resolution are stored mirrored."""
    kernel = weight.permute(3, 2, 0, 1)
    return (kernel.flip(2, 3) if flipped else kernel).contiguous()


def _noise(variables: Tensors, layer: int, size: tuple[int, int], seed: int) -> Tensor:
    stored = variables.pop(f"noise{layer}", None)
    return fixed_noise(seed, layer, size) if stored is None else stored.reshape(stored.shape[-2:])


def _stylegan2(
    variables: Tensors,
    ours: Tensors,
    sides: list[str],
    fields: dict[str, Any],
    settings: dict[str, Any],
    notes: list[str],
) -> ImportedGenerator:
    seed = seed_of(variables)
    if "noise0" not in variables:
        notes.append(drawn(seed))
    ours["synthesis.b4.const"] = take(variables, f"{sides[0]}/Const/const")[0]
    for i, side in enumerate(sides):
        block, height, width = f"synthesis.b{4 << i}", *(int(n) for n in side.split("x"))
        for j, theirs in enumerate(("Conv0_up", "Conv1") if i else ("Conv",)):
            name, source = f"{block}.conv{j if i else 1}", f"{side}/{theirs}"
            ours[f"{name}.weight"] = _kernel(take(variables, f"{source}/weight"), flipped=theirs == "Conv0_up")
            ours[f"{name}.bias"] = take(variables, f"{source}/bias")
            ours[f"{name}.noise_strength"] = take(variables, f"{source}/noise_strength").reshape([])
            layer = 2 * i - 1 + j if i else 0
            ours[f"{name}.noise_const"] = _noise(variables, layer, (height, width), seed)
            _style(variables, ours, name, source)
        lod = f"{side}/ToRGB_lod{len(sides) - 1 - i}"
        rgb = lod if f"{lod}/weight" in variables else f"{side}/ToRGB"
        if f"{rgb}/weight" in variables:
            ours[f"{block}.torgb.weight"] = _kernel(take(variables, f"{rgb}/weight"))
            ours[f"{block}.torgb.bias"] = take(variables, f"{rgb}/bias")
            _style(variables, ours, f"{block}.torgb", rgb)
        if f"{side}/Skip/weight" in variables:
            ours[f"{block}.skip.weight"] = _kernel(take(variables, f"{side}/Skip/weight"), flipped=True)
    clamp = settings.get("conv_clamp")
    shape = {**mapping_shape(ours), **synthesis_shape(ours), **fields}
    config = StyleGAN2Config(
        **shape,
        mapping_lr_multiplier=float(settings.get("mapping_lrmul", 0.01)),
        conv_clamp=None if clamp is None else float(clamp),
    )
    return ImportedGenerator(config, ours, tuple(notes))


def _style(variables: Tensors, ours: Tensors, name: str, source: str) -> None:
    ours[f"{name}.affine.weight"] = take(variables, f"{source}/mod_weight").t().contiguous()
    ours[f"{name}.affine.bias"] = take(variables, f"{source}/mod_bias") + 1


def _stylegan1(
    variables: Tensors,
    ours: Tensors,
    sides: list[str],
    fields: dict[str, Any],
    settings: dict[str, Any],
    notes: list[str],
) -> ImportedGenerator:
    seed = seed_of(variables)
    if "noise0" not in variables:
        notes.append(drawn(seed))
    ours["synthesis.b4.const"] = take(variables, f"{sides[0]}/Const/const")[0]
    ours["synthesis.b4.bias"] = take(variables, f"{sides[0]}/Const/bias")
    for i, side in enumerate(sides):
        block, height, width = f"synthesis.b{4 << i}", *(int(n) for n in side.split("x"))
        for j, theirs in enumerate(("Conv0_up", "Conv1") if i else ("Const", "Conv")):
            source, epilogue = f"{side}/{theirs}", f"{block}.epilogue{j}"
            if theirs != "Const":
                ours[f"{block}.conv{j}.weight"] = _kernel(take(variables, f"{source}/weight"))
                ours[f"{block}.conv{j}.bias"] = take(variables, f"{source}/bias")
            ours[f"{epilogue}.noise_strength"] = take(variables, f"{source}/Noise/weight")
            ours[f"{epilogue}.noise_const"] = _noise(variables, 2 * i + j, (height, width), seed)
            ours[f"{epilogue}.affine.weight"] = take(variables, f"{source}/StyleMod/weight").t().contiguous()
            ours[f"{epilogue}.affine.bias"] = take(variables, f"{source}/StyleMod/bias")
    ours["synthesis.torgb.weight"] = _kernel(take(variables, "ToRGB_lod0/weight"))
    ours["synthesis.torgb.bias"] = take(variables, "ToRGB_lod0/bias")
    config = stylegan1_config(ours, mapping_lr_multiplier=float(settings.get("mapping_lrmul", 0.01)), **fields)
    return ImportedGenerator(config, ours, tuple(notes))


def stylegan1_config(tensors: Tensors, **fields: Any) -> StyleGAN1Config:
    """Shape of a StyleGAN1 as the original computes it, from its tensors under our names."""
    pattern = re.compile(r"synthesis\.b(\d+)\.conv1\.weight")
    blocks = sorted(int(match[1]) for name in tensors if (match := pattern.fullmatch(name)))
    const = tensors["synthesis.b4.const"]
    return StyleGAN1Config(
        **mapping_shape(tensors),
        img_resolution=blocks[-1],
        img_size=(blocks[-1] // 4 * const.shape[1], blocks[-1] // 4 * const.shape[2]),
        img_channels=tensors["synthesis.torgb.weight"].shape[0],
        channels={r: tensors[f"synthesis.b{r}.conv1.weight"].shape[0] for r in blocks},
        num_ws=2 * len(blocks),
        norm_eps=1e-8,
        **fields,
    )


TENSORFLOW = Dialect(
    name="TensorFlow pickle of StyleGAN, network Gs",
    readable="a TensorFlow .pkl of StyleGAN or StyleGAN2",
    find=_find,
    read=_read,
    classes=_CLASSES,
)
