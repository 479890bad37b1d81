"""Files of genforce and Hammer: StyleGAN1 and StyleGAN2, network ``generator_smooth``.

Their values are those of the TensorFlow pickles, transposed.
"""

from __future__ import annotations

import math
import re
from pathlib import Path

from dsgan_datasets.generators.dialects.base import (
    Dialect,
    Found,
    ImportedGenerator,
    Tensors,
    check_filter,
    check_nothing_left,
    take,
)
from dsgan_datasets.generators.dialects.noise import check_doubling, drawn, fixed_noise, seed_of
from dsgan_datasets.generators.dialects.shapes import mapping_shape, synthesis_shape, table_of_classes
from dsgan_datasets.generators.dialects.states import count, finder, tensors_of
from dsgan_datasets.generators.dialects.tensorflow import stylegan1_config
from dsgan_datasets.generators.stylegan2 import StyleGAN2Config

_MARKS = ("mapping.dense0.weight", "synthesis.layer1.weight")


def _read(found: Found, _: Path) -> ImportedGenerator:
    theirs = tensors_of(found, *_MARKS)
    seed, ours, notes = seed_of(theirs), Tensors(), list[str]()
    layers = count(theirs, r"synthesis\.layer\d+\.style\.weight")
    is_stylegan1 = "synthesis.layer0.apply_noise.weight" in theirs
    gain = math.sqrt(2) if is_stylegan1 else 1.0
    for i in range(count(theirs, r"mapping\.dense\d+\.weight")):
        ours[f"mapping.fc{i}.weight"] = take(theirs, f"mapping.dense{i}.weight")
        ours[f"mapping.fc{i}.bias"] = take(theirs, f"mapping.dense{i}.bias") / gain
    if "mapping.label_weight" in theirs:
        ours |= table_of_classes(theirs.pop("mapping.label_weight"))
    elif "mapping.embedding.weight" in theirs:
        for part in ("weight", "bias"):
            ours[f"mapping.embed.{part}"] = take(theirs, f"mapping.embedding.{part}")
        notes.append("class embedding as of StyleGAN2-ADA")
    joined = "mapping.embed.weight" in ours and not notes
    for name in ("truncation.w_avg", "w_avg"):
        if name in theirs:
            width = ours[f"mapping.fc{count(ours, r'mapping.fc[0-9]+.weight') - 1}.bias"].shape[0]
            rows = theirs.pop(name).reshape(-1, width)
            if not bool((rows == rows[0]).all()):
                raise ValueError("its average w differs from layer to layer")
            ours["mapping.w_avg"] = rows[0]
    const = theirs.get("synthesis.layer0.const" if is_stylegan1 else "synthesis.early_layer.const")
    if const is None:
        raise ValueError("it has no constant")
    check_doubling([(const.shape[-2] << i, const.shape[-1] << i) for i in range(min((layers + 1) // 2, 40))])
    noise = "apply_noise.noise" if is_stylegan1 else "noise"
    if f"synthesis.layer0.{noise}" not in theirs:
        notes.append(drawn(seed))
    (_stylegan1 if is_stylegan1 else _stylegan2)(theirs, ours, layers, seed)
    for name in [name for name in theirs if re.fullmatch(r"(synthesis\..*kernel|.*lod|synthesis\.output.*)", name)]:
        kernel = theirs.pop(name)
        if not is_stylegan1 and name.endswith("kernel"):
            gain = 4.0 if float(kernel.sum()) > 2 else 1.0
            check_filter(name, kernel, [1, 3, 3, 1], gain)
    check_nothing_left(theirs)
    normalize = "joined" if joined else "apart"
    if is_stylegan1:
        return ImportedGenerator(stylegan1_config(ours, normalize=normalize), ours, tuple(notes))
    shape = {**mapping_shape(ours), **synthesis_shape(ours), "normalize": normalize}
    return ImportedGenerator(StyleGAN2Config(**shape), ours, tuple(notes))


def _stylegan2(theirs: Tensors, ours: Tensors, layers: int, seed: int) -> None:
    const = take(theirs, "synthesis.early_layer.const")
    ours["synthesis.b4.const"] = const.reshape(const.shape[-3:])
    for k in range(layers):
        b = (k + 1) // 2
        name, source = f"synthesis.b{4 << b}.conv{(k + 1) % 2}", f"synthesis.layer{k}"
        kernel = take(theirs, f"{source}.weight")
        is_up = k % 2 == 1
        ours[f"{name}.weight"] = kernel.flip(2, 3).contiguous() if is_up else kernel
        ours[f"{name}.bias"] = take(theirs, f"{source}.bias")
        ours[f"{name}.noise_strength"] = take(theirs, f"{source}.noise_strength").reshape([])
        size = (const.shape[-2] << b, const.shape[-1] << b)
        stored = theirs.pop(f"{source}.noise", None)
        ours[f"{name}.noise_const"] = fixed_noise(seed, k, size) if stored is None else stored.reshape(size)
        _style(theirs, ours, name, source)
    for b in range((layers + 1) // 2):
        source = f"synthesis.output{b}"
        if f"{source}.weight" in theirs:
            for part in ("weight", "bias"):
                ours[f"synthesis.b{4 << b}.torgb.{part}"] = take(theirs, f"{source}.{part}")
            _style(theirs, ours, f"synthesis.b{4 << b}.torgb", source)


def _style(theirs: Tensors, ours: Tensors, name: str, source: str) -> None:
    ours[f"{name}.affine.weight"] = take(theirs, f"{source}.style.weight")
    ours[f"{name}.affine.bias"] = take(theirs, f"{source}.style.bias") + 1


def _stylegan1(theirs: Tensors, ours: Tensors, layers: int, seed: int) -> None:
    const = take(theirs, "synthesis.layer0.const")
    ours["synthesis.b4.const"] = const.reshape(const.shape[-3:])
    ours["synthesis.b4.bias"] = take(theirs, "synthesis.layer0.bias")
    for k in range(layers):
        b, j = divmod(k, 2)
        block, source = f"synthesis.b{4 << b}", f"synthesis.layer{k}"
        if k:
            ours[f"{block}.conv{j}.weight"] = take(theirs, f"{source}.weight")
            ours[f"{block}.conv{j}.bias"] = take(theirs, f"{source}.bias")
        epilogue, size = f"{block}.epilogue{j}", (const.shape[-2] << b, const.shape[-1] << b)
        ours[f"{epilogue}.noise_strength"] = take(theirs, f"{source}.apply_noise.weight").flatten()
        stored = theirs.pop(f"{source}.apply_noise.noise", None)
        ours[f"{epilogue}.noise_const"] = fixed_noise(seed, k, size) if stored is None else stored.reshape(size)
        for part in ("weight", "bias"):
            ours[f"{epilogue}.affine.{part}"] = take(theirs, f"{source}.style.{part}")
    last = layers // 2 - 1
    ours["synthesis.torgb.weight"] = take(theirs, f"synthesis.output{last}.weight")
    ours["synthesis.torgb.bias"] = take(theirs, f"synthesis.output{last}.bias")


GENFORCE = Dialect(
    name="genforce or Hammer StyleGAN, network generator_smooth",
    readable="a genforce or Hammer .pth",
    find=finder(*_MARKS),
    read=_read,
)
